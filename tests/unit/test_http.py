"""What the HTTP service decides without a network: bounds of a body, ids from keys, options of its socket."""

import asyncio
import json
import resource
import socket
import uuid
from collections import Counter
from collections.abc import MutableMapping
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from tasks.errors import InvalidRequest, UnknownDeletion
from worker.http import guard
from worker.http.models import NewDeletions
from worker.http.problems import HANDLERS
from worker.http.server import allow_open_files, listen
from worker.http.strict import no_body
from worker.http.tokens import Token


def read(messages):
    """What `_bounded` lets through of these; after the last one nothing comes."""

    async def receive():
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def at_once():
        pass

    async def all_of_it():
        bounded = guard._bounded(receive, at_once)
        got: list[MutableMapping[str, Any]] = []
        while not got or got[-1].get("more_body"):
            got.append(await bounded())
        return b"".join(message["body"] for message in got)

    return asyncio.run(all_of_it())


def chunk(body, *, more):
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_up_to_the_limit_is_read_and_one_byte_more_is_not():
    half = b"x" * (guard.MOST_BYTES // 2)
    assert len(read([chunk(half, more=True), chunk(half, more=False)])) == guard.MOST_BYTES
    with pytest.raises(HTTPException) as refused:
        read([chunk(half, more=True), chunk(half, more=True), chunk(b"x", more=True)])
    assert refused.value.status_code == 413


def test_a_body_that_trickles_is_given_up(monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    with pytest.raises(HTTPException) as refused:
        read([chunk(b"{", more=True)])
    assert refused.value.status_code == 408


def test_a_client_that_leaves_before_its_body_came_is_no_fault_of_ours():
    async def receive():
        return {"type": "http.disconnect"}

    with pytest.raises(HTTPException) as refused:
        asyncio.run(no_body(Request({"type": "http"}, receive)))
    assert refused.value.status_code == 400


def test_large_bodies_are_worked_on_a_few_at_a_time_and_hold_up_nothing_else():
    # Given a service that is slow to answer, and clients that read no answer
    at_work, let_go = Counter(), asyncio.Event()

    async def app(scope, receive, send):
        size = len((await receive())["body"])
        at_work[size] += 1
        await let_go.wait()
        await send({"type": "http.response.start", "status": 202, "headers": []})

    async def call(guarded, size):
        async def receive():
            return chunk(b"x" * size, more=False)

        async def read_nothing(_):
            await asyncio.Event().wait()

        await guarded({"type": "http", "method": "POST", "path": "/healthz"}, receive, read_nothing)

    async def seen(size, count):
        while at_work[size] < count:
            await asyncio.sleep(0)

    async def all_of_it():
        guarded = guard.Guard(app, None, None)
        async with asyncio.timeout(30), asyncio.TaskGroup() as clients:
            # When many call with a large body, and then some with a small one,
            large, small = guard.LARGE_BYTES + 1, guard.LARGE_BYTES
            calls = [clients.create_task(call(guarded, size)) for size in [large] * 50 + [small] * 20]
            await seen(small, 20)
            # then few of the large ones are at work, and all of the small ones;
            assert at_work[large] == guard.MOST_LARGE
            # and with the first byte of an answer, the next ones follow.
            let_go.set()
            await seen(large, 50)
            for one in calls:
                one.cancel()

    asyncio.run(all_of_it())


class Pressed:
    """A guarded service that answers when `let_go` is set.

    Whose calls are at work, those of them whose body is read, and what is answered.
    """

    def __init__(self):
        self.at_work, self.read, self.answered, self.let_go = Counter(), Counter(), Counter(), asyncio.Event()
        tokens = {
            name: Token(name=name, sha256="0" * 64, scopes=("read",), accounts=("*",)) for name in ("a", "b")
        }
        quotas = SimpleNamespace(count_request=lambda _: None)
        self.guarded = guard.Guard(self.app, SimpleNamespace(find=tokens.get), quotas)

    async def app(self, scope, receive, send):
        self.at_work[scope["janitor.token"].name] += 1
        if scope["path"] == "/long-poll":
            await scope["janitor.place"].aclose()
        await receive()
        self.read[scope["janitor.token"].name] += 1
        await self.let_go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def call(self, token, path="/", query=b"", method="GET", body=b""):
        async def receive():
            return chunk(body, more=False)

        async def send(message):
            if "status" in message:
                self.answered[message["status"]] += 1

        headers = [(b"authorization", f"Bearer {token}".encode())]
        scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": headers}
        scope["raw_path"] = path.encode()
        await self.guarded(scope, receive, send)

    async def seen(self, counted, key, count):
        while counted[key] < count:
            await asyncio.sleep(0)


def test_one_token_has_a_few_calls_at_work_and_the_others_go_on():
    async def all_of_it():
        # Given a service that is slow to answer
        service = Pressed()
        async with asyncio.timeout(30), asyncio.TaskGroup() as clients:
            # When one token calls many times, and then another one,
            for token in ["a"] * 50 + ["b"]:
                clients.create_task(service.call(token))
            await service.seen(service.at_work, "b", 1)
            # then few calls of the first are at work, and that of the other one;
            assert service.at_work["a"] == guard.MOST_CALLS
            # and as they are answered, the next ones follow.
            service.let_go.set()
        assert service.answered == {200: 51}

    asyncio.run(all_of_it())


def test_a_call_that_found_no_place_is_told_to_come_again(monkeypatch):
    monkeypatch.setattr(guard, "PLACE_SECONDS", 0.05)

    async def all_of_it():
        service = Pressed()
        async with asyncio.timeout(30), asyncio.TaskGroup() as clients:
            for _ in range(guard.MOST_CALLS + 1):
                clients.create_task(service.call("a"))
            await service.seen(service.answered, 429, 1)
            service.let_go.set()
        assert service.answered == {429: 1, 200: guard.MOST_CALLS}

    asyncio.run(all_of_it())


def test_long_polls_take_no_place():
    async def all_of_it():
        service = Pressed()
        async with asyncio.timeout(30), asyncio.TaskGroup() as clients:
            for _ in range(guard.MOST_CALLS + 1):
                clients.create_task(service.call("a", "/long-poll"))
            await service.seen(service.at_work, "a", guard.MOST_CALLS + 1)
            service.let_go.set()

    asyncio.run(all_of_it())


def test_long_polls_with_large_bodies_hold_up_no_large_request():
    async def all_of_it():
        service, large = Pressed(), b"x" * (guard.LARGE_BYTES + 1)
        async with asyncio.timeout(30), asyncio.TaskGroup() as clients:
            # Given as many long polls of one token as large bodies may be worked on, each with a large body,
            for _ in range(guard.MOST_LARGE):
                clients.create_task(service.call("a", "/long-poll", body=large))
            await service.seen(service.read, "a", guard.MOST_LARGE)
            # when another token sends a large request, then it is worked on at once.
            clients.create_task(service.call("b", method="POST", body=large))
            await service.seen(service.read, "b", 1)
            service.let_go.set()

    asyncio.run(all_of_it())


def test_a_query_has_a_limit():
    async def all_of_it():
        service = Pressed()
        service.let_go.set()
        for size in (guard.MOST_QUERY, guard.MOST_QUERY + 1):
            await service.call("a", query=b"x" * size)
        assert service.answered == {200: 1, 422: 1}

    asyncio.run(all_of_it())


def asked(key, *finetune_ids, token="billing", **more):
    """The requests of a body with these finetunes."""
    body = {"deletions": [{"finetune_id": id_, **more} for id_ in finetune_ids]}
    return NewDeletions.model_validate(body).requests(token, key)


def ids(key, *finetune_ids, **more):
    return [request.id for request in asked(key, *finetune_ids, **more)]


def test_ids_come_from_token_and_key_and_are_nobody_elses():
    # Given a body under a key, when it is sent again, then it has the same ids.
    known = ids("k", "a", "b")
    assert known == ids("k", "a", "b")
    # Another key, another token, a key that looks like both, or no key: other ids.
    others = [
        ids("other", "a", "b"),
        ids("k", "a", "b", token="shipping"),
        ids("0/k", "a", "b"),
        ids(None, "a", "b"),
        ids(None, "a", "b"),
    ]
    assert len({id_ for found in [known, *others] for id_ in found}) == 12
    assert all(uuid.UUID(id_) for id_ in known)


BODIES: list[tuple[tuple[str, ...], dict[str, Any], bool]] = [
    (("a",), {}, True),
    (("a",), {"missing_ok": False}, True),  # as if left out
    (("b",), {}, False),
    (("a", "b"), {}, False),
    (("a",), {"account": "other"}, False),
    (("a",), {"reason": "another"}, False),
    (("a",), {"missing_ok": True}, False),
    (("a",), {"delay_seconds": 5}, False),
    (("a",), {"due_at": "2030-01-01"}, False),
]


@pytest.mark.parametrize(("finetunes", "more", "same"), BODIES)
def test_the_first_request_of_a_body_tells_whether_the_key_was_used_for_another_body(finetunes, more, same):
    first, again = asked("k", "a")[0], asked("k", *finetunes, **more)[0]
    assert again.id == first.id
    assert (again.digest == first.digest) is same


def test_a_finetune_twice_is_refused_in_any_spelling():
    lower = "0e7a1f1e-2a0f-4b65-9d0a-5f2f5c0f9a11"
    with pytest.raises(InvalidRequest, match=f"deletions has 'default/{lower}' twice"):
        asked(None, lower, lower.upper())


def test_answers_do_not_wait_for_acknowledgements():
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_system_that_allows_no_higher_limit_of_open_files_stops_no_start(monkeypatch):
    # Given macOS, whose hard limit is none, and which refuses that as a soft limit (setrlimit(2), COMPATIBILITY)
    def refuse(_, limits):
        assert limits == (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    # then the usual limit stays.
    allow_open_files()


LONG = "x" * 900_000


@pytest.mark.parametrize(
    "error",
    [
        RequestValidationError(
            [{"type": "extra_forbidden", "loc": ("body", LONG), "msg": "not known", "input": 1}]
        ),
        RequestValidationError([{"type": "value_error", "loc": ("body", "due_at"), "msg": LONG, "input": LONG}]),
        UnknownDeletion(LONG),
        HTTPException(404, LONG),
    ],
)
def test_a_problem_does_not_repeat_all_that_was_sent(error):
    handler = next(HANDLERS[kind] for kind in type(error).__mro__ if kind in HANDLERS)
    answer = asyncio.run(handler(Request({"type": "http"}), error))
    detail = json.loads(answer.body)["detail"]
    assert len(detail) <= 1000
    # What to do stands at its end.
    assert detail.endswith("/openapi.json has what is accepted") is isinstance(error, RequestValidationError)
