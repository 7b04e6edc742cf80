"""The three calls of the BFL API; each answer is a value or one error.

Contract: BFL API 0.0.1, `POST /v1/delete_finetune` (tests/contract/); the other two calls are from BFL's public
reference. What is known only from public reports is marked as such, and nothing relies on it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import requests
import structlog

from tasks.api import answers, errors
from tasks.api.moments import http_date
from tasks.api.retry import retry_after
from tasks.api.transport import Reply, Transport
from tasks.api.transport import Timeouts as Timeouts  # noqa: PLC0414 -- part of this module's interface
from tasks.text import finetune_key, is_same_name, one_line

log = structlog.get_logger()

# Nobody has documented the words that BFL uses in `status`; only these are believed, in any case.
WORDS_OF_SUCCESS = frozenset(
    ("success", "successful", "succeeded", "ok", "deleted", "done", "complete", "completed")
)
_ANSWER_FIELDS = ("status", "message", "deleted_finetune_id", "timestamp")

# What was sent, what came back (None without a whole answer) and its body; the first has the key in it.
Observer = Callable[[requests.PreparedRequest, requests.Response | None, bytes], None]


@dataclass(frozen=True)
class Answer:
    """BFL's own words on a deletion (contract: `DeleteFinetuneResponse`), each one printable line."""

    status: str
    message: str
    timestamp: str
    http_status: int
    seconds: float


@dataclass(frozen=True)
class Listing:
    """The account's finetunes. count: items in the answer; is_whole: whether it does not speak of more."""

    names: frozenset[str]
    count: int
    is_whole: bool

    def has(self, finetune_id: str) -> bool:
        """Whether it is listed; two spellings of one hyphenated UUID are one finetune."""
        return finetune_key(finetune_id) in self._keys

    @cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(map(finetune_key, self.names))


@dataclass(frozen=True)
class Details:
    """What the API tells of one finetune, free in form. date: when it was told, by the API's clock (`Date`)."""

    fields: dict[str, Any]
    date: datetime | None


class _Body(NamedTuple):
    """The JSON of a 2xx."""

    content: Any
    http_status: int
    seconds: float
    date: datetime | None


