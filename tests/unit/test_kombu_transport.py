"""A message is checked whole: what is accepted Celery can carry through, what is not is refused with a reason."""

import base64
import bz2
import gzip
import json
import re
import zlib
from contextlib import contextmanager
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group, signature
from celery.app.task import Context
from celery.app.trace import build_tracer, reset_worker_optimizations, setup_worker_optimizations
from celery.backends.redis import RedisBackend
from celery.worker import state
from celery.worker.strategy import default
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.exceptions import OperationalError
from kombu.transport import virtual
from kombu.transport.virtual.base import Base64, Message
from kombu.utils.json import dumps

from tasks.celery_tasks import AGAIN_HEADER
from tasks.errors import DeletionNotDone
from tasks.ledger.keys import TEMPLATES
from worker.kombu_transport import Backend, Unacknowledged
from worker.message_check import MOST_BODY, MOST_BYTES, check_message, read
from worker.message_fields import TASKS, RefusedMessage

QUEUE = "deletions"
WHAT_TO_CHANGE = re.compile(
    r": (give|send|use|choose|encode|correct|remove|accepted are) |is accepted$| is not one of |: missing "
    r"|: got an unexpected |: too many "
)


def other(name="theirs.report", queue="theirs", **options):
    return signature(name, args=(1,), queue=queue, **options)


def task(*arguments, **options):
    return signature("finetunes.delete", args=arguments or ("a",), queue=QUEUE, **options)


def sent(canvas, queue=QUEUE):
    """The first raw message in `queue` once a Celery producer has sent `canvas`; its body is decoded."""
    app = Celery(broker="memory://", backend="cache+memory://", set_as_current=False)
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for name in list(channel.queues):
            channel._purge(name)
        signature(json.loads(dumps(canvas)), app=app).apply_async()
        raw = channel._get(queue)
    return raw | {"body": json.loads(base64.b64decode(raw["body"]))}


def encoded(raw):
    """The message as it lies in Redis."""
    body = raw.get("body")
    if isinstance(body, list | dict):
        raw = raw | {"body": base64.b64encode(json.dumps(body).encode()).decode()}
    return json.dumps(raw).encode()


def checked(raw, queue=QUEUE):
    return check_message(read(encoded(raw)), queue)


def plain(**headers):
    raw = sent(task("a", reason="why"))
    return raw | {"headers": raw["headers"] | headers}


def refusal(raw, queue=QUEUE):
    with pytest.raises(RefusedMessage) as refused:
        checked(raw, queue)
    (line,) = str(refused.value).splitlines()
    assert line.isprintable()
    assert WHAT_TO_CHANGE.search(line)
    return line


CANVASES = {
    "plain": task(),
    "link": task(link=other(), link_error=[other(), other("theirs.alarm")]),
    "link to a group": task(link=group(other(), other())),
    "link with a link": task(link=other(link=other(queue="fourth"))),
    "chain": chain(task(), other(), other(queue="third")),
    "chain into a group": chain(task(), group(other(), other()), other()),
    "chord": chord([task(), task("b")], other()),
    "group": group(task(), task("b")),
    "options": task().set(
        priority=3, time_limit=5, soft_time_limit=4, shadow="name", headers={"traceparent": "x"}, expires=60
    ),
}


@pytest.mark.parametrize("name", CANVASES)
def test_what_celery_producers_send_is_accepted_again_and_again(name):
    # Given a message as a producer's Celery writes it
    # When it is checked, given back to its queue and checked again
    once = checked(sent(CANVASES[name]))
    again = checked(once)
    # Then nothing of it is lost
    assert again == once
    assert once["headers"]["task"] == "finetunes.delete"


def test_eta_is_kept_out_of_celerys_sight_and_survives_a_redelivery():
    # Given a request with a countdown
    raw = plain(eta="2026-12-24T20:00:00+02:00")
    # When it is checked, and once more after it was given back
    once = checked(raw)
    again = checked(once)
    # Then the time is in a header that Celery does not know
    for message in (once, again):
        assert "eta" not in message["headers"]
        assert message["headers"]["janitor_eta"] == "2026-12-24T18:00:00.000Z"


