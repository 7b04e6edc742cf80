"""The tutorial, typed as it stands: three terminals, from the simulated API to a withdrawn deletion."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from tasks.ledger import Ledger
from tasks.ledger.queries import workers_seen
from tests.processes import ROOT, environment, free_ports, started
from worker.local import embedded
from worker.local.supervise import Spec
from worker.redis_url import connect

TUTORIAL = (ROOT / "docs/tutorial/first-steps.md").read_text(encoding="utf-8")


def block(mark):
    (lines,) = re.findall(rf"<!-- tested: {mark} -->\n```sh\n(.*?)```", TUTORIAL, re.DOTALL)
    return lines


class Person:
    """Types the blocks of the tutorial, on a port that is free here."""

    def __init__(self, folder):
        bin_ = Path(sys.executable).parent
        self._env = environment(JANITOR_STATE_DIR=folder / "state", PATH=f"{bin_}{os.pathsep}{os.environ['PATH']}")
        self._folder = folder
        (self._port,) = free_ports(1)

    def types(self, mark):
        return subprocess.run(
            ["sh", "-euc", self._here(mark)],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @contextmanager
    def leaves_running(self, mark, ready):
        # `exec`, so that the command gets the signal that ends it.
        *before, last = self._here(mark).strip().splitlines()
        argv = ["sh", "-euc", "\n".join([*before, f"exec {last}"])]
        with started(Spec(mark, argv, self._env, ready, log=self._folder / f"{mark}.log")):
            yield

    def has_api(self):
        return "a simulated BFL API" in (self._folder / "sandbox.log").read_text(encoding="utf-8")

    def has_worker(self):
        url = embedded.find_running(self._folder / "state")
        return bool(url and workers_seen(Ledger(connect(url, patient=False))))

    def _here(self, mark):
        text = block(mark).replace("8899", str(self._port))
        return text.replace("janitor sandbox", f"janitor sandbox --port {self._port}")


def test_the_first_steps_lead_where_they_say(tmp_path):
    # Given the two terminals that keep running
    person = Person(tmp_path)
    with person.leaves_running("sandbox", person.has_api), person.leaves_running("up", person.has_worker):
        # When each block is typed into the third, then it does what the tutorial says
        first = person.types("delete")
        assert first.returncode == 0, first.stderr
        shown = re.findall(r"```\n(state .*?)```", TUTORIAL, re.DOTALL)[0].splitlines()
        printed = [line.rstrip() for line in first.stdout.splitlines()]
        assert [line for line in shown if line not in printed] == []
        again = person.types("again")
        assert (again.returncode, "not_found" in again.stdout) == (1, True)
        withdrawn = person.types("withdraw")
        assert withdrawn.returncode == 0, withdrawn.stderr
        assert "cancelled" in withdrawn.stdout
        looked = person.types("look").stdout
        assert all(word in looked for word in ("old-finetune", "deleted", "not_found", "cancelled"))
        assert person.types("doctor").returncode == 0
