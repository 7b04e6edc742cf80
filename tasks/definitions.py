"""The Celery tasks: public names, and thin shims over the domain. Nothing else in `tasks` knows Celery.

A by-name request that is accepted ends its message with `Ignore`: its result stays PENDING until the deletion is
concluded, by whichever worker. `answer` then writes the result. Where the producer gave callbacks (link, chain,
chord), the message is sent once more under the same id with them; it finds the conclusion and returns it, and
Celery itself runs them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Protocol

import structlog
from celery import Celery, Task, states
from celery.exceptions import Ignore, Reject

from tasks.claims import WakeUp
from tasks.durations import ACCEPTED_TIME, LONGEST, parse_time
from tasks.errors import DeletionNotDone, InvalidRequest, LedgerUnavailable
from tasks.intake import BULK, Intake, conflicts
from tasks.inventory import protected_among, report_use
from tasks.ledger import Ledger
from tasks.queries import get, get_many
from tasks.records import DEFAULT_ACCOUNT, Deletion, NewRequest, check_finetune_id, check_request_id
from tasks.work import Crew

log = structlog.get_logger()

DELETIONS, WAKEUPS, TOUCHES = "deletions", "wakeups", "touches"
AGAIN_HEADER = "janitor_again"
ROUTES = {
    "finetunes.delete": {"queue": DELETIONS},
    "finetunes.delete_many": {"queue": DELETIONS},
    "finetunes.cancel": {"queue": DELETIONS},
    "finetunes.touch": {"queue": TOUCHES},
    "finetunes.work": {"queue": WAKEUPS},
    "finetunes.tick": {"queue": WAKEUPS},
}

# Acknowledged after the run: a message whose worker dies before it is accepted is delivered again.
# Both errors are answers to the producer, not faults of ours: no traceback in the worker's log.
_ACCEPTING: dict[str, Any] = {
    "acks_late": True,
    "ignore_result": False,
    "shared": False,  # of this app alone: a process may make another
    "throws": (DeletionNotDone, InvalidRequest),
}
_OPTIONS = ("account", "reason", "requested_by", "due_at", "delay_seconds", "requested_at", "missing_ok")
_REFUSED_WAIT_SECONDS = 1.0


class Services(Protocol):
    """What the tasks of one process work with; made in that process, after any fork."""

    @property
    def ledger(self) -> Ledger: ...
    @property
    def intake(self) -> Intake: ...
    @property
    def crew(self) -> Crew: ...
    def tick(self) -> None: ...


def register(app: Celery, services: Callable[[], Services]) -> None:
    """Give `app` the tasks. services: what they work with, asked for at each call."""

    class Delete(Task):  # type: ignore[type-arg] # generic only in its stubs
        def after_return(self, *_: Any, **__: Any) -> None:
            # Last of all, so that a crash before it has the callbacks run by the next message.
            if _is_again(self.request):
                services().ledger.answered([str(self.request.id)], callbacks_ran=True)

    @app.task(name="finetunes.delete", bind=True, base=Delete, **_ACCEPTING)
    def delete(self: Any, *given: Any, **options: Any) -> dict[str, Any]:
        if _is_again(self.request):
            return concluded(services().ledger, self.request.id)
        finetune_id = _only("finetune_id", given, options)
        request = by_name(self.request.id, finetune_id, options, callbacks=callbacks_of(self.request))
        with _requeued_while_away():
            accept(services(), [request])
        raise Ignore

    @app.task(name="finetunes.delete_many", bind=True, **_ACCEPTING)
    def delete_many(self: Any, *given: Any, **options: Any) -> list[str]:
        finetune_ids = _only("finetune_ids", given, options)
        requests = by_name_many(self.request.id, finetune_ids, options)
        with _requeued_while_away():
            accept(services(), requests)
        return [request.id for request in requests]

    @app.task(name="finetunes.cancel", bind=True, **_ACCEPTING)
    def cancel(self: Any, *given: Any, **options: Any) -> str:
        deletion_id = _only("deletion_id", given, options)
        if options:
            raise InvalidRequest(f"{min(options)!r} is not an argument: only deletion_id is accepted")
        with _requeued_while_away():
            answer, _ = services().ledger.cancel([check_request_id(deletion_id)], nonce=self.request.id)[0]
        if answer == "unknown":
            raise InvalidRequest(f"no deletion has the id {deletion_id!r}")
        return answer

    @app.task(name="finetunes.touch", **{**_ACCEPTING, "ignore_result": True})
    def touch(finetune_ids: Any, account: str = DEFAULT_ACCOUNT, **_: Any) -> None:
        # Whatever else was given: a use that is not noted may cost a finetune.
        ids = finetune_ids if isinstance(finetune_ids, list | tuple) else [finetune_ids]
        with _requeued_while_away():
            report_use(services().ledger, account, ids)

    # Nobody follows the events of a tick or a wake-up, and nobody asks for their results.
    inner: dict[str, Any] = {"acks_late": False, "shared": False, "send_events": False}

    @app.task(name="finetunes.tick", throws=(LedgerUnavailable,), **inner)
    def tick() -> None:
        services().tick()

    @app.task(name="finetunes.work", bind=True, **inner)
    def work(self: Any, account: str) -> None:
        if services().crew.work(account, self.request.id):
            wake(app, WakeUp(account, str(uuid.uuid4())))


def accept(services: Services, requests: Sequence[NewRequest]) -> None:
    """Accept by-name requests; one whose id is known with other arguments is logged, the first one stands."""
    accepted = services.intake.accept(requests)
    for conflict in conflicts(services.ledger, requests, accepted):
        log.warning("request.conflict", error=str(conflict))
    account = requests[0].account
    for id_ in protected_among(services.ledger, account, [request.finetune_id for request in requests]):
        log.warning("request.protected", finetune=id_, account=account)  # from cleanups: a request goes ahead


def wake(app: Celery, wakeup: WakeUp) -> None:
    """Send a wake-up: the account has work. Lost or doubled, it changes nothing."""
    app.send_task("finetunes.work", args=[wakeup.account], task_id=wakeup.id, queue=WAKEUPS, ignore_result=True)


def answer(app: Celery, ledger: Ledger, request_ids: Sequence[str]) -> None:
    """Write the Celery results of by-name requests whose deletions are concluded, and run their callbacks."""
    done: list[str] = []
    again: list[str] = []
    for request_id in request_ids:
        try:
            (again if _answer(app, ledger, request_id) else done).append(request_id)
        except Exception as error:  # the next ones must not wait for this one
            log.warning("answer.not_written", request=request_id, error=str(error))
    if done:
        ledger.answered(done)
    if again:
        ledger.owe_again(again)


def _answer(app: Celery, ledger: Ledger, request_id: str) -> bool:
    """Write one result; whether its callbacks have yet to run."""
    deletion = get_many(ledger, [request_id])[0]
    if deletion is None or not deletion.state.is_final:
        return False
    state, result = _result(deletion, request_id)
    app.backend.store_result(request_id, result, state)
    callbacks = ledger.callbacks(request_id)
    if not callbacks:
        return False
    app.send_task(
        "finetunes.delete", args=[deletion.finetune_id], task_id=request_id, queue=DELETIONS,
        headers={AGAIN_HEADER: True}, **callbacks,
    )  # fmt: skip
    return True


def concluded(ledger: Ledger, request_id: str) -> dict[str, Any]:
    """The record, for the message sent again; raises `DeletionNotDone` with it, `Ignore` where they ran before."""
    if ledger.callbacks(request_id) is None or not ledger.take_callbacks(request_id):
        raise Ignore
    deletion = get(ledger, request_id)
    if not deletion.state.is_final:
        raise Ignore
    _, result = _result(deletion, request_id)
    if isinstance(result, DeletionNotDone):
        raise result
    return result


def by_name(
    request_id: str, finetune_id: Any, options: Mapping[str, Any], *,
    callbacks: dict[str, Any] | None = None, bulk: bool = False,
) -> NewRequest:  # fmt: skip
    """The request in a by-name message; raises `InvalidRequest`. Times are ISO 8601, the delay is in seconds."""
    options = dict(options)
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise InvalidRequest(f"{unknown[0]!r} is not an argument: accepted are {', '.join(_OPTIONS)}")
    times = {name: _time(name, options.pop(name, None)) for name in ("due_at", "requested_at")}
    delay = _delay(options.pop("delay_seconds", None))
    given = {**options, **times, "delay": delay, "bulk": bulk, "callbacks": callbacks}
    return NewRequest(request_id, finetune_id, source="name", **given)


def by_name_many(task_id: str, finetune_ids: Any, options: Mapping[str, Any]) -> list[NewRequest]:
    """A request for each finetune, its id made from the task's: the same message again is the same requests."""
    if not isinstance(finetune_ids, list | tuple) or not finetune_ids:
        raise InvalidRequest("the finetune ids must be a list of at least one")
    for finetune_id in finetune_ids:
        check_finetune_id(finetune_id, allow_org_ids=True)
    space = uuid.uuid5(uuid.NAMESPACE_OID, task_id)
    unique = dict.fromkeys(finetune_ids)
    bulk = len(unique) > BULK
    return [by_name(str(uuid.uuid5(space, one)), one, options, bulk=bulk) for one in unique]


