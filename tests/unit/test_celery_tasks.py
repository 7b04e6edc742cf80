"""What other services send by name: read with care, accepted once, answered when the deletion is final."""

import base64
import threading
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, states
from celery.app.trace import build_tracer
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps, loads
from structlog.testing import capture_logs

from tasks import celery_tasks
from tasks.by_name import ETA_HEADER, EXPIRES_HEADER, by_name, by_name_many, callbacks_of
from tasks.celery_tasks import AGAIN_HEADER, wake, write_results
from tasks.durations import iso
from tasks.errors import IdConflict, InvalidRequest, LedgerRefused, LedgerUnavailable
from tasks.intake import BULK, Intake
from tasks.ledger.dead_letters import SEEN_HEADER, list_dead_letters, requeue_dead_letters
from tasks.ledger.queries import Filter, get, get_many, list_deletions
from tasks.ledger.types import Act
from tasks.records import NewRequest, State
from tests.conftest import NOW, PERMITS, claim, claim_and_mark, finish, register
from worker.message_check import check_message, read


def message(**parts) -> SimpleNamespace:
    absent = dict.fromkeys(("callbacks", "errbacks", "chain", "chord", "group", "group_index", "parent_id"))
    return SimpleNamespace(**{**absent, "root_id": "t1", **parts})


def plain(request: NewRequest) -> NewRequest:
    """Without its digest."""
    return replace(request, digest="")


def refused(read, *given) -> str:
    with pytest.raises(InvalidRequest) as error:
        read(*given)
    (line,) = str(error.value).splitlines()
    return line


def test_the_least_a_producer_sends_is_a_finetune():
    assert plain(by_name("t1", "a", {})) == NewRequest("t1", "a", account="default", source="name")


def test_who_and_why_travel_with_the_request():
    told: dict[str, Any] = {"account": "eu", "reason": "trial", "requested_by": "billing", "missing_ok": True}
    assert plain(by_name("t1", "a", told)) == NewRequest("t1", "a", source="name", **told)


def test_times_are_iso_8601_and_a_delay_is_in_seconds():
    request = by_name("t1", "a", {"due_at": "2026-12-24T20:00:00+02:00", "requested_at": "2026-12-01"})
    assert request.due_at == datetime(2026, 12, 24, 18, tzinfo=UTC)
    assert request.requested_at == datetime(2026, 12, 1, tzinfo=UTC)
    assert by_name("t1", "a", {"delay_seconds": 1.5}).delay == timedelta(seconds=1.5)
    assert by_name("t1", "a", {"delay_seconds": 0, "due_at": ""}).delay == timedelta(0)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"dueat": "x"}, "'dueat' is not an argument: accepted are account, reason,"),
        ({"source": "http"}, "'source' is not an argument"),
        ({"fingerprint": "v1:"}, "'fingerprint' is not an argument"),
        ({"due_at": "soon"}, "'soon' is not a time: give"),
        ({"due_at": 1_798_135_200}, "due_at is 1798135200: give a time in ISO 8601"),
        ({"requested_at": ["2026-12-01"]}, "requested_at is ['2026-12-01']: give"),
        *(
            ({"delay_seconds": given}, f"delay_seconds is {given!r}: give a number of seconds")
            for given in (-1, "60", True, float("nan"), float("inf"), 10**12, [1])
        ),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused_in_one_line(options, why):
    assert refused(by_name, "t1", "a", options).startswith(why)
    assert refused(by_name_many, "t1", ["a"], options).startswith(why)


def test_many_are_one_request_each_and_the_same_again_when_the_message_comes_twice():
    ids = [request.id for request in by_name_many("t1", ["a", "b", "a"], {})]
    assert ids == [request.id for request in by_name_many("t1", ("a", "b"), {})]
    assert ids[1:] == [request.id for request in by_name_many("t1", ["b"], {})]
    assert [uuid.UUID(one).version for one in ids] == [5, 5]
    assert not set(ids) & {request.id for request in by_name_many("t2", ["a", "b"], {})}


