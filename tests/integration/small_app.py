"""A worker of Celery's with our transport, result backend and pool, and tasks of its own under our names."""

import os
import threading

from celery import Celery
from celery.exceptions import Reject
from kombu import Exchange, Queue

from worker.kombu_transport import install
from worker.message_fields import QUEUES, TASKS
from worker.redis_url import celery_options, celery_url

SLOTS = 2


def create(url, visibility_seconds=3600):
    """The app, for the worker and for its producers."""
    app = Celery("small", broker=celery_url(url), backend=celery_url(url), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_queues=[Queue(name, Exchange(name), routing_key=name) for name in QUEUES],
        task_default_queue="deletions",
        task_acks_late=True,
        worker_concurrency=SLOTS,
        worker_prefetch_multiplier=1,
        worker_send_task_events=True,
        worker_enable_prefetch_count_reduction=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        broker_transport_options={
            "visibility_timeout": visibility_seconds, "socket_timeout": 3, "socket_connect_timeout": 2,
            "health_check_interval": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1,
            **celery_options(url),
        },
        redis_socket_timeout=3,
        redis_socket_connect_timeout=2,
        result_backend_always_retry=True,
        result_backend_max_retries=20,
    )  # fmt: skip
    for name in TASKS:
        app.task(name=name, bind=True, shared=False)(run)
    return app


def meet(client, key):
    """Wait for as many others as there are slots: they meet only if each slot is free."""
    client.incr(key)
    for _ in range(400):
        if int(client.get(key)) >= SLOTS:
            return "met"
        threading.Event().wait(0.05)
    return "alone"


def run(self, what=None, key=None, **_):
    """What the test asks for: a result, an error, or what gets past Celery's own error handling."""
    if what == "raise":
        raise ValueError("as asked")
    if what == "exit":
        raise SystemExit(3)
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "memory":
        raise MemoryError
    if what == "requeue" and not self.request.delivery_info["redelivered"]:
        raise Reject("as asked", requeue=True)
    if what == "reject":
        raise Reject("as asked", requeue=False)
    if what == "break the backend":
        self.request.errbacks = 5  # what marks the task as failed reads it, outside the task's own error handling
        raise ValueError("as asked")
    if what == "meet":
        return meet(self.app.backend.client, key)
    return [what, self.request.get("janitor_eta")]


if "SMALL_APP_REDIS_URL" in os.environ:
    install()
    app = create(os.environ["SMALL_APP_REDIS_URL"])
