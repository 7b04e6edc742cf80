"""doctor names each fault, with what to do. It deletes nothing."""

import ssl
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import redis
import trustme

from tasks.api.client import Listing
from tasks.api.errors import KeyRefused, NotSent
from tasks.cleanup.policies import UNREADABLE, digest_of
from tasks.ledger import Ledger
from tasks.ledger.dead_letters import keep
from tasks.ledger.queries import Filter, list_deletions, workers_seen
from tasks.waiting import read_entry, worker_entry
from tests.conftest import asking, carry_out_one
from tests.processes import KEY, environment, janitor_here, producer, records, worker
from worker.doctor import api as api_checks
from worker.doctor.api import certificate_days
from worker.message_fields import QUEUES
from worker.redis_url import connect
from worker.sandbox.api import Sandbox

EVER = timedelta(days=400)
VERSION = version("finetune-janitor")


def worker_that_reads(ledger, *queues, accounts=("default",)):
    """The only worker that is seen."""
    ledger.redis.delete(ledger.keys.workers)
    ledger.housekeep([worker_entry("one:1", VERSION, accounts=accounts, queues=queues)], alive_for=EVER)


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
    """All is well: a worker and beat are seen."""
    ledger = Ledger(connect(redis_url))
    ledger.maintain("default", 8)
    worker_that_reads(ledger, *QUEUES)
    store.set(ledger.keys.tick, ledger.now_ms())
    return ledger


@pytest.fixture
def env(redis_url, api, ledger):
    return environment(redis_url, api.url)


def findings(env):
    done = janitor_here(env, "doctor", "--json")
    found = {one["check"]: one for one in records(done)}
    # The Redis of this machine may be a distribution's, whose version says nothing about its holes.
    if "unless your distribution has fixed it" in found["redis"]["message"]:
        found["redis"]["level"] = "ok"
    return done.returncode, found


def test_all_is_well(env, store, ledger):
    store.hset(ledger.keys.policy_runs, "stale", f"{ledger.now_ms()} 0 3 * * *")
    code, found = findings(env)
    assert code == 0
    assert {check: one["level"] for check, one in found.items()} == dict.fromkeys(
        ("settings", "redis", "eviction", "persistence", "memory", "timeouts", "clock", "workers", "messages",
         "beat", "policy", "queue", "dead letters", "reviews", "api default", "details default"), "ok",
    )  # fmt: skip
    assert "stale (0 3 * * *)" in found["policy"]["message"]
    lines = janitor_here(env, "doctor").stdout.splitlines()
    assert [line.split()[0] for line in lines if line.split()[1] != "redis"] == ["ok"] * (len(found) - 1)


def wrong_key(env, **_):
    env["BFL_API_KEY"] = "wrong"


def wrong_key_in_a_file(env, tmp_path, **_):
    del env["BFL_API_KEY"]
    env["BFL_API_KEY_FILE"] = str(tmp_path / "key")
    (tmp_path / "key").write_text("wrong", encoding="utf-8")


def key_with_a_space(env, **_):
    env["BFL_API_KEY"] = "two words"


def policies_that_are_not_there(env, **_):
    env["JANITOR_POLICY_FILE"] = "/nope"


def url_of_nobody(env, **_):
    env["BFL_API_URL_EMEE"] = "https://api.eu.bfl.ai"


def callbacks_by_http(env, **_):
    env["JANITOR_CALLBACKS_URL"] = "http://x"


def tokens_that_are_none(env, **_):
    env["JANITOR_TOKENS_FILE"] = "/dev/null"


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


def no_worker(store, ledger, **_):
    store.delete(ledger.keys.workers)


def no_worker_and_work(store, ledger, **_):
    ledger.accept([asking()])
    store.delete(ledger.keys.workers)


def no_worker_and_messages(store, ledger, **_):
    store.lpush("deletions", "a message")
    store.delete(ledger.keys.workers)


def wakeups_read_by_nobody(ledger, **_):
    ledger.accept([asking()])
    worker_that_reads(ledger, "deletions", "touches")


def requests_read_by_nobody(store, ledger, **_):
    store.lpush("deletions\x06\x166", "a message", "another one")  # of another priority
    worker_that_reads(ledger, "wakeups", "touches")


def reports_read_by_nobody(ledger, **_):
    ledger.accept([asking()])
    worker_that_reads(ledger, "deletions", "wakeups")


def sent_without_a_queue(redis_url, **_):
    producer(redis_url).send_task("finetunes.delete", ["my-finetune"])


def key_of_nobody(ledger, **_):
    ledger.maintain("billing", 8)
    ledger.accept([asking(account="billing")])


def key_of_nobody_for_later(ledger, **_):
    ledger.maintain("billing", 8)
    ledger.accept([asking(account="billing", due_at=datetime.now(UTC) + timedelta(hours=1))])


