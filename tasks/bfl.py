"""The BFL API: three calls on `requests`, each bounded in time and size, each answer mapped to one error.

Contract: BFL API 0.0.1, `POST /v1/delete_finetune` (tests/contract/); the other two calls are from BFL's public
reference. What is known only from public reports is said where it is used, and not relied on.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from threading import local
from typing import Any
from urllib.parse import urlencode

import requests
import structlog
from requests import exceptions as http
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import ConnectionPool
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError, SSLError

from tasks import errors
from tasks.backoff import retry_after
from tasks.watchdog import Watchdog, guarded_pools

log = structlog.get_logger()

BODY_LIMIT = 1 << 20
_CHUNK = 1 << 16

# What was sent, what came back (None where nothing complete did) and its body; the first has the key in it.
Observer = Callable[[requests.PreparedRequest, requests.Response | None, bytes], None]


@dataclass(frozen=True)
class Timeouts:
    """Bounds of one call. Name resolution is not covered: no library can bound it."""

    connect: timedelta = timedelta(seconds=5)
    read: timedelta = timedelta(seconds=15)
    total: timedelta = timedelta(seconds=20)


@dataclass(frozen=True)
class Answer:
    """BFL's own words on a deletion (contract: `DeleteFinetuneResponse`)."""

    status: str
    message: str
    timestamp: str
    http_status: int
    seconds: float


