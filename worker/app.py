"""The Celery app: standard Celery, each unusual setting with its reason (docs/design.md has the measurements)."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from itertools import pairwise
from typing import Any, TypeVar

import structlog
from celery import Celery
from kombu import Exchange, Queue

from tasks import celery_tasks
from tasks.api.client import BflClient, BflReader, Observer, Timeouts
from tasks.celery_tasks import DELETIONS, WAKEUPS
from tasks.cleanup.policies import read_policies
from tasks.cleanup.schedule import Cleaner
from tasks.deletion import Rules
from tasks.errors import InvalidRequest
from tasks.intake import Intake
from tasks.ledger import dead_letters
from tasks.ledger.store import Ledger
from tasks.maintenance import TOUCHES, Maintenance
from tasks.runner import Runners
from worker.kombu_transport import install
from worker.lifecycle import follow, slots
from worker.redis_url import (
    CONNECT_SECONDS,
    SOCKET_SECONDS,
    celery_options,
    celery_settings,
    celery_url,
    connect,
    redis_url,
)
from worker.settings import Account, Settings, terms

log = structlog.get_logger()

Reader = TypeVar("Reader", bound=BflReader)


@dataclass
class Services:
    """What one process works with; each part is made when it is first asked for."""

    settings: Settings
    url: str
    app: Celery
    stopping: threading.Event = field(default_factory=threading.Event)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(connect(self.url), terms(self.settings))

    @cached_property
    def intake(self) -> Intake:
        return Intake(self.ledger, self._wake, self.settings.allow_org_ids, tuple(self.settings.accounts))

    @cached_property
    def runners(self) -> Runners:
        settings = self.settings
        return Runners(
            ledger=self.ledger, rules=Rules(settings.observe_within, settings.retry_budget),
            clients={name: client(settings, account, BflClient) for name, account in settings.accounts.items()},
            threads=settings.threads, wake=self._wake, write_results=self._write_results, stopping=self.stopping,
        )  # fmt: skip

    @cached_property
    def cleaner(self) -> Cleaner:
        return cleaner(self.settings, self.ledger, self.intake, self.runners.sleep)

    def tick(self) -> None:
        """What a minute brings: scheduled cleanups."""
        try:
            policies = read_policies(self.settings.policy_file) if self.settings.policy_file else ()
        except InvalidRequest as error:
            log.error("cleanup.policies_refused", error=str(error))
            policies = ()
        self.cleaner.tick(policies)

    def maintenance(self, consume: Callable[[bool], None]) -> Maintenance:
        return Maintenance(
            ledger=self.ledger, readers=self.runners.clients, max_concurrent=self.settings.max_concurrent,
            process=f"{socket.gethostname()}:{os.getpid()} {version('finetune-janitor')}", consume=consume,
            wake=self.runners.wake, write_results=self.runners.write_results,
            every=self.settings.maintenance_every, stopping=self.stopping,
        )  # fmt: skip

    def _wake(self, account: str) -> None:
        celery_tasks.wake(self.app, account)

    def _write_results(self, ids: Sequence[str]) -> None:
        celery_tasks.write_results(self.app, self.ledger, ids)


def create_app(settings: Settings, url: str | None = None) -> Celery:
    """A Celery app for workers, beat and producers; raises `LedgerUnavailable` if no Redis is named."""
    url = url or redis_url(settings)
    install(dead_letters.keep)
    app = Celery("finetunes", broker=celery_url(url), backend=celery_url(url), set_as_current=False)
    app.conf.update(configuration(settings, url))
    services = Services(settings, url, app)
    celery_tasks.register(app, lambda: services)
    app.set_current()
    follow(services)
    return app


def configuration(settings: Settings, url: str) -> dict[str, Any]:
    """Celery's settings, for this Redis."""
    return {
        "accept_content": ["json"],  # a pickle would run code
        "task_queues": [Queue(name, Exchange(name), routing_key=name) for name in (DELETIONS, WAKEUPS, TOUCHES)],
        "task_default_queue": DELETIONS,
        "task_routes": celery_tasks.ROUTES,
        "task_create_missing_queues": True,  # a producer's `link` names its own queue
        "task_ignore_result": True,  # the record is the result; the tasks that answer say so themselves
        "task_acks_on_failure_or_timeout": True,  # False would drop the message on Redis
        "result_expires": settings.retention,  # results live as long as records
        "result_backend_always_retry": True,
        # A result that is not written is due again in a minute; a stopping worker has no time for twenty tries.
        "result_backend_max_retries": 5,
        "redis_socket_timeout": SOCKET_SECONDS,
        "redis_socket_connect_timeout": CONNECT_SECONDS,
        "redis_backend_health_check_interval": 30,
        **({} if url.startswith("unix") else {"redis_socket_keepalive": True}),
        # Celery takes a configured pool instead of its default, prefork, even if prefork is asked for.
        "worker_pool": "prefork" if _asks_for_prefork(sys.argv) else "threads",
        "worker_concurrency": slots(settings),
        "worker_prefetch_multiplier": 1,  # the fewest messages with a worker that may die
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # True would cut a call in flight
        "worker_send_task_events": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # the default gives up after 100
        "broker_channel_error_retry": True,  # the default leaves a worker dead when Redis is full
        "broker_transport_options": {
            # The shortest of any app on this Redis wins, and it delivers again: far above any task's time.
            "visibility_timeout": int(settings.visibility_timeout.total_seconds()),
            "unacked_restore_interval": 30,
            "unacked_restore_throttle": 1,
            "socket_timeout": SOCKET_SECONDS,  # kombu's default is none: an ack blocks for ever on a dead path
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "retry_on_timeout": False,  # True may publish twice
            **celery_options(url),
        },
        "beat_schedule": {
            "tick": {
                "task": "finetunes.tick",
                "schedule": settings.tick_every,
                # The next one says the same: what waited longer is not worth having.
                "options": {"expires": settings.tick_every.total_seconds()},
            }
        },
        "result_backend_transport_options": {**celery_options(url), "retry_policy": {"timeout": 3.0}},
        "beat_scheduler": "celery.beat:Scheduler",  # no file to keep: what is due is decided in the ledger
        **celery_settings(url),
    }


def client(settings: Settings, account: Account, kind: type[Reader], observer: Observer | None = None) -> Reader:
    """An API client for one account."""
    timeouts = Timeouts(settings.connect_timeout, settings.read_timeout, settings.call_deadline)
    return kind(
        account.url, account.key.get_secret_value(), timeouts, ca_bundle=settings.ca_bundle,
        url_variable=account.url_variable, observer=observer,
    )  # fmt: skip


def cleaner(settings: Settings, ledger: Ledger, intake: Intake, sleep: Callable[[float], None]) -> Cleaner:
    """What makes plans; its clients have no delete method."""
    readers = {name: client(settings, account, BflReader) for name, account in settings.accounts.items()}
    return Cleaner(
        ledger, intake, readers, settings.max_concurrent, settings.retry_budget, sleep, settings.observe_within
    )


def _asks_for_prefork(argv: Sequence[str]) -> bool:
    return bool({"-Pprefork", "--pool=prefork"} & set(argv)) or bool(
        {("-P", "prefork"), ("--pool", "prefork")} & set(pairwise(argv))
    )
