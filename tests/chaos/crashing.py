"""A worker killed, as by `kill -9`, at a named point of its first deletion: `crashing.py POINT OPTION...`."""

import os
import signal
import sys

from celery.__main__ import main

from tasks.bfl import BflClient
from tasks.ledger import Ledger


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name):
    setattr(owner, name, die)


def after(owner, name, *, when=lambda result: True):
    original = getattr(owner, name)

    def wrapped(*arguments, **options):
        result = original(*arguments, **options)
        if when(result):
            die()
        return result

    setattr(owner, name, wrapped)


def some_delete(result):
    return any(claimed.kind == "delete" for claimed in result[0])


POINTS = {
    "after the claim": lambda: after(Ledger, "claim", when=some_delete),
    "before the look": lambda: before(BflClient, "finetune_details"),
    "after the look": lambda: after(BflClient, "finetune_details"),
    "before the call": lambda: before(BflClient, "delete_finetune"),
    "after the call": lambda: after(BflClient, "delete_finetune"),
    "before the wait": lambda: before(Ledger, "wait"),
    "in the wait": lambda: after(Ledger, "wait"),
    "before the conclusion": lambda: before(Ledger, "conclude"),
    "after the conclusion": lambda: after(Ledger, "conclude"),
}

if __name__ == "__main__":
    POINTS[sys.argv[1]]()
    sys.argv = ["celery", "-A", "worker", "worker", *sys.argv[2:]]
    main()