def test_since_when_a_message_is_here_survives_a_redelivery():
    assert (
        checked(checked(plain(janitor_seen="2026-12-24T18:00:00Z")))["headers"]["janitor_seen"]
        == "2026-12-24T18:00:00Z"
    )


def test_expires_of_a_request_is_kept_out_of_celerys_sight_too():
    # Celery would end the repetition of an accepted request as revoked.
    for message in (once := checked(plain(expires="2026-12-24T18:00:00")), checked(once)):
        assert "expires" not in message["headers"]
        assert message["headers"]["janitor_expires"] == "2026-12-24T18:00:00.000Z"
    raw = asks("cancel", "d1")
    raw["headers"]["expires"] = "2026-12-24T18:00:00"
    assert checked(raw)["headers"]["expires"] == "2026-12-24T18:00:00.000Z"


def test_a_message_goes_back_to_the_queue_it_came_from_whatever_its_sender_says():
    raw = plain()
    raw["properties"]["delivery_info"] = {"exchange": "", "routing_key": "janitor:2:paused", "redelivered": True}
    assert checked(raw)["properties"]["delivery_info"] == {
        "exchange": "", "routing_key": QUEUE, "redelivered": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("application/x-gzip", zlib.compress), ("gzip", gzip.compress), ("zlib", zlib.compress),
        ("application/x-bz2", bz2.compress), ("bzip2", bz2.compress),
    ],
)  # fmt: skip
def test_a_compressed_body_is_handed_on_decompressed(name, compress):
    # Given a message whose body is compressed; when it is checked
    raw = plain()
    text = json.dumps(raw["body"]).encode()
    message = checked(raw | {
        "headers": raw["headers"] | {"compression": name}, "body": base64.b64encode(compress(text)).decode(),
    })  # fmt: skip
    # Then Celery has nothing to decompress
    assert "compression" not in message["headers"]
    assert base64.b64decode(message["body"]) == text


COMPRESSIONS = {
    "a bomb": (
        zlib.compress(b" " * (MOST_BODY + 1)),
        "gzip",
        "the body has more than 1,048,576 bytes: send smaller parts",
    ),
    "a bomb in bzip2": (
        bz2.compress(b" " * 9_000_000),
        "bzip2",
        "the body has more than 1,048,576 bytes: send smaller parts",
    ),
    "no compression": (b"[[], {}, {}]", "gzip", "is not in gzip: correct the header"),
    "cut": (zlib.compress(b"[[], {}, {}]")[:-4], "gzip", "cut, or something follows it"),
    "something after it": (zlib.compress(b"[[], {}, {}]") + b"x", "gzip", "cut, or something follows it"),
    "another one": (b"x", "application/zstd", "is not accepted: use gzip, bzip2 or none"),
}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_body_that_cannot_be_decompressed_within_bounds_is_refused(name):
    body, compression, why = COMPRESSIONS[name]
    raw = plain(compression=compression) | {"body": base64.b64encode(body).decode()}
    assert why in refusal(raw)


def callback(place="callbacks", **changed):
    """A message with one signature in `place`; `changed` are its fields."""
    one = {"task": "x.y", "args": [], "kwargs": {}, "options": {"queue": "theirs"}, "immutable": False} | changed
    raw = plain()
    return raw | {"body": [["a"], {}, {place: one if place == "chord" else [one]}]}


def embedded(**options):
    return plain() | {"body": [["a"], {}, options]}


def asks(task, *arguments, **options):
    return plain(task=f"finetunes.{task}") | {"body": [arguments, options, None]}


