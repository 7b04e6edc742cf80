"""Producers in another language: celery-node, which nobody here wrote, by name, and Node's own fetch over HTTP."""

import json
import re
import subprocess

import pytest
import redis

from tests.acceptance.http import secret_of, served, token_file
from tests.processes import KEY, ROOT, environment, free_ports, janitor, records, started, worker
from worker.local import embedded
from worker.local.supervise import Spec
from worker.sandbox.api import Sandbox

HERE = ROOT / "tests" / "interop"
PASSWORD = "5ecret"


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    """A Redis on a port of the loopback interface: celery-node knows no unix sockets."""
    (port,) = free_ports(1)
    folder = tmp_path_factory.mktemp("redis")
    options = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "requirepass": PASSWORD}
    argv = [str(part) for name, value in options.items() for part in (f"--{name}", value)]

    def answers():
        try:
            with redis.Redis(port=port, password=PASSWORD) as client:
                return client.ping()
        except redis.RedisError:
            return False

    with started(Spec("redis", [str(embedded.find_server()), *argv], ready=answers, log=folder / "log")):
        yield f"redis://:{PASSWORD}@127.0.0.1:{port}/0"


def run(guide, *arguments):
    """What the program in this guide prints."""
    text = (ROOT / "docs/how-to" / guide).read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- tested: \w+ -->\n```js\n(.*?)```", text, re.DOTALL)
    argv = ["node", "-", *arguments]
    done = subprocess.run(argv, cwd=HERE, input=code, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ask(redis_url, finetune):
    """By Celery: the deletion's id with its record, or with the error."""
    return run("producers.md", redis_url, finetune)


def test_its_deletion_ends_in_deleted_and_it_reads_the_result(redis_url, tmp_path):
    with Sandbox(keys={KEY}, latency_seconds=0) as api:
        api.create("from-node")
        env = environment(redis_url, api.url, JANITOR_STATE_DIR=tmp_path)
        with worker(env, tmp_path / "log"):
            told = ask(redis_url, "from-node")
            refused = ask(redis_url, "never-there")
        (kept,) = records(janitor(env, "show", told["id"], "--json"))
        # It may have been verified in between.
        assert told["record"] | {"verified_at": None} == kept | {"verified_at": None}
        assert api.finetunes() == []
    assert (kept["state"], kept["requested_by"]) == ("deleted", "billing-js")
    # What was not deleted is a failure there too, with the record in it.
    assert refused["error"] == "FAILURE"
    assert refused["details"]["exc_type"] == "DeletionNotDone"
    assert refused["details"]["exc_message"][0]["state"] == "not_found"


def test_its_fetch_asks_over_http_and_reads_the_record(redis_url, tmp_path):
    with Sandbox(keys={KEY}, latency_seconds=0) as api:
        api.create("by-fetch")
        env = environment(redis_url, api.url, JANITOR_STATE_DIR=tmp_path, JANITOR_TOKENS_FILE=token_file(tmp_path))
        with worker(env, tmp_path / "log"), served(env, tmp_path / "http.log") as (base, _):
            record = run("http.md", base, secret_of("billing"), "order-4714", "by-fetch")
        assert api.finetunes() == []
    assert (record["state"], record["source"], record["requested_by"]) == ("deleted", "http", "billing")
    assert record["asked_at"] < record["created_at"], "requested_at was sent"
