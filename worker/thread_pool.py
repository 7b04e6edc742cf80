"""Celery's threads pool, in which a task always gives its slot back.

As it comes, Celery 5.7 has this pool forget `error_callback`. What raises outside the task's own error handling (a
result that cannot be written, a callback that cannot be published, SystemExit) stays in a future that nobody
reads. The message is never acknowledged, and a worker with N slots is deaf after N such messages.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from celery.concurrency import thread
from celery.concurrency.base import apply_target
from celery.worker.state import task_ready

from worker.kombu_transport import set_aside

log = structlog.get_logger()


class TaskPool(thread.TaskPool):
    """Registered as `threads` by `worker.kombu_transport.install`."""

    executor: ThreadPoolExecutor  # not in Celery's stubs

    def on_apply(
        self, target: Callable[..., Any], args: Any = None, kwargs: Any = None,
        callback: Any = None, accept_callback: Any = None, **_: Any,
    ) -> Any:  # fmt: skip
        """Run `target` in a thread. callback: a method of the Celery request, which is found by it."""
        request = callback.__self__

        def run() -> None:
            try:
                apply_target(target, args, kwargs, callback, accept_callback)
            except BaseException as error:
                _release(request, error)

        return thread.ApplyResult(self.executor.submit(run))  # type: ignore[attr-defined] # not in the stubs


def _release(request: Any, error: BaseException) -> None:
    log.error("task.not_finished", task=request.name, id=request.id, exc_info=error)
    try:
        if not request.acknowledged:
            _settle(request, error)
    finally:
        task_ready(request)


def _settle(request: Any, error: BaseException) -> None:
    """Acknowledge the message as a dead letter, or give it back to its queue if Redis takes none."""
    message = request._message
    reason = f"Celery could not finish it: {type(error).__name__}"
    with message.channel.conn_or_acquire() as client:
        kept = set_aside(client, message.delivery_info["routing_key"], reason, message._raw)
    if kept:
        request.acknowledge()
    else:
        request.reject(requeue=True)
