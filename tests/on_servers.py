"""Run the tests that meet a Redis or Valkey on several of them, and print one table: `make test-servers`."""

import os
import subprocess
import sys
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from worker.local.embedded import find_servers

TESTS = ["tests/integration", "tests/acceptance", "tests/chaos", "tests/explorer"]


def main(arguments: list[str]) -> int:
    """arguments: paths of servers, else all that are found; after `--`, what pytest gets. 1 if a test failed."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    servers, options = arguments[:split], arguments[split + 1 :]
    paths = [Path(server).absolute() for server in servers] or [server.path for server in find_servers()]
    rows = [(version(path), *run(path, options)) for path in paths]
    print(f"\n{'server':40}{'passed':>8}{'skipped':>9}{'failed':>8}")
    for name, passed, skipped, failed in rows:
        print(f"{name:40}{passed:8}{skipped:9}{failed:8}")
    return int(any(not passed or failed for _, passed, _, failed in rows))


def version(server: Path) -> str:
    """As the server says it: `Redis server v=7.0.15`."""
    said = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout
    return said.split(" sha=")[0]


def run(server: Path, options: list[str]) -> tuple[int, int, int]:
    """How many tests passed, were skipped and failed with this server and its client first on PATH."""
    with TemporaryDirectory() as folder:
        Path(folder, "redis-server").symlink_to(server)
        beside = server.with_name(server.name.replace("server", "cli"))
        # A wheel has no client; one of another version does as well.
        client = beside if beside.exists() else which("redis-cli") or which("valkey-cli")
        if client:
            Path(folder, "redis-cli").symlink_to(client)
        report, env = Path(folder, "report.xml"), os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
        paths = [] if any(option.startswith("tests") for option in options) else TESTS
        argv = [sys.executable, "-m", "pytest", "--numprocesses", "4", "--dist", "loadgroup"]
        print(f"\n== {version(server)} ({server})", flush=True)
        subprocess.run([*argv, f"--junitxml={report}", *paths, *options], env=env, check=False)
        counts = ElementTree.parse(report).getroot()[0].attrib if report.exists() else {}
    total, skipped = int(counts.get("tests", 0)), int(counts.get("skipped", 0))
    failed = int(counts.get("failures", 0)) + int(counts.get("errors", 0))
    return total - skipped - failed, skipped, failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
