"""The three calls of the BFL API; each answer is a value or one error.

Contract: BFL API 0.0.1, `POST /v1/delete_finetune` (tests/contract/); the other two calls are from BFL's public
reference. What is known only from public reports is marked as such, and nothing relies on it.
"""

import hashlib
import logging
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests
import structlog
from requests.structures import CaseInsensitiveDict

from tasks.api import answers, errors
from tasks.api.moments import http_date
from tasks.api.retry import retry_after
from tasks.api.transport import Reply, Transport
from tasks.api.transport import Timeouts as Timeouts  # noqa: PLC0414 -- part of this module's interface
from tasks.text import finetune_key, is_same_name, one_line

log = structlog.get_logger()

_FRESH_SECONDS = 2  # so old may an observation be at most, see tasks.freshness
_LEAST_SECRET = 16  # characters


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
    """The account's finetunes. count: items in the answer; more: what in it may speak of more, if anything."""

    names: frozenset[str]
    count: int
    more: str | None = None

    @property
    def is_whole(self) -> bool:
        return self.more is None

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


class BflReader:
    """The calls that change nothing; a planner holds only this. One connection per thread, kept alive.

    url_variable: the variable that sets `url`, named in messages. Raises `ValueError` for a key that no HTTP
    header can carry.
    """

    def __init__(
        self, url: str, key: str, timeouts: Timeouts | None = None,
        *, ca_bundle: Path | None = None, url_variable: str = "BFL_API_URL",
    ) -> None:  # fmt: skip
        self._url = url.rstrip("/")
        self.host = urlsplit(self._url).netloc.rpartition("@")[2].lower()
        if not (key.isascii() and key.isprintable() and key == key.strip()):
            why = "has a space at an end, or characters that are not ASCII"
            raise ValueError(f"the API key for {self.host} {why}")
        self.vantage = f"{self.host}{urlsplit(self._url).path} {hashlib.sha256(key.encode()).hexdigest()[:8]}"
        self._key = key
        self._where = f"{self.host} (set {url_variable} to use another host)"
        self._transport = Transport(self._url, timeouts or Timeouts(), ca_bundle)
        self._headers = {
            "x-key": key, "accept": "application/json", "accept-encoding": "identity", "cache-control": "no-cache",
        }  # fmt: skip

    def my_finetunes(self) -> Listing:
        """Every finetune of the account. Raises `ApiError`; `Reshaped` if the answer has another shape.

        An item is a name, or an object that has it as `finetune_id`, `id` or `name`; if it has more than one of
        them they must be equal, because nobody has said which one the other calls take.
        """
        content, reply = self._call("/v1/my_finetunes")
        names = answers.listed_names(content)
        if names is None:
            raise self._error(errors.Reshaped, reply, "my_finetunes answered in a shape that is not known")
        more = answers.more(content, len(names), reply.response.status_code, reply.response.headers)
        return Listing(frozenset(names), len(names), self._line(more) if more else None)

    def finetune_details(self, finetune_id: str) -> Details:
        """The details of one finetune. Raises `ApiError`; `NotFound` for an id that the key cannot see."""
        content, reply = self._call("/v1/finetune_details?" + urlencode({"finetune_id": finetune_id}))
        fields = content.get("finetune_details") if isinstance(content, dict) else None
        if not isinstance(fields, dict):
            raise self._error(errors.Reshaped, reply, "finetune_details answered without details")
        return Details(fields, http_date(reply.response.headers.get("Date", "")))

    def _call(self, path: str, content: dict[str, str] | None = None) -> tuple[Any, Reply]:
        """The JSON of a 2xx and how it came; anything else as the error it stands for. content: what to POST."""
        reply = self._transport.send(self._request(path, content))
        response = reply.response
        told = {"error": reply.broken} if reply.broken else {"http_status": response.status_code}
        level = logging.INFO if reply.broken or not response.ok else logging.DEBUG
        log.log(level, "api.call", call=path.partition("?")[0], **told, seconds=round(reply.seconds, 3))
        if reply.broken:
            kind = errors.Unclear if reply.begun else errors.NotSent
            raise self._error(kind, reply, f"{reply.broken}: {self._where}")
        age = response.headers.get("Age", "")
        if content is None and age.isdecimal() and float(age) > _FRESH_SECONDS:
            why = f"a cache answered, {age} s later than the API: {self._where}"
            raise self._error(errors.Unclear, reply, why)
        found = answers.parsed(self._without_key(reply.body))
        if not 200 <= response.status_code < 300:
            raise self._failure(found, reply)
        if found is None:
            raise self._error(errors.Unclear, reply, "the answer is not JSON")
        return found, reply

    def _request(self, path: str, content: dict[str, str] | None) -> requests.PreparedRequest:
        """Ready to be sent, without what `requests` would look for: that takes a fifth of the time of a call."""
        request = requests.PreparedRequest()
        request.method, request.url = "GET" if content is None else "POST", self._url + path
        request.headers = CaseInsensitiveDict(self._headers)
        if content is not None:
            request.prepare_body(None, None, json=content)
        return request

    def _failure(self, content: Any, reply: Reply) -> errors.ApiError:
        """The error that an answer stands for."""
        response, wait = reply.response, retry_after(reply.response.headers)
        kind = errors.error_kind(response.status_code, told_to_wait=wait is not None)
        detail = answers.detail(content) or response.reason or "no reason given"
        if kind is errors.KeyRefused:
            detail = f"{self._where}: {detail}"
        from_api = isinstance(content, dict) and "detail" in content
        return self._error(kind, reply, detail, retry_after=wait, from_api=from_api)

    def _error(self, kind: type[errors.ApiError], reply: Reply, detail: str, **more: Any) -> errors.ApiError:
        return kind(self._line(detail), http_status=reply.response.status_code, seconds=reply.seconds, **more)

    def _without_key(self, body: bytes) -> bytes:
        """The key is in no record, even if the API repeats it. A short one, of a test, can be part of a name."""
        return body.replace(self._key.encode(), b"***") if len(self._key) >= _LEAST_SECRET else body

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
        content, reply = self._call("/v1/delete_finetune", {"finetune_id": finetune_id})
        fields = content if isinstance(content, dict) else {}
        named = fields.get("deleted_finetune_id")
        if isinstance(named, str) and not any(is_same_name(named, id_) for id_ in (finetune_id, unique_id) if id_):
            detail = f"asked to delete {finetune_id!r}, the API says it deleted {named!r}"
            raise self._error(errors.WrongFinetune, reply, detail)
        words: list[Any] = [fields.get(name) for name in ("status", "message", "timestamp")]
        if reply.response.status_code != 200 or not all(isinstance(word, str) for word in (named, *words)):
            raise self._error(errors.Unclear, reply, "the answer is not a complete confirmation")
        status, message, timestamp = map(self._line, words)
        if not answers.is_success(fields["status"]):
            detail = f"the answer's status {status!r} is not a known word of success: {message}"
            raise self._error(errors.Unclear, reply, detail)
        return Answer(status, message, timestamp, http_status=200, seconds=reply.seconds)