HEADERS = {
    "no task": ({"task": None}, "the header task is missing"),
    "another task": ({"task": "celery.map"}, "is not one of finetunes.delete, "),
    "no id": ({"id": None}, "the header id is missing: give an id of 1 to 155 printable characters"),
    "a long id": ({"id": "x" * 156}, "give an id of 1 to 155 printable characters"),
    "an id with a line break": ({"id": "a\nb"}, "give an id of 1 to 155 printable characters"),
    "an id that is a number": ({"id": 5}, "the header id is 5: give an id"),
    "half a character": ({"id": "\ud800"}, "half of a surrogate pair"),
    "half a character in passing": ({"origin": "\ud800"}, "half of a surrogate pair"),
    "a broken time of ours": ({"janitor_seen": "tomorrow"}, "the header janitor_seen is 'tomorrow': give a time"),
    "a broken eta": ({"eta": "tomorrow"}, "the header eta is 'tomorrow': give a time in ISO 8601"),
    "a broken expiry": ({"expires": 5}, "the header expires is 5: give a time in ISO 8601"),
    "time limits": ({"timelimit": [1]}, "give a list of two numbers of seconds or null"),
    "retries": ({"retries": "many"}, "give a whole number"),
    "a stamp": ({"stamped_headers": [{}]}, "give a list of texts"),
    "callbacks among the headers": ({"errbacks": 5}, "the header 'errbacks' is a name of Celery's own"),
    "a method of Celery's": ({"get": 5}, "the header 'get' is a name of Celery's own"),
    "inside Celery": ({"_children": 5}, "the header '_children' is a name of Celery's own"),
    "kombu's typed values": ({"id": {"__type__": "bytes", "__value__": "x"}}, "the header id is b'x'"),
    "kombu's typed values, broken": ({"id": {"__type__": "datetime", "__value__": 5}}, "is not JSON: use"),
}
BODIES = {
    "a list without end": (
        [[["name"] * 150_000], {}, None],
        "the body has more than 1,048,576 bytes: send smaller",
    ),
    "not JSON": ("{", "the body is not in base64"),
    "not base64": ("***", "the body is not in base64"),
    "nothing": (None, "the body is not text"),
    "an object": ({"args": []}, "give [arguments, keyword arguments, options], as"),
    "a pair": ([[], {}], "give [arguments, keyword arguments, options], as"),
    "a third element that is text": ([[], {}, "x"], "the third element of the body is 'x': give an object"),
    "a third element that is a list": ([[], {}, [1]], "the third element of the body is [1]: give an object"),
    "arguments by name that are none": ([[], [], {}], "give [arguments, keyword arguments, options], as"),
    "an unknown option": ([[], {}, {"get": 1}], "in the body, the option 'get' is not accepted"),
    "too deep": ([[json.loads("[" * 60 + "]" * 60)], {}, {}], "nested more than 50 levels deep"),
}
MESSAGES = {
    **{f"header: {name}": (lambda one=one: plain(**one[0]), one[1]) for name, one in HEADERS.items()},
    **{f"body: {name}": (lambda one=one: plain() | {"body": one[0]}, one[1]) for name, one in BODIES.items()},
    "no envelope": (lambda: {}, "properties is None: give an object"),
    "no headers": (lambda: plain() | {"headers": None}, "headers is None: give an object"),
    "protocol 1": (lambda: plain() | {"headers": {}}, "send Celery's message protocol 2"),
    "pickle": (lambda: plain() | {"content-type": "application/x-python-serialize"}, "application/json is"),
    "an encoding": (lambda: plain() | {"content-encoding": "utf-7"}, "the field content-encoding is 'utf-7'"),
    "no tag": (lambda: plain() | {"properties": {}}, "the property delivery_tag is missing"),
    "a body encoding": (
        lambda: plain() | {"properties": plain()["properties"] | {"body_encoding": "rot13"}}, "give base64",
    ),
    "a priority": (
        lambda: plain() | {"properties": plain()["properties"] | {"priority": 1e999}}, "give a whole number",
    ),
    "a cancel with eta": (
        lambda: plain(task="finetunes.cancel", eta="2026-12-24T18:00:00Z"), "takes no eta or countdown",
    ),
    "a touch with our own header": (
        lambda: plain(task="finetunes.touch", janitor_eta="2026-12-24T18:00:00Z"), "takes no eta or countdown",
    ),
    "a use of what": (lambda: asks("touch", finetunes=["a"]), "missing a required argument: 'finetune_ids'"),
    "a wake-up with too much": (lambda: asks("work", "default", "x"), "too many positional arguments"),
    "a tick with an argument": (lambda: asks("tick", at=5), "got an unexpected keyword argument 'at'"),
    "a callback that is a number": (lambda: embedded(callbacks=[5]), "in callbacks is 5: give an object"),
    "callbacks that are none": (lambda: embedded(errbacks={}), "the option errbacks is {}: give a list"),
    "a chain that is a number": (lambda: embedded(chain=[5]), "a signature in chain is 5: give an object"),
    "a task that is a number": (lambda: callback("errbacks", task=5), "the field task is 5: give a name"),
    "no options": (lambda: callback("chain", options=None), "the field options is missing"),
    "an unknown field": (lambda: callback(update=1), "the field 'update' is not accepted"),
    "an unknown kind": (lambda: callback(subtask_type="xmap"), "give chain, group or chord"),
    "an empty group": (lambda: callback(subtask_type="group", kwargs={"tasks": []}), "is a group without tasks"),
    "an option of Celery's": (
        lambda: callback(options={"queue": "theirs", "connection": 1}), "the option 'connection' is not accepted",
    ),
    "a null as the id of a task": (
        lambda: callback("chord", options={"queue": "theirs", "task_id": None}), "option task_id is None: give",
    ),
    "an exchange": (
        lambda: callback(options={"exchange": "", "routing_key": "x"}), "the option 'exchange' is not accepted",
    ),
    "pickle in a callback": (
        lambda: callback(options={"queue": "theirs", "serializer": "pickle"}), "give json",
    ),
    "a nested callback": (
        lambda: callback(options={"queue": "theirs", "link": [5]}), "a signature in link is 5: give an object",
    ),
    "our own task": (lambda: callback("errbacks", task="finetunes.delete"), "give a task of your own"),
    "a task of Celery's": (lambda: callback("errbacks", task="celery.backend_cleanup"), "give a task of your own"),
    "no queue": (lambda: callback(options={}), "goes to the janitor's own queue"),
    "too many callbacks": (
        lambda: embedded(callbacks=callback()["body"][2]["callbacks"] * 1001), "more than 1,000 callbacks",
    ),
    **{
        f"queue {queue}": (lambda queue=queue: callback("chord", options={"queue": queue}), "which is reserved"
                           if queue not in ("deletions", "touches") else "the janitor's own queue")
        for queue in ("deletions", "touches", "_kombu.binding.x", "unacked_mutex", "celery-task-meta-1",
                      "w.celery.pidbox", "chord-unlock-1", "/0.celeryev/x",
                      *(re.sub("[{}]", "", template) for template in TEMPLATES.values()))
    },
    "an errback of a chord, which our worker calls": (
        lambda: callback("chord", options={"queue": "theirs", "link_error": [
            {"task": "finetunes.delete", "args": [], "kwargs": {}, "options": {"queue": "wakeups"}}
        ]}), "the janitor's own queue",
    ),
    "callbacks that grow when we send them": (
        lambda: plain() | {"body": base64.b64encode(json.dumps([["a"], {}, {"callbacks": [
            {"task": "x.y", "args": ["\u00e9" * 200_000], "kwargs": {}, "options": {"queue": "theirs"}}
        ]}], ensure_ascii=False).encode()).decode()}, "the body has more than 1,048,576 bytes",
    ),
    "a priority list of our queue": (
        lambda: callback(options={"queue": "deletions\x06\x163"}), "the option queue is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_what_celery_could_not_carry_through_is_refused_with_what_to_change(name):
    make, why = MESSAGES[name]
    assert why in refusal(make())


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (b"\xff", "is not JSON"), (b"{", "is not JSON"), (b"[" * 5000, "is not JSON: .*RecursionError"),
        (b" " * (MOST_BYTES + 1), "send at most 16,777,216"), (b"1" * 5000, "is not JSON: .*ValueError"),
    ],
    ids=["no text", "cut", "deep", "large", "a long number"],
)  # fmt: skip
def test_what_kombu_could_not_read_is_refused(item, why):
    with pytest.raises(RefusedMessage, match=why):
        read(item)