@pytest.mark.parametrize(("count", "bulk"), [(1, False), (BULK, False), (BULK + 1, True)])
def test_more_than_a_hundred_finetunes_let_single_requests_go_first(count, bulk):
    requests = by_name_many("t1", [f"f{n}" for n in range(count)] + ["f0"] * 50, {"reason": "bulk"})
    assert {(request.bulk, request.reason) for request in requests} == {(bulk, "bulk")}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("abc", "must be a list"), ([], "must be a list of at least one"), (None, "must be a list"),
        ({"a": 1}, "must be a list"), (["a", "b c"], "'b c' has a space"), (["a", None], "id None is not a text"),
        (["a", ["b"]], "['b'] is not a text"), (["a", ""], "is empty"),
    ],
)  # fmt: skip
def test_a_list_with_one_bad_finetune_is_refused_whole(given, why):
    assert why in refused(by_name_many, "t1", given, {})


def test_a_message_without_callbacks_stores_none():
    assert callbacks_of(message()) is None
    assert callbacks_of(message(callbacks=[], chain=[])) is None


@pytest.mark.parametrize(
    ("attribute", "argument"),
    [("callbacks", "link"), ("errbacks", "link_error"), ("chain", "chain"), ("chord", "chord")],
)
def test_callbacks_are_kept_under_the_names_they_are_sent_again_with(attribute, argument):
    notify = [{"task": "notify"}]
    kept = callbacks_of(message(**{attribute: notify}, group="g1", group_index=2)) or {}
    assert {name: value for name, value in kept.items() if value is not None} == {
        argument: notify, "group_id": "g1", "group_index": 2, "root_id": "t1",
    }  # fmt: skip
    assert {"link", "link_error", "chain", "chord", "parent_id"} <= kept.keys()


ETA = "2026-03-01T13:00:00+00:00"


@pytest.mark.parametrize(
    ("options", "due_at", "requested_at"),
    [
        ({}, ETA, ETA),
        ({"requested_at": "2026-03-01T11:00:00Z"}, ETA, "2026-03-01T11:00:00+00:00"),
        ({"due_at": "2026-03-01T12:30:00Z"}, ETA, ETA),
        ({"due_at": "2026-03-01T14:00:00Z"}, "2026-03-01T14:00:00+00:00", ETA),
    ],
)
def test_an_eta_is_a_due_time_and_dates_the_request(options, due_at, requested_at):
    request = by_name("t1", "a", options, eta=ETA)
    assert request.due_at == datetime.fromisoformat(due_at)
    assert request.requested_at == datetime.fromisoformat(requested_at)


@pytest.mark.parametrize(
    ("options", "eta", "requested_at"),
    [
        ({}, "", "2026-03-01T12:00:00+00:00"),
        ({}, ETA, "2026-03-01T12:00:00+00:00"),
        ({"requested_at": "2026-03-01T11:00:00Z"}, "", "2026-03-01T11:00:00+00:00"),
        ({"requested_at": ETA}, "", "2026-03-01T12:00:00+00:00"),
    ],
)
def test_when_a_message_was_here_first_dates_its_request_at_the_latest(options, eta, requested_at):
    request = by_name("t1", "a", options, eta=eta, seen="2026-03-01T12:00:00Z")
    assert request.requested_at == datetime.fromisoformat(requested_at)
    # It is the same request as before.
    assert request.digest == by_name("t1", "a", options, eta=eta).digest


def test_a_delay_beside_a_time_is_refused():
    for options, eta in (({"delay_seconds": 5}, ETA), ({"delay_seconds": 5, "due_at": ETA}, "")):
        request = by_name("t1", "a", options, eta=eta)
        assert "a time and a delay" in refused(lambda one: one.checked(allow_org_ids=False), request)


def test_the_digest_tells_arguments_apart_as_they_were_given():
    digests = {
        by_name("t1", finetune, options, eta=eta).digest
        for finetune in ("a", "b")
        for options in ({}, {"account": "default"}, {"reason": "r"})
        for eta in ("", ETA)
    }
    assert len(digests) == 12
    assert by_name("t1", "a", {"reason": "r"}).digest == by_name("t2", "a", {"reason": "r"}).digest


class Runners:
    """Notes which runners were started."""

    def __init__(self, results):
        self.clients = {"default": None}
        self.stopping = threading.Event()
        self.stopping.set()  # no waiting before a message is given back
        self.started: list[Any] = []
        self.write_results = results

    def run(self, account, *, begun):
        self.started.append((account, begun))


