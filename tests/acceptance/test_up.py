"""`janitor up` and `janitor demo`: whole systems from nothing, which leave nothing behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.ledger import Ledger
from tasks.ledger.queries import workers_seen
from tests.acceptance.http import Client, token_file
from tests.processes import (
    KEY,
    ROOT,
    environment,
    free_ports,
    janitor,
    janitor_here,
    producer,
    records,
    started,
    until,
)
from worker.http.tokens import new_token
from worker.local import embedded
from worker.local.supervise import Spec
from worker.redis_url import celery_url, connect
from worker.sandbox.api import Sandbox


@pytest.fixture
def api():
    with Sandbox(keys={KEY}, latency_seconds=0.01) as sandbox:
        sandbox.create("my-finetune")
        yield sandbox


@pytest.fixture
def home(api, tmp_path):
    """The environment of a person on this machine: a key, and no Redis."""
    return environment(None, api.url, JANITOR_STATE_DIR=tmp_path / "state")


@contextmanager
def up(env, log, *options):
    """`janitor up`, with a worker that works; it is killed at the end if the test did not stop it."""
    state_dir = Path(env["JANITOR_STATE_DIR"])

    def works():
        url = embedded.find_running(state_dir)
        return bool(url and workers_seen(Ledger(connect(url, patient=False))))

    with started(Spec("up", [sys.executable, "-m", "worker.cli", "up", *options], env, works, log=log)) as child:
        yield child


def tree(pid):
    """The process and all that descend from it."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in found.splitlines()]
    pids = {pid}
    while more := {child for child, parent in pairs if parent in pids} - pids:
        pids |= more
    return pids


def rows(text):
    """The rows of a table of deletions: state, finetune and message, without what differs from run to run."""
    found = []
    for line in text.splitlines():
        if row := re.match(r"(\w+) +20\S+ \S+ UTC +(demo-\S+) +[0-9a-f-]{36} +(.+)", line):
            found.append(list(row.groups()))
        elif found and (more := re.match(r" {80,}(\S.*)", line)):
            found[-1][2] = f"{found[-1][2].strip()} {more[1]}"
    masked = [re.sub(r"20\d\d-\d\d-\d\d[T ][\d:.]+", "TIME", message.strip()) for _, _, message in found]
    return sorted(
        [state, finetune, re.sub(r":\d+", ":PORT", message)]
        for (state, finetune, _), message in zip(found, masked, strict=True)
    )


def alive(pids):
    return [pid for pid in pids if (Path("/proc") / str(pid)).exists()]


def test_up_works_from_nothing_keeps_its_records_and_leaves_no_process(home, api, tmp_path):
    log = tmp_path / "log"
    with up(home, log) as child:
        done = janitor_here(home, "delete", "my-finetune", "--wait", "--json")
        assert (done.returncode, records(done)[0]["state"]) == (0, "deleted")
        # A second one on the same folder says so and leaves the first alone.
        second = janitor_here(home, "up")
        assert (second.returncode, f"already (process {child.process.pid})" in second.stderr) == (2, True)
        assert embedded.find_running(Path(home["JANITOR_STATE_DIR"]))
        pids = tree(child.process.pid)
        assert len(pids) >= 4
        child.process.send_signal(signal.SIGINT)  # as Ctrl-C in a terminal
        assert child.process.wait(40) == 0
        until(lambda: not alive(pids), seconds=60, what="the end of all processes")
    assert janitor_here(home, "list").returncode == 3
    id_ = records(done)[0]["id"]
    with up(home, log) as child:
        assert records(janitor_here(home, "show", id_, "--json"))[0]["state"] == "deleted"
        assert [record["id"] for record in records(janitor_here(home, "list", "--json"))] == [id_]
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(40) == 0
    assert len(api.deletes()) == 1


def test_up_without_a_key_says_which_variable_to_set(tmp_path):
    done = janitor_here(environment(JANITOR_STATE_DIR=tmp_path / "state"), "up")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "no API key: set BFL_API_KEY" in done.stderr
    assert "`janitor demo` needs none" in done.stderr
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("variable", ["REDIS_URL", "REDIS_PASSWORD_FILE", "JANITOR_CALLBACKS_URL"])
def test_up_is_refused_if_other_commands_would_use_another_redis(home, variable):
    done = janitor_here(home | {variable: "redis://127.0.0.1:1/0"}, "up")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"{variable} is set" in done.stderr
    assert "unset it" in done.stderr
    assert not Path(home["JANITOR_STATE_DIR"]).exists()


def test_up_says_at_once_that_its_port_is_taken(home, tmp_path):
    (tmp_path / "tokens.toml").write_text(new_token("billing")[1], encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        env = home | {"JANITOR_TOKENS_FILE": str(tmp_path / "tokens.toml")}
        done = janitor_here(env, "up", "--http", "--http-port", str(port))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert f"port {port} cannot be used" in done.stderr


def test_up_serves_producers_and_http_and_gives_the_key_to_the_worker_alone(home, api, tmp_path):
    # Given `up` with the HTTP service
    (port,), log = free_ports(1), tmp_path / "log"
    env = home | {"JANITOR_TOKENS_FILE": str(token_file(tmp_path))}
    with up(env, log, "--http", "--http-port", str(port)) as child:
        # When a producer uses the URL that it prints, then its finetune is deleted;
        url = embedded.url(Path(home["JANITOR_STATE_DIR"]))
        assert f"for by-name producers: {celery_url(url)}" in log.read_text()
        result = producer(url).send_task("finetunes.delete", ["my-finetune"], queue="deletions")
        assert result.get(timeout=60)["state"] == "deleted"
        # when a client uses HTTP, then its one, too.
        until(lambda: listens(port), seconds=60, what="the HTTP service")
        api.create("another")
        with Client(f"http://127.0.0.1:{port}", "boss") as boss:
            (item,) = boss.ask("another").json()["deletions"]
            assert boss.get(f"/v1/deletions/{item['deletion']['id']}?wait=30").json()["state"] == "deleted"
        # `up` itself was given the key by a person; of what it starts, only the worker gets it.
        children = tree(child.process.pid) - {child.process.pid}
        kept = {pid: (Path("/proc") / str(pid) / "environ").read_bytes() for pid in children}
        commands = {pid: (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0") for pid in children}
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(40) == 0
    assert not listens(port)
    with_key = [commands[pid] for pid, environ in kept.items() if KEY.encode() in environ]
    assert len(kept) == 4
    assert [command[-2] for command in with_key] == [b"worker"]


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_demo_shows_one_of_each_outcome(tmp_path):
    folder = tmp_path / f"demo-{uuid.uuid4().hex[:4]}"
    # As wide as the README shows it; pytest sets a width of its own.
    env = environment(PATH=os.environ["PATH"], COLUMNS=160)
    done = janitor(env, "demo", "--keep", str(folder))
    assert done.returncode == 0, done.stderr
    outcomes = ("deleted", "not_found", "superseded", "failed", "review", "cancelled")
    assert {state for state, *_ in rows(done.stdout)} == set(outcomes)
    assert len(rows(done.stdout)) == 8
    # The README shows what the command prints: these finetunes, states and messages, in whatever order they end.
    assert rows(done.stdout) == rows((ROOT / "README.md").read_text(encoding="utf-8"))
    assert "the API counted 4 delete calls, and 3 finetunes are gone" in done.stderr
    assert embedded.find_running(folder) is None