def review(ledger, **_):
    ledger.accept([asking()])
    carry_out_one(ledger, "review", message="another finetune was named")


def another_version(ledger, **_):
    ledger.housekeep(["two:2 0.0.1"], alive_for=EVER)


def other_policies(ledger, **_):
    policies_of_workers(ledger, "11d1", "22d2")


def unreadable_policies(ledger, **_):
    policies_of_workers(ledger, UNREADABLE, UNREADABLE)


def other_urls(ledger, **_):
    for name, tag in (("two", "11d1"), ("three", "22d2")):
        ledger.housekeep(
            [worker_entry(f"{name}:2", VERSION, urls=[f"emea:{tag}", "default:33f3"])], alive_for=EVER
        )


def policies_of_workers(ledger, *digests):
    for name, digest in zip(("two", "three"), digests, strict=True):
        ledger.housekeep([worker_entry(f"{name}:2", VERSION, policies=[digest])], alive_for=EVER)


def no_beat(store, ledger, **_):
    store.delete(ledger.keys.tick)


def silent_beat(store, ledger, **_):
    store.set(ledger.keys.tick, ledger.now_ms() - 600_000)


def dead_letter(store, **_):
    keep(store, "deletions", "not JSON", "garbage")


def overdue(ledger, **_):
    earlier = Ledger(ledger.client, now_ms=lambda: ledger.now_ms() - 600_000)
    earlier.accept([asking()])


def proxy(env, **_):
    env["HTTPS_PROXY"] = "http://127.0.0.1:1"


def paused(env, **_):
    janitor_here(env, "pause", "--reason", "a complaint")


def parked(ledger, **_):
    ledger.account("default", "park", reason="HTTP 403: Not authenticated", probe_ms=30_000)


def details_without_the_call(api, **_):
    api.fault("status", call="finetune_details", status=405)


def details_of_another_host(api, **_):
    api.fault("status", call="finetune_details", status=404, body={"message": "no Route matched"})


def dashboard_lora(api, **_):
    api.fault("status", call="finetune_details", status=200, body={"finetune_details": {"base_model": "flux"}})


def a_date_alone(api, **_):
    day = {"finetune_details": {"created_at": "2026-03-01"}}
    api.fault("status", call="finetune_details", status=200, body=day)


def details_broken(api, **_):
    api.fault("status", call="finetune_details", status=500)


def list_of_another_shape(api, **_):
    api.fault("status", call="my_finetunes", status=200, body={"items": []})


FAULTS = [
    (wrong_key, 1, "api default", "error", "the key is refused: HTTP 403: 127.0.0.1", "correct BFL_API_KEY"),
    (wrong_key_in_a_file, 1, "api default", "error", "the key is refused: ", "correct BFL_API_KEY_FILE"),
    (key_with_a_space, 1, "settings", "error", "BFL_API_KEY must hold one key", "without spaces"),
    (policies_that_are_not_there, 1, "settings", "error", "JANITOR_POLICY_FILE: /nope", "cannot be read"),
    (url_of_nobody, 0, "settings", "warning", "no account here uses BFL_API_URL_EMEE", "correct the name"),
    (callbacks_by_http, 1, "settings", "error", "JANITOR_CALLBACKS_URL", "give redis://"),
    (tokens_that_are_none, 1, "settings", "error", "JANITOR_TOKENS_FILE", "`janitor tokens new NAME`"),
    (dead_host, 3, "api default", "unreachable", "refused", "test another one with BFL_API_URL"),
    (no_redis, 3, "redis", "unreachable", "cannot be reached", "is REDIS_URL right?"),
    (eviction_on, 1, "eviction", "error", "allkeys-lru", "set noeviction"),
    (persistence_off, 1, "persistence", "error", "append-only file is off", "set appendonly yes"),
    (idle_clients_cut, 0, "timeouts", "warning", "idle for 5s", "set timeout 0"),
    (no_worker, 0, "workers", "warning", "no worker is seen", "`janitor worker`"),
    (no_worker_and_work, 1, "workers", "error", "no worker is seen", "`janitor worker`"),
    (no_worker_and_messages, 1, "workers", "error", "no worker is seen", "`janitor worker`"),
    (wakeups_read_by_nobody, 1, "messages", "error", "wakeups: 0: no worker reads wakeups", "without -Q"),
    (requests_read_by_nobody, 1, "messages", "error", "deletions: 2: no worker reads deletions", "without -Q"),
    (reports_read_by_nobody, 0, "messages", "warning", "no worker reads touches", "add what is missing to its -Q"),
    (sent_without_a_queue, 1, "other queues", "error", "celery: 1 of the last 1", 'with queue="deletions"'),
    (key_of_nobody, 1, "key billing", "error", "billing has 1 unfinished", "set BFL_API_KEY_BILLING for"),
    (key_of_nobody_for_later, 0, "key billing", "warning", "no running worker has its key", "BFL_API_KEY_BILLING"),
    (review, 1, "reviews", "error", "another finetune was named", "`janitor list --open-reviews`"),
    (another_version, 0, "workers", "warning", "two:2 0.0.1", "bring all to one version"),
    (other_policies, 1, "workers", "error", "their policies differ", "JANITOR_POLICY_FILE"),
    (other_urls, 1, "workers", "error", "different base URLs for account emea", "the same BFL_API_URL"),
    (unreadable_policies, 1, "workers", "error", "cannot read its policies", "`janitor cleanup check`"),
    (no_beat, 0, "beat", "warning", "no beat is seen", "`janitor beat`"),
    (silent_beat, 0, "beat", "warning", "10m old", "`janitor beat`"),
    (dead_letter, 0, "dead letters", "warning", "'not JSON'", "`janitor dead-letters list`"),
    (overdue, 0, "queue", "warning", "has waited 10m", "the API answers"),
    (proxy, 0, "proxy", "warning", "HTTPS_PROXY is set, and is not used", "connect to the API directly"),
    (paused, 0, "paused", "warning", "a complaint", "`janitor resume`"),
    (parked, 1, "parked", "error", "HTTP 403", "correct it"),
    (details_without_the_call, 0, "details default", "warning", "does not work", "ends in review"),
    (details_of_another_host, 0, "details default", "warning", "does not work", "ends in review"),
    (details_broken, 0, "details default", "warning", "HTTP 500", "waits until it answers"),
    (dashboard_lora, 0, "details default", "warning", "neither a unique id nor", "JANITOR_OBSERVE_WITHIN"),
    (a_date_alone, 0, "details default", "warning", "nor an exact creation time", "JANITOR_OBSERVE_WITHIN"),
    (list_of_another_shape, 1, "api default", "error", "shape that is not known", "set by BFL_API_URL"),
]


