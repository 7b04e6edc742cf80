"""The HTTP service when something is wrong: Redis away or full, no tokens, a thousand long polls, a stop."""

import hashlib
import json
import signal
import socket
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import pytest

from tasks.ledger.keys import keys
from tests.acceptance.http import Client, secret_of, served, token_file
from tests.processes import environment, janitor_here, started, until
from worker.http.tokens import read_tokens
from worker.local import embedded
from worker.local.supervise import Spec
from worker.sandbox.api import Sandbox

POLLS = 1000


@pytest.fixture
def home(tmp_path):
    """Where a Redis of the test's own is; it can be stopped and started."""
    return tmp_path / "redis"


@pytest.fixture
def env(home, tmp_path):
    return environment(embedded.url(home), JANITOR_STATE_DIR=home, JANITOR_TOKENS_FILE=token_file(tmp_path))


def test_while_redis_is_away_it_says_so_and_nothing_is_half_accepted(home, env, tmp_path):
    body = {"deletions": [{"finetune_id": f"ft-{n}"} for n in range(100)]}
    with embedded.running(home), served(env, tmp_path / "log") as (base, _), Client(base, "boss") as boss:
        # Given a service that has its connections, and then no Redis.
        known = id_of(boss.ask("known"))
        embedded._client(home).shutdown(nosave=True)
        for method, path, more in [
            ("POST", "/v1/deletions", {"json": body, "headers": {"Idempotency-Key": "the-key"}}),
            ("GET", "/v1/deletions", {}),
            ("GET", f"/v1/deletions/{known}?wait=1", {}),
            ("POST", f"/v1/deletions/{known}/cancel", {}),
            ("GET", "/readyz", {}),
        ]:
            # When it is asked, it answers at once, and says what to do.
            began = time.monotonic()
            refused = boss.request(method, path, **more)
            assert time.monotonic() - began < 3
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
            assert refused.json()["detail"].startswith("Redis cannot be reached (")
        assert boss.get("/healthz").status_code == 200
        assert "janitor_ledger_up 0.0" in boss.get("/metrics").text
        # Then, when Redis is back, nothing of it was written, and the same call is accepted whole.
        with started(embedded.spec(home)):
            listed = boss.get("/v1/deletions").json()["deletions"]
            assert [one["finetune_id"] for one in listed] == ["known"]
            again = boss.post("/v1/deletions", json=body, headers={"Idempotency-Key": "the-key"})
            assert (again.status_code, len(again.json()["deletions"])) == (202, 100)


def test_a_full_redis_is_told_like_one_that_is_away_and_nothing_is_written(home, env, tmp_path):
    with embedded.running(home), served(env, tmp_path / "log") as (base, _), Client(base, "boss") as boss:
        # Given a Redis that is nearly full,
        known = id_of(boss.ask("known", delay_seconds=3600))
        redis = embedded._client(home)
        used = redis.info("memory")["used_memory"]
        redis.config_set("maxmemory", used + 100_000)
        # when deletions are asked for, then it answers 503 with the reason and a time, and writes nothing;
        refused = boss.ask("a", key="the-key")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert "give it more memory (maxmemory)" in refused.json()["detail"]
        # reading and cancelling go on;
        assert [one["id"] for one in boss.get("/v1/deletions").json()["deletions"]] == [known]
        assert boss.post(f"/v1/deletions/{known}/cancel").json()["state"] == "cancelled"
        # and with more memory the same call is accepted.
        redis.config_set("maxmemory", 0)
        assert boss.ask("a", key="the-key").status_code == 202


def test_a_ledger_of_another_version_that_comes_later_is_not_ready(home, env, tmp_path):
    # Given a service that started without Redis, when Redis comes with a newer ledger, then it is not ready.
    with served(env, tmp_path / "log") as (base, _), Client(base) as anyone, embedded.running(home):
        until(lambda: anyone.get("/readyz").status_code == 200, seconds=60, what="being ready")
        embedded._client(home).set(keys.schema, 99)
        refused = anyone.get("/readyz")
    assert (refused.status_code, "the ledger has schema 99" in refused.json()["detail"]) == (503, True)


def test_a_redis_that_hangs_holds_up_nobody_for_long(home, env, tmp_path):
    with started(embedded.spec(home)) as redis, served(env, tmp_path / "log") as (base, _):
        redis.process.send_signal(signal.SIGSTOP)
        try:
            with Client(base, "boss") as boss:
                began = time.monotonic()
                assert boss.ask("a").status_code == 503
                assert boss.get("/healthz").status_code == 200
                assert time.monotonic() - began < 5
        finally:
            redis.process.send_signal(signal.SIGCONT)
        with Client(base, "boss") as boss:
            until(lambda: boss.get("/readyz").status_code == 200, seconds=60, what="being ready")
            assert boss.get("/v1/deletions").json()["deletions"] == []


