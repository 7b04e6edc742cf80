"""The Celery tasks: public names, and thin functions over the rest. Nothing else in `tasks` knows Celery.

A by-name request that is accepted ends its message with `Ignore`: its result stays PENDING until the deletion is
finished, by any worker. `write_results` then writes the result. If the producer gave callbacks (link, chain,
chord), the message is sent once more under the same id with them; it finds the outcome and returns it, and Celery
itself runs them.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol

import structlog
from celery import Celery, Task, states
from celery.exceptions import Ignore, Reject

from tasks.by_name import (
    act_by_name,
    by_name,
    by_name_many,
    callbacks_of,
    has_expired,
    header,
    headers,
    message_of,
    only,
    send_each,
    times,
    warn_protected,
)  # fmt: skip
from tasks.cleanup.inventory import report_use
from tasks.errors import DeletionNotDone, IdConflict, InvalidRequest, LedgerRefused, LedgerUnavailable
from tasks.intake import Intake, conflict
from tasks.ledger import dead_letters
from tasks.ledger.queries import get, get_many
from tasks.ledger.store import Ledger
from tasks.maintenance import TOUCHES
from tasks.records import DEFAULT_ACCOUNT, Deletion, NewRequest, check_request_id
from tasks.runner import Runners
from tasks.text import one_line
from tasks.waiting import WAKEUPS

log = structlog.get_logger()

DELETIONS = "deletions"
AGAIN_HEADER = "janitor_again"  # of a message that runs callbacks: the nonce that proves it is ours
ROUTES = {
    "finetunes.delete": {"queue": DELETIONS},
    "finetunes.delete_many": {"queue": DELETIONS},
    "finetunes.cancel": {"queue": DELETIONS},
    "finetunes.touch": {"queue": TOUCHES},
    "finetunes.work": {"queue": WAKEUPS},
    "finetunes.tick": {"queue": WAKEUPS},
}

# Acknowledged after the run: if the worker dies before, the message is delivered again and changes nothing.
# Both errors are answers to the producer, not faults of ours: no traceback in the worker's log.
_ANSWERING: dict[str, Any] = {
    "acks_late": True,
    "ignore_result": False,
    "shared": False,  # of this app alone: a process may make another
    "throws": (DeletionNotDone, InvalidRequest),
}
# Nobody follows the events of a wake-up or a tick, and nobody asks for their results.
_INNER: dict[str, Any] = {"shared": False, "send_events": False}
_REQUEUE_AFTER_SECONDS = 1.0
_MOST_CALLBACK_TRIES = 5  # one a minute; each publishes those callbacks again that can be published
_MOST_UNREAD = 1000  # messages that run callbacks; if nobody reads so many, no more are sent


class Services(Protocol):
    """What the tasks of one process work with."""

    @property
    def ledger(self) -> Ledger: ...
    @property
    def intake(self) -> Intake: ...
    @property
    def runners(self) -> Runners: ...
    def tick(self) -> None: ...


def register(app: Celery, services: Callable[[], Services]) -> None:
    """Give `app` the tasks. services: what they work with, asked for at each call."""
    runs_callbacks: set[str] = set()  # ids whose message has proved to be ours

    class Delete(Task):  # type: ignore[type-arg] # generic only in its stubs
        def after_return(self, status: str, retval: Any, *_: Any, **__: Any) -> None:
            # Last of all, so that after a crash before it the callbacks run by another message. The same if Celery
            # could not publish one: then it comes here with that error, in place of the outcome.
            if self.request.id in runs_callbacks:
                _callbacks_ran(app, services().ledger, self.request.id, status, retval)

    @app.task(name="finetunes.delete", bind=True, base=Delete, **_ANSWERING)
    def delete(self: Any, *given: Any, **options: Any) -> dict[str, Any]:
        id_, nonce, (eta, seen) = self.request.id, header(self.request, AGAIN_HEADER), times(self.request)
        runs_callbacks.discard(id_)
        with _accepting(app, services(), self.request):
            if nonce:
                # Never a request: it may come after its record is gone, and another finetune has the name.
                if not services().ledger.take_callbacks_nonce(id_, nonce):
                    log.warning("callbacks.late", deletion=id_)
                    raise Ignore
                runs_callbacks.add(id_)
                return outcome(services().ledger, id_)
            request = by_name(id_, only("finetune_id", given, options), options, eta=eta, seen=seen)
            callbacks = _as_json(app, callbacks_of(self.request))
            conflicts = accept(self, services(), [replace(request, callbacks=callbacks)])
        _raise_first(app, id_, conflicts)
        services().runners.run(request.account, begun=False)
        warn_protected(services().ledger, [request])
        raise Ignore

    @app.task(name="finetunes.delete_many", bind=True, **_ANSWERING)
    def delete_many(self: Any, *given: Any, **options: Any) -> list[str]:
        id_, (eta, seen) = self.request.id, times(self.request)
        with _accepting(app, services(), self.request):
            requests = by_name_many(id_, only("finetune_ids", given, options), options, eta=eta, seen=seen)
            conflicts: list[IdConflict] = []
            try:
                conflicts = accept(self, services(), requests, wake=True)
            except LedgerRefused:
                send_each(app.send_task, services().ledger, requests, options, headers(eta, seen))
        _raise_first(app, id_, conflicts)
        warn_protected(services().ledger, requests)
        return [request.id for request in requests]

    @app.task(name="finetunes.cancel", bind=True, **_ANSWERING)
    def cancel(self: Any, *given: Any, **options: Any) -> str:
        with _accepting(app, services(), self.request):
            deletion_id = check_request_id(only("deletion_id", given, options))
            act = act_by_name(options, str(self.request.origin or ""))
            (answer,), due = services().ledger.cancel([deletion_id], act, nonce=self.request.id)
            if answer == "unknown":
                raise InvalidRequest(f"no deletion has the id {deletion_id!r}")
        if due:
            services().runners.write_results(due)
        return answer

    @app.task(name="finetunes.touch", bind=True, **{**_ANSWERING, "ignore_result": True})
    def touch(self: Any, finetune_ids: Any, account: str | None = None, **odd: Any) -> None:
        # Whatever else was given: a use that is not noted may cost a finetune.
        if odd:
            log.warning("use.odd_arguments", names=one_line(", ".join(odd)))
        ids = finetune_ids if isinstance(finetune_ids, list | tuple) else [finetune_ids]
        with _accepting(app, services(), self.request):
            report_use(services().intake, account, ids)

    @app.task(name="finetunes.work", acks_late=True, **_INNER)
    def work(account: Any) -> None:
        services().runners.run(str(account), begun=True)

    @app.task(name="finetunes.tick", throws=(LedgerUnavailable,), **_INNER)
    def tick() -> None:
        services().tick()


def _end_if_expired(task: Any, ledger: Ledger, id_: str) -> None:
    """End a request that is not on record and whose time has passed, with Celery's own result for that."""
    if has_expired(task.request) and get_many(ledger, [id_])[0] is None:
        log.info("request.expired", deletion=id_)
        task.backend.mark_as_revoked(task.request.id, "expired", request=task.request)
        raise Ignore


