"""The Celery app: standard Celery, each unusual setting with its reason."""

import hashlib
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any, TypeVar

from celery import Celery
from kombu import Connection, Exchange, Queue, pools

from tasks import celery_tasks
from tasks.api.client import BflClient, BflReader, Timeouts
from tasks.celery_tasks import DELETIONS
from tasks.cleanup.policies import digest_of, read_policies
from tasks.cleanup.schedule import Cleaner
from tasks.deletion import Rules
from tasks.intake import Intake
from tasks.ledger.store import Ledger
from tasks.maintenance import Maintenance
from tasks.runner import Runners
from tasks.waiting import worker_entry
from worker import redis_url
from worker.kombu_transport import install
from worker.lifecycle import follow, slots
from worker.message_fields import QUEUES, TASKS
from worker.settings import Account, Settings, SettingsError, terms

_PREFORK = re.compile(r" (-P ?|--pool[ =])prefork\b")  # the option of `celery worker`
Reader = TypeVar("Reader", bound=BflReader)


class App(Celery):
    """Celery's app. callbacks_url: the Redis for tasks that are not ours; None for the same one.

    The queues of callbacks are chosen by strangers. `worker.message_callbacks` refuses the names of the ledger's
    keys, and a user of Redis who cannot write there (`JANITOR_CALLBACKS_URL`) makes sure of it.
    """

    callbacks_url: str | None = None

    def send_task(self, name: str, *arguments: Any, **options: Any) -> Any:
        if self.callbacks_url is None or name in TASKS:
            return super().send_task(name, *arguments, **options)
        # It replaces a producer that was given: for a group, Celery gives one of its own pool.
        with pools.producers[self._callbacks].acquire(block=True) as producer:
            return super().send_task(name, *arguments, **{**options, "producer": producer})

    @cached_property
    def _callbacks(self) -> Connection:
        url = self.callbacks_url or ""
        place, options = redis_url.celery_url(url), redis_url.celery_options(url)
        return self.connection_for_write(place, transport_options=options)


# Celery reads them before any setting of an application.
_CELERYS_OWN = (
    "CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND",
    "CELERY_CONFIG_MODULE",
)  # fmt: skip


@dataclass
class Services:
    """What one process works with; each part is made when it is first asked for."""

    settings: Settings
    url: str
    app: Celery
    stopping: threading.Event = field(default_factory=threading.Event)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(redis_url.connect(self.url), terms(self.settings))

    @cached_property
    def intake(self) -> Intake:
        wake = partial(celery_tasks.wake, self.app)
        return Intake(self.ledger, wake, self.settings.allow_org_ids, tuple(self.settings.accounts))

    @cached_property
    def runners(self) -> Runners:
        settings = self.settings
        return Runners(
            ledger=self.ledger, rules=Rules(settings.observe_within, settings.retry_budget),
            clients=clients(settings, BflClient), threads=settings.threads, wake=self.intake.wake,
            write_results=partial(celery_tasks.write_results, self.app, self.ledger), stopping=self.stopping,
        )  # fmt: skip

    @cached_property
    def cleaner(self) -> Cleaner:
        return cleaner(self.settings, self.ledger, self.intake, self.runners.sleep)

    def tick(self) -> None:
        """What a minute brings: scheduled cleanups."""
        file = self.settings.policy_file
        self.cleaner.tick(partial(read_policies, file) if file else None)

    def maintenance(self, consume: Callable[[bool], int]) -> Maintenance:
        return Maintenance(
            ledger=self.ledger, readers=self.runners.clients, max_concurrent=self.settings.max_concurrent,
            entry=self._entry(), consume=consume,
            wake=partial(celery_tasks.wake, self.app), run=partial(self.runners.run, begun=True),
            write_results=self.runners.write_results,
            every=self.settings.maintenance_every, stopping=self.stopping,
        )  # fmt: skip

    def _entry(self) -> Callable[[int], str]:
        """What this process tells of itself: what it was started as, and which policies it has now."""
        entry = partial(
            worker_entry, f"{socket.gethostname()}:{os.getpid()}", version("finetune-janitor"),
            accounts=self.settings.accounts,
            urls=[f"{name}:{_tag(one.url)}" for name, one in self.settings.accounts.items()],
            # What `-Q` and `-X` left; queues of other applications are not noted.
            queues=set(QUEUES) & set(self.app.amqp.queues.consume_from),
        )  # fmt: skip
        file = self.settings.policy_file
        return (lambda stuck: entry(stuck, policies=[digest_of(file)])) if file else entry


def _tag(url: str) -> str:
    """Differs for base URLs that differ; a URL itself may not stand in a worker's entry."""
    return hashlib.sha256(url.lower().encode()).hexdigest()[:8]


