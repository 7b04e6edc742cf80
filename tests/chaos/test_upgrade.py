"""Two versions of one schema at once: workers are replaced one by one, and back, while both versions are asked.

The older version is the last tag with the schema of this tree, or a fixed commit if there is none. It runs from an
archive that git makes, with the packages that are installed here.
"""

import io
import re
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from functools import partial

import pytest

from tasks.ledger.dead_letters import list_dead_letters
from tasks.ledger.keys import SCHEMA
from tasks.ledger.queries import get
from tests.chaos.harness import CALL_SECONDS, LEASE_SECONDS, System, ask, ask_later, create
from tests.explorer.books import Books, Violation, check_nothing_is_left, check_places
from tests.processes import ROOT, janitor_here, producer, records, until

# Before the audit log, labels and holds.
FIRST = "7c3ec094fc5b6d88b8526b67d75d5588da176443"
BATCH = 8  # how many each way of asking asks for, with each set of workers
# Two old workers give way to two new ones, and these to old ones again.
STEPS = [("new-1", "old-1"), ("new-2", "old-2"), ("old-3", "new-1"), ("old-4", "new-2")]


def git(*arguments):
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=True).stdout


def older_version():
    """The last tag before this commit whose ledger has our schema, else `FIRST`."""
    tags = git("tag", "--merged", "HEAD", "--no-contains", "HEAD", "--sort=-creatordate").decode().split()
    return next((tag for tag in tags if schema_of(tag) == SCHEMA), FIRST)


def schema_of(version):
    try:
        text = git("show", f"{version}:tasks/ledger/keys.py").decode()
    except subprocess.CalledProcessError:
        return None  # 0.1 has no such file
    return int(re.findall(r"^SCHEMA = (\d+)", text, re.MULTILINE)[0])


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """How a command of the older version starts: `celery -A` and `python -m` look in the current folder first."""
    try:
        archive = git("archive", older_version())
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the older version cannot be read: this is no clone of git's, or a shallow one")
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    how = ("env", "-C", str(folder), f"PYTHONPATH={folder}")
    told = run(how, {}, "-c", "import tasks, worker; print(tasks.__file__, worker.__file__)").stdout.split()
    assert told == [f"{folder}/{package}/__init__.py" for package in ("tasks", "worker")]
    return how


def run(how, env, *argv):
    done = subprocess.run(
        [*how, sys.executable, *argv], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


class Mixed:
    """A system with workers of both versions.

    asked: finetune -> by how many deletions. sent: Celery results. logs: of all workers that there were.
    """

    def __init__(self, system, old):
        self.system, self.api = system, system.api
        self.commands = {
            "old": partial(run, old, system.env, "-m", "worker.cli"), "new": partial(janitor_here, system.env)
        }  # fmt: skip
        self.before = {"old": old, "new": ()}
        self.app = producer(system.url)
        self.asked, self.sent, self.workers, self.logs = Counter(), [], {}, {}

    def start(self, name):
        """A worker of the version with which its name begins."""
        self.workers[name] = self.system.start_worker(before=self.before[name[:3]])
        self.logs[name] = self.workers[name].spec.log

    def stop(self, name):
        child = self.workers.pop(name)
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(CALL_SECONDS + 10) == 0
        self.system.workers.remove(child)

    def ask(self, batch):
        """By name and by both commands, each for finetunes of its own, and all for a slow one that has siblings.

        The first call for one of each is refused, the answer about another one lost.
        """
        (shared,) = create(self.api, f"shared-{batch}", 1)
        self.api.fault("slow", finetune_id=shared, times=None, seconds=1)
        names = {way: [shared, *create(self.api, f"{way}-{batch}", BATCH)] for way in ("name", "old", "new")}
        names["name"] += [shared] * 4
        for way in names:
            self.api.fault("status", finetune_id=f"{way}-{batch}-0", status=408, headers={"Retry-After": "2"})
            self.api.fault("reset", finetune_id=f"{way}-{batch}-1", applies=True)
        self.sent += [self.app.send_task("finetunes.delete", [one], queue="deletions") for one in names["name"]]
        self.commands["old"]("delete", *names["old"])
        ask(self.system, *names["new"], label="customer=4711")
        self.asked.update(name for way in names.values() for name in way)

    def assert_sound(self):
        """Each record is in its place, and both versions list all of them; one with labels is shown by both."""
        check_places(Books(self.system.ledger), permits=24)
        known = {one.id: one for one in self.system.deletions()}
        labelled = next(id_ for id_, one in known.items() if one.labels)
        for command in self.commands.values():
            done = command("list", "--limit", "5000", "--json")
            assert {one["id"] for one in records(done)} >= known.keys()
            table = command("list", "--limit", "5000").stdout
            assert [id_ for id_ in known if id_ not in table] == []
            (shown,) = records(command("show", labelled, "--json"))
            assert shown["finetune_id"] == known[labelled].finetune_id

    def is_settled(self):
        try:
            check_nothing_is_left(Books(self.system.ledger))
        except Violation:
            return False
        return True


@pytest.mark.long  # it starts six workers and some forty commands
@pytest.mark.timeout(600)
def test_workers_are_replaced_one_by_one_and_back(api, tmp_path, old):
    api.latency_seconds = 0.2
    # A wait of 2 s is a long one here, so that another worker may go on after it.
    with System(api, tmp_path, JANITOR_RETRY_BUDGET="1s") as system:
        mixed = Mixed(system, old)
        # Given two old workers, and a finetune that the new command holds before its deletion is due,
        mixed.start("old-1")
        mixed.start("old-2")
        create(api, "held", 1)
        held = ask_later(system, "held-0", "20s")
        assert janitor_here(system.env, "hold", "held-0", "--reason", "a lawsuit").returncode == 0
        # when each is replaced under load, and back again,
        for n, (starts, stops) in enumerate(STEPS):
            mixed.start(starts)
            mixed.ask(2 * n)
            mixed.assert_sound()
            mixed.stop(stops)
            mixed.ask(2 * n + 1)
            mixed.assert_sound()
        system.wait_until_final(LEASE_SECONDS + 90)
        until(mixed.is_settled, seconds=150, what="the end of all that is owed")
        mixed.assert_sound()
        # then each finetune was deleted once, by workers of both versions, and the records say so;
        deletions = [one for one in system.deletions() if one.id != held]
        assert Counter(one.finetune_id for one in deletions) == mixed.asked
        assert Counter(call["finetune_id"] for call in api.deletes() if call["effective"]) == dict.fromkeys(
            mixed.asked, 1
        )
        ends = {(one.state, one.finetune_id.split("-")[0] == "shared") for one in deletions}
        assert ends <= {("deleted", False), ("deleted", True), ("not_found", True)}
        assert all(finished_in(log) for log in mixed.logs.values())
        # what was held is still there;
        assert (get(system.ledger, held).state, api.finetunes()) == ("cancelled", ["held-0"])
        # and nothing was refused, lost or unforeseen.
        results = {sent.id: (sent.ready(), sent.successful()) for sent in mixed.sent}
        assert results == {one.id: (True, one.is_done) for one in deletions if one.source == "name"}
        assert list_dead_letters(system.ledger) == []
        assert [name for name, log in mixed.logs.items() if "Traceback" in log.read_text()] == []


def finished_in(log):
    return [line for line in log.read_text().splitlines() if '"deletion.finished"' in line]