class BflReader:
    """The calls that change nothing; a planner holds only this. One connection a thread, kept alive.

    A request is a copy of one prepared beforehand, sent by the adapter: a session would look for proxies, netrc,
    cookies and redirects at each call, at twice the cost, and none of them is wanted here.
    """

    def __init__(
        self, url: str, key: str, timeouts: Timeouts | None = None, *, observer: Observer | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self._timeouts = timeouts or Timeouts()
        self._observer = observer
        headers = {"x-key": key, "accept": "application/json", "accept-encoding": "identity"}
        self._get = requests.Request("GET", self._url, headers=headers).prepare()
        self._post = requests.Request("POST", self._url, headers=headers, json={}).prepare()
        self._watchdog = Watchdog()
        self._local = local()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    def my_finetunes(self) -> list[Any]:
        """Everything the account has; seen: names as strings. Raises `errors.ApiError`."""
        body, status, seconds = self._call(self._get, "/v1/my_finetunes")
        if not isinstance(body, dict) or not isinstance(body.get("finetunes"), list):
            raise errors.Reshaped("my_finetunes answered without a list", http_status=status, seconds=seconds)
        return list(body["finetunes"])

    def finetune_details(self, finetune_id: str) -> dict[str, Any]:
        """The details of one finetune, free in form. Raises `errors.ApiError`; `NotFound` for an unknown id."""
        body, status, seconds = self._call(
            self._get, "/v1/finetune_details?" + urlencode({"finetune_id": finetune_id})
        )
        if not isinstance(body, dict) or not isinstance(body.get("finetune_details"), dict):
            raise errors.Unclear("finetune_details answered without details", http_status=status, seconds=seconds)
        return dict(body["finetune_details"])

    def _call(
        self, prepared: requests.PreparedRequest, path: str, content: dict[str, str] | None = None
    ) -> tuple[Any, int, float]:
        began = time.monotonic()
        deadline = began + self._timeouts.total.total_seconds()
        request = prepared.copy()
        request.url = self._url + path
        if content is not None:
            request.body = json.dumps(content).encode()
            request.headers["Content-Length"] = str(len(request.body))
        response, raw, broken = None, b"", None
        with self._watchdog.guard(deadline) as call:
            try:
                response = self._adapter().send(
                    request,
                    timeout=(self._timeouts.connect.total_seconds(), self._timeouts.read.total_seconds()),
                    stream=True,
                )
                call.begun = True
                with response:
                    raw = _body(response, deadline)
            except (http.RequestException, HTTPError, OSError) as error:
                kind = errors.NotSent if _never_left(error, begun=call.begun) else errors.Unclear
                broken = kind(_in_words(error), seconds=time.monotonic() - began)
        seconds, called = time.monotonic() - began, path.partition("?")[0]
        if self._observer:
            self._observer(request, None if broken else response, raw)
        if broken or response is None:
            log.info("api.call", call=called, error=str(broken), seconds=round(seconds, 3))
            # Out here, so that the original is not its context: it carries the request, and so the key.
            raise broken or errors.Unclear("no answer")
        level = logging.DEBUG if response.ok else logging.INFO
        log.log(level, "api.call", call=called, http_status=response.status_code, seconds=round(seconds, 3))
        return self._parsed(response, raw, seconds), response.status_code, seconds

    def _adapter(self) -> HTTPAdapter:
        adapter: HTTPAdapter | None = getattr(self._local, "adapter", None)
        if adapter is None:
            adapter = self._local.adapter = _Adapter(self._watchdog)
        return adapter

    def _parsed(self, response: requests.Response, raw: bytes, seconds: float) -> Any:
        """The JSON of a 2xx; anything else as the error it stands for."""
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        status = response.status_code
        if 200 <= status < 300:
            if body is None:
                raise errors.Unclear("the answer is not JSON", http_status=status, seconds=seconds)
            return body
        wait = retry_after(response.headers)
        kind = _kind(status, told_to_wait=wait is not None)
        has_detail = isinstance(body, dict) and "detail" in body
        raise kind(
            self._line(_detail(body) or response.reason or "no reason given"),
            http_status=status, retry_after=wait, seconds=seconds, from_api=has_detail,
        )  # fmt: skip

    def _line(self, text: str) -> str:
        """One line that can be stored, whatever the API wrote; were it to repeat the key, not that."""
        clean = text.encode("utf-8", "replace").decode().replace(self._key, "***")
        line = " ".join(clean.split())
        return line if len(line) <= 500 else f"{line[:497]}..."


class BflClient(BflReader):
    """All the calls, the one that deletes included."""

    def delete_finetune(self, finetune_id: str) -> Answer:
        """Delete one finetune, at once and for good. Raises `errors.ApiError`."""
        body, status, seconds = self._call(self._post, "/v1/delete_finetune", {"finetune_id": finetune_id})
        named = body.get("deleted_finetune_id") if isinstance(body, dict) else None
        if isinstance(named, str) and named != finetune_id:
            raise errors.WrongFinetune(
                self._line(f"asked to delete {finetune_id!r}, the API says it deleted {named!r}"),
                http_status=status,
                seconds=seconds,
            )
        if status != 200 or not _is_complete(body):
            raise errors.Unclear("the answer is not a complete confirmation", http_status=status, seconds=seconds)
        said, message, timestamp = (self._line(body[name]) for name in ("status", "message", "timestamp"))
        return Answer(said, message, timestamp, http_status=status, seconds=seconds)


class _Adapter(HTTPAdapter):
    """An adapter whose connections the watchdog can cut; one host, no proxies, so its pool is looked up once."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._pool: ConnectionPool | None = None
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = guarded_pools(self._watchdog)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> ConnectionPool:
        if self._pool is None:
            self._pool = super().get_connection_with_tls_context(*args, **kwargs)
        return self._pool

    def request_url(self, request: requests.PreparedRequest, proxies: object) -> str:  # noqa: ARG002 -- as it is called
        return request.path_url


def _is_complete(body: Any) -> bool:
    fields = ("status", "message", "deleted_finetune_id", "timestamp")
    return isinstance(body, dict) and all(isinstance(body.get(field), str) for field in fields)


def _body(response: requests.Response, deadline: float) -> bytes:
    raw = b""
    for chunk in response.iter_content(_CHUNK):
        raw += chunk
        if len(raw) > BODY_LIMIT:
            response.close()
            raise http.ContentDecodingError(f"the answer is larger than {BODY_LIMIT} bytes")
        if time.monotonic() > deadline:
            response.close()
            raise http.ReadTimeout("the answer was not complete at the call's deadline")
    return raw


def _kind(status: int, *, told_to_wait: bool) -> type[errors.ApiError]:
    """Which error a status that is not 2xx stands for; 402 as back-pressure is known from public reports."""
    if status in (429, 402) or (status == 503 and told_to_wait):
        return errors.Throttled
    if status in (408, 425):
        return errors.TryAgain
    if status == 404:
        return errors.NotFound
    if status in (401, 403):
        return errors.KeyRefused
    if 300 <= status < 500:
        return errors.Refused
    return errors.Unclear


def _detail(body: object) -> str | None:
    """One line from either of the API's error shapes: `detail` as a string, or as a list of problems."""
    detail = body.get("detail") if isinstance(body, dict) else None
    if isinstance(detail, list):
        return "; ".join(_problem(item) for item in detail)
    return (detail if isinstance(detail, str) else json.dumps(detail)) if detail else None


def _problem(item: object) -> str:
    if not isinstance(item, dict):
        return str(item)
    where = item.get("loc") or ()
    place = ".".join(map(str, where)) if isinstance(where, list | tuple) else str(where)
    return f"{place}: {item.get('msg', '')}" if place else str(item.get("msg", ""))


def _never_left(error: BaseException, *, begun: bool) -> bool:
    """Whether the request cannot have reached the API: no connection, no name, no TLS before it was begun."""
    if isinstance(error, http.ConnectTimeout | http.InvalidURL | http.MissingSchema):
        return True
    reason = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    if isinstance(error, http.SSLError) or isinstance(reason, SSLError):
        return not begun
    return isinstance(reason, NewConnectionError | NameResolutionError)


def _in_words(error: BaseException) -> str:
    reason = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    words = {
        http.ConnectTimeout: "no connection within the connect timeout",
        http.ReadTimeout: "no complete answer in time",
        NameResolutionError: "the host name was not resolved",
        NewConnectionError: "the connection was refused or not possible",
        http.SSLError: "TLS failed",
        http.ContentDecodingError: f"the answer is larger than {BODY_LIMIT} bytes or cannot be decoded",
    }
    for kind, text in words.items():
        if isinstance(error, kind) or isinstance(reason, kind):
            return text
    return f"the connection broke ({type(reason if isinstance(reason, BaseException) else error).__name__})"