class Failed(Exception):
    """What the task raises, so that its errbacks are called."""


class Pool:
    """Runs a task where it is, so that whatever would stay in a future is seen."""

    def apply_async(self, target, args, accept_callback, callback, **_):
        accept_callback(1, 0.0)
        callback(target(*args))


@pytest.fixture(scope="module")
def worker():
    """Takes a checked message the way of Celery's worker: its strategy, its request, its tracer."""
    app = Celery(broker="memory://", backend="cache+memory://", set_as_current=False)

    def run(*arguments: Any, **options: Any) -> list[Any]:
        if options.get("fail"):
            raise Failed
        return list(arguments)

    for name in TASKS:
        app.task(name=name, acks_late=True, throws=(Failed,), shared=False)(run)
    setup_worker_optimizations(app, "worker")
    settled: list[str] = []
    pool = Pool()
    consumer = SimpleNamespace(
        hostname="worker", connection_errors=(), event_dispatcher=None, disable_rate_limits=True, task_buckets={},
        timer=SimpleNamespace(call_at=None), apply_eta_task=None, pool=pool, _limit_task=None,
        _limit_post_eta=None,
        controller=SimpleNamespace(state=state), on_task_request=lambda request: request.execute_using_pool(pool),
    )  # fmt: skip
    strategies = {name: default(app.tasks[name], app, consumer) for name in TASKS}
    for name in TASKS:
        app.tasks[name].__trace__ = build_tracer(name, app.tasks[name], app.loader, "worker", app=app)
    codecs: Any = SimpleNamespace(codecs={"base64": Base64()}, no_ack_consumers=None)
    codecs.decode_body = lambda body, encoding: base64.b64decode(body) if encoding else body

    def carry(message):
        delivered = Message(message, channel=codecs)
        assert not delivered.errors
        delivered.accept = {"application/json"}
        settled.clear()
        strategies[delivered.headers["task"]](
            delivered, None, lambda *_: settled.append("ack"), lambda *_: settled.append("reject"), []
        )
        assert settled in (["ack"], ["reject"])

    yield carry
    reset_worker_optimizations(app)
    state.revoked.clear()


