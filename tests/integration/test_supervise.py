"""The process tree: started in order, kept up, stopped whole."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.processes import until
from worker.local.supervise import NotReady, Spec, started

SLEEPER = [sys.executable, "-c", "import signal; signal.pause()"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); signal.pause()",
]
# A tree of its own, in a process of its own: signals go to a main thread.
TREE = """
import sys
from worker.local.supervise import Spec, supervise
specs = [Spec(name, [sys.executable, "-c", code]) for name, code in zip(sys.argv[1::2], sys.argv[2::2])]

def say(line):
    print(line, flush=True)
    raise OSError("the terminal is gone")

sys.exit(supervise(specs, on_event=say))
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # What has ended and is not waited for yet is not alive.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


class Tree:
    """`supervise` in a process of its own, and what it said."""

    def __init__(self, *named):
        self.process = subprocess.Popen(
            [sys.executable, "-c", TREE, *named], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.said = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout or ():
            self.said.append(line.strip())

    def heard(self, text):
        until(lambda: any(text in line for line in self.said), seconds=60, what=f"{text!r} in {self.said}")

    def pids(self):
        return [int(line.rpartition(" ")[2].rstrip(")")) for line in self.said if "runs (process" in line]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all_in_reverse_and_leaves_nothing(number):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        tree = Tree("first", SLEEPER[2], "second", SLEEPER[2])
    finally:
        signal.signal(signal.SIGHUP, before)
    with tree:
        tree.heard("second runs")
        pids = tree.pids()
        tree.process.send_signal(number)
        assert tree.process.wait(20) == 0
        tree.heard("first stopped")
        stopped = [line for line in tree.said if line.endswith("stopped")]
    assert stopped == ["second stopped", "first stopped"]
    assert not any(map(alive, pids))


def test_under_nohup_a_closed_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; the child inherits it
    try:
        tree = Tree("only", SLEEPER[2])
    finally:
        signal.signal(signal.SIGHUP, before)
    with tree:
        tree.heard("only runs")
        tree.process.send_signal(signal.SIGHUP)
        # It goes on: what dies is started again.
        os.kill(tree.pids()[0], signal.SIGKILL)
        tree.heard("starting it again")


def test_killed_outright_it_takes_its_processes_along():
    with Tree("only", SLEEPER[2]) as tree:
        tree.heard("only runs")
        (pid,) = tree.pids()
        tree.process.kill()
        until(lambda: not alive(pid), seconds=60, what="the end of the child")


def test_what_dies_is_started_again():
    with Tree("short", "import sys; sys.exit(7)") as tree:
        tree.heard("short ended with 7, starting it again in 0.5s")
        tree.heard("starting it again in 1s")


def test_what_will_not_stay_up_ends_the_tree_with_1():
    with Tree("steady", SLEEPER[2], "short", "import sys; sys.exit(7)") as tree:
        assert tree.process.wait(40) == 1
        tree.heard("short ended 5 times within 10s of its start, the last time with 7")
        assert not any(map(alive, tree.pids()[:1]))


def test_what_does_not_stop_is_killed(tmp_path):
    log = tmp_path / "log"
    spec = Spec("deaf", STUBBORN, ready=lambda: b"deaf" in log.read_bytes(), stop_seconds=0.2, log=log)
    with started(spec) as child:
        pid = child.process.pid
    assert not alive(pid)
    assert child.process.returncode == -signal.SIGKILL


def test_what_ends_before_it_is_ready_says_so_with_the_end_of_its_log(tmp_path):
    argv = [sys.executable, "-c", "print('no such port'); raise SystemExit(3)"]
    spec = Spec("broken", argv, ready=lambda: False, log=tmp_path / "log")
    with pytest.raises(NotReady, match=r"broken ended with 3; the end of .*: no such port"), started(spec):
        pass


def test_what_is_not_ready_in_time_is_stopped():
    spec = Spec("slow", SLEEPER, ready=lambda: False, ready_seconds=0.2)
    with pytest.raises(NotReady, match=r"slow was not ready within 0.2s"), started(spec):
        pass


def test_what_has_ended_is_not_signalled_again(monkeypatch):
    # Given a process whose end was seen: its number may be another one's by now.
    with started(Spec("short", [sys.executable, "-c", ""])) as child:
        child.process.wait(10)
        signalled = []
        monkeypatch.setattr(os, "killpg", lambda *given: signalled.append(given))
        assert child.stop() == 0
    assert signalled == []
