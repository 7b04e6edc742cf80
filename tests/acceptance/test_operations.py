"""What docs/how-to/operations.md tells people to do: done."""

import re
import subprocess

import pytest

from tests.processes import KEY, ROOT, environment, free_ports, janitor_here, records, redis_cli, until, worker
from worker.local import embedded
from worker.sandbox.api import Sandbox

GUIDE = (ROOT / "docs" / "how-to" / "operations.md").read_text(encoding="utf-8")


@pytest.fixture
def api():
    with Sandbox(keys={KEY}, latency_seconds=0.05) as sandbox:
        yield sandbox


def carry_out(mark, tmp_path, cli, port):
    """The lines of the guide with this mark, in a shell, at this machine's places."""
    (lines,) = re.findall(rf"<!-- tested: {mark} -->\n```\n(.*?)```", GUIDE, re.DOTALL)
    here = {"/backup": f"{tmp_path}/backup", "/var/lib/redis": f"{tmp_path}/restored", "6379": str(port)}
    for there, place in here.items():
        lines = lines.replace(there, place)
    lines = lines.replace("redis-cli", cli).replace("redis-server", f"{embedded.find_server()} --bind 127.0.0.1")
    done = subprocess.run(["sh", "-euc", lines], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def listed(env):
    """The records, without what waiting ones wait for: a worker that stopped is still seen for a while."""
    return [one | {"waiting_for": None} for one in records(janitor_here(env, "list", "--json"))]


def test_a_backup_is_restored_as_the_guide_says(api, tmp_path):
    # Given a ledger with one deletion done and one that waits, and a copy of it
    cli, (port,) = str(redis_cli()), free_ports(1)
    (tmp_path / "backup").mkdir()
    (tmp_path / "restored").mkdir(mode=0o700)
    for name in ("done", "waits"):
        api.create(name)
    with embedded.running(tmp_path / "redis") as url:
        env = environment(url, api.url, JANITOR_STATE_DIR=tmp_path / "state")
        with worker(env, tmp_path / "first.log"):
            janitor_here(env, "delete", "done", "--wait", "--timeout", "20")
        (waits,) = records(janitor_here(env, "delete", "waits", "--json"))
        carry_out("backup", tmp_path, f"{cli} -s {embedded.socket_path(tmp_path / 'redis')}", port)
        before = listed(env)
    # When that Redis is gone, and the copy is restored
    carry_out("restore", tmp_path, f"{cli} -p {port}", port)
    # Then a server that is started as always has every record, paused until a person has checked
    with embedded.running(tmp_path / "restored") as url:
        env = environment(url, api.url, JANITOR_STATE_DIR=tmp_path / "state")
        assert listed(env) == before
        assert janitor_here(env, "pause", "--reason", "restored").returncode == 0
        with worker(env, tmp_path / "second.log"):
            assert len(api.deletes()) == 1
            janitor_here(env, "resume")
            done = janitor_here(env, "wait", waits["id"], "--timeout", "20", "--json")
    assert records(done)[0]["state"] == "deleted"
    assert [call["finetune_id"] for call in api.deletes()] == ["done", "waits"]


def carried_out(log):
    return log.exists() and "deletion.finished" in log.read_text()


def test_a_key_is_rotated_without_a_stop(redis_url, api, tmp_path):
    # Given a worker with the old key, at work
    key_file, names = tmp_path / "key", [f"ft-{n}" for n in range(400)]
    key_file.write_text(KEY)
    for name in names:
        api.create(name)
    env = environment(redis_url, None, BFL_API_URL=api.url, BFL_API_KEY_FILE=key_file, JANITOR_STATE_DIR=tmp_path)
    with worker(env, tmp_path / "old.log") as old:
        asked = records(janitor_here(env, "delete", *names, "--json"))
        until(api.deletes, seconds=60, what="the first delete")
        # When the new key is made, put into the file, and the workers are changed one after the other
        api.keys.add("the-new-k3y")
        key_file.write_text("the-new-k3y")
        with worker(env, tmp_path / "new.log"):
            assert (old.stop(), bool(api.finetunes())) == (0, True)
            api.keys.remove(KEY)
            # Then nothing stops, nothing fails, and the account was never parked.
            ids = [record["id"] for record in asked]
            done = records(janitor_here(env, "wait", *ids, "--timeout", "40", "--json"))
            assert "accepts the key" in janitor_here(env, "doctor").stdout
    assert carried_out(tmp_path / "old.log")
    assert carried_out(tmp_path / "new.log")
    assert {record["state"] for record in done} == {"deleted"}
    assert {call["key"] for call in api.journal()} == {"ok"}, "the account was never parked"


UNITS = sorted((ROOT / "docs" / "how-to" / "systemd").iterdir())


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_each_unit_runs_a_command_that_exists_and_lets_a_call_end(unit):
    text = unit.read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStart=/opt/finetune-janitor/\.venv/bin/janitor (\w+)$", text, re.MULTILINE)
    assert command == unit.stem.removeprefix("janitor-").rstrip("@").replace("http", "serve")
    assert ("bfl_api_key" in text) == (command == "worker")
    assert {"DynamicUser=yes", "ProtectSystem=strict", "NoNewPrivileges=yes", "CapabilityBoundingSet="} <= set(
        text.splitlines()
    )