HOSTILE: list[Any] = [
    None, True, 5, -1, 10**30, float("inf"), float("nan"), "", "x", "\ud800", "a\x00b", "x" * 200, "theirs", QUEUE,
    [], [5], [None], [[]], {}, {"task": 5}, {"queue": "theirs"}, "finetunes.touch", "celery.map", "chord", "group",
    "2026-12-24T18:00:00Z", "2001-01-01T00:00:00Z", "application/json", "gzip", [1, 2], [[], {}, {}],
    {"__type__": "datetime", "__value__": 5}, {"__type__": "bytes", "__value__": "x"},
    {"__type__": "uuid", "__value__": {"hex": "12345678123456781234567812345678"}},
    {"__type__": "decimal", "__value__": "NaN"}, {"__type__": "date", "__value__": "2026-12-24"},
    {"task": "x.y", "args": [], "kwargs": {}, "options": {}},
    {"task": "x.y", "args": [], "kwargs": {}, "options": {"queue": "theirs"}, "immutable": True, "chord_size": 1},
    [{"task": "x.y", "args": [], "kwargs": {}, "options": {"queue": "theirs"}, "subtask_type": None}],
    {"task": "celery.group", "args": [], "options": {"queue": "q"}, "subtask_type": "group", "kwargs": {
        "tasks": [{"task": "x.y", "args": [], "kwargs": {}, "options": {}}]}},
    {"task": "celery.chain", "args": [], "options": {}, "subtask_type": "chain", "kwargs": {
        "tasks": [{"task": "x.y", "args": [], "kwargs": {}, "options": {"queue": "q"}}]}},
    {"task": "celery.chord", "args": [], "options": {"queue": "q"}, "subtask_type": "chord", "kwargs": {
        "header": [{"task": "x.y", "args": [], "kwargs": {}, "options": {}}],
        "body": {"task": "x.y", "args": [], "kwargs": {}, "options": {"queue": "q"}}, "kwargs": {}}},
]  # fmt: skip
NAMES = [
    "get", "children", "_children", "callbacks", "errbacks", "chain", "chord", "group", "delivery_info", "headers",
    "id", "task", "shadow", "expires", "eta", "timelimit", "stamps", "stamped_headers", "ignore_result", "utc",
    "compression", "redelivered", "called_directly", "is_eager", "fail", "queue", "link", "link_error", "options",
    "subtask_type", "chord_size", "kwargs", "tasks", "header", "body", "priority", "reply_to", "group_index",
    "retries", "taskset", "origin", "traceparent", "replaced_task_nesting", "countdown", "serializer",
]  # fmt: skip