class Worker:
    """The tasks of one worker on a ledger; `send` has one message carried out, as Celery does it."""

    def __init__(self, ledger):
        self.app = Celery("t", broker="memory://", backend="cache+memory://", set_as_current=False)
        self.app.conf.task_ignore_result = True
        self.app.backend.client.cache.clear()  # type: ignore[attr-defined] # of all apps of this process
        self.ledger = ledger
        self.woken: list[str] = []
        self.sent: list[Any] = []
        self.intake = Intake(ledger, self.woken.append)
        self.runners = Runners(lambda ids: write_results(self.app, ledger, ids))
        celery_tasks.register(self.app, lambda: self)  # type: ignore[arg-type, return-value] # a fake
        self.app.send_task = self.note_sent  # type: ignore[assignment, method-assign] # sends nothing

    def tick(self):
        pass

    def note_sent(self, name, **options):
        self.sent.append((name, options))

    def send(self, name, *given, id="t1", headers=None, message=(), **options):
        """The state in which Celery sees the message end."""
        task = self.app.tasks[f"finetunes.{name}"]
        request = {"id": id, "task": task.name, "delivery_info": {"routing_key": "deletions"}, "headers": headers}
        request |= dict(message)
        return build_tracer(task.name, task, app=self.app)(id, [*given], options, request).info

    def result(self, id="t1"):
        found = self.app.AsyncResult(id)
        return found.state, found.result

    def ends(self, state=State.DELETED, id="t1"):
        """The deletion is carried out elsewhere, and its result is written."""
        claimed = claim(self.ledger)
        assert claimed.id == id
        assert finish(self.ledger, claimed, state) == "done"
        write_results(self.app, self.ledger, [id])


@pytest.fixture
def worker(clocked):
    # Times by the clock of the tests are never too old.
    return Worker(register(clocked(retention=timedelta(days=36500))))


def counted(ledger, account="default"):
    found = ledger.redis.hgetall(ledger.keys.stats(account))
    return {name: count for name, count in found.items() if name.startswith("refused:")}


def test_an_accepted_request_is_pending_until_its_deletion_is_final(worker):
    assert worker.send("delete", "a", reason="trial").state == "IGNORED"
    assert (worker.result(), worker.runners.started) == ((states.PENDING, None), [("default", False)])
    worker.ends()
    state, record = worker.result()
    assert (state, record["state"], record["reason"]) == (states.SUCCESS, "deleted", "trial")


@pytest.mark.parametrize(
    ("end", "options", "state"),
    [
        (State.NOT_FOUND, {}, states.FAILURE),
        (State.NOT_FOUND, {"missing_ok": True}, states.SUCCESS),
        (State.REVIEW, {"missing_ok": True}, states.FAILURE),
    ],
)
def test_another_end_is_a_failure_with_the_record(worker, end, options, state):
    worker.send("delete", "a", **options)
    worker.ends(end)
    found, result = worker.result()
    record = result if found == states.SUCCESS else result.args[0]
    assert (found, record["state"]) == (state, end)


def test_a_message_that_comes_again_changes_nothing(worker):
    worker.send("delete", "a")
    worker.ends()
    assert worker.send("delete", "a").state == "IGNORED"
    assert worker.result()[0] == states.SUCCESS
    assert get(worker.ledger, "t1").state == "deleted"


def test_a_worker_without_the_key_wakes_another_one(worker):
    worker.ledger.maintain("eu", 8)
    worker.send("delete", "a", account="eu")
    assert worker.woken == ["eu"]
    worker.send("delete", "a", id="t2")
    assert worker.woken == ["eu"]


def test_an_eta_that_the_transport_took_out_is_the_due_time(worker):
    worker.send("delete", "a", headers={ETA_HEADER: ETA})
    record = get(worker.ledger, "t1")
    assert (record.due_at, record.asked_at) == (datetime.fromisoformat(ETA), NOW)


@pytest.mark.parametrize(("task", "given"), [("delete", "a"), ("delete_many", ["a"])])
def test_a_request_is_at_least_as_old_as_its_message(worker, task, given):
    hour_ago = NOW - timedelta(hours=1)
    worker.send(task, given, headers={SEEN_HEADER: hour_ago.isoformat()})
    (record,) = list_deletions(worker.ledger, Filter()).deletions
    assert record.asked_at == hour_ago


