"""doctor names each fault, with what to do; and the one delete it makes is named, looked at and agreed to."""

import json
import ssl
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import redis
import trustme

from tasks.ledger import Ledger
from tasks.poison import set_aside
from tests.conftest import asking
from tests.processes import KEY, environment, janitor, janitor_here, records
from worker.api_checks import certificate_days
from worker.connections import connect
from worker.sandbox import Sandbox

EVER = timedelta(days=400)
VERSION = version("finetune-janitor")


@pytest.fixture
def api():
    with Sandbox(keys={KEY}, latency_seconds=0) as sandbox:
        sandbox.create("my-finetune")
        yield sandbox


@pytest.fixture
def store(redis_url):
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        client.flushall()
        yield client
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")
        client.config_set("timeout", "0")


@pytest.fixture
def ledger(store, redis_url):
    """A house in which all is well: a worker and beat are seen."""
    ledger = Ledger(connect(redis_url))
    ledger.dispatch([f"one:1/0 {VERSION}"], alive_for=EVER, accounts={"default": 8})
    store.set("janitor:tick", ledger.now_ms())
    return ledger


@pytest.fixture
def env(redis_url, api, ledger):
    return environment(redis_url, api.url)


def findings(env):
    done = janitor_here(env, "doctor", "--json")
    return done.returncode, {found["check"]: found for found in records(done)}


def test_all_is_well(env, store, ledger):
    store.hset("janitor:policy-runs", "stale", ledger.now_ms())
    code, found = findings(env)
    assert code == 0
    assert {check: one["level"] for check, one in found.items()} == dict.fromkeys(
        ("settings", "redis", "eviction", "persistence", "memory", "timeouts", "clock", "workers", "beat",
         "policy", "queue", "poison", "api default", "clock default", "details default"), "ok",
    )  # fmt: skip
    lines = janitor_here(env, "doctor").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * len(found)


def wrong_key(env, **_):
    env["BFL_API_KEY"] = "wrong"


def dead_host(env, **_):
    env["BFL_API_URL"] = "http://127.0.0.1:1"


def no_redis(env, **_):
    env["REDIS_URL"] = "redis://127.0.0.1:1/0"


def eviction_on(store, **_):
    store.config_set("maxmemory-policy", "allkeys-lru")


def persistence_off(store, **_):
    store.config_set("appendonly", "no")


def idle_clients_cut(store, **_):
    store.config_set("timeout", "5")


def no_worker(store, **_):
    store.delete("janitor:workers")


def no_worker_and_work(store, ledger, **_):
    ledger.accept([asking()])
    store.delete("janitor:workers")


def another_version(ledger, **_):
    ledger.dispatch(["two:2/0 0.0.1"], alive_for=EVER)


def no_beat(store, **_):
    store.delete("janitor:tick")


def silent_beat(store, ledger, **_):
    store.set("janitor:tick", ledger.now_ms() - 600_000)


def poison(store, **_):
    set_aside(store, "deletions", "not JSON", "garbage")


def api_clock_skewed(api, by, **_):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=by), usegmt=True)
    api.fault(
        "status", call="my_finetunes", status=200, body={"finetunes": ["my-finetune"]}, headers={"Date": date}
    )


def a_bit_off(**given):
    api_clock_skewed(**given, by=-30)


def far_off(**given):
    api_clock_skewed(**given, by=300)


def paused(env, **_):
    janitor_here(env, "pause", "--reason", "a complaint")


def protected(env, **_):
    assert janitor_here(env, "protect", "my-finetune").returncode == 0


def parked(ledger, **_):
    ledger.account("default", "park", reason="HTTP 403: Not authenticated", probe_ms=30_000)


def details_without_the_call(api, **_):
    api.fault("status", call="finetune_details", status=405)


def details_of_another_host(api, **_):
    api.fault("status", call="finetune_details", status=404, body={"message": "no Route matched"})


def list_reshaped(api, **_):
    api.fault("reshaped", call="my_finetunes")


FAULTS = [
    (wrong_key, 1, "api default", "error", "refuses the key", "correct BFL_API_KEY"),
    (dead_host, 3, "api default", "unreachable", "refused", "test another host with BFL_API_URL"),
    (no_redis, 3, "redis", "unreachable", "cannot be reached", "is REDIS_URL right?"),
    (eviction_on, 1, "eviction", "error", "allkeys-lru", "set noeviction"),
    (persistence_off, 1, "persistence", "error", "append-only file is off", "set appendonly yes"),
    (idle_clients_cut, 0, "timeouts", "warning", "silent for 5s", "set timeout 0"),
    (no_worker, 0, "workers", "warning", "no worker is seen", "`janitor worker`"),
    (no_worker_and_work, 1, "workers", "error", "no worker is seen", "`janitor worker`"),
    (another_version, 0, "workers", "warning", "two:2/0 0.0.1", "bring all to one version"),
    (no_beat, 0, "beat", "warning", "no beat is seen", "`janitor beat`"),
    (silent_beat, 0, "beat", "warning", "10m old", "`janitor beat`"),
    (poison, 0, "poison", "warning", "1 unreadable", "`janitor poison list`"),
    (a_bit_off, 0, "clock default", "warning", "ahead of that of the API", "NTP"),
    (far_off, 1, "clock default", "error", "behind that of the API", "NTP"),
    (paused, 0, "paused", "warning", "a complaint", "`janitor resume`"),
    (parked, 1, "parked", "error", "HTTP 403", "correct it"),
    (details_without_the_call, 0, "details default", "warning", "does not work", "ask BFL for another URL"),
    (details_of_another_host, 0, "details default", "warning", "does not work", "ask BFL for another URL"),
    (list_reshaped, 1, "api default", "error", "shape that is not known", "is this the right host?"),
]