def callbacks_of(request: Any) -> dict[str, Any] | None:
    """The callbacks in a message, as they must be given to send it again; None where there are none."""
    if not (request.callbacks or request.errbacks or request.chain or request.chord):
        return None
    return {
        "link": request.callbacks,
        "link_error": request.errbacks,
        "chain": request.chain,
        "chord": request.chord,
        "group_id": request.group,
        "group_index": request.group_index,
        "root_id": request.root_id,
        "parent_id": request.parent_id,
    }


def _only(name: str, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The one argument that may be given by position; it is taken out of `options` where it is given by name."""
    if len(given) + (name in options) != 1:
        raise InvalidRequest(f"{len(given)} arguments are given by position: give {name}, and all others by name")
    return given[0] if given else options.pop(name)


def _is_again(request: Any) -> bool:
    return bool(request.get(AGAIN_HEADER) or (request.headers or {}).get(AGAIN_HEADER))


def _result(deletion: Deletion, request_id: str) -> tuple[str, dict[str, Any] | DeletionNotDone]:
    request = deletion.request(request_id)
    record = deletion.to_json()
    if deletion.is_done(missing_ok=request is not None and request.missing_ok):
        return states.SUCCESS, record
    return states.FAILURE, DeletionNotDone(record)


@contextmanager
def _requeued_while_away() -> Iterator[None]:
    """While Redis refuses, nothing is accepted and nothing is lost: the message goes back to its queue."""
    try:
        yield
    except LedgerUnavailable as error:
        log.warning("request.requeued", error=str(error))
        time.sleep(_REFUSED_WAIT_SECONDS)
        raise Reject(str(error), requeue=True) from error


def _time(name: str, given: Any) -> datetime | None:
    if given in (None, ""):
        return None
    if not isinstance(given, str):
        raise InvalidRequest(f"{name} is {given!r}: give {ACCEPTED_TIME}")
    return parse_time(given)


def _delay(given: Any) -> timedelta | None:
    if given is None:
        return None
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 <= given <= LONGEST.total_seconds():
        raise InvalidRequest(f"delay_seconds is {given!r}: give a number of seconds, 0 or more, at most ten years")
    return timedelta(seconds=given)
