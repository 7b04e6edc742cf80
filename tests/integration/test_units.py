"""The systemd units: each one's command starts, works and stops in what the unit confines it by."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.chaos.harness import LONG
from tests.integration import confined
from tests.integration.composed import BIN, ROOT, Outside, password_of, until
from tests.processes import free_ports, skip_before_redis_7
from worker.http.tokens import new_token
from worker.sandbox.api import Sandbox

MISSING = [name for name in ("systemd-analyze", "unshare") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.skipif(not LONG, reason="takes half a minute: make test-confined"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root"),
    pytest.mark.xdist_group("units"),
]
UNITS = {file.name: file for file in (ROOT / "docs" / "how-to" / "systemd").glob("*.service")}
CREDENTIALS = "/run/credentials"
TOKEN, TOKENS = new_token("somebody", accounts=["*"])
# What `confined` does whatever the unit says.
CONFINED_BY = {"ProtectSystem": ["strict"], "UMask": ["0077"]} | {
    name: ["yes"]
    for name in (
        "DynamicUser", "MemoryDenyWriteExecute", "NoNewPrivileges", "PrivateDevices", "PrivateTmp", "ProtectHome",
        "RestrictNamespaces",
    )
}  # fmt: skip
# What each unit forbids, as code that would end normally.
FORBIDDEN = {
    "writing to the system": "open('/etc/x', 'w')",
    "writing to its own code": f"open('{confined.INSTALLED}/x', 'w')",
    "devices": "os.stat('/dev/kmsg')",
    "sockets of other kinds": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "namespaces": "sys.exit(ctypes.CDLL(None).unshare(0x10000000))",
    "memory that is written and run": "mmap.mmap(-1, 4096, prot=7)",
    "calls that need rights": "os.chroot('/')",
    "more of the processor": "os.nice(-1)",
}


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    """Redis with a user for each role."""
    skip_before_redis_7()
    outside = Outside(tmp_path_factory.mktemp("units"))
    outside.start("redis")
    until(lambda: outside.is_healthy("redis"), 60)
    yield outside
    outside.end("redis")


class Unit:
    def __init__(self, folder, redis, name):
        self.settings = {}
        for key, value in re.findall(r"^(\w+)=(.*)$", UNITS[name].read_text(encoding="utf-8"), re.M):
            self.settings.setdefault(key, []).append(value)
        self.role = self.settings["LoadCredential"][-1].rpartition("_")[2]
        self.urls = {
            "REDIS_URL": f"redis://{self.role}@{redis.places['redis:6379']}/0",
            "BFL_API_URL": f"http://127.0.0.1:{redis.places['8899']}",
        }
        self.state, self.credentials, self.log = folder / "state", folder / "credentials", folder / "log"
        contents = {"bfl_api_key": "sandbox-key", "tokens": TOKENS, "redis_password": password_of(self.role)}
        self.state.mkdir(mode=0o700)
        self.credentials.mkdir(mode=0o700)
        for given in self.settings["LoadCredential"]:
            file = self.credentials / given.partition(":")[0]
            file.write_text(contents[file.name], encoding="utf-8")
            os.chown(file, confined.USER, confined.USER)
        for path in (self.state, self.credentials):
            os.chown(path, confined.USER, confined.USER)

    def start(self, *command):
        """The command, confined, with the environment that the unit gives."""
        given = self.settings
        state = [f"/run/{name}" for name in given.get("RuntimeDirectory", [])]
        state += [f"/var/lib/{name}" for name in given.get("StateDirectory", [])]
        pairs = " ".join(given["Environment"]).replace("%d", CREDENTIALS).split()
        assert given == given | CONFINED_BY
        plan: confined.Plan = {
            "command": list(command),
            "environment": dict(pair.split("=", 1) for pair in pairs) | self.urls | {"PATH": "/usr/bin:/bin"},
            "mounts": {
                confined.INSTALLED: str(ROOT),
                CREDENTIALS: str(self.credentials),
                state[0]: str(self.state),
            },
            "read_only": [confined.INSTALLED, CREDENTIALS],
            "tasks": int(given["TasksMax"][0]),
            "families": given["RestrictAddressFamilies"][0].split(),
            "system_calls": confined.system_calls(given["SystemCallFilter"]),
        }
        argv = ["unshare", "--mount", "--ipc", "--uts", sys.executable, confined.__file__, json.dumps(plan)]
        with self.log.open("ab") as log:
            return subprocess.Popen(argv, stdout=log, stderr=log)

    @contextmanager
    def running(self, kind, *more):
        """Its command, healthy; told to stop, it ends within its time, and it has kept within its memory."""
        process = self.start(*self.settings["ExecStart"][0].split(), *more)
        try:
            until(lambda: process.poll() is not None or self.is_healthy(kind), 60)
            assert process.poll() is None
            yield
            peak_kib = int(
                re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text("utf-8"))[0]
            )
            process.terminate()
            assert process.wait(float(self.settings["TimeoutStopSec"][0])) == 0
        finally:
            process.kill()
            process.wait()
            print(self.log.read_text(encoding="utf-8")[-2000:])
        assert peak_kib < int(self.settings["MemoryMax"][0].removesuffix("M")) * 1024
        print(f"at most {peak_kib // 1024} MiB")

    def is_healthy(self, kind):
        env = {"JANITOR_STATE_DIR": str(self.state)}
        done = subprocess.run([f"{BIN}/janitor", "health", kind], env=env, capture_output=True, check=False)
        return done.returncode == 0


def test_a_worker_deletes(tmp_path, redis):
    with Sandbox(port=int(redis.places["8899"])) as api:
        api.create("my-finetune")
        with Unit(tmp_path, redis, "janitor-worker@.service").running("worker"):
            done = redis.run("operator", [f"{BIN}/janitor", "delete", "my-finetune", "--wait"], 60)
            assert (done.returncode, api.finetunes()) == (0, []), done.stderr


def test_beat_beats(tmp_path, redis):
    with Unit(tmp_path, redis, "janitor-beat.service").running("beat"):
        pass


def test_the_http_service_answers(tmp_path, redis):
    port = free_ports(1)[0]
    with Unit(tmp_path, redis, "janitor-http.service").running("http", f"--port={port}"):
        for path, expected in {"/v1/status": b'"needs"', "/metrics": b"janitor_"}.items():
            request = Request(f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
            with urlopen(request, timeout=10) as answer:
                assert expected in answer.read()


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_forbids_what_its_command_does_not_need(tmp_path, redis, name):
    unit = Unit(tmp_path, redis, name)
    python = [f"{confined.INSTALLED}/.venv/bin/python", "-c"]
    codes = {"nothing": "", **FORBIDDEN}
    ended = {
        what: unit.start(*python, f"import ctypes, mmap, os, socket, sys\n{code}").wait(60)
        for what, code in codes.items()
    }
    assert [what for what, code in ended.items() if code == 0] == ["nothing"]
