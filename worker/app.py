"""The Celery app: standard Celery, each unusual setting with its reason (docs/design.md has the measurements)."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from typing import Any, TypeVar

import structlog
from celery import Celery, signals
from kombu import Exchange, Queue
from redis.exceptions import RedisError

from tasks import definitions
from tasks.bfl import BflClient, BflReader, Observer, Timeouts
from tasks.claims import WakeUp
from tasks.dispatch import Dispatcher
from tasks.errors import InvalidRequest, LedgerUnavailable
from tasks.intake import Intake
from tasks.ledger import Ledger
from tasks.outcomes import Rules
from tasks.schedule import Cleaner
from tasks.work import Crew
from worker.channel import install, set_aside
from worker.connections import (
    CONNECT_SECONDS,
    SOCKET_SECONDS,
    celery_options,
    celery_url,
    connect,
    redis_url,
    terms,
)
from worker.logs import configure as configure_logs
from worker.policy_file import read_policies
from worker.server_checks import check_server
from worker.settings import Account, Settings, SettingsError, require_accounts
from worker.stopping import Stopping

log = structlog.get_logger()

Reader = TypeVar("Reader", bound=BflReader)
POOLS = ("thread", "prefork")  # the names of their modules in celery.concurrency
# Celery's own slots: they accept and wake; API calls run on JANITOR_THREADS threads beside them.
_SLOTS = 4


@dataclass
class Services:
    """What one process works with, made when first asked for: after any fork, and only what is used."""

    settings: Settings
    url: str
    app: Celery
    stopping: Stopping
    slots: int = 1  # of Celery in this process

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(connect(self.url), terms(self.settings))

    @cached_property
    def intake(self) -> Intake:
        return Intake(self.ledger, self.wake, self.settings.allow_org_ids, tuple(self.settings.accounts))

    @cached_property
    def crew(self) -> Crew:
        settings = self.settings
        clients = {name: client(settings, account, BflClient) for name, account in settings.accounts.items()}
        rules = Rules(settings.look_first, settings.first_look_within, settings.retry_budget)
        return Crew(
            ledger=self.ledger, clients=clients, rules=rules, owner=_process_name(), threads=settings.threads,
            answer=self.answer, stopping=self.stopping, slots=self.slots,
        )  # fmt: skip

    def tick(self) -> None:
        """What a minute brings: scheduled cleanups."""
        try:
            policies = read_policies(self.settings.policy_file) if self.settings.policy_file else ()
        except InvalidRequest as error:
            log.error("cleanup.policies_refused", error=str(error))
            policies = ()
        self.cleaner.tick(policies)

    @cached_property
    def cleaner(self) -> Cleaner:
        return cleaner(self.settings, self.ledger, self.intake, self.crew.sleep)

    def wake(self, wakeup: WakeUp) -> None:
        definitions.wake(self.app, wakeup)

    def answer(self, request_ids: Sequence[str]) -> None:
        definitions.answer(self.app, self.ledger, request_ids)

    def dispatcher(self, processes: int) -> Dispatcher:
        name, ours = _process_name(), version("finetune-janitor")
        return Dispatcher(
            ledger=self.ledger, accounts=dict.fromkeys(self.settings.accounts, self.settings.max_concurrent),
            processes=[f"{name}/{n} {ours}" for n in range(processes)], wake=self.wake, answer=self.answer,
            every=self.settings.dispatch_every, stopping=self.stopping,
        )  # fmt: skip


def create_app(settings: Settings, url: str | None = None) -> Celery:
    """A Celery app for workers, beat and producers; raises `LedgerUnavailable` where no Redis is named."""
    url = url or redis_url(settings)
    install()
    app = Celery("finetunes", broker=celery_url(url), backend=celery_url(url), set_as_current=False)
    app.conf.update(configuration(settings, url))
    stopping = Stopping()
    of_process = lru_cache(maxsize=1)(lambda _pid: Services(settings, url, app, stopping))

    def services() -> Services:
        return of_process(os.getpid())  # a forked child makes its own

    definitions.register(app, services)
    app.set_current()
    _follow_worker(services, stopping)
    return app


def configuration(settings: Settings, url: str) -> dict[str, Any]:
    """Celery's settings, for this Redis."""
    return {
        "accept_content": ["json"],  # a pickle would run code
        "task_queues": [
            Queue(name, Exchange(name), routing_key=name)
            for name in (definitions.DELETIONS, definitions.WAKEUPS, definitions.TOUCHES)
        ],
        "task_default_queue": definitions.DELETIONS,
        "task_routes": definitions.ROUTES,
        "task_create_missing_queues": True,  # a producer's `link` names its own queue
        "task_ignore_result": True,  # the record is the result; the tasks that answer say so themselves
        "task_acks_on_failure_or_timeout": True,  # False would drop the message on Redis
        "task_reject_on_worker_lost": True,
        "result_expires": settings.retention,  # results live as long as records
        "result_backend_always_retry": True,
        "result_backend_max_retries": 20,
        "redis_socket_timeout": SOCKET_SECONDS,
        "redis_socket_connect_timeout": CONNECT_SECONDS,
        "redis_backend_health_check_interval": 30,
        **({} if url.startswith("unix") else {"redis_socket_keepalive": True}),
        # Set to threads, it would win over `-P prefork`: Celery takes that for its own default.
        "worker_pool": "prefork" if any("prefork" in word for word in sys.argv) else "threads",
        "worker_concurrency": _SLOTS,
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
        "result_backend_transport_options": celery_options(url),
        "beat_scheduler": "celery.beat:Scheduler",  # no file to keep: what is due is decided in the ledger
    }