def test_a_long_poll_outlasts_a_short_absence_of_redis(home, env, tmp_path):
    with embedded.running(home), served(env, tmp_path / "log") as (base, child), Client(base, "boss") as boss:
        id_ = id_of(boss.ask("a"))
        with open_polls(base, [id_]) as (poll,):
            accept_seconds(boss, "another")  # by then the poll has been read
            embedded._client(home).shutdown(nosave=True)
            spent_in_a_second(child)  # so that it is looked for meanwhile
            with started(embedded.spec(home)):
                assert boss.post(f"/v1/deletions/{id_}/cancel").status_code == 200
                assert answer_of(poll)["state"] == "cancelled"


def test_a_thousand_long_polls_slow_no_other_call(home, env, tmp_path):
    with embedded.running(home), served(env, tmp_path / "log") as (base, child), Client(base, "boss") as boss:
        names = [f"ft-{n}" for n in range(POLLS)]
        asked = boss.ask(*names).json()["deletions"]
        assert [item["deletion"]["finetune_id"] for item in asked] == names
        ids = [item["deletion"]["id"] for item in asked]
        alone = accept_seconds(boss, "alone")
        # Given a thousand open long polls,
        with open_polls(base, ids) as polls:
            until(lambda: open_files(child) > POLLS, seconds=60, what=f"{POLLS} connections")
            # when others ask for deletions meanwhile, then it takes hardly longer,
            crowded = accept_seconds(boss, "crowded")
            print(f"accepted in {1000 * alone:.1f} ms alone, in {1000 * crowded:.1f} ms with {POLLS} long polls")
            assert crowded < max(5 * alone, 0.05)
            # and waiting costs little,
            assert spent_in_a_second(child) < 0.5
            # and a client that waits is told when it ends, one that went away is forgotten.
            for poll in polls[3:]:
                poll.close()
            until(lambda: open_files(child) < POLLS / 2, seconds=60, what="the end of closed connections")
            until(lambda: spent_in_a_second(child) < 0.2, seconds=60, what="rest")
            for id_, poll in zip(ids[:2], polls[:2], strict=True):
                boss.post(f"/v1/deletions/{id_}/cancel")
                assert answer_of(poll)["state"] == "cancelled"
            # And a stop waits for no client: one that still waits is told how it stands.
            began = time.monotonic()
            child.process.send_signal(signal.SIGTERM)
            assert answer_of(polls[2])["state"] == "queued"
            assert child.process.wait(10) == 0
            assert time.monotonic() - began < 5


def id_of(answer):
    (item,) = answer.json()["deletions"]
    return str(item["deletion"]["id"])


@contextmanager
def open_polls(base, ids):
    """A long poll for each of these, asked and not answered."""
    place = urlsplit(base)
    with ExitStack() as stack:
        polls = []
        for id_ in ids:
            poll = stack.enter_context(socket.create_connection((place.hostname, place.port), timeout=20))
            poll.sendall(
                f"GET /v1/deletions/{id_}?wait=60 HTTP/1.1\r\nHost: {place.hostname}\r\n"
                f"Authorization: Bearer {secret_of('boss')}\r\nConnection: close\r\n\r\n".encode()
            )
            polls.append(poll)
        yield polls


def answer_of(poll):
    with poll.makefile("rb") as answer:
        return json.loads(answer.read().partition(b"\r\n\r\n")[2])


def accept_seconds(client, name, times=30):
    took = []
    for n in range(times):
        began = time.monotonic()
        assert client.ask(f"{name}-{n}").status_code == 202
        took.append(time.monotonic() - began)
    return median(took)


def open_files(child):
    return len(list(Path(f"/proc/{child.process.pid}/fd").iterdir()))


def spent_in_a_second(child):
    """The processor time it takes in a second."""
    began, spent = time.monotonic(), cpu_seconds(child)
    until(lambda: time.monotonic() - began > 1, seconds=5, what="a second")
    return cpu_seconds(child) - spent


