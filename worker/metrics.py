"""Prometheus metrics, computed from the ledger at each scrape."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tasks.attempts import CALL_SECONDS
from tasks.errors import LedgerUnavailable
from tasks.ledger import Ledger
from tasks.ledger.statistics import AccountStatistics, Statistics, statistics
from tasks.records import from_ms
from worker.doctor.policies import ScheduledPolicy, scheduled_policies

_Kind = type[GaugeMetricFamily] | type[CounterMetricFamily]
_OF_ALL = {
    "workers": "Worker processes seen lately",
    "workers_stuck": "Worker processes with tasks that run far too long and keep their slots",
    "maintenance_age_seconds": "Since the last round of maintenance, of any worker",
    "beat_age_seconds": "Since beat last ran",
    "dead_letters": "Messages that could not be read",
}
_BY_ACCOUNT = {
    "oldest_due_seconds": "How long the oldest due deletion has waited, retries included; 0 if nothing is due",
    "permits": "API calls that may be under way",
    "permits_limit": "API calls that may be under way at most",
    "cool_down_seconds": "How long the account still waits, as the API asked",
    "retrying": "Unfinished deletions of which a try failed",
    "reviews_open": "Deletions in review that no person resolved or retried, among the newest 200",
    "unverified": "Deleted records that the list of finetunes is still to confirm",
    "verification_late_seconds": "How long the check of the oldest unverified record is overdue; 0 if none is",
    "parked": "1 while the API refuses the key of the account",
    "paused": "1 while deleting is paused",
    "verifications_failed": "Deleted finetunes that were found to be still there",
}
# For each metric: its meaning, and its value for a scheduled policy at a moment.
_OF_POLICY: list[tuple[str, str, Callable[[ScheduledPolicy, datetime], float]]] = [
    ("policy_blocked", "1 while the newest plan of a scheduled policy is blocked: it deletes nothing",
     lambda one, _: one.is_blocked),
    ("policy_overdue_seconds", "How long ago a scheduled run was due that was not made; 0 if none is owed",
     lambda one, now: one.overdue(now).total_seconds()),
]  # fmt: skip
# For each metric: what it counts, by which label, and the counts of an account by the label's value.
_COUNTED: list[tuple[_Kind, str, str, str, Callable[[AccountStatistics], Mapping[Any, float]]]] = [
    (GaugeMetricFamily, "deletions", "Deletions on record", "state", lambda one: one.states),
    (CounterMetricFamily, "requests", "Requests accepted", "source", lambda one: one.requests),
    (CounterMetricFamily, "refused", "Requests and reports of use refused", "reason", lambda one: one.refused),
    (CounterMetricFamily, "finished", "Deletions that ended, by outcome", "outcome", lambda one: one.finished),
    (CounterMetricFamily, "observations", "Observations, by what was seen, or by HTTP status or error", "answer",
     lambda one: one.observations),
    (CounterMetricFamily, "attempts", "Delete calls, by HTTP status or error", "answer",
     lambda one: {answer: buckets.total() for answer, buckets in one.calls.items()}),
]  # fmt: skip


class LedgerCollector(Collector):
    """One scrape reads the ledger once; if that fails, `janitor_ledger_up` is 0 and the only metric."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        found = None
        with suppress(LedgerUnavailable):
            now, policies = from_ms(self._ledger.now_ms()), scheduled_policies(self._ledger)
            found = statistics(self._ledger)
        yield _family(GaugeMetricFamily, "ledger_up", "1 if Redis answered this scrape", {(): found is not None})
        if found is None:
            return
        for name, help_ in _OF_ALL.items():
            yield _family(GaugeMetricFamily, name, help_, {(): getattr(found, name)})
        accounts = found.accounts.items()
        for name, help_ in _BY_ACCOUNT.items():
            kind = CounterMetricFamily if name == "verifications_failed" else GaugeMetricFamily
            yield _family(
                kind, name, help_, {(account,): getattr(of_it, name) for account, of_it in accounts}, "account"
            )
        for kind, name, help_, label, counts in _COUNTED:
            values = {(account, by): n for account, of_it in accounts for by, n in counts(of_it).items()}
            yield _family(kind, name, help_, values, "account", label)
        yield _call_seconds(found)
        for name, help_, of_policy in _OF_POLICY:
            by_policy = {(one.name,): of_policy(one, now) for one in policies}
            yield _family(GaugeMetricFamily, name, help_, by_policy, "policy")


def registry(ledger: Ledger) -> CollectorRegistry:
    """A registry with the ledger's metrics alone: those of the serving process tell nothing."""
    made = CollectorRegistry(auto_describe=False)
    made.register(LedgerCollector(ledger))
    return made


def _family(kind: _Kind, name: str, help_: str, values: Mapping[Any, float], *labels: str) -> Metric:
    """A metric; values: by the values of its labels."""
    family = kind(f"janitor_{name}", help_, labels=labels)
    for of_labels, value in values.items():
        family.add_metric(of_labels, float(value))
    return family


def _call_seconds(found: Statistics) -> Metric:
    family = HistogramMetricFamily("janitor_call_seconds", "How long delete calls took", labels=["account"])
    for name, account in found.accounts.items():
        counts = [
            sum(calls[edge] for calls in account.calls.values()) for edge in (*map(str, CALL_SECONDS), "inf")
        ]
        buckets = zip((*map(str, CALL_SECONDS), "+Inf"), accumulate(counts), strict=True)
        family.add_metric([name], list(buckets), sum(account.call_seconds.values()))
    return family
