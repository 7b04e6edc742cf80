"""A process killed, as by `kill -9`, at a named point: `crashing.py POINT celery|janitor ARGUMENT...`.

Public functions are wrapped; what they do stays as it is. Each point is met by the process's first work. At one of
them it is not killed but held.
"""

import os
import signal
import sys
import time
from pathlib import Path

from celery.__main__ import main as celery

from tasks import celery_tasks
from tasks.api.client import BflClient
from tasks.ledger import Ledger, store
from tasks.ledger.scripts import Scripts
from tasks.runner import Runners
from worker.cli import main as janitor


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name, *, when=lambda *_, **__: True):
    original = getattr(owner, name)

    def wrapped(*arguments, **options):
        if when(*arguments, **options):
            die()
        return original(*arguments, **options)

    setattr(owner, name, wrapped)


def after(owner, name, *, when=lambda result: True):
    original = getattr(owner, name)

    def wrapped(*arguments, **options):
        result = original(*arguments, **options)
        if when(result):
            die()
        return result

    setattr(owner, name, wrapped)


def has_claimed(kind):
    return lambda result: bool(result.claim) and result.claim.kind == kind


def finishes(*results):
    return lambda _ledger, _claim, finish, *_, **__: finish.result in results


def in_the_midst_of_a_plan():
    """It dies with the first of several parts written."""
    store.BATCH = 2
    after(Scripts, "run", when=lambda answer: "answers" in str(answer))


def held_at_the_attempt():
    """Each attempt waits, past its last check, until the file `go` is in the folder CHAOS_FOLDER."""
    folder, original = Path(os.environ["CHAOS_FOLDER"]), BflClient.delete_finetune

    def wrapped(self, finetune_id, **options):
        (folder / f"held-{finetune_id}").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
        return original(self, finetune_id, **options)

    setattr(BflClient, "delete_finetune", wrapped)  # noqa: B010 -- mypy lets nobody assign to a method


POINTS = {
    # one deletion
    "after the claim": lambda: after(Ledger, "claim", when=has_claimed("delete")),
    "during the observation": lambda: before(BflClient, "finetune_details"),
    "after the observation": lambda: after(BflClient, "finetune_details"),
    "before the mark": lambda: before(Ledger, "mark"),
    "after the mark": lambda: after(Ledger, "mark"),
    "before the attempt": lambda: before(BflClient, "delete_finetune"),
    "after the API applied it": lambda: after(BflClient, "delete_finetune"),
    "in a wait between attempts": lambda: before(Runners, "sleep", when=lambda _, seconds: seconds > 0),
    "before it goes back to wait": lambda: before(Ledger, "finish", when=finishes("back")),
    "after it went back to wait": lambda: after(Ledger, "finish"),
    "before the finish": lambda: before(Ledger, "finish"),
    "after the finish": lambda: after(Ledger, "finish"),
    "in maintenance": lambda: after(Ledger, "maintain", when=lambda found: found.wake),
    # its first observation
    "after the claim to observe": lambda: after(Ledger, "claim", when=has_claimed("observe")),
    "before the observation is kept": lambda: before(Ledger, "finish", when=finishes("observed")),
    "after the observation is kept": lambda: after(Ledger, "finish"),
    # by name
    "before the accept": lambda: before(Ledger, "accept"),
    "after the accept": lambda: after(Ledger, "accept"),
    "before the result": lambda: before(celery_tasks, "write_results"),
    "between result and callbacks": lambda: before(Ledger, "callbacks"),
    "before the callbacks' message": lambda: after(Ledger, "new_callbacks_nonce"),
    "in the callbacks' message": lambda: before(celery_tasks, "outcome"),
    "after the callbacks": lambda: before(
        Ledger, "result_written", when=lambda *_, callbacks_ran=False: callbacks_ran
    ),
    # the link to the API
    "held at the attempt": held_at_the_attempt,
    # cleanup
    "in the midst of a plan": in_the_midst_of_a_plan,
    "before a use is noted": lambda: before(Ledger, "keep"),
}

if __name__ == "__main__":
    POINTS[sys.argv[1]]()
    sys.argv = sys.argv[2:]
    celery() if sys.argv[0] == "celery" else janitor()
