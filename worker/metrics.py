"""Prometheus metrics, computed from the ledger at each scrape."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tasks.attempts import CALL_SECONDS
from tasks.errors import LedgerUnavailable
from tasks.ledger import Ledger
from tasks.ledger.statistics import AccountStatistics, Statistics, statistics

_BUCKETS = [*map(str, CALL_SECONDS), "inf"]
_OF_ALL = {
    "workers": "Worker processes seen lately",
    "maintenance_age_seconds": "Since the last round of maintenance, of any worker",
    "beat_age_seconds": "Since beat last ran",
    "dead_letters": "Messages that could not be read",
}
_BY_ACCOUNT = {
    "oldest_due_seconds": "How long the oldest due deletion has waited, retries included; 0 if nothing is due",
    "permits": "API calls that may be under way",
    "permits_limit": "API calls that may be under way at most",
    "cool_down_seconds": "How long the account still waits, as the API asked",
    "parked": "1 while the API refuses the key of the account",
    "paused": "1 while deleting is paused",
}


class LedgerCollector(Collector):
    """One scrape reads the ledger once; if that fails, `janitor_ledger_up` is 0 and the only metric."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        try:
            found = statistics(self._ledger)
        except LedgerUnavailable:
            found = None
        yield _gauge("ledger_up", "1 if Redis answered this scrape", found is not None)
        if found is not None:
            for name, help_ in _OF_ALL.items():
                yield _gauge(name, help_, getattr(found, name))
            for name, help_ in _BY_ACCOUNT.items():
                yield _by_account(name, help_, found)
            yield from _counted(found)


def registry(ledger: Ledger) -> CollectorRegistry:
    """A registry with the ledger's metrics alone: those of the serving process tell nothing."""
    made = CollectorRegistry(auto_describe=False)
    made.register(LedgerCollector(ledger))
    return made


def _counted(found: Statistics) -> Iterator[Metric]:
    deletions = GaugeMetricFamily("janitor_deletions", "Deletions on record", labels=["account", "state"])
    requests = CounterMetricFamily("janitor_requests", "Requests accepted", labels=["account", "source"])
    refused = CounterMetricFamily("janitor_refused", "Requests by name refused", labels=["account", "reason"])
    unverified = CounterMetricFamily(
        "janitor_verifications_failed", "Deleted finetunes that were found to be still there", labels=["account"]
    )
    attempts = CounterMetricFamily(
        "janitor_attempts", "Delete calls, by HTTP status or error", labels=["account", "answer"]
    )
    seconds = HistogramMetricFamily("janitor_call_seconds", "How long delete calls took", labels=["account"])
    for name, account in found.accounts.items():
        for state, count in account.states.items():
            deletions.add_metric([name, state], count)
        for source, count in account.requests.items():
            requests.add_metric([name, source], count)
        for reason, count in account.refused.items():
            refused.add_metric([name, reason], count)
        unverified.add_metric([name], account.verifications_failed)
        for answer, buckets in account.calls.items():
            attempts.add_metric([name, answer], buckets.total())
        _add_histogram(seconds, name, account)
    yield from (deletions, requests, refused, unverified, attempts, seconds)


def _add_histogram(seconds: HistogramMetricFamily, name: str, account: AccountStatistics) -> None:
    counts = [sum(calls[bucket] for calls in account.calls.values()) for bucket in _BUCKETS]
    edges = [*map(str, CALL_SECONDS), "+Inf"]
    seconds.add_metric(
        [name], list(zip(edges, accumulate(counts), strict=True)), sum(account.call_seconds.values())
    )


def _gauge(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(f"janitor_{name}", help_, value=float(value))


def _by_account(name: str, help_: str, found: Statistics) -> Metric:
    family = GaugeMetricFamily(f"janitor_{name}", help_, labels=["account"])
    for account, of_it in found.accounts.items():
        family.add_metric([account], float(getattr(of_it, name)))
    return family
