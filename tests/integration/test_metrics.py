"""Metrics: what a scrape says is what the ledger holds."""

from dataclasses import replace
from datetime import timedelta

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tasks.api.client import BflClient
from tasks.cleanup.plans import empty_plan, get_plan, store, withdraw
from tasks.cleanup.policies import Policy
from tasks.cleanup.schedule import noted
from tasks.deletion import Rules, carry_out
from tasks.errors import InvalidRequest
from tasks.intake import Intake
from tasks.ledger import Finish, Ledger
from tasks.ledger.dead_letters import keep
from tasks.ledger.types import Act
from tasks.records import State
from tests.conftest import asking, carry_out_one, claim, claim_all, finish, progress, register
from worker.metrics import registry
from worker.redis_url import connect
from worker.sandbox.api import Sandbox


def scrape(ledger):
    """(name, labels in the order of their names) -> value."""
    families = text_string_to_metric_families(generate_latest(registry(ledger)).decode())
    samples = [sample for family in families for sample in family.samples]
    return {(one.name, *(value for _, value in sorted(one.labels.items()))): one.value for one in samples}


def test_deletions_are_counted_by_state_and_requests_by_source(ledger):
    # Given requests of several sources, of which one is carried out,
    ledger.accept([asking("a", source="http"), asking("a", source="name"), asking("b", source="cleanup:x")])
    ledger.accept([asking("c", source="http", account="other", delay=timedelta(hours=1))])
    carry_out_one(ledger)
    # when metrics are read, then each is counted where it stands and where it came from.
    seen = scrape(ledger)
    states = {key[1:]: count for key, count in seen.items() if key[0] == "janitor_deletions" and count}
    assert states == {("default", "deleted"): 1, ("default", "queued"): 2, ("other", "scheduled"): 1}
    sources = {key[1:]: count for key, count in seen.items() if key[0] == "janitor_requests_total"}
    assert sources == {
        ("default", "http"): 1,
        ("default", "name"): 1,
        ("default", "cleanup"): 1,
        ("other", "http"): 1,
    }


def test_a_request_known_already_is_counted_once(ledger):
    for _ in range(2):
        ledger.accept([asking("a", id="the-same", source="http")])
    assert scrape(ledger)["janitor_requests_total", "default", "http"] == 1


ANSWERS = [
    ({"call:200:0.05": 1, "ms:200": 50}, "200", "0.05", 0.05),
    ({"call:Unclear:20": 1, "ms:Unclear": 15_200}, "Unclear", "20", 15.2),
    ({"call:Unclear:inf": 1, "ms:Unclear": 21_000}, "Unclear", "+Inf", 21.0),
    ({"call:none:none": 1}, "none", None, 0.0),
]


@pytest.mark.parametrize(("counts", "answer", "bucket", "seconds"), ANSWERS)
def test_an_attempt_is_counted_by_its_answer_and_its_time(ledger, counts, answer, bucket, seconds):
    # Given a deletion that is finished twice with the statistics of one attempt (an answer of Redis was lost),
    ledger.accept([asking("a")])
    claimed = claim(ledger)
    for _ in range(2):
        ledger.finish(claimed, Finish(result=State.DELETED), progress(claimed, 1, counts=counts))
    # when metrics are read, then it is counted once.
    seen = scrape(ledger)
    assert {key[1:]: n for key, n in seen.items() if key[0] == "janitor_attempts_total"} == {
        ("default", answer): 1
    }
    filled = [key[2] for key, n in seen.items() if key[0] == "janitor_call_seconds_bucket" and n]
    assert filled[:1] == ([bucket] if bucket else [])
    assert seen["janitor_call_seconds_count", "default"] == (1 if bucket else 0)
    assert seen["janitor_call_seconds_sum", "default"] == pytest.approx(seconds)


