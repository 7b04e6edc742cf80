"""What the HTTP service decides without a network: a body's bounds, ids from keys, the option of its socket."""

import asyncio
import socket
import uuid
from collections.abc import MutableMapping
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from worker.http import guard
from worker.http.models import NewDeletions
from worker.http.server import listen


def read(messages):
    """What `_bounded` lets through of these; after the last one nothing comes."""

    async def receive():
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def all_of_it():
        bounded = guard._bounded(receive)
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


def ids(key, *deletions):
    body = NewDeletions.model_validate(
        {"deletions": [{"finetune_id": finetune_id, "account": account} for finetune_id, account in deletions]}
    )
    return [request.id for request in body.requests("billing", key)]


def test_ids_are_the_key_or_made_from_it():
    assert ids("k", ("a", "x")) == ["k"]
    many = ids("k", ("a", "x"), ("b", "x"), ("a", "y"))
    assert many == ids("k", ("a", "x"), ("b", "x"), ("a", "y"))
    assert ids("k", ("b", "x"), ("a", "x")) == [many[1], many[0]]
    assert len({*many, *ids("other", ("a", "x"), ("b", "x"))}) == 5
    assert all(uuid.UUID(one).version == 5 for one in many)
    assert ids(None, ("a", "x")) != ids(None, ("a", "x"))


def test_answers_do_not_wait_for_acknowledgements():
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
