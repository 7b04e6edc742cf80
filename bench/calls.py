"""How the candidates call the API: two calls a deletion, as the janitor does, in the fastest way of each kind."""

from __future__ import annotations

import json
import os
import threading
from typing import Any
from urllib.parse import urlencode

import aiohttp
import requests
from requests.adapters import HTTPAdapter

BASE = os.environ.get("BFL_API_URL", "")
DELETE = BASE + "/v1/delete_finetune"
HEADERS = {"x-key": "bench"}
_local = threading.local()


def plain(finetune_id: str) -> dict[str, Any]:
    """requests as it comes, one session a thread."""
    session = getattr(_local, "session", None)
    if session is None:
        session = _local.session = requests.Session()
    seen = session.get(_details_url(finetune_id), headers=HEADERS, timeout=15)
    _check_seen(seen.status_code, seen.json())
    answer = session.post(DELETE, json={"finetune_id": finetune_id}, headers=HEADERS, timeout=15)
    return _checked(answer.status_code, answer.json(), finetune_id)


def prepared(finetune_id: str) -> dict[str, Any]:
    """requests at its fastest: prepared requests copied, sent by the thread's own adapter."""
    if not hasattr(_local, "adapter"):
        _local.adapter = HTTPAdapter(pool_maxsize=1)
        _local.get = requests.Request("GET", DELETE, headers=HEADERS).prepare()
        _local.post = requests.Request("POST", DELETE, json={"finetune_id": ""}, headers=HEADERS).prepare()
    look = _local.get.copy()
    look.url = _details_url(finetune_id)
    seen = _local.adapter.send(look, timeout=15)
    _check_seen(seen.status_code, json.loads(seen.content))
    request = _local.post.copy()
    request.body = json.dumps({"finetune_id": finetune_id}).encode()
    request.headers["Content-Length"] = str(len(request.body))
    answer = _local.adapter.send(request, timeout=15)
    return _checked(answer.status_code, json.loads(answer.content), finetune_id)


class Aio:
    """aiohttp with one session a process."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def delete(self, finetune_id: str) -> dict[str, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=HEADERS)
        async with self._session.get(_details_url(finetune_id)) as seen:
            _check_seen(seen.status, await seen.json())
        async with self._session.post(DELETE, json={"finetune_id": finetune_id}) as answer:
            return _checked(answer.status, await answer.json(), finetune_id)


def _details_url(finetune_id: str) -> str:
    return f"{BASE}/v1/finetune_details?{urlencode({'finetune_id': finetune_id})}"


def _check_seen(status: int, body: dict[str, Any]) -> None:
    if status != 200 or not isinstance(body["finetune_details"], dict):
        raise RuntimeError(f"HTTP {status}: {body}")


def _checked(status: int, body: dict[str, Any], finetune_id: str) -> dict[str, Any]:
    if status != 200 or body["deleted_finetune_id"] != finetune_id:
        raise RuntimeError(f"HTTP {status} for {finetune_id}: {body}")
    return body