def test_what_the_pipeline_notes_of_a_call_is_what_metrics_show(redis_client):
    # Given a delete that is answered with 500 and then with 200, by the real pipeline and the simulated API,
    ledger = register(Ledger(redis_client))
    ledger.accept([asking("a")])
    rules = Rules(observe_within=timedelta(hours=1), retry_budget=timedelta(seconds=5))
    with Sandbox(keys={"key"}, latency_seconds=0) as api:
        api.create("a")
        api.fault("status", status=500, applies=False)
        claimed = claim(ledger)
        done = carry_out(claimed, api=BflClient(api.url, "key"), ledger=ledger, rules=rules, sleep=lambda _: None)
    ledger.finish(claimed, *done)
    # when metrics are read, then both calls are in them.
    seen = scrape(ledger)
    assert {key[2]: n for key, n in seen.items() if key[0] == "janitor_attempts_total"} == {"200": 1, "500": 1}
    assert seen["janitor_call_seconds_count", "default"] == 2


def test_what_stops_an_account_is_seen(ledger, clocked):
    names = ("parked", "paused", "permits", "permits_limit", "cool_down_seconds")
    assert [scrape(ledger)[f"janitor_{name}", "default"] for name in names] == [0, 0, 0, 8, 0]
    # Given a deletion that runs, a survey, and every stop there is,
    ledger.accept([asking("a"), asking("b")])
    claim(ledger)
    assert ledger.permit("default", "survey", 8).word == "go"
    ledger.account("default", "park", reason="403", probe_ms=30_000)
    ledger.account("*", "pause", reason="by hand")
    ledger.account("default", "cool", reason="429", ms=60_000)
    # when metrics are read, then all of them are seen, and a lease is a permit, too.
    assert [scrape(ledger)[f"janitor_{name}", "default"] for name in names] == [1, 1, 2, 8, 60]
    later = scrape(clocked.after(minutes=7))
    assert [later[f"janitor_{name}", "default"] for name in names] == [1, 1, 1, 8, 0]


def test_workers_maintenance_beat_and_dead_letters_are_seen(ledger, clocked):
    keep(ledger.redis, "deletions", "not JSON", "{")
    ledger.redis.set(ledger.keys.tick, ledger.now_ms())
    seen = scrape(clocked.after(minutes=5))
    assert (seen["janitor_workers",], seen["janitor_dead_letters",]) == (1, 1)
    assert (seen["janitor_maintenance_age_seconds",], seen["janitor_beat_age_seconds",]) == (300, 300)


def oldest_due(ledger):
    return scrape(ledger)["janitor_oldest_due_seconds", "default"]


def test_a_deletion_is_due_from_the_time_asked_for_also_if_no_worker_runs(ledger, clocked):
    ledger.accept([asking("a", delay=timedelta(minutes=1)), asking("b", delay=timedelta(days=3000))])
    assert oldest_due(ledger) == 0
    assert oldest_due(clocked.after(minutes=3)) == 120


def test_a_deletion_that_is_retried_again_and_again_is_due_since_the_time_asked_for(ledger, clocked):
    # Given an API that is dead: each try goes back and waits,
    ledger.accept([asking("a")])
    for _ in range(3):
        finish(ledger, claim(ledger), "back", delay=timedelta(minutes=10))
        ledger = clocked.after(minutes=10)
    # when metrics are read, whether it waits, is due or runs, then its age is that of the request.
    assert oldest_due(ledger) == 1800
    claimed = claim(ledger)
    assert oldest_due(ledger) == 1800
    finish(ledger, claimed, "back", delay=timedelta(minutes=10))
    assert oldest_due(ledger) == 1800


def test_a_deletion_behind_a_sibling_is_due_too(ledger, clocked):
    # Given an old request of a finetune in the lane of bulk, and a younger one that is claimed before it,
    ledger.accept([asking("a", id="old", bulk=True)])
    ledger = clocked.after(minutes=1)
    ledger.accept([asking("a", id="young")])
    assert [claimed.id for claimed in claim_all(ledger)] == ["young"]
    # when metrics are read, then the old one is due since its own time, though it stands behind its sibling.
    assert oldest_due(clocked.after(minutes=1)) == 120