@pytest.mark.parametrize(
    ("task", "given", "options", "why"),
    [
        ("delete", ["a b"], {}, "request"),
        ("delete", ["a"], {"account": "typo"}, "account"),
        ("delete", ["a"], {"account": ["default"]}, "account"),
        ("delete", ["a", "b"], {}, "request"),
        ("delete_many", [["a", ""]], {}, "request"),
        ("cancel", ["nobody"], {}, "request"),
        ("cancel", ["t1"], {"by": "me"}, "request"),
    ],
)
def test_a_refused_request_is_told_logged_and_counted(worker, task, given, options, why):
    with capture_logs() as logs:
        assert worker.send(task, *given, **options).state == states.FAILURE
    assert isinstance(worker.result()[1], InvalidRequest)
    assert [line["event"] for line in logs] == ["request.refused"]
    assert (counted(worker.ledger), worker.runners.started) == ({f"refused:{why}": "1"}, [])


def test_an_id_used_for_two_finetunes_is_an_error_until_the_first_has_its_result(worker):
    worker.send("delete", "theirs")
    with capture_logs() as logs:
        worker.send("delete", "mine")
    state, error = worker.result()
    assert (state, type(error)) == (states.FAILURE, IdConflict)
    assert "theirs" not in str(error)
    assert "request.refused" in [line["event"] for line in logs]
    assert counted(worker.ledger) == {"refused:conflict": "1"}
    worker.ends()
    assert worker.result()[1]["finetune_id"] == "theirs"
    # When the result is there, then the conflict does not replace it.
    assert worker.send("delete", "mine").state == "IGNORED"
    assert worker.result()[1]["finetune_id"] == "theirs"


def test_many_answer_with_their_ids_and_wake_a_runner(worker):
    worker.send("delete_many", ["a", "b"])
    state, ids = worker.result()
    assert (state, [get(worker.ledger, id_).finetune_id for id_ in ids]) == (states.SUCCESS, ["a", "b"])
    assert (worker.woken, worker.runners.started) == (["default"], [])


@pytest.mark.parametrize("task", ["delete", "delete_many"])
def test_a_request_that_expired_is_not_accepted_and_one_that_was_accepted_does_not_expire(worker, task):
    given, expired = (
        ("a" if task == "delete" else ["a"]),
        {EXPIRES_HEADER: iso(datetime.now(UTC) - timedelta(hours=1))},
    )
    # Given a request that comes after its time, then it is not accepted.
    worker.send(task, given, id="late", headers=expired)
    assert (worker.result("late")[0], list_deletions(worker.ledger, Filter())[0]) == (states.REVOKED, [])
    # Given one that was accepted in time, when it comes again after it, then nothing changes.
    worker.send(task, given)
    before = worker.result()
    worker.send(task, given, headers=expired)
    assert worker.result() == before
    assert len(list_deletions(worker.ledger, Filter())[0]) == 1


def test_a_cancel_answers_and_has_the_result_of_the_deletion_written(worker):
    worker.send("delete", "a", id="d1")
    worker.send("cancel", "d1", id="c1")
    assert worker.result("c1") == (states.SUCCESS, "cancelled")
    state, error = worker.result("d1")
    assert (state, error.args[0]["state"]) == (states.FAILURE, "cancelled")
    worker.send("cancel", "d1", id="c2")
    assert worker.result("c2") == (states.SUCCESS, "final")


def test_a_report_of_use_is_noted_whatever_else_is_given(worker):
    with capture_logs() as logs:
        worker.send("touch", ["a", "b"], accounts="eu")
        worker.send("touch", "c", account=None)
    assert [(line["event"], line["names"]) for line in logs] == [("use.odd_arguments", "accounts")]
    assert set(worker.ledger.redis.hkeys(worker.ledger.keys.used("default"))) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("task", "given"), [("delete", "a"), ("delete_many", ["a"]), ("cancel", "d1"), ("touch", ["a"])]
)
@pytest.mark.parametrize("refuses", [False, True])
def test_what_redis_does_not_take_is_given_back_or_a_dead_letter_but_never_lost(worker, task, given, refuses):
    def fails(*_, **__):
        raise (LedgerRefused if refuses else LedgerUnavailable)("as the test says")

    worker.ledger.accept = worker.ledger.cancel = worker.ledger.keep = fails
    ended = worker.send(task, given)
    if refuses and task == "delete_many":
        assert [(name, options["task_id"]) for name, options in worker.sent] == [
            ("finetunes.delete", by_name_many("t1", given, {})[0].id)
        ]
        return
    if not refuses:
        assert (ended.state, ended.retval.requeue, worker.result()[0]) == (states.REJECTED, True, states.PENDING)
        return
    # It would be refused again, and hold a slot each time.
    assert ended.state == states.FAILURE
    (letter,) = list_dead_letters(worker.ledger)
    assert (letter.queue, f"finetunes.{task}" in letter.text) == ("deletions", True)