def accept(
    task: Any, services: Services, requests: Sequence[NewRequest], *, wake: bool = False
) -> list[IdConflict]:
    """Accept by-name requests; the errors of those whose ids were used before with other arguments.

    Without `wake` the caller goes on as a runner; if it has no key for the account, another worker is woken.
    """
    _end_if_expired(task, services.ledger, requests[0].id)
    account, has_key = requests[0].account, str(requests[0].account) in services.runners.clients
    accepted = services.intake.accept(requests, wake=wake or not has_key)
    pairs = zip(requests, accepted, strict=True)
    conflicts = [(request.id, conflict(request)) for request, one in pairs if one.answer == "conflict"]
    for id_, error in conflicts:
        services.intake.note_refused(id_, account, error)
    return [error for _, error in conflicts]


def wake(app: Celery, account: str) -> bool:
    """Publish a wake-up: the account has work. False if that fails: maintenance publishes another one."""
    try:
        app.send_task("finetunes.work", args=[account], queue=WAKEUPS, ignore_result=True)
    except Exception as error:
        log.warning("wakeup.not_sent", account=account, error=str(error))
        return False
    return True


def write_results(app: Celery, ledger: Ledger, ids: Sequence[str]) -> None:
    """Write the Celery results of by-name requests whose deletions are final, and have their callbacks run.

    One that is not written is logged, and due again in a minute.
    """
    for id_ in ids:
        try:
            _write_result(app, ledger, id_)
        except Exception as error:  # the next ones must not wait for this one
            log.warning("result.not_written", deletion=id_, error=str(error))