def test_refused_requests_and_failed_verifications_are_counted(ledger):
    # Given a request by name that was refused, and a deleted finetune that is still there,
    intake = Intake(ledger, wake=lambda account: None)
    intake.note_refused("some-id", "typo", InvalidRequest("the account 'typo' is not known"))
    ledger.accept([asking("a", id="one")])
    carry_out_one(ledger)
    finished_at = int(ledger.redis.hget(ledger.keys.deletion("one"), "finished_at"))
    ledger.verify("default", [{"id": "one", "finished_at": finished_at, "word": "still_there"}], "still there")
    # when metrics are read, then both are seen.
    seen = scrape(ledger)
    assert seen["janitor_refused_total", "default", "account"] == 1
    assert seen["janitor_verifications_failed_total", "default"] == 1


def counted(ledger, name):
    """The samples of one metric that are not 0, by the values of their labels."""
    return {key[1:]: n for key, n in scrape(ledger).items() if key[0] == f"janitor_{name}" and n}


def test_what_is_tried_again_is_counted_until_it_ends(ledger, clocked):
    # Given a deletion whose try failed, one that was handed back without a try, and one that waits for its time,
    ledger.accept([asking("a", id="failed"), asking("b", id="back"), asking("c", delay=timedelta(hours=9))])
    claims = {one.id: one for one in claim_all(ledger)}
    failed, back = claims["failed"], claims["back"]
    finish(ledger, failed, "back", delay=timedelta(minutes=10), counted=True)
    finish(ledger, back, "back", delay=timedelta(minutes=10), counted=False)
    # when metrics are read, then the first is counted, also while it runs again, and not once it has ended.
    assert counted(ledger, "retrying") == {("default",): 1}
    ledger = clocked.after(minutes=10)
    claimed = next(one for one in claim_all(ledger) if one.id == "failed")
    assert counted(ledger, "retrying") == {("default",): 1}
    finish(ledger, claimed, "failed")
    assert counted(ledger, "retrying") == {}
    assert counted(ledger, "finished_total") == {("default", "failed"): 1}


def test_a_retry_behind_many_others_is_still_the_oldest(ledger, clocked):
    # Given an old deletion whose next try is later than those of a hundred younger ones,
    ledger.accept([asking("old")])
    finish(ledger, claim(ledger), "back", delay=timedelta(hours=1), counted=True)
    ledger = clocked.after(minutes=1)
    ledger.accept([asking(f"ft-{n}", delay=timedelta(minutes=1)) for n in range(100)])
    # when metrics are read, then the age is that of the old one.
    assert oldest_due(clocked.after(minutes=2)) == 180


def test_observations_are_counted_by_what_was_seen_or_answered(redis_client):
    # Given an API that fails once and then shows the finetune,
    ledger = register(Ledger(redis_client))
    ledger.accept([asking("a")])
    rules = Rules(observe_within=timedelta(hours=1), retry_budget=timedelta(seconds=5))
    with Sandbox(keys={"key"}, latency_seconds=0) as api:
        api.create("a")
        api.fault("status", status=500, call="finetune_details")
        claimed = claim(ledger)
        done = carry_out(claimed, api=BflClient(api.url, "key"), ledger=ledger, rules=rules, sleep=lambda _: None)
    ledger.finish(claimed, *done)
    # when metrics are read, then both are seen, and what was not seen begins at 0.
    assert counted(ledger, "observations_total") == {("default", "500"): 1, ("default", "present"): 1}
    assert scrape(ledger)["janitor_observations_total", "default", "absent"] == 0


def test_reviews_that_a_person_dealt_with_are_not_open(ledger):
    for id_ in ("one", "resolved", "retried"):
        ledger.accept([asking(id_, id=id_)])
        carry_out_one(ledger, "review")
    # Given three reviews, of which one is resolved and one is retried,
    ledger.redis.hset(ledger.keys.deletion("resolved"), "resolved_at", ledger.now_ms())
    ledger.redis.hset(ledger.keys.deletion("retried"), "retried_by", "another")
    # when metrics are read, then one is open.
    assert counted(ledger, "reviews_open") == {("default",): 1}