def cpu_seconds(child):
    fields = Path(f"/proc/{child.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def table(sha256="a" * 64, scopes='["read"]', accounts='["*"]', name="billing"):
    return f'[{name}]\nsha256 = "{sha256}"\nscopes = {scopes}\naccounts = {accounts}\n'


FILES = [
    (None, "names a file that cannot be read: No such file"),
    ("# " * 600_000, "names a file that cannot be read: it has more than 1 MiB"),
    ("", "holds no token: `janitor tokens new NAME` makes a token"),
    (table(sha256=hashlib.sha256(b"").hexdigest()), "billing.sha256: this is the SHA-256 of nothing"),
    (table() + 'expires = "2027"\n', "billing.expires: give a date or a time without quotes"),
    (table() + "expires = 2027\n", "billing.expires: give a date or a time without quotes"),
    ("[billing", "not TOML: "),
    ("billing = 7", "JANITOR_TOKENS_FILE: billing: "),
    (table(sha256="abc"), "billing.sha256: "),
    (table(scopes='["raed"]'), "billing.scopes.0: Input should be 'enqueue', 'read' or 'admin'"),
    (table(scopes="[]"), "billing.scopes: "),
    (table(accounts="[]"), "billing.accounts: "),
    (table(accounts='["No Name"]'), "billing.accounts.0: "),
    (table().replace("accounts", "acounts"), "billing.accounts: Field required"),
    (table() + "more = 1\n", "billing.more: Extra inputs are not permitted"),
    (table(name='"a b"'), "a b"),
    (table() * 2, "not TOML: "),
    (table() + table(name="other"), "gives two names the same token"),
]


@pytest.mark.parametrize(("text", "words"), FILES)
@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["up", "--http"]])
def test_without_a_good_file_of_tokens_it_does_not_start(tmp_path, command, text, words):
    file = tmp_path / "tokens.toml"
    if text is not None:
        file.write_text(text)
    url = None if command[0] == "up" else "redis://127.0.0.1:1/0"
    here = environment(url, JANITOR_STATE_DIR=tmp_path / "state", BFL_API_KEY="x")
    done = janitor_here({**here, "JANITOR_TOKENS_FILE": str(file)}, *command)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert words in done.stderr
    assert "JANITOR_TOKENS_FILE" in done.stderr
    unset = janitor_here(here, *command)
    assert (unset.returncode, "JANITOR_TOKENS_FILE is not set" in unset.stderr) == (2, True)


@pytest.mark.parametrize("command", [["serve"], ["metrics"], ["up", "--http"]])
def test_without_the_extra_it_says_what_to_install(env, monkeypatch, command):
    gone = [name for name in sys.modules if name.startswith("worker.http")]
    for name in [*gone, "fastapi"]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    if command[0] == "up":
        del env["REDIS_URL"]
    done = janitor_here({**env, "BFL_API_KEY": "x"}, *command)
    assert (done.returncode, done.stderr) == (
        2, "Error: fastapi is not installed: this command needs `pip install '.[http]'` in a checkout\n"
    )  # fmt: skip


def test_a_new_token_is_shown_once_and_its_table_lets_it_in(tmp_path):
    done = janitor_here(environment(), "tokens", "new", "billing")
    secret, table = done.stdout.strip(), done.stderr[done.stderr.index("[billing]") :].partition("\n\n")[0]
    assert (done.returncode, len(secret) >= 40, secret in table) == (0, True, False)
    (tmp_path / "tokens.toml").write_text(table)
    (token,) = read_tokens(tmp_path / "tokens.toml")
    assert (token.name, token.limited_to) == ("billing", ("default",))
    refused = janitor_here(environment(), "tokens", "new", "two words")
    assert (refused.returncode, "'two words' is not accepted" in refused.stderr) == (2, True)


@pytest.mark.parametrize("command", ["serve", "metrics"])
def test_a_port_that_is_taken_is_told(home, env, tmp_path, command):
    with Sandbox() as other:
        port = other.url.rpartition(":")[2]
        done = janitor_here(env, command, "--port", port)
    assert (done.returncode, f"127.0.0.1 port {port} cannot be used" in done.stderr) == (2, True)


def test_metrics_are_served_alone(home, env, tmp_path):
    log = tmp_path / "metrics.log"
    argv = [sys.executable, "-m", "worker.cli", "metrics", "--port", "0"]
    spec = Spec(
        "metrics", argv, {**env, "PYTHONUNBUFFERED": "1"}, lambda: b"/metrics" in log.read_bytes(), log=log
    )
    with embedded.running(home), started(spec) as child:
        with Client(log.read_text().removeprefix("listening on ").removesuffix("/metrics\n")) as anyone:
            assert "janitor_ledger_up 1.0" in anyone.get("/metrics").text
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(10) == 0