class BflReader:
    """The calls that change nothing; a planner holds only this. One connection per thread, kept alive.

    url_variable: the variable that sets `url`, named in messages. observer: told of each call, for tests of the
    contract. Raises `ValueError` for a key that no HTTP header can carry.
    """

    def __init__(
        self,
        url: str,
        key: str,
        timeouts: Timeouts | None = None,
        *,
        ca_bundle: Path | None = None,
        url_variable: str = "BFL_API_URL",
        observer: Observer | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self.host = urlsplit(self._url).netloc.rpartition("@")[2].lower()
        if not (key.isascii() and key.isprintable() and key == key.strip()):
            raise ValueError(
                f"the API key for {self.host} has a space at an end, or characters that are not ASCII"
            )
        self.vantage = f"{self.host} {hashlib.sha256(key.encode()).hexdigest()[:8]}"
        self._key = key
        self._url_variable = url_variable
        self._observer = observer
        self._transport = Transport(self._url, timeouts or Timeouts(), ca_bundle)
        headers = {"x-key": key, "accept": "application/json", "accept-encoding": "identity"}
        # Prepared once and copied for each call: preparing takes a fifth of the time of a call.
        self._get = requests.Request("GET", self._url, headers=headers).prepare()
        self._post = requests.Request("POST", self._url, headers=headers, json={}).prepare()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.host!r})"

    def my_finetunes(self) -> Listing:
        """Every finetune of the account. Raises `ApiError`; `Reshaped` if the answer has another shape.

        An item is a name, or an object that has it as `finetune_id`, `id` or `name`; if it has more than one of
        them they must be equal, because nobody has said which one the other calls take.
        """
        body = self._call(self._get, "/v1/my_finetunes")
        names = answers.listed_names(body.content)
        if names is None:
            raise self._error(errors.Reshaped, body, "my_finetunes answered in a shape that is not known")
        return Listing(frozenset(names), len(names), answers.is_whole(body.content, len(names)))

    def finetune_details(self, finetune_id: str) -> Details:
        """The details of one finetune. Raises `ApiError`; `NotFound` for an id that the key cannot see."""
        body = self._call(self._get, "/v1/finetune_details?" + urlencode({"finetune_id": finetune_id}))
        fields = body.content.get("finetune_details") if isinstance(body.content, dict) else None
        if not isinstance(fields, dict):
            raise self._error(errors.Reshaped, body, "finetune_details answered without details")
        return Details(fields, body.date)

    def _call(self, prepared: requests.PreparedRequest, path: str, content: dict[str, str] | None = None) -> _Body:
        request = prepared.copy()
        request.url = self._url + path
        if content is not None:
            request.body = json.dumps(content).encode()
            request.headers["Content-Length"] = str(len(request.body))
        reply = self._transport.send(request)
        if self._observer:
            self._observer(request, None if reply.broken else reply.response, reply.body)
        called, seconds = path.partition("?")[0], round(reply.seconds, 3)
        if reply.broken:
            log.info("api.call", call=called, error=reply.broken, seconds=seconds)
            kind = errors.Unclear if reply.begun else errors.NotSent
            raise kind(self._line(f"{reply.broken}: {self._where()}"), seconds=reply.seconds)
        level = logging.DEBUG if reply.response.ok else logging.INFO
        log.log(level, "api.call", call=called, http_status=reply.response.status_code, seconds=seconds)
        return self._parsed(reply)

    def _parsed(self, reply: Reply) -> _Body:
        """The JSON of a 2xx; anything else as the error it stands for."""
        headers, status = reply.response.headers, reply.response.status_code
        content = answers.parsed(reply.body)
        body = _Body(content, status, reply.seconds, http_date(headers.get("Date", "")))
        if 200 <= status < 300:
            if content is None:
                raise self._error(errors.Unclear, body, "the answer is not JSON")
            return body
        wait = retry_after(headers)
        kind = errors.error_kind(status, told_to_wait=wait is not None)
        detail = answers.detail(content) or reply.response.reason or "no reason given"
        error = self._error(kind, body, f"{self._where()}: {detail}" if kind is errors.KeyRefused else detail)
        error.retry_after = wait
        error.from_api = isinstance(content, dict) and "detail" in content
        raise error

    def _error(self, kind: type[errors.ApiError], body: _Body, detail: str) -> errors.ApiError:
        return kind(self._line(detail), http_status=body.http_status, seconds=body.seconds)

    def _where(self) -> str:
        return f"{self.host} (set {self._url_variable} to use another host)"

    def _line(self, text: str) -> str:
        """One line that can be stored, without the key even if the API repeats it."""
        line = one_line(text, most=len(text))
        return one_line(line.replace(self._key, "***") if self._key else line)


class BflClient(BflReader):
    """All the calls, the one that deletes included."""

    def delete_finetune(self, finetune_id: str, *, unique_id: str | None = None) -> Answer:
        """Delete one finetune, at once and for good.

        unique_id: another id of the same finetune, just observed, which the answer may name instead.
        Raises `ApiError`: `WrongFinetune` if the answer names another finetune, `Unclear` if it is not a complete
        confirmation with a known word of success.
        """
        body = self._call(self._post, "/v1/delete_finetune", {"finetune_id": finetune_id})
        fields = body.content if isinstance(body.content, dict) else {}
        named = fields.get("deleted_finetune_id")
        ours = [name for name in (finetune_id, unique_id) if name]
        if isinstance(named, str) and not any(is_same_name(named, name) for name in ours):
            detail = f"asked to delete {finetune_id!r}, the API says it deleted {named!r}"
            raise self._error(errors.WrongFinetune, body, detail)
        if body.http_status != 200 or not all(isinstance(fields.get(field), str) for field in _ANSWER_FIELDS):
            raise self._error(errors.Unclear, body, "the answer is not a complete confirmation")
        status, message, timestamp = (self._line(fields[name]) for name in ("status", "message", "timestamp"))
        if fields["status"].strip().lower() not in WORDS_OF_SUCCESS:
            detail = f"the answer's status {status!r} is not a known word of success: {message}"
            raise self._error(errors.Unclear, body, detail)
        return Answer(status, message, timestamp, http_status=body.http_status, seconds=body.seconds)
