"""Metrics: what a scrape says is what the ledger holds; and what the alert rules name is there."""

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from tasks.ledger import Ledger
from tasks.poison import set_aside
from tests.conftest import asking, outcome
from worker.connections import connect
from worker.metrics import registry

ALERTS = Path(__file__).parents[2] / "docs/operations/alerts.yml"


def scrape(ledger):
    """(name, labels in the order of their names) -> value."""
    families = text_string_to_metric_families(generate_latest(registry(ledger)).decode())
    samples = [sample for family in families for sample in family.samples]
    return {(one.name, *(value for _, value in sorted(one.labels.items()))): one.value for one in samples}


def attempt(**more):
    return json.dumps({"at": 1, "sent": True, "http_status": None, "error": None, "seconds": None, **more})


def deleted(ledger, *attempts):
    ((claimed,), _) = ledger.claim("default", "worker/0", 1)
    ledger.conclude([outcome(claimed, "deleted", evidence="response", attempts="\n".join(attempts))])


def test_deletions_are_counted_by_state_and_requests_by_source(ledger):
    ledger.accept([asking("a", source="http"), asking("a", source="name"), asking("b", source="retry:x")])
    ledger.accept([asking("c", source="http", account="other", delay=timedelta(hours=1))])
    deleted(ledger)
    seen = scrape(ledger)
    assert seen["janitor_deletions", "default", "deleted"] == 1
    assert seen["janitor_deletions", "default", "queued"] == 1
    assert seen["janitor_deletions", "other", "scheduled"] == 1
    sources = {key[1:]: count for key, count in seen.items() if key[0] == "janitor_requests_total"}
    assert sources == {
        ("default", "http"): 1,
        ("default", "name"): 1,
        ("default", "retry"): 1,
        ("other", "http"): 1,
    }


def test_a_request_known_already_is_counted_once(ledger):
    for _ in range(2):
        ledger.accept([asking("a", id="the-same", source="http")])
    assert scrape(ledger)["janitor_requests_total", "default", "http"] == 1


ANSWERS = [
    (attempt(http_status=200, seconds=0.05), "200", "0.05"),
    (attempt(http_status=429, error="Throttled", seconds=0.051), "429", "0.1"),
    (attempt(error="Unclear", seconds=15.2), "Unclear", "20"),
    (attempt(error="NotSent", seconds=0.0), "NotSent", "0.05"),
    (attempt(error="Unclear", seconds=21.0), "Unclear", "+Inf"),
    (attempt(error="WorkerLost"), "WorkerLost", None),
    (attempt(http_status=500, message='"http_status": 7, "error": "No", "seconds": 9'), "500", None),
    (attempt(http_status=500, message="\ud800 half a pair"), "500", None),
    ("no JSON at all", "none", None),
]


@pytest.mark.parametrize(("line", "answer", "bucket"), ANSWERS)
def test_an_attempt_is_counted_by_its_answer_and_its_time(ledger, line, answer, bucket):
    ledger.accept([asking("a")])
    deleted(ledger, line)
    seen = scrape(ledger)
    assert {key: n for key, n in seen.items() if key[0] == "janitor_attempts_total"} == {
        ("janitor_attempts_total", "default", answer): 1
    }
    counts = {key[2]: n for key, n in seen.items() if key[0] == "janitor_call_seconds_bucket"}
    filled = [edge for edge, count in counts.items() if count]
    assert filled[:1] == ([bucket] if bucket else [])
    assert seen["janitor_call_seconds_count", "default"] == (1 if bucket else 0)


def test_the_time_of_calls_adds_up_and_a_conclusion_sent_twice_counts_once(ledger):
    ledger.accept([asking("a")])
    ((claimed,), _) = ledger.claim("default", "worker/0", 1)
    lines = "\n".join([attempt(http_status=503, seconds=0.2), attempt(http_status=200, seconds=1.25)])
    for _ in range(2):
        ledger.conclude([outcome(claimed, "deleted", evidence="response", attempts=lines)])
    seen = scrape(ledger)
    assert seen["janitor_call_seconds_sum", "default"] == pytest.approx(1.45)
    assert seen["janitor_call_seconds_count", "default"] == 2


def test_what_stops_an_account_is_seen(ledger, clocked):
    assert [scrape(ledger)[f"janitor_{name}", "default"] for name in ("parked", "paused", "permits")] == [0, 0, 0]
    ledger.accept([asking("a"), asking("b"), asking("c", delay=timedelta(minutes=2))])
    ledger.claim("default", "worker/0", 1)
    ledger.account("default", "park", reason="403", probe_ms=30_000)
    ledger.account("*", "pause", reason="by hand")
    ledger.account("default", "cool", reason="429", ms=60_000)
    set_aside(ledger.redis, "deletions", "not JSON", "{")
    seen = scrape(ledger)
    names = ("parked", "paused", "permits", "permits_limit")
    assert [seen[f"janitor_{name}", "default"] for name in names] == [1, 1, 1, 8]
    assert 59 < seen["janitor_cool_down_seconds", "default"] <= 60
    assert (seen["janitor_poison",], seen["janitor_workers",]) == (1, 1)
    later = scrape(clocked.after(minutes=7))
    assert 420 <= later["janitor_oldest_due_seconds", "default"] < 430
    assert 420 <= later["janitor_dispatch_age_seconds",] < 430
    assert later["janitor_cool_down_seconds", "default"] == 0


def test_what_is_past_its_time_is_due_also_where_no_worker_runs(ledger, clocked):
    ledger.accept([asking("a", delay=timedelta(minutes=1))])
    assert scrape(ledger)["janitor_oldest_due_seconds", "default"] == 0
    assert scrape(clocked.after(minutes=3))["janitor_oldest_due_seconds", "default"] >= 120


def test_the_last_tick_of_beat_is_seen(ledger, clocked):
    ledger.redis.set("janitor:tick", ledger.now_ms())
    assert 300 <= scrape(clocked.after(minutes=5))["janitor_beat_age_seconds",] < 310


def test_an_empty_ledger_and_one_that_is_away_can_be_scraped(clocked, tmp_path):
    empty = scrape(clocked())
    never = float("inf")
    assert (empty["janitor_ledger_up",], empty["janitor_dispatch_age_seconds",]) == (1, never)
    assert empty["janitor_beat_age_seconds",] == never
    assert empty["janitor_deletions", "default", "review"] == 0
    away = connect(f"unix://{tmp_path}/none", patient=False)
    assert scrape(Ledger(away)) == {("janitor_ledger_up",): 0}


def test_the_alert_rules_name_only_metrics_and_labels_that_are_there(ledger):
    rules: list[dict[str, Any]] = [
        rule for group in YAML(typ="safe", pure=True).load(ALERTS)["groups"] for rule in group["rules"]
    ]
    assert len(rules) >= 5
    named = {name for rule in rules for name in re.findall(r"\bjanitor_\w+", rule["expr"])}
    assert named <= {key[0] for key in scrape(ledger)}
    for rule in rules:
        assert {"alert", "expr", "labels", "annotations"} <= rule.keys()
        assert re.fullmatch(r"\d+[smhd]", rule.get("for", "1m"))
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert {"summary", "do"} == rule["annotations"].keys()
        by_account = "account" in rule["annotations"]["summary"]
        assert by_account == ("$labels.account" in rule["annotations"]["summary"])