def places(value, at=()):
    """The path of each element in a message."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*at, key))


def changed(raw, place, what, name, value):
    raw = deepcopy(raw)
    *path, last = place
    holder = raw
    for key in path:
        holder = holder[key]
    target = holder[last]
    if what == "add" and isinstance(target, dict):
        target[name] = value
    elif what == "add" and isinstance(target, list):
        target.append(value)
    elif what == "drop":
        del holder[last]
    else:
        holder[last] = value
    return raw


SEEDS = [
    *(sent(CANVASES[name]) for name in CANVASES),
    embedded(callbacks=None, errbacks=None),
    callback("errbacks"),
]
SEEDS += [seed | {"body": [["a"], {"fail": True}, seed["body"][2]]} for seed in SEEDS]
CHANGES = st.tuples(
    st.randoms(use_true_random=False), st.sampled_from(["put", "add", "drop"]), st.sampled_from(NAMES),
    st.sampled_from(HOSTILE),
)  # fmt: skip


@settings(max_examples=1500)
@given(st.sampled_from(SEEDS), st.lists(CHANGES, min_size=1, max_size=3))
def test_whatever_is_accepted_celery_carries_through(worker, seed, changes):
    # Given a message of a producer's Celery, with up to three of its parts changed
    raw = seed
    for random, what, name, value in changes:
        raw = changed(raw, random.choice([place for place in places(raw) if place]), what, name, value)
        if not raw:
            return
    # When it is accepted
    try:
        message = checked(raw)
    except RefusedMessage:
        return
    # Then Celery carries it through and settles it; it can be noted as unacknowledged, and comes again unchanged
    worker(deepcopy(message))
    noted = json.loads(dumps([message, "", QUEUE]))[0]
    noted["headers"]["redelivered"] = noted["properties"]["delivery_info"]["redelivered"] = True
    message["headers"]["redelivered"] = message["properties"]["delivery_info"]["redelivered"] = True
    assert dumps(checked(noted), sort_keys=True) == dumps(message, sort_keys=True)  # as text: a NaN is not itself


class Unanswered:
    """A channel whose Redis does not answer."""

    unacked_key = unacked_index_key = unacked_mutex_key = "unacked"

    @contextmanager
    def conn_or_acquire(self, client=None):
        raise redis.TimeoutError("no answer")
        yield client


@pytest.mark.parametrize("settle", ["ack", "reject", "requeue"])
def test_an_acknowledgement_that_redis_does_not_answer_frees_its_slot(settle):
    # Given the one message that a channel may have, noted as not acknowledged
    qos = Unacknowledged(Unanswered(), prefetch_count=1)
    virtual.QoS.append(qos, object(), "tag")
    assert not qos.can_consume()
    # When Redis does not answer its acknowledgement, its rejection or its return
    with pytest.raises(redis.TimeoutError):
        qos.ack("tag") if settle == "ack" else qos.reject("tag", requeue=settle == "requeue")
    # Then the next message can come
    assert qos.can_consume()
    qos._on_collect.cancel()


def test_a_callback_that_could_not_be_published_makes_no_failure_of_its_deletion(monkeypatch):
    told = []
    monkeypatch.setattr(RedisBackend, "mark_as_failure", lambda _, id_, *__, **___: told.append(id_))
    backend = object.__new__(Backend)
    for id_, error, headers in [
        ("ours", OperationalError("not now"), {AGAIN_HEADER: "nonce"}),
        ("theirs", OperationalError("not now"), {}),
        ("ended", DeletionNotDone({}), {AGAIN_HEADER: "nonce"}),
    ]:  # fmt: skip
        backend.mark_as_failure(id_, error, request=Context(headers=headers))
    assert told == ["theirs", "ended"]