def _write_result(app: Celery, ledger: Ledger, id_: str) -> None:
    deletion = get_many(ledger, [id_])[0]
    if deletion and deletion.is_final:
        state, result = _result(deletion)
        app.backend.store_result(id_, result, state)
        if callbacks := ledger.callbacks(id_):
            _run_callbacks(app, ledger, deletion, callbacks)
            return
    _note_written(app, ledger, id_, deletion.state if deletion else None)


def _note_written(app: Celery, ledger: Ledger, id_: str, state: str | None, **more: bool) -> None:
    """Note that a result is. state: what it says; it is written again if the record says something else by now."""
    if ledger.result_written(id_, **more) != state:  # Celery's backend never takes a SUCCESS back
        write_results(app, ledger, [id_])


def _run_callbacks(app: Celery, ledger: Ledger, deletion: Deletion, callbacks: dict[str, Any]) -> None:
    """Send the message that runs them, and look in a minute whether they have run."""
    id_ = deletion.id
    nonce, tried = ledger.new_callbacks_nonce(id_)
    if tried >= _MOST_CALLBACK_TRIES:
        log.error("callbacks.given_up", deletion=id_, message="they cannot be published, see the log of each try")
        ledger.result_written(id_, callbacks_ran=True)
        return
    # By the queue of wake-ups, which is short: the proof is good for a minute.
    if nonce and ledger.redis.llen(WAKEUPS) < _MOST_UNREAD:
        app.send_task(
            "finetunes.delete", args=[deletion.finetune_id], task_id=id_, queue=WAKEUPS,
            headers={AGAIN_HEADER: nonce}, **callbacks,
        )  # fmt: skip
    ledger.result_due_again(id_)


def _callbacks_ran(app: Celery, ledger: Ledger, id_: str, status: str, result: Any) -> None:
    if status == states.SUCCESS or isinstance(result, DeletionNotDone):
        record = result.args[0] if isinstance(result, DeletionNotDone) else result
        _note_written(app, ledger, id_, record["state"], callbacks_ran=True)


def outcome(ledger: Ledger, id_: str) -> dict[str, Any]:
    """The record, for the message that runs callbacks; raises `DeletionNotDone` with it."""
    result = _result(get(ledger, id_))[1]
    if isinstance(result, DeletionNotDone):
        raise result
    return result


def _result(deletion: Deletion) -> tuple[str, dict[str, Any] | DeletionNotDone]:
    record = deletion.to_json()
    return (states.SUCCESS, record) if deletion.is_done else (states.FAILURE, DeletionNotDone(record))


def _raise_first(app: Celery, id_: str, conflicts: Sequence[IdConflict]) -> None:
    """A conflict is the result only if there is none yet: two requests of one id share it."""
    if conflicts:
        raise conflicts[0] if app.backend.get_state(id_) == states.PENDING else Ignore


def _as_json(app: Celery, value: Any) -> Any:
    """`value` as plain JSON data, in Celery's own encoding, so that times and the like survive."""
    return json.loads(app.backend.encode(value))


def _set_aside(app: Celery, ledger: Ledger, request: Any, reason: str) -> bool:
    """Make a dead letter of the message of a request; whether that worked."""
    queue = str(request.delivery_info.get("routing_key"))
    with suppress(LedgerUnavailable):
        dead_letters.keep(ledger.redis, queue, reason, message_of(request, app.backend.encode))
        return True
    return False


@contextmanager
def _accepting(app: Celery, services: Services, request: Any) -> Iterator[None]:
    """Note what is refused, since its sender may never ask; keep what cannot be written now.

    While Redis is away nothing is accepted and nothing is lost: the message goes back to the end of its queue.
    """
    try:
        yield
    except InvalidRequest as error:
        account = (request.kwargs or {}).get("account", DEFAULT_ACCOUNT)
        services.intake.note_refused(request.id, account, error)
        raise
    except LedgerUnavailable as error:
        # What was refused would be refused again, and hold a slot each time.
        if isinstance(error, LedgerRefused) and _set_aside(app, services.ledger, request, str(error)):
            raise
        log.warning("request.requeued", error=str(error))
        services.runners.stopping.wait(_REQUEUE_AFTER_SECONDS)
        raise Reject(str(error), requeue=True) from error