@pytest.mark.parametrize("task", ["delete", "cancel", "touch"])
def test_what_redis_refuses_is_given_back_if_it_keeps_no_dead_letter_either(worker, task, monkeypatch):
    def fails(*_, **__):
        raise LedgerRefused("as the test says")

    def is_away(*_, **__):
        raise LedgerUnavailable("as the test says")

    worker.ledger.accept = worker.ledger.cancel = worker.ledger.keep = fails
    monkeypatch.setattr(worker.ledger.redis, "eval", is_away, raising=False)
    ended = worker.send(task, "a")
    assert (ended.state, ended.retval.requeue) == (states.REJECTED, True)


def test_a_request_that_redis_refused_is_kept_as_a_message_that_can_be_sent_again(worker):
    # Given a request with all that a message can hold, and a Redis that refuses it
    def fails(*_, **__):
        raise LedgerRefused("as the test says")

    worker.ledger.accept = fails
    link = {"task": "theirs.note", "args": [], "kwargs": {"at": NOW}, "options": {"queue": "theirs"}}
    message = {"callbacks": [link], "root_id": "r1", "group": "g1", "expires": None}
    ours = {ETA_HEADER: "2026-03-01T13:00:00.000Z", EXPIRES_HEADER: "2030-01-01T00:00:00.000Z", "traceparent": "x"}
    worker.send("delete", "a", reason="trial", headers=ours, message=message)
    (letter,) = list_dead_letters(worker.ledger)
    # When its letter is sent again
    requeue_dead_letters(worker.ledger, {letter.id}, ["deletions"], Act("ana", "command"))
    again = check_message(read(worker.ledger.redis.rpop("deletions").encode()), "deletions")
    # Then nothing of it is lost, and it says since when it is here.
    body = loads(base64.b64decode(again["body"]))
    assert body == [
        ["a"],
        {"reason": "trial"},
        {"callbacks": [link], "errbacks": None, "chain": None, "chord": None},
    ]
    wanted = {"task": "finetunes.delete", "id": "t1", "root_id": "r1", "group": "g1", SEEN_HEADER: letter.at}
    wanted |= ours
    assert {name: value for name, value in again["headers"].items() if value} == wanted


def test_of_many_only_what_redis_refuses_becomes_a_dead_letter(worker):
    # Given a list with one finetune that Redis refuses, as after a write by hand
    broken = worker.ledger.keys.unfinished("default", "b")
    worker.ledger.redis.set(broken, "x")
    # When it is sent, and what comes of it is carried out
    worker.send("delete_many", ["a", "b", "c"], reason="trial", headers={ETA_HEADER: ETA})
    state, ids = worker.result()
    for _, options in worker.sent:
        worker.send(
            "delete", *options["args"], id=options["task_id"], headers=options["headers"], **options["kwargs"]
        )
    # Then the sender has all ids, the others are on record,
    assert (state, [id_ for id_ in ids if worker.result(id_)[0] == states.FAILURE]) == (states.SUCCESS, ids[1:2])
    assert [one and one.finetune_id for one in get_many(worker.ledger, ids)] == ["a", None, "c"]
    # and the one can be sent again once Redis takes it.
    (letter,) = list_dead_letters(worker.ledger)
    worker.ledger.redis.delete(broken)
    requeue_dead_letters(worker.ledger, {letter.id}, ["deletions"], Act("ana", "command"))
    args, kwargs, _ = loads(base64.b64decode(check_message(
        read(worker.ledger.redis.rpop("deletions").encode()), "deletions")["body"]))  # fmt: skip
    assert (args, kwargs) == (["b"], {"reason": "trial"})
    # It is the same request as in the list.
    assert worker.send("delete", "b", id=ids[1], headers={ETA_HEADER: ETA}, reason="trial").state == "IGNORED"
    worker.sent.clear()
    assert worker.send("delete_many", ["a", "b", "c"], id="t1", reason="trial", headers={ETA_HEADER: ETA}) is None
    assert worker.sent == []


