"""Celery's threads pool, in which a task always gives its slot back, and one that does not is noticed.

As it comes, Celery 5.7 has this pool forget `error_callback`. What raises outside the task's own error handling (a
result that cannot be written, a callback that cannot be published, SystemExit) stays in a future that nobody
reads. The message is never acknowledged, and a worker with N slots is deaf after N such messages.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from celery.concurrency import thread
from celery.worker.state import task_ready

from tasks.celery_tasks import AGAIN_HEADER
from worker.kombu_transport import set_aside, unforeseen

log = structlog.get_logger()

_SURE_AFTER_SECONDS = 10.0
_UNBOUNDED = "finetunes.tick"  # its surveys take as long as an account is large; each of their calls is bounded

_TaskPool: Any = thread.TaskPool  # its stubs lack `on_apply`


class TaskPool(_TaskPool):  # type: ignore[misc] # it is Any
    """Registered as `threads` by `worker.kombu_transport.install`.

    running: the Celery requests in work, with the time of their start on the monotonic clock.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.running: dict[Any, float] = {}

    def on_apply(self, *arguments: Any, callback: Any, accept_callback: Any, **options: Any) -> Any:
        """Run a task in a thread. callback: a method of the Celery request, which is found by it."""
        request = callback.__self__

        def accepted(pid: int, since: float) -> None:
            self.running[request] = since
            accept_callback(pid, since)

        result = super().on_apply(*arguments, callback=callback, accept_callback=accepted, **options)
        result.f.add_done_callback(lambda _: self.running.pop(request, None))
        result.f.add_done_callback(partial(_release, request))
        return result


@dataclass
class SlotWatch:
    """Finds the slots that do not come back.

    running: as the pool has it. longest: how long a task may take. clock: monotonic seconds.
    """

    running: Mapping[Any, float]
    longest: timedelta
    clock: Callable[[], float] = time.monotonic
    _late: dict[Any, float] = field(default_factory=dict)  # since when a look has found it late
    _told: set[Any] = field(default_factory=set)

    def look(self) -> int:
        """How many there are now; each is logged once. It is asked about once a second, while Redis answers.

        What is late at one look only is not counted: it may have waited for Redis, or the process stood still.
        """
        now = self.clock()
        started = {request: since for request, since in [*self.running.items()] if request.type != _UNBOUNDED}
        late = [one for one, since in started.items() if now - since > self.longest.total_seconds()]
        self._late = {one: self._late.get(one, now) for one in late}
        stuck = {one for one, seen in self._late.items() if now - seen >= _SURE_AFTER_SECONDS}
        for one in stuck - self._told:
            log.error("slot.stuck", task=one.type, id=one.id, seconds=round(now - started[one]))
        self._told = stuck
        return len(stuck)


def _release(request: Any, future: Future[None]) -> None:
    error = None if future.cancelled() else future.exception()
    if error is None:
        return
    log.error("task.not_finished", task=request.type, id=request.id, exc_info=error)
    try:
        if not request.acknowledged:
            _settle(request, error)
    finally:
        task_ready(request)


def _settle(request: Any, error: BaseException) -> None:
    """Acknowledge the message as a dead letter, or give it back to its queue if Redis takes none."""
    message = request._message
    if AGAIN_HEADER in message.headers:
        request.acknowledge()  # it only ran the callbacks of a deletion; the ledger has it sent again
        return
    with message.channel.conn_or_acquire() as client:
        queue = message.delivery_info["routing_key"]
        kept = set_aside(client, queue, unforeseen("finish", error), message._raw)
    if kept:
        request.acknowledge()
    else:
        request.reject(requeue=True)
