"""The embedded Redis: private, durable, one a folder, whatever the folder is called."""

import os
import signal
import stat
import subprocess
from typing import Any

import pytest
import redis
from celery import Celery

from tests.processes import until
from worker.local import embedded
from worker.local.embedded import EmbeddedRedisError
from worker.local.supervise import NotReady, started
from worker.redis_url import celery_url


def client(url):
    return redis.Redis.from_url(url, decode_responses=True)


def test_it_writes_to_disk_at_once_evicts_nothing_and_listens_on_no_port(tmp_path):
    with embedded.running(tmp_path) as url, client(url) as store:
        wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "port": "0"}
        assert {name: store.config_get(name)[name] for name in wanted} == wanted
        mode = stat.S_IMODE(embedded.socket_path(tmp_path).stat().st_mode)
    assert mode == 0o700


def test_it_does_not_get_the_api_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("BFL_API_KEY", "s3cret")
    assert "s3cret" not in (embedded.spec(tmp_path).env or os.environ).values()


def test_what_was_written_is_there_after_a_kill(tmp_path):
    spec = embedded.spec(tmp_path)
    with started(spec) as child, client(embedded.url(tmp_path)) as store:
        store.set("kept", "yes")
        child.process.kill()
        child.process.wait(10)
    with embedded.running(tmp_path) as url, client(url) as store:
        assert store.get("kept") == "yes"


def test_a_second_one_on_the_same_folder_is_refused_and_the_first_goes_on(tmp_path):
    with embedded.running(tmp_path) as url, client(url) as store:
        with (
            pytest.raises(EmbeddedRedisError, match=rf"already \(process {os.getpid()}\)"),
            embedded.lock(tmp_path),
        ):
            pass
        assert store.ping()


def test_it_is_found_while_it_runs_and_not_after(tmp_path):
    assert embedded.find_running(tmp_path) is None
    with embedded.running(tmp_path) as url:
        assert embedded.find_running(tmp_path) == url
    assert embedded.find_running(tmp_path) is None


@pytest.mark.parametrize(
    "name", ["a folder with spaces % and ü", "long-" * 40], ids=["odd", "too long for a socket"]
)
def test_any_folder_will_do(tmp_path, name):
    folder = tmp_path / name
    with embedded.running(folder) as url, client(url) as store:
        store.set("here", "yes")
        assert len(os.fsencode(embedded.socket_path(folder))) <= 100
        # Celery, which parses the same URL in its own way, reaches the same server.
        with Celery(broker=celery_url(url)).connection_for_write() as connection:
            channel: Any = connection.default_channel
            assert channel.client.get("here") == b"yes"


def test_a_server_left_behind_by_a_kill_is_shut_down_and_followed(tmp_path):
    spec = embedded.spec(tmp_path)
    left = subprocess.Popen(list(spec.argv), stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        until(lambda: embedded.find_running(tmp_path) is not None, seconds=60, what="the first server")
        with client(embedded.url(tmp_path)) as store:
            store.set("kept", "yes")
        with embedded.running(tmp_path) as url, client(url) as store:
            assert store.get("kept") == "yes"
        assert left.wait(10) == 0
    finally:
        if left.poll() is None:
            left.send_signal(signal.SIGKILL)
            left.wait(10)


def test_a_server_on_the_path_goes_before_the_bundled_one_unless_it_is_too_old(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # without a server that this machine may have
    bundled = embedded.find_server()
    for version, name in (("6.2.0", "redis-server"), ("7.2.4", "valkey-server")):
        fake = tmp_path / name
        fake.write_text(f'#!/bin/sh\necho "Redis server v={version} sha=0"\n')
        fake.chmod(0o755)
        assert embedded.find_server() == fake
        fake.write_text('#!/bin/sh\necho "Redis server v=6.0.16 sha=0"\n')
        assert embedded.find_server() != fake
        fake.unlink()
    assert bundled.exists()


@pytest.mark.parametrize("written_by", ["Redis server v=99.1.0", "Keydb server v=7.0.0"])
def test_data_of_another_or_a_newer_server_is_refused_and_never_started_empty(tmp_path, monkeypatch, written_by):
    # Given a folder that another server has used
    other, state_dir = tmp_path / "redis-server", tmp_path / "state"
    monkeypatch.setenv("PATH", str(tmp_path))
    other.write_text(f'#!/bin/sh\necho "{written_by} sha=0"\n')
    other.chmod(0o755)
    embedded.spec(state_dir)
    # When that one is gone
    other.unlink()
    # Then the one that is left refuses, and says which one is needed.
    with pytest.raises(
        EmbeddedRedisError, match=r"was written by \w+ \d+\.\d, and .* is Redis \d.*JANITOR_STATE_DIR"
    ):
        embedded.spec(state_dir)


def test_data_of_an_older_server_is_taken_over(tmp_path):
    with embedded.running(tmp_path) as url, client(url) as store:
        store.set("kept", "yes")
    (tmp_path / "redis-version").write_text("Redis 6.0")
    with embedded.running(tmp_path) as url, client(url) as store:
        assert store.get("kept") == "yes"


def test_without_any_server_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedRedisError, match=r"install one, or the extra .*\[embedded\].*REDIS_URL"):
        embedded.find_server()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(EmbeddedRedisError, match="not a folder that only you can write to"):
        embedded.spec(tmp_path)


def test_what_it_cannot_start_with_is_said(tmp_path):
    (tmp_path / "appendonly.aof").write_bytes(b"not a log of commands\n" * 10)
    why = r"redis ended with 1; the end of .*Bad file format reading the append only file"
    with pytest.raises(NotReady, match=why), embedded.running(tmp_path):
        pass