@pytest.mark.parametrize("has_callbacks", [False, True])
def test_a_result_is_written_anew_if_the_record_changes_meanwhile(worker, clocked, has_callbacks):
    # Given a deletion that ended in review, and a slow worker that has the API's confirmation
    link = {"task": "theirs.note", "args": [], "kwargs": {}, "options": {"queue": "theirs"}}
    worker.send("delete", "a", message={"callbacks": [link] if has_callbacks else None})
    slow = claim_and_mark(worker.ledger)
    clocked.after(seconds=31).maintain("default", PERMITS)
    finish(worker.ledger, claim(worker.ledger), State.REVIEW)
    if has_callbacks:
        write_results(worker.app, worker.ledger, ["t1"])
    store = worker.app.backend.store_result

    def late(*given, **options):
        worker.app.backend.store_result = store
        store(*given, **options)
        # which is written while the result of the review is, by a worker that dies then
        assert finish(worker.ledger, slow, attempt=1) == "late"

    worker.app.backend.store_result = late
    # When that result is written, by us or by Celery after the callbacks
    if has_callbacks:
        worker.send("delete", "a", headers=worker.sent[-1][1]["headers"])
    else:
        write_results(worker.app, worker.ledger, ["t1"])
    # Then it says what the record says.
    assert (worker.result()[0], get(worker.ledger, "t1").state) == (states.SUCCESS, State.DELETED)


def test_a_success_is_not_taken_back_if_verification_ends_while_it_is_written(worker, clocked):
    worker.send("delete", "a")
    finish(worker.ledger, claim_and_mark(worker.ledger), attempt=1)
    store = worker.app.backend.store_result

    def late(*given, **options):
        store(*given, **options)
        found = {"id": "t1", "finished_at": clocked.at_ms, "word": "still_there"}
        worker.ledger.verify("default", [found], "it is still there")

    worker.app.backend.store_result = late
    write_results(worker.app, worker.ledger, ["t1"])
    assert (worker.result()[0], get(worker.ledger, "t1").state) == (states.SUCCESS, State.REVIEW)


def with_callbacks(worker):
    """An accepted request with a `link`, carried out; the nonce of the message that is to run it."""
    worker.send("delete", "a")
    worker.ledger.redis.set(worker.ledger.keys.callbacks("t1"), '{"link": [{"task": "theirs.note"}]}')
    worker.ends()
    ((name, options),) = worker.sent
    assert (name, options["task_id"], options["link"]) == ("finetunes.delete", "t1", [{"task": "theirs.note"}])
    return options["headers"][AGAIN_HEADER]


def test_a_callback_may_hold_all_that_celery_writes_as_json(worker):
    # Given a callback with a time and a UUID, which Celery reads as such
    link = {"task": "theirs.note", "args": [uuid.uuid4()], "kwargs": {"at": NOW}, "options": {"queue": "theirs"}}
    assert worker.send("delete", "a", message={"callbacks": [link]}).state == "IGNORED"
    # When the deletion has ended
    worker.ends()
    # Then they come out of the message that runs it.
    ((_, options),) = worker.sent
    assert loads(dumps(options["link"])) == [link]


def test_callbacks_run_by_a_message_of_our_own_that_proves_it(worker):
    nonce = with_callbacks(worker)
    # Within a minute no second message is sent.
    write_results(worker.app, worker.ledger, ["t1"])
    assert len(worker.sent) == 1
    ended = worker.send("delete", "a", headers={AGAIN_HEADER: nonce})
    assert ended is None or ended.state == states.SUCCESS
    assert worker.ledger.callbacks("t1") is None
    # When the record changes later, then the result is written again, and no callback runs again.
    write_results(worker.app, worker.ledger, ["t1"])
    assert len(worker.sent) == 1


def test_callbacks_that_could_not_be_published_once_are_published_by_the_next_message(worker, monkeypatch):
    nonce = with_callbacks(worker)
    link = {"task": "theirs.note", "args": [], "kwargs": {}, "options": {"queue": "theirs"}}

    def refuse(*_, **__):
        raise OperationalError("no permission")

    # Given a broker that refuses the callback, when the message runs that is to publish it,
    monkeypatch.setattr(worker.app.amqp, "_retry_publish", refuse)
    worker.send("delete", "a", headers={AGAIN_HEADER: nonce}, message={"callbacks": [link]})
    # then it is kept, and looked at again in a minute.
    assert worker.ledger.callbacks("t1") is not None
    assert worker.ledger.redis.zscore(worker.ledger.keys.results, "t1") is not None


