"""Data of a version to come, in the same schema: what it adds is left out or shown as it is, and ends no list."""

import json
from datetime import timedelta

import pytest
import redis

from tasks.cleanup.plans import empty_plan, store
from tasks.cleanup.policies import Policy
from tasks.ledger.dead_letters import keep
from tasks.ledger.holds import hold
from tasks.ledger.keys import keys
from tasks.ledger.types import Act
from tasks.records import to_ms
from tests.acceptance.http import Client, served, token_file
from tests.conftest import NOW, accept, asking, carry_out_one
from tests.processes import environment, janitor_here, records

ACT = Act("ana", "command", "because")
pytestmark = pytest.mark.xdist_group("newer data")  # one HTTP service for all of it


@pytest.fixture(scope="module")
def base(redis_url, tmp_path_factory):
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()  # a newer schema may be left there
    folder = tmp_path_factory.mktemp("http")
    env = environment(redis_url, JANITOR_STATE_DIR=folder, JANITOR_TOKENS_FILE=token_file(folder))
    with served(env, folder / "log") as (url, _):
        yield url


@pytest.fixture
def command(redis_url, tmp_path):
    def run(*given):
        done = janitor_here(environment(redis_url, JANITOR_STATE_DIR=tmp_path), *given)
        assert done.returncode < 2, done.stderr  # `status` says with 1 that something needs a person
        return done

    return run


def a_new_field(ledger):
    ledger.redis.hset(ledger.keys.deletion("newer"), "wishes", "many")
    return {}


def a_new_attempt(ledger):
    attempt = {"at": to_ms(NOW), "sent": True, "error": "Rumour", "wishes": ["many"]}
    ledger.redis.rpush(ledger.keys.attempts("newer"), json.dumps(attempt))
    return {}


def new_words(ledger):
    told = {"evidence": "rumour", "source": "carrier pigeon"}
    ledger.redis.hset(ledger.keys.deletion("newer"), mapping=told)
    return told


def a_new_state(ledger):
    """Its record is in the list of that state, which this version does not read."""
    key, index = ledger.keys.deletion("newer"), ledger.keys.index
    ledger.redis.zadd(
        index("default", "frozen"), {"newer": ledger.redis.zscore(index("default", "deleted"), "newer")}
    )
    ledger.redis.zrem(index("default", "deleted"), "newer")
    ledger.redis.hset(key, "state", "frozen")
    return {"state": "frozen"}


@pytest.mark.parametrize("write", [a_new_field, a_new_attempt, new_words, a_new_state])
def test_a_record_is_shown_and_hides_no_other(ledger, command, base, write):
    # Given a record of a newer version between two of ours,
    for id_ in ("before", "newer", "after"):
        accept(ledger, asking(f"ft-{id_}", id=id_))
        carry_out_one(ledger)
    told = {"id": "newer", "finetune_id": "ft-newer"} | write(ledger)
    with Client(base, "boss") as http:
        # when it is asked for by its id or its finetune,
        shown = [
            *records(command("show", "newer", "--json")),
            *records(command("list", "--finetune", "ft-newer", "--json")),
            http.get("/v1/deletions/newer").json(),
            *http.get("/v1/deletions?finetune_id=ft-newer").json()["deletions"],
        ]
        everything = [
            records(command("list", "--json")),
            records(command("export")),
            http.get("/v1/deletions").json()["deletions"],
        ]
    tables = [command("list").stdout, command("export", "--format", "csv").stdout]
    # then it is shown, and words that this version does not know are shown as they are.
    assert [{name: one[name] for name in told} for one in shown] == [told] * 4
    assert "ft-newer" in command("show", "newer").stdout
    # When all are listed, then the others are there, and it is there, too, if this version knows its state.
    listed = {"before", "after"} | (set() if "state" in told else {"newer"})
    assert [{one["id"] for one in found} for found in everything] == [listed] * 3
    assert [id_ for id_ in listed for table in tables if id_ not in table] == []
    assert "last hour" in command("status").stdout


def with_more(text):
    return json.dumps({**json.loads(text), "wishes": ["many"]})


def a_hold(ledger):
    for name in ("ft-before", "ft-newer"):
        hold(ledger, "default", name, None, ACT)
    key = ledger.keys.holds("default")
    ledger.redis.hset(key, "ft-newer", with_more(ledger.redis.hget(key, "ft-newer")))


def an_act(ledger):
    ledger.act("ft-before", ACT, ids=["x"])
    (key,) = ledger.redis.keys(ledger.keys.audit("*"))
    entry = json.loads(ledger.redis.lindex(key, -1))
    ledger.redis.rpush(key, json.dumps({**entry, "act": "ft-newer", "via": "drum", "wishes": ["many"]}))


def a_dead_letter(ledger):
    for name in ("ft-before", "ft-newer"):
        keep(ledger.redis, "deletions", name, "text")
    key = ledger.keys.dead_letters
    ledger.redis.lset(key, 0, with_more(ledger.redis.lindex(key, 0)))


def a_plan(ledger):
    for name in ("ft-before", "ft-newer"):
        store(ledger, empty_plan(Policy(name, older_than=timedelta(days=1)), NOW, name, blocked=None))
    key = ledger.keys.plan("ft-newer")
    ledger.redis.hset(key, mapping={"summary": with_more(ledger.redis.hget(key, "summary")), "wishes": "many"})


def a_worker(ledger):
    processes = ["ft-before:1 queues=deletions 0.2.0", "ft-newer:1 wishes=many,more queues=deletions 99.0"]
    ledger.housekeep(processes, timedelta(days=4000))


@pytest.mark.parametrize(
    ("write", "commands"),
    [
        (a_hold, ["holds", "holds --json"]),
        (an_act, ["audit", "audit --json"]),
        (a_dead_letter, ["dead-letters list", "dead-letters list --json"]),
        (a_plan, ["cleanup list", "cleanup list --json"]),
        (a_worker, ["status", "status --json"]),
    ],
)
def test_other_lists_leave_out_what_they_do_not_know(ledger, command, write, commands):
    # Given one entry of ours, and one with fields and words of a newer version,
    write(ledger)
    # when they are listed, then both are there.
    for given in commands:
        done = command(*given.split())
        assert [name in done.stdout for name in ("ft-before", "ft-newer")] == [True, True], done


# Others are in tests/acceptance/test_life.py, each as a process.
@pytest.mark.parametrize(
    "given",
    ["show x", "export", "status", "hold x --reason y", "doctor", "serve --port 0", "metrics --port 0"],
)
def test_a_newer_schema_ends_any_command_with_one_line(redis_client, redis_url, tmp_path, given):
    redis_client.set(keys.schema, 999)
    env = environment(redis_url, JANITOR_STATE_DIR=tmp_path, JANITOR_TOKENS_FILE=token_file(tmp_path))
    done = janitor_here(env, *given.split())
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "the ledger has schema 999" in done.stderr
    assert redis_client.keys() == [keys.schema]
