"""`janitor status` and `/v1/status`: what needs a person, what to type, and why deletions wait."""

import uuid
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import pytest
import redis

from tasks.cleanup.plans import Plan, store
from tasks.cleanup.policies import Policy
from tasks.cleanup.schedule import noted
from tasks.ledger import Ledger
from tasks.ledger.dead_letters import keep
from tasks.ledger.holds import hold
from tasks.ledger.types import Act
from tasks.waiting import worker_entry
from tests.acceptance.http import Client, served, token_file
from tests.conftest import asking, carry_out_one, claim, finish
from tests.processes import environment, janitor_here, records
from worker.cli.status import screen
from worker.doctor.status import LastHour, status
from worker.message_fields import QUEUES
from worker.redis_url import connect

EVER = timedelta(days=400)
NO_ANSWER = "no connection: api.us1.bfl.ai (set BFL_API_URL to use another host)"
ACCOUNTS = ("default", "emea")


@pytest.fixture
def ledger(redis_url):
    """All is well: a worker that has both accounts, and beat, are seen."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    ledger = Ledger(connect(redis_url))
    for account in ACCOUNTS:
        ledger.maintain(account, 8)
    entry = worker_entry("one:1", version("finetune-janitor"), accounts=ACCOUNTS, queues=QUEUES)
    ledger.housekeep([entry], alive_for=EVER)
    ledger.redis.set(ledger.keys.tick, ledger.now_ms())
    yield ledger
    ledger.redis.config_set("maxmemory", "0")
    ledger.redis.config_set("appendonly", "yes")


@pytest.fixture
def env(redis_url):
    return environment(redis_url, "http://127.0.0.1:1", COLUMNS="80", LINES="24")


def goes_nowhere(ledger, answer=NO_ANSWER, *, names=("a", "b", "c"), minutes=0):
    """Deletions that were due some minutes ago, all of them tried again after this answer."""
    earlier = Ledger(ledger.client, now_ms=lambda: ledger.now_ms() - minutes * 60_000)
    earlier.accept([asking(f"retried-{name}") for name in names])
    for _ in names:
        finish(earlier, claim(earlier), "back", message=answer, delay=timedelta(minutes=minutes, seconds=30))


def review(ledger):
    ledger.accept([asking("old-style-3")])
    carry_out_one(ledger, "review", message="given up at its deadline, the last attempt unclear: HTTP 500: broken")


def paused(ledger):
    ledger.account("emea", "pause", Act("ann@laptop", "command"), reason="checking a complaint")


def paused_by_an_alarm(ledger):
    ledger.accept([asking("named")])
    finish(ledger, claim(ledger), "back", pause="asked to delete 'named', the API says it deleted 'other'")


def parked(ledger):
    ledger.account("default", "park", reason="HTTP 403: Not authenticated", probe_ms=30_000)


def blocked_policy(ledger, blocked="it would delete 40 of 50 finetunes, and max_percent is 20"):
    ledger.redis.hset(ledger.keys.policy_runs, "stale", f"{ledger.now_ms()} 0 3 * * *")
    store(ledger, Plan(
        id=str(uuid.uuid4()), policy="stale", account="default", created_at=datetime.now(UTC), blocked=blocked,
        grace_seconds=60,
    ))  # fmt: skip


def missed_run(ledger):
    ledger.redis.hset(ledger.keys.policy_runs, "stale", f"{ledger.now_ms() - 7_200_000} 0 * * * *")


def policy_without_key(ledger):
    note = noted(Policy("stale", account="emae", schedule="0 3 * * *"), datetime.now(UTC))
    ledger.redis.hset(ledger.keys.policy_runs, "stale", note)


def dead_letters(ledger):
    for _ in range(3):
        keep(ledger.redis, "deletions", "finetune_id is missing: give it", "{}")


def no_worker(ledger):
    ledger.redis.delete(ledger.keys.workers)


def silent_beat(ledger):
    ledger.redis.set(ledger.keys.tick, ledger.now_ms() - 600_000)


def full_redis(ledger):
    # Large, so that what is left, a twentieth, is more than what a few clients need. Redis makes it itself: the
    # buffer of a command that brings it would count as used for a while.
    ledger.redis.setrange("ballast", 20_000_000, "x")
    used = int(ledger.redis.info("memory")["used_memory"])
    ledger.redis.config_set("maxmemory", int(used * 1.05))


def forgetful_redis(ledger):
    ledger.redis.config_set("appendonly", "no")


def never_answers(ledger):
    goes_nowhere(ledger, "HTTP 500: broken", minutes=20)


NEEDS = [
    # the situation, the exit code of doctor, the check that finds it, what is said of it and what to type
    (goes_nowhere, 1, "retries default", "3 deletions", "no connection: api.us1.bfl.ai", "is BFL_API_URL right?"),
    (never_answers, 1, "retries default", "due 20m ago", "HTTP 500: broken", "`janitor doctor`"),
    (review, 1, "reviews", "old-style-3", "HTTP 500: broken", "`janitor list --open-reviews`"),
    (
        paused,
        0,
        "paused",
        "emea",
        "(checking a complaint)",
        "ask ann@laptop before `janitor resume --account emea`",
    ),
    (paused_by_an_alarm, 1, "paused", "default", "says it deleted 'other'", "`janitor resume --account default`"),
    (parked, 1, "parked", "default", "HTTP 403", "correct it"),
    (blocked_policy, 1, "policy", "stale", "max_percent is 20", "`janitor cleanup show "),
    (policy_without_key, 0, "policy", "stale", "account emae", "set BFL_API_KEY_EMAE"),
    (missed_run, 0, "policy", "stale", "did not run", "a worker's log says why"),
    (dead_letters, 0, "dead letters", "3 messages", "finetune_id is missing", "`janitor dead-letters list`"),
    (no_worker, 0, "workers", "no worker", "is seen", "`janitor worker`"),
    (silent_beat, 0, "beat", "10m old", "no cleanup", "`janitor beat`"),
    (forgetful_redis, 1, "persistence", "append-only file is off", "a restart loses", "set appendonly yes"),
    (full_redis, 1, "full", "Redis is full", "nothing new is accepted", "maxmemory"),
]


@pytest.mark.parametrize(
    ("provoke", "doctor", "check", "what", "why", "do"), NEEDS, ids=[row[0].__name__ for row in NEEDS]
)
def test_what_needs_a_person_is_told_with_what_to_type(env, ledger, provoke, doctor, check, what, why, do):
    # Given a system in which one thing needs a person,
    provoke(ledger)
    # when somebody asks for the status, then it is the only need, with what to do, and the exit code says so;
    done = janitor_here(env, "status", "--json")
    (found,) = records(done)
    (need,) = found["needs"]
    assert (done.returncode, need["check"]) == (1, check)
    assert all(words in need["message"] for words in (what, why, do))
    # doctor says the same, and that something must be done, if that cannot wait.
    levels = {one["check"]: one["level"] for one in records(janitor_here(env, "doctor", "--json"))}
    assert levels[check] == ("error" if doctor else "warning")


def test_if_nothing_needs_a_person_the_exit_code_is_0(env, ledger):
    # Given a system at work: one deletion done, one for later; and no beat, since nothing is scheduled,
    ledger.redis.delete(ledger.keys.tick)
    ledger.accept([asking("done"), asking("later", delay=timedelta(hours=1))])
    carry_out_one(ledger)
    # when somebody looks, then it says so,
    done = janitor_here(env, "status")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "Nothing needs a person.")
    # and what there is: counts by state, the last hour, workers.
    (found,) = records(janitor_here(env, "status", "--json"))
    assert (found["states"]["deleted"], found["states"]["scheduled"]) == (1, 1)
    assert found["last_hour"] == {"accepted": 2, "ended": 1, "by_state": {"deleted": 1}}
    assert (found["oldest_due_seconds"], found["cleanups"], len(found["workers"])) == (0, [], 1)


def test_what_is_held_is_told_until_its_time_has_passed(env, ledger):
    # Given a hold for good, one for an hour, and one whose time has passed,
    act, now = Act("ann@laptop", "command", "a lawsuit"), datetime.now(UTC)
    hold(ledger, "default", "kept", None, act)
    hold(ledger, "emea", "kept", now + timedelta(hours=1), act)
    earlier = Ledger(ledger.client, now_ms=lambda: ledger.now_ms() - 60_000)
    hold(earlier, "emea", "over", now - timedelta(seconds=1), act)
    # when somebody looks, then the status says how many each account has, and which command lists them.
    (found,) = records(janitor_here(env, "status", "--json"))
    assert found["held"] == {"default": 1, "emea": 1}
    assert (
        "held         1 of default, 1 of emea: `janitor holds --account NAME`"
        in janitor_here(env, "status").stdout
    )


def test_states_of_the_last_hour_that_were_not_all_read_are_told_as_such(ledger):
    # Given more that ended within the hour than is read, when it is shown,
    hour = LastHour(accepted=3002, ended=3002, by_state={"not_found": 500})
    found = status(ledger, timedelta(minutes=1)).model_copy(update={"last_hour": hour})
    # then nobody takes the others for the same.
    assert "last hour    3002 accepted, 3002 ended: of the last 500: 500 not_found" in screen(found, 80, 24)


def test_one_screen_holds_all_of_it(env, ledger):
    # Given a dead API host, a review, a paused account, a blocked policy and three dead letters,
    for provoke in (goes_nowhere, review, paused, blocked_policy, dead_letters):
        provoke(ledger)
    # when the status is shown on a terminal of 80 by 24,
    done = janitor_here(env, "status")
    lines = done.stdout.splitlines()
    # then all of it is on the screen, what needs a person first, each with what to type.
    assert (done.returncode, lines[0].startswith("5 things need a person, the worst first (")) == (1, True)
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    text = " ".join(done.stdout.split())
    for words in (
        "is BFL_API_URL right?", "`janitor list --open-reviews`", "`janitor resume --account emea`",
        "`janitor cleanup show", "`janitor dead-letters list`", "3 scheduled", "1 review",
        "(its last plan was blocked)", "until",
    ):  # fmt: skip
        assert words in text


def test_many_needs_do_not_push_the_rest_off_the_screen(env, ledger):
    # Given more needs than a screen has room for, and an answer of the API that is long and clears screens,
    goes_nowhere(ledger, f"HTTP 500: \x1b[2J{'long ' * 90}", minutes=20)
    for provoke in (review, paused, blocked_policy, dead_letters, silent_beat, full_redis, no_worker):
        provoke(ledger)
    # when it is shown, then the worst come first, the last line is that of the workers, and doctor has the rest.
    done = janitor_here(env, "status")
    lines = done.stdout.splitlines()
    assert len(lines) < 24
    assert lines[-1] == "workers      none"
    assert "\x1b" not in done.stdout
    assert "more: `janitor doctor` lists all" in done.stdout


def test_over_http_the_status_is_for_those_who_may_read_all_accounts(env, ledger, tmp_path):
    # Given the service, and a review,
    review(ledger)
    ledger.accept([asking(id="d-1", delay=timedelta(hours=1))])
    with served({**env, "JANITOR_TOKENS_FILE": str(token_file(tmp_path))}, tmp_path / "log") as (base, _):
        asked = {name: Client(base, name).get("/v1/status") for name in ("reader", "writer", "billing")}
        one, listed = (Client(base, "reader").get(f"/v1/deletions{path}").json() for path in ("/d-1", ""))
    # when its clients ask, then those with `read` and all accounts get what the command shows.
    assert {name: answer.status_code for name, answer in asked.items()} == {
        "reader": 200, "writer": 403, "billing": 403
    }  # fmt: skip
    (shown,) = records(janitor_here(env, "status", "--json"))
    told = asked["reader"].json()
    assert told | {"at": shown["at"]} == shown
    assert "limited to some accounts" in asked["billing"].json()["detail"]
    # A record says why it waits, alone and in a list; a final one has nothing to wait for.
    assert one["waiting_for"] == f"it is not due before {one['due_at']}"
    assert [record["waiting_for"] for record in listed["deletions"]] == [one["waiting_for"], None]


def test_whoever_looks_at_a_deletion_is_told_why_it_waits(env, ledger):
    # Given a deletion of a paused account,
    ledger.accept([asking("my-finetune", id="d-1", account="emea")])
    paused(ledger)
    why = "account emea is paused since "
    # when it is shown, listed or waited for, then each says why it waits, and what to type.
    for command in (("show", "d-1"), ("list",), ("wait", "d-1", "--timeout", "2.5")):
        (record,) = records(janitor_here(env, *command, "--json"))
        assert record["waiting_for"].startswith(why)
        assert (
            "by ann@laptop (checking a complaint): ask ann@laptop before `janitor resume" in record["waiting_for"]
        )
        told = janitor_here(env, *command)
        assert why in " ".join(told.stdout.split())
        assert max(map(len, told.stdout.splitlines())) <= 80
    # The one who waits is told once, after two seconds in which nothing happened.
    assert told.stderr.count(f"it waits: {why}") == 1
