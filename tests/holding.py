"""The real worker, whose slots can be held.

A slot that takes `finetunes.cancel("hold-NAME")` counts up the key `hold-NAME` and waits until it is -1. What
counts as far too long is shorter here than the settings can make it.
"""

import sys
import time
from contextlib import contextmanager
from datetime import timedelta

from celery.__main__ import main

from tasks.ledger import Ledger
from tasks.ledger.queries import workers_seen
from worker import lifecycle, thread_pool
from worker.lifecycle import slots
from worker.local.supervise import Spec, started
from worker.redis_url import connect
from worker.settings import Settings

SLOTS = slots(Settings())


@contextmanager
def worker(env, log):
    """The worker, ready inside."""
    ledger = Ledger(connect(env["REDIS_URL"], patient=False))
    argv = [sys.executable, "-m", "tests.holding", "-A", "worker", "worker", "-P", "threads", "--without-mingle"]
    with started(Spec("worker", argv, env, ready=lambda: bool(workers_seen(ledger)), log=log)) as child:
        yield child


def hold(app, name, count=SLOTS):
    """Have this many slots held: the results, which come once they are let go."""
    return [app.send_task("finetunes.cancel", [f"hold-{name}"], queue="deletions") for _ in range(count)]


def held(client, name):
    """How many slots are held by now."""
    return int(client.get(f"hold-{name}") or 0)


def let_go(client, name):
    client.set(f"hold-{name}", -1)


if __name__ == "__main__":
    cancel = Ledger.cancel

    def waiting(self, ids, *given, **options):
        if ids[0].startswith("hold-"):
            self.redis.incr(ids[0])
            while int(self.redis.get(ids[0])) != -1:
                time.sleep(0.05)
        return cancel(self, ids, *given, **options)

    setattr(Ledger, "cancel", waiting)  # noqa: B010 -- mypy lets nobody assign to a method
    lifecycle._SPARE = timedelta(seconds=1)
    thread_pool._SURE_AFTER_SECONDS = 1.0
    sys.exit(main())