def client(settings: Settings, account: Account, kind: type[Reader], observer: Observer | None = None) -> Reader:
    """An API client for one account."""
    key, url = account.key.get_secret_value(), account.url
    timeouts = Timeouts(settings.connect_timeout, settings.read_timeout, settings.call_deadline)
    return kind(url, key, timeouts, observer=observer)


def cleaner(settings: Settings, ledger: Ledger, intake: Intake, sleep: Callable[[float], None]) -> Cleaner:
    """What makes plans; its clients have no delete method."""
    readers = {name: client(settings, account, BflReader) for name, account in settings.accounts.items()}
    return Cleaner(ledger, intake, readers, settings.max_concurrent, settings.retry_budget, sleep)


def _follow_worker(services: Callable[[], Services], stopping: Stopping) -> None:
    """Start dispatch with a worker, and stop all waiting with it."""

    @signals.celeryd_after_setup.connect(weak=False)
    def check(instance: Any = None, **_: Any) -> None:
        # Celery swallows a signal's errors, but not a SystemExit.
        settings, pool = services().settings, instance.pool_cls.__module__.rpartition(".")[2]
        try:
            require_accounts(settings)
            if pool not in POOLS:
                raise SettingsError(f"the pool {pool!r} is not supported: give one of threads, prefork")
            if pool == "thread":
                services().slots = instance.concurrency
            if settings.policy_file:
                read_policies(settings.policy_file)
            _check_redis(services(), strict=settings.strict)
            _register(services())
        except (SettingsError, InvalidRequest) as error:
            print(f"Error: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    @signals.worker_ready.connect(weak=False)
    def ready(sender: Any = None, **_: Any) -> None:
        pool = sender.pool
        forks = type(pool).__module__.endswith("prefork")
        services().dispatcher(pool.limit if forks else 1).start()

    @signals.worker_shutting_down.connect(weak=False)
    def stop(**_: Any) -> None:
        stopping.set()

    @signals.task_unknown.connect(weak=False)
    @signals.task_rejected.connect(weak=False)
    def unreadable(message: Any, exc: Exception | None = None, **_: Any) -> None:
        queue = str((message.delivery_info or {}).get("routing_key"))
        reason = f"refused by Celery: {exc or 'no task in it'}"
        set_aside(services().ledger.redis, queue, reason, {"headers": message.headers, "body": message.body})

    @signals.setup_logging.connect(weak=False)
    def logs(**_: Any) -> None:
        configure_logs(services().settings.log_level)


def _register(services: Services) -> None:
    """Make this worker's accounts known before its first message; dispatch does so again each round."""
    for name in services.settings.accounts:
        with suppress(LedgerUnavailable):
            services.ledger.account(name, "register", max_concurrent=services.settings.max_concurrent)


def _check_redis(services: Services, *, strict: bool) -> None:
    """Warn of a Redis that may lose what it was given; with JANITOR_STRICT refuse it, by a `SettingsError`."""
    try:
        found = [finding for finding in check_server(services.ledger.redis) if finding.level != "ok"]
    except RedisError as error:
        if strict:
            raise SettingsError(f"JANITOR_STRICT is set, and Redis cannot be checked: {error}") from None
        return
    for finding in found:
        if strict and finding.level == "error":
            raise SettingsError(f"JANITOR_STRICT is set, and {finding.message}")
        log.warning("redis.unsafe", check=finding.check, message=finding.message)


def _process_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