def test_what_waits_for_verification_is_seen_and_for_how_long(ledger, clocked):
    ledger.accept([asking("a")])
    carry_out_one(ledger)
    # Given a deleted finetune that nobody verifies, when an hour has passed, then that is seen.
    later = clocked.after(hours=1)
    assert counted(later, "unverified") == {("default",): 1}
    assert counted(later, "verification_late_seconds") == {("default",): 3600}


def test_a_scheduled_cleanup_that_is_blocked_or_overdue_is_seen(ledger, clocked):
    # Given a policy that runs each night, ran last night, and whose newest plan is blocked; and a newer plan of
    # somebody's draft of it,
    policy = Policy(name="tests", schedule="0 3 * * *")
    draft = replace(policy, max_deletions=100)
    for n, (by, blocked) in enumerate([(policy, None), (policy, "too many"), (draft, None)]):
        store(ledger, empty_plan(by, clocked.now + timedelta(minutes=n), f"plan-{n}", blocked=blocked))
    ledger.redis.hset(ledger.keys.policy_runs, "tests", noted(policy, clocked.now.replace(hour=3)))
    # when metrics are read, then it is blocked; and from the next night on its run is overdue.
    assert counted(ledger, "policy_blocked") == {("tests",): 1}
    assert counted(ledger, "policy_overdue_seconds") == {}
    later = clocked.after(hours=15, minutes=20)
    assert counted(later, "policy_overdue_seconds") == {("tests",): 1200}
    # However many plans another policy makes meanwhile, it is still seen.
    for n in range(210):
        store(ledger, empty_plan(replace(draft, name="other"), clocked.now, f"other-{n}", blocked=None))
    assert counted(ledger, "policy_blocked") == {("tests",): 1}
    # When somebody has looked at a plan and withdrawn it, then it calls nobody,
    withdraw(later, get_plan(later, "plan-1"), Act("ana", "command"))
    assert counted(later, "policy_blocked") == {("tests",): 1}, "it was blocked before, which nobody has mended"
    store(later, empty_plan(policy, clocked.now, "plan-4", blocked=None))
    withdraw(later, get_plan(later, "plan-4"), Act("ana", "command", "not now"))
    assert counted(later, "policy_blocked") == {}
    # and when a plan is not blocked, it is not.
    store(later, empty_plan(policy, clocked.now, "plan-3", blocked=None))
    assert counted(later, "policy_blocked") == {}


def test_workers_whose_slots_do_not_come_back_are_counted(ledger):
    ledger.housekeep(["one accounts=default queues= 2.0", "two accounts=default stuck=3 2.0"], timedelta(days=400))
    assert counted(ledger, "workers_stuck") == {(): 1}


def test_an_empty_ledger_and_one_that_is_away_can_be_scraped(clocked, tmp_path):
    empty = scrape(clocked())
    never = float("inf")
    assert (empty["janitor_ledger_up",], empty["janitor_maintenance_age_seconds",]) == (1, never)
    assert empty["janitor_beat_age_seconds",] == never
    assert empty["janitor_deletions", "default", "review"] == 0
    away = connect(f"unix://{tmp_path}/none", patient=False)
    assert scrape(Ledger(away)) == {("janitor_ledger_up",): 0}


def test_a_scrape_takes_the_same_round_trips_for_any_number_of_records(ledger):
    def commands():
        return ledger.redis.info("commandstats").get("cmdstat_hget", {"calls": 0})["calls"]

    # Given 300 deletions of each kind that can be due, when metrics are read, then a bounded number is asked.
    ledger.accept(
        [asking(f"ft-{n}") for n in range(300)] + [asking(f"later-{n}", delay=timedelta(1)) for n in range(300)]
    )
    before = commands()
    scrape(ledger)
    assert commands() - before <= 150