@pytest.mark.parametrize(
    ("provoke", "code", "check", "level", "words", "what_to_do"), FAULTS, ids=[row[0].__name__ for row in FAULTS]
)
def test_each_fault_is_named_with_what_to_do(
    env, store, ledger, api, provoke, code, check, level, words, what_to_do
):
    provoke(env=env, store=store, ledger=ledger, api=api)
    exit_code, found = findings(env)
    amiss = {name for name, one in found.items() if one["level"] != "ok"}
    assert (exit_code, amiss, found[check]["level"]) == (code, {check}, level)
    assert words in found[check]["message"]
    assert what_to_do in found[check]["message"]
    assert KEY not in str(found)


def test_a_host_whose_clock_is_off_is_told(env, monkeypatch):
    # Given a host that is a minute ahead (its own clock: nothing else can be moved from here)
    ahead = SimpleNamespace(time=lambda: datetime.now(UTC).timestamp() + 60)
    monkeypatch.setattr("worker.ledger_checks.time", ahead)
    # When doctor asks Redis for its time
    code, found = findings(env)
    # Then it says which of them is behind
    assert (code, found["clock"]["level"]) == (0, "warning")
    assert "the clock of Redis is 1m behind that of this host" in found["clock"]["message"]


@contextmanager
def https(certificate):
    """A server of the loopback interface with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that goes away is no news
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_certificate_that_is_not_to_be_trusted_is_named(env):
    with https(trustme.CA().issue_cert("127.0.0.1")) as port:
        code, found = findings(env | {"BFL_API_URL": f"https://127.0.0.1:{port}"})
    assert (code, found["certificate default"]["level"]) == (3, "error")
    assert "unable to get local issuer certificate" in found["certificate default"]["message"]


def test_the_days_of_a_certificate_are_counted(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    ends = datetime.now(UTC) + timedelta(days=10, hours=1)
    with https(authority.issue_cert("127.0.0.1", not_after=ends)) as port:
        assert certificate_days("127.0.0.1", port, 5, str(tmp_path / "ca.pem")) == 10


def test_settings_say_where_they_come_from_and_no_secret(env, tmp_path):
    (tmp_path / "key").write_text(KEY)
    given = {"JANITOR_LEASE": "40s", "BFL_API_KEY_FILE_EMEA": str(tmp_path / "key")}
    told = janitor_here(env | given, "doctor", "--settings", "--json")
    assert KEY not in told.stdout + told.stderr
    sources = {row["setting"]: (row["source"], row["value"]) for row in records(told)}
    assert sources["JANITOR_LEASE"] == ("environment", "40s")
    assert sources["JANITOR_THREADS"] == ("default", "8")
    assert [sources[name][0] for name in ("BFL_API_KEY", "BFL_API_KEY_EMEA")] == ["environment", "file"]
    assert sources["BFL_API_URL_EMEA"] == ("default", "https://api.us1.bfl.ai")


def test_live_deletes_what_is_named_and_shows_the_exchange_without_the_key(env, api):
    api.create("other")
    done = janitor_here(env, "doctor", "--live", "my-finetune", "--yes")
    assert (done.returncode, api.finetunes()) == (0, ["other"])
    lines = done.stdout.splitlines()
    assert lines[0] == f"> POST {api.url}/v1/delete_finetune"
    assert "> x-key: ***" in lines
    assert '> {"finetune_id": "my-finetune"}' in lines
    assert "< HTTP/1.1 200 Simulated" in lines
    assert json.loads(lines[-1].removeprefix("< "))["deleted_finetune_id"] == "my-finetune"
    assert KEY not in done.stdout + done.stderr


def test_live_without_an_agreement_deletes_nothing(env, api):
    refused = janitor(env, "doctor", "--live", "my-finetune", input="n\n")
    assert (refused.returncode, refused.stdout, api.deletes()) == (130, "", [])
    assert "Delete my-finetune now, for good and without a record?" in refused.stderr


@pytest.mark.parametrize(
    ("provoke", "arguments", "code", "words"),
    [
        (None, ["--live", "nothing", "--yes"], 1, "has no nothing: nothing was deleted"),
        (paused, ["--live", "my-finetune", "--yes"], 1, "deleting is paused (a complaint)"),
        (protected, ["--live", "my-finetune", "--yes"], 1, "my-finetune is protected; `janitor unprotect"),
        (None, ["--live", "org/name", "--yes"], 2, "org/name"),
        (None, ["--live", "my-finetune", "--account", "emea", "--yes"], 2, "'emea' is not known"),
        (None, ["--live", "my-finetune", "--settings"], 2, "--live goes with"),
        (None, ["--yes"], 2, "go with --live only"),
        (None, ["--live"], 2, "requires an argument"),
        (wrong_key, ["--live", "my-finetune", "--yes"], 3, "Not authenticated"),
        (dead_host, ["--live", "my-finetune", "--yes"], 3, "refused"),
    ],
)
def test_live_deletes_nothing_else(env, api, provoke, arguments, code, words):
    if provoke:
        provoke(env=env)
    done = janitor_here(env, "doctor", *arguments)
    assert (done.returncode, words in done.stderr, api.deletes()) == (code, True, [])


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [("reset", 3, "< no complete answer"), ("not_json", 1, "< <html>all is well</html>")],
)
def test_live_shows_what_came_back_also_where_it_does_not_confirm(env, api, fault, code, line):
    api.fault(fault)
    done = janitor_here(env, "doctor", "--live", "my-finetune", "--yes")
    assert (done.returncode, line in done.stdout.splitlines()) == (code, True)
    assert "is deleted" not in done.stderr