def create_app(settings: Settings, url: str | None = None) -> Celery:
    """A Celery app for workers, beat and producers; raises `LedgerUnavailable` if no Redis is named.

    Raises `SettingsError` if a variable of Celery's own would name another one.
    """
    url = url or redis_url.redis_url(settings)
    for name in filter(os.environ.get, _CELERYS_OWN):  # an empty one counts as not set, to Celery too
        raise SettingsError(f"{name} is set, and Celery would prefer it to REDIS_URL: unset it for the janitor")
    install()
    place = redis_url.celery_url(url)
    app = App("finetunes", broker=place, backend=place, set_as_current=False)
    app.callbacks_url = redis_url.callbacks_url(settings)
    app.conf.update(configuration(settings, url))
    services = Services(settings, url, app)
    celery_tasks.register(app, lambda: services)
    app.set_current()
    follow(services)
    return app


def configuration(settings: Settings, url: str) -> dict[str, Any]:
    """Celery's settings, for this Redis.

    Some defaults of Celery 5.7 matter as well. It accepts only JSON: a pickle would run code. It creates missing
    queues: a producer's `link` names its own. It acknowledges a task that failed: otherwise its message is dropped
    on Redis. It lets tasks go on when the broker is gone: otherwise a call in flight is cut. It does not retry
    after a timeout: that may publish twice.
    """
    options = redis_url.celery_options(url)
    return {
        "task_queues": [Queue(name, Exchange(name), routing_key=name) for name in QUEUES],
        "task_default_queue": DELETIONS,
        "task_routes": celery_tasks.ROUTES,
        "task_ignore_result": True,  # the record is the result; the tasks that answer say so themselves
        "result_expires": settings.retention,  # results live as long as records
        "result_backend_always_retry": True,
        # A result that is not written is due again in a minute; a stopping worker has no time for twenty tries.
        "result_backend_max_retries": 5,
        "redis_socket_timeout": redis_url.SOCKET_SECONDS,
        "redis_socket_connect_timeout": redis_url.CONNECT_SECONDS,
        "redis_backend_health_check_interval": 30,
        "redis_backend_use_ssl": redis_url.backend_tls(url),
        **({} if url.startswith("unix") else {"redis_socket_keepalive": True}),
        # Celery takes a configured pool instead of its default, prefork, even if prefork is asked for.
        "worker_pool": "prefork" if _PREFORK.search(" ".join(sys.argv)) else "threads",
        "worker_concurrency": slots(settings),
        "worker_prefetch_multiplier": 1,  # the fewest messages with a worker that may die
        "broker_connection_max_retries": None,  # the default gives up after 100
        "broker_channel_error_retry": True,  # the default leaves a worker dead when Redis is full
        "broker_transport_options": {
            # The shortest of any app on this Redis wins, and it delivers again: far above any task's time.
            "visibility_timeout": int(settings.visibility_timeout.total_seconds()),
            "unacked_restore_interval": 30,
            "unacked_restore_throttle": 1,
            # kombu's default is none: an ack blocks for ever on a dead path.
            "socket_timeout": redis_url.SOCKET_SECONDS,
            "socket_connect_timeout": redis_url.CONNECT_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": 10,
            **options,
        },
        "beat_schedule": {
            "tick": {
                "task": "finetunes.tick",
                "schedule": settings.tick_every,
                # Long ago, so that beat ticks as soon as it starts and is seen.
                "last_run_at": datetime.fromtimestamp(0, UTC),
                # They expire, so as not to pile up without a worker. Beat's clock may be wrong, so an hour more.
                "options": {"expires": (settings.tick_every + timedelta(hours=1)).total_seconds()},
            }
        },
        "result_backend_transport_options": {**options, "retry_policy": {"timeout": 3.0}},
        "beat_scheduler": "celery.beat:Scheduler",  # no file to keep: what is due is decided in the ledger
    }


def clients(settings: Settings, kind: type[Reader]) -> dict[str, Reader]:
    """An API client for each account."""
    return {name: client(settings, one, kind) for name, one in settings.accounts.items()}


def client(settings: Settings, account: Account, kind: type[Reader]) -> Reader:
    """An API client for one account."""
    timeouts = Timeouts(settings.connect_timeout, settings.read_timeout, settings.call_deadline)
    key, variable = account.key.get_secret_value(), account.url_variable
    return kind(account.url, key, timeouts, ca_bundle=settings.ca_bundle, url_variable=variable)


def cleaner(settings: Settings, ledger: Ledger, intake: Intake, sleep: Callable[[float], None]) -> Cleaner:
    """What makes plans; its clients have no delete method."""
    return Cleaner(
        ledger, clients(settings, BflReader), settings.max_concurrent, settings.retry_budget, sleep,
        settings.observe_within, intake=intake,
    )  # fmt: skip
