"""Celery's threads pool, in which a task always gives its slot back.

As it comes, Celery 5.7 has this pool forget `error_callback`. What raises outside the task's own error handling (a
result that cannot be written, a callback that cannot be published, SystemExit) stays in a future that nobody
reads. The message is never acknowledged, and a worker with N slots is deaf after N such messages.
"""

from concurrent.futures import Future
from functools import partial
from typing import Any

import structlog
from celery.concurrency import thread
from celery.worker.state import task_ready

from tasks.celery_tasks import AGAIN_HEADER
from worker.kombu_transport import set_aside

log = structlog.get_logger()

_TaskPool: Any = thread.TaskPool  # its stubs lack `on_apply`


class TaskPool(_TaskPool):  # type: ignore[misc] # it is Any
    """Registered as `threads` by `worker.kombu_transport.install`."""

    def on_apply(self, *arguments: Any, callback: Any, **options: Any) -> Any:
        """Run a task in a thread. callback: a method of the Celery request, which is found by it."""
        result = super().on_apply(*arguments, callback=callback, **options)
        result.f.add_done_callback(partial(_release, callback.__self__))
        return result


def _release(request: Any, future: Future[None]) -> None:
    error = None if future.cancelled() else future.exception()
    if error is None:
        return
    log.error("task.not_finished", task=request.name, id=request.id, exc_info=error)
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
    reason = f"Celery could not finish it: {type(error).__name__}"
    with message.channel.conn_or_acquire() as client:
        kept = set_aside(client, message.delivery_info["routing_key"], reason, message._raw)
    if kept:
        request.acknowledge()
    else:
        request.reject(requeue=True)
