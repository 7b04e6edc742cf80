"""What is checked before a worker or beat starts, and what starts and stops with a worker."""

from __future__ import annotations

import _thread
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from celery import signals
from redis.exceptions import RedisError

from tasks.celery_tasks import DELETIONS
from tasks.errors import JanitorError, LedgerUnavailable
from tasks.ledger.store import Ledger
from tasks.maintenance import TOUCHES
from worker.doctor.server import check_server
from worker.doctor.settings import check_policies
from worker.health import Heart
from worker.kombu_transport import set_aside, unforeseen
from worker.logs import configure as configure_logs
from worker.settings import Settings, SettingsError, require_accounts, unused_urls
from worker.thread_pool import SlotWatch, TaskPool

if TYPE_CHECKING:
    from worker.app import Services

log = structlog.get_logger()

_SLOTS_BESIDE_RUNNERS = 4  # they accept, cancel and note use while all threads carry deletions out
# Of one deletion, at most: three observations of two calls, the delete, and an observation afterwards.
_CALLS = 9
_SPARE = timedelta(minutes=1)  # the runner's deletions before it, and the answers of Redis


def slots(settings: Settings) -> int:
    """How many tasks a worker runs at once."""
    return settings.threads + _SLOTS_BESIDE_RUNNERS


def longest_task(settings: Settings) -> timedelta:
    """How long a task may take: the longest is a runner's, which passes on after ten seconds."""
    return settings.retry_budget + _CALLS * settings.call_deadline + _SPARE


@dataclass
class Consumption:
    """Whether this worker takes new requests from the broker; wake-ups it always takes. consumer: Celery's."""

    consumer: Any
    _stopped: set[str] = field(default_factory=set)

    def allow(self, is_allowed: bool) -> None:  # noqa: FBT001 -- it is told nothing else
        """Stop or resume taking requests, from any thread: Celery's loop does it before it asks again."""
        if self._stopped or not is_allowed:
            self.consumer.call_soon(self._go_on if is_allowed else self._stop)

    def _stop(self) -> None:
        for queue in {DELETIONS, TOUCHES} & set(self.consumer.app.amqp.queues.consume_from):
            self._stopped.add(queue)
            self.consumer.cancel_task_queue(queue)

    def _go_on(self) -> None:
        # Only what was stopped here: `-Q` may have left a queue to other workers.
        while self._stopped:
            self.consumer.add_task_queue(self._stopped.pop())


def follow(services: Services) -> None:
    """Check before a worker or beat starts, start maintenance with a worker, and stop all waiting with it."""

    def on(signal: Any, receive: Callable[..., None]) -> None:
        def received(**given: Any) -> None:
            """Ends the process on any error: Celery swallows it, and would start without what is checked here."""
            try:
                receive(services, **given)
            except JanitorError as error:
                print(f"Error: {error}", file=sys.stderr)
                raise SystemExit(2) from None
            except Exception as error:
                log.exception("start.failed")
                raise SystemExit(2) from error

        signal.connect(received, weak=False)

    on(signals.setup_logging, lambda services, **_: configure_logs(services.settings.log_level))
    on(signals.celeryd_after_setup, _check_worker)
    on(signals.beat_init, lambda services, **_: _check_schema(services.ledger))
    heart = Heart("beat", services.settings.state_dir, services.settings.tick_every * 2 + timedelta(seconds=30))
    signals.after_task_publish.connect(lambda **_: heart.beat(), sender="finetunes.tick", weak=False)
    on(signals.worker_ready, _start_maintenance)
    for signal in (signals.task_unknown, signals.task_rejected):
        signal.connect(partial(_set_aside, services), weak=False)
    signals.worker_shutting_down.connect(partial(_stop_waiting, services), weak=False)


def _check_worker(services: Services, *, instance: Any, **_: Any) -> None:
    settings = services.settings
    require_accounts(settings)
    if instance.pool_cls is not TaskPool:
        raise SettingsError("only the threads pool is supported: leave out -P, or give -P threads")
    if instance.concurrency < slots(settings):
        raise SettingsError(
            f"--concurrency {instance.concurrency} is too low for JANITOR_THREADS={settings.threads}: leave it"
            f" out, or give {slots(settings)} or more, so that requests are accepted while all threads are busy"
        )
    check_policies(settings)
    if unused := unused_urls(os.environ, settings.accounts):
        log.warning("settings.unused", variables=unused)
    _check_redis(services, strict=settings.strict)
    _check_schema(services.ledger)
    services.cleaner  # noqa: B018 -- made here, before any thread asks for it


def _start_maintenance(services: Services, *, sender: Any, **_: Any) -> None:
    consumption, watch = Consumption(sender), SlotWatch(sender.pool.running, longest_task(services.settings))

    def each_second(has_room: bool) -> int:  # noqa: FBT001 -- as maintenance calls it
        consumption.allow(has_room)
        stuck = watch.look()
        heart.beat(f"{stuck} slots do not come back" if stuck >= most_stuck else "")
        return stuck

    settings = services.settings
    heart = Heart("worker", settings.state_dir, max(settings.maintenance_every * 5, timedelta(seconds=30)))
    # If so many are stuck, they may be all the slots of the runners, or all that accept requests.
    most_stuck = min(settings.threads, _SLOTS_BESIDE_RUNNERS)
    maintenance = services.maintenance(each_second)
    # A second Ctrl-C asks for it, and a thread cannot be cancelled: its calls end within the call deadline.
    sender.cancel_active_requests = lambda: None
    _check_schema(services.ledger)  # Redis may have been away before
    # Before the first message is taken.
    with suppress(LedgerUnavailable):
        maintenance.watch_memory()
    maintenance.start()


def _set_aside(services: Services, *, message: Any, exc: Exception | None = None, **_: Any) -> None:
    queue = str((message.delivery_info or {}).get("routing_key"))
    reason = unforeseen("read", exc or LookupError("it names no task"))
    set_aside(services.ledger.client, queue, reason, {"headers": message.headers, "body": message.body})


def _stop_waiting(services: Services, **_: Any) -> None:
    # A second signal may interrupt this handler: within `set` it would wait for a lock of its own thread.
    _thread.start_new_thread(services.stopping.set, ())


def _check_schema(ledger: Ledger) -> None:
    """Raise `WrongLedger`; a worker waits for a Redis that is away."""
    with suppress(LedgerUnavailable):
        ledger.check_schema()


def _check_redis(services: Services, *, strict: bool) -> None:
    """Warn of a Redis that may lose what it was given; with JANITOR_STRICT refuse it, by a `SettingsError`."""
    try:
        found = [finding for finding in check_server(services.ledger.client) if finding.level != "ok"]
    except RedisError as error:
        if strict:
            raise SettingsError(f"JANITOR_STRICT is set, and Redis cannot be checked: {error}") from None
        return
    for finding in sorted(found, key=lambda one: one.level != "error"):  # what is refused needs one line alone
        if strict and finding.level == "error":
            raise SettingsError(f"JANITOR_STRICT is set, and {finding.message}")
        log.warning("redis.unsafe", check=finding.check, message=finding.message)