def test_callbacks_that_cannot_be_published_are_given_up_after_five_tries(worker):
    with_callbacks(worker)
    for _ in range(8):
        # When their message is read, and a minute later the callbacks have not run
        nonce = worker.ledger.redis.get(worker.ledger.keys.callbacks_nonce("t1"))
        worker.ledger.take_callbacks_nonce("t1", nonce or "")
        worker.ledger.redis.delete(worker.ledger.keys.callbacks_nonce("t1"))
        write_results(worker.app, worker.ledger, ["t1"])
    # then five messages were sent.
    assert (len(worker.sent), worker.ledger.callbacks("t1")) == (5, None)
    assert worker.ledger.redis.zscore(worker.ledger.keys.results, "t1") is None


def test_callbacks_whose_messages_nobody_reads_are_not_given_up(worker, monkeypatch):
    monkeypatch.setattr("tasks.celery_tasks._MOST_UNREAD", 10)
    with_callbacks(worker)
    for _ in range(20):
        # When a minute is over, and nobody reads the queue of wake-ups
        worker.ledger.redis.delete(worker.ledger.keys.callbacks_nonce("t1"))
        worker.ledger.redis.rpush("wakeups", "unread")
        write_results(worker.app, worker.ledger, ["t1"])
    # then they are kept, and messages do not pile up.
    assert worker.ledger.callbacks("t1") is not None
    assert len(worker.sent) == 10


@pytest.mark.parametrize("forged", ["true", "0" * 32, True, ["x"]])
def test_a_forged_header_runs_and_forgets_no_callbacks(worker, forged):
    with_callbacks(worker)
    assert worker.send("delete", "a", headers={AGAIN_HEADER: forged, "runs_callbacks": True}).state == "IGNORED"
    assert worker.ledger.callbacks("t1") is not None


def test_a_conflict_leaves_the_callbacks_of_the_first_request(worker):
    worker.send("delete", "theirs")
    worker.ledger.redis.set(worker.ledger.keys.callbacks("t1"), '{"link": [{"task": "theirs.note"}]}')
    assert worker.send("delete", "mine").state == states.FAILURE
    assert worker.ledger.callbacks("t1") is not None


def test_a_proof_is_good_once(worker):
    nonce = with_callbacks(worker)
    worker.ledger.take_callbacks_nonce("t1", nonce)
    assert worker.send("delete", "a", headers={AGAIN_HEADER: nonce}).state == "IGNORED"


def test_a_message_that_runs_callbacks_is_never_a_request(worker):
    # Given one that comes after its record was pruned: the name may be another finetune's by now.
    nonce = with_callbacks(worker)
    worker.ledger.redis.delete(worker.ledger.keys.deletion("t1"), worker.ledger.keys.callbacks_nonce("t1"))
    # When it is read, then nothing is asked for.
    assert worker.send("delete", "a", headers={AGAIN_HEADER: nonce}).state == "IGNORED"
    assert get_many(worker.ledger, ["t1"]) == [None]


def test_a_wake_up_that_cannot_be_published_raises_nothing(worker):
    def fails(*_, **__):
        raise ConnectionError("as the test says")

    worker.app.send_task = fails
    assert not wake(worker.app, "default")


def test_a_result_that_cannot_be_written_stays_due_and_holds_up_no_other(clocked, worker):
    worker.send("delete", "a", id="t1")
    worker.send("delete", "b", id="t2")
    worker.ledger.cancel(["t1", "t2"])
    usual = worker.app.backend.store_result

    def fails(id_, *given, **more):
        if id_ == "t1":
            raise ConnectionError("as the test says")
        return usual(id_, *given, **more)

    worker.app.backend.store_result = fails
    write_results(worker.app, worker.ledger, ["t1", "t2"])
    assert (worker.result("t1")[0], worker.result("t2")[0]) == (states.PENDING, states.FAILURE)
    clocked.after(seconds=70)
    assert worker.ledger.housekeep([], timedelta(seconds=1))[0] == ["t1"]