@pytest.mark.parametrize(
    ("provoke", "code", "check", "level", "words", "what_to_do"), FAULTS, ids=[row[0].__name__ for row in FAULTS]
)
def test_each_fault_is_named_with_what_to_do(
    env, store, ledger, api, redis_url, tmp_path, provoke, code, check, level, words, what_to_do
):
    provoke(env=env, store=store, ledger=ledger, api=api, redis_url=redis_url, tmp_path=tmp_path)
    exit_code, found = findings(env)
    wrong = {name for name, one in found.items() if one["level"] != "ok"}
    assert (exit_code, wrong, found[check]["level"]) == (code, {check}, level)
    assert words in found[check]["message"]
    assert what_to_do in found[check]["message"]
    assert KEY not in str(found)


def test_a_worker_tells_which_queues_and_accounts_it_has(env, store, ledger, tmp_path):
    # Given no worker but one that reads a single queue, with the keys of two accounts,
    store.delete(ledger.keys.workers)
    policies = tmp_path / "policies.toml"
    policies.write_text("")
    own = {"BFL_API_KEY_BILLING": KEY, "JANITOR_POLICY_FILE": str(policies)}
    with worker(env | own, tmp_path / "log", "-Q", "deletions,somebody-elses"):
        (seen,) = map(read_entry, workers_seen(ledger))
        # when a deletion is due, which needs a wake-up,
        ledger.accept([asking()])
        code, found = findings(env)
    # then doctor knows that nobody reads that.
    facts = {"queues": "deletions", "accounts": "billing,default", "policies": digest_of(policies)}
    urls = dict(one.split(":") for one in seen.facts["urls"].split(","))
    assert (seen.facts, seen.version) == (facts | {"urls": seen.facts["urls"]}, VERSION)
    assert sorted(urls) == ["billing", "default"]
    assert urls["billing"] != urls["default"], "one of them has no URL of its own"
    assert (code, found["messages"]["level"]) == (1, "error")
    assert "no worker reads touches and wakeups" in found["messages"]["message"]


def test_an_entry_without_queues_and_accounts_is_of_a_worker_that_may_have_all(env, store, ledger):
    # Given a worker of an earlier version, which told its name and version only,
    store.delete(ledger.keys.workers)
    ledger.housekeep([f"one:1 {VERSION}"], alive_for=EVER)
    # when something is due, then doctor complains about nothing.
    ledger.accept([asking()])
    _, found = findings(env)
    assert {check for check, one in found.items() if one["level"] != "ok"} == set()


def test_a_review_that_was_tried_again_needs_nobody(env, ledger):
    # Given a review that was continued by a retry, which ended well,
    ledger.accept([asking()])
    carry_out_one(ledger, "review")
    (old,) = list_deletions(ledger, Filter()).deletions
    ledger.accept([asking(retry_of=old.id)])
    carry_out_one(ledger)
    # when doctor looks, then nobody has to.
    assert findings(env)[1]["reviews"]["level"] == "ok"


def test_a_host_whose_clock_is_off_is_told(env, monkeypatch):
    # Given a host that is a minute ahead (its own clock: nothing else can be moved from here)
    ahead = SimpleNamespace(time=lambda: datetime.now(UTC).timestamp() + 60)
    monkeypatch.setattr("worker.doctor.ledger.time", ahead)
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
        server.handle_error = lambda *_: None  # type: ignore[method-assign] # a client may go away
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_certificate_that_is_not_to_be_trusted_is_named(env):
    with https(trustme.CA().issue_cert("127.0.0.1")) as port:
        code, found = findings(env | {"BFL_API_URL": f"https://127.0.0.1:{port}"})
    assert (code, found["certificate default"]["level"]) == (3, "error")
    assert "unable to get local issuer certificate" in found["certificate default"]["message"]


def test_a_certificate_of_a_bundle_of_ones_own_is_trusted(env, tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with https(authority.issue_cert("127.0.0.1")) as port:
        here = env | {"BFL_API_URL": f"https://127.0.0.1:{port}", "JANITOR_CA_BUNDLE": str(tmp_path / "ca.pem")}
        _, found = findings(here)
    assert found["certificate default"]["level"] == "ok"


OTHER_HOSTS = {
    "https://api.us1.bfl.ai": NotSent("no connection: api.us1.bfl.ai (set BFL_API_URL to use another host)"),
    "https://api.bfl.ai": Listing(frozenset({"a"}), 1),
    "https://api.eu.bfl.ai": Listing(frozenset(), 0),
    "https://api.us.bfl.ai": KeyRefused("api.us.bfl.ai (set ...): Not authenticated", http_status=403),
}


@pytest.fixture
def hosts(monkeypatch):
    """The hosts of BFL, without a network: what each answers to `my_finetunes`; which were asked."""
    asked = []

    class Reader:
        def __init__(self, url, *_, **__):
            self.url = url

        def my_finetunes(self):
            asked.append(self.url)
            answer = OTHER_HOSTS[self.url]
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr(api_checks, "BflReader", Reader)
    monkeypatch.setattr(api_checks, "certificate_days", lambda *_: 90)
    return asked


@pytest.mark.parametrize("variable", ["BFL_API_URL", "BFL_API_URL_EMEA"])
def test_if_the_host_does_not_answer_the_other_known_ones_are_asked(env, hosts, variable):
    # Given an account whose host at bfl.ai does not answer,
    name, account = ("BFL_API_KEY_EMEA", "emea") if "EMEA" in variable else ("BFL_API_KEY", "default")
    env.pop("BFL_API_KEY")
    # when doctor checks it,
    code, found = findings(env | {name: KEY, variable: "https://api.us1.bfl.ai"})
    # then it says which other hosts answer, how many finetunes each lists, and what to set.
    assert (code, found[f"api {account}"]["level"], found[f"hosts {account}"]["level"]) == (
        3, "unreachable", "warning"
    )  # fmt: skip
    assert "api.us1.bfl.ai" in found[f"api {account}"]["message"]
    assert found[f"hosts {account}"]["message"] == (
        "https://api.bfl.ai accepts the key and lists 1 finetune; "
        "https://api.eu.bfl.ai accepts the key and lists 0 finetunes; https://api.us.bfl.ai: HTTP 403: "
        f"set {variable} to the one that has yours"
    )
    assert hosts == list(OTHER_HOSTS)


def test_a_host_that_refuses_is_not_asked_twice(env, hosts):
    _, found = findings(env | {"BFL_API_URL": "https://api.us.bfl.ai"})
    assert found["api default"]["level"] == "error"
    assert "api.us.bfl.ai" not in found["hosts default"]["message"]


def test_no_other_host_gets_the_key_of_a_host_that_is_not_at_bfl(env, monkeypatch):
    monkeypatch.setattr(api_checks, "KNOWN_URLS", ("http://127.0.0.1:2",))
    code, found = findings(env | {"BFL_API_URL": "http://127.0.0.1:1"})
    assert (code, "hosts default" in found) == (3, False)


def test_the_ledger_of_another_version_is_told_in_one_line(env, store, ledger):
    # Given a Redis with the ledger of a newer version,
    store.set(ledger.keys.schema, 99)
    # when doctor runs, then it ends with one line.
    done = janitor_here(env, "doctor")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "the ledger has schema 99" in done.stderr


def test_the_days_of_a_certificate_are_counted(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    ends = datetime.now(UTC) + timedelta(days=10, hours=1)
    with https(authority.issue_cert("127.0.0.1", not_after=ends)) as port:
        assert certificate_days("127.0.0.1", port, 5, tmp_path / "ca.pem") == 10


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
