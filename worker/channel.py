"""kombu's Redis transport, with one difference: a message that nobody can read is put aside.

As it comes, kombu 5.7 ends the worker on an envelope that is not JSON (the message is lost) and on a body that is
not a triple (the message is delivered again, and ends the next worker); other unreadable messages are
acknowledged with a line in the log. See celery/celery#7975 and docs/guarantees.md.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import structlog
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from redis import Redis
from redis.exceptions import RedisError

from tasks import poison
from tasks.definitions import DELETIONS, TOUCHES, WAKEUPS

log = structlog.get_logger()


class Client(Redis):
    """A client whose BRPOP answers only with what is JSON: kombu decodes it before anybody is asked."""

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        answer = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call] # redis-py has no types here
        if command_name != "BRPOP" or not answer:
            return answer
        queue, item = answer
        try:
            json.loads(item.decode())
        except (ValueError, RecursionError) as error:
            # A client of its own: this one's connection is the one that BRPOP waits on.
            set_aside(Redis(connection_pool=self.connection_pool), queue.decode(), f"not JSON: {error}", item)
            return None  # as if nothing had been there
        return answer


class Channel(kombu_redis.Channel):
    """A channel whose deliveries cannot end the worker."""

    connection: Any
    qos: Any

    def _get_client(self) -> type[Client]:
        return Client

    def basic_consume(self, queue: str, *arguments: Any, **options: Any) -> Any:
        super().basic_consume(queue, *arguments, **options)
        callbacks = self.connection._callbacks
        deliver = callbacks[queue]

        def delivered(raw: Any) -> None:
            try:
                check_envelope(raw)
                if queue in (DELETIONS, WAKEUPS, TOUCHES):
                    check_task(raw)
                deliver(raw)
            except (*self.connection.connection_errors, *self.connection.channel_errors):
                raise
            except Exception as error:
                self._set_aside(queue, f"{type(error).__name__}: {error}", raw)

        callbacks[queue] = delivered

    def _set_aside(self, queue: str, reason: str, raw: Any) -> None:
        with self.conn_or_acquire() as client:
            set_aside(client, queue, reason, raw)
        properties = raw.get("properties") if isinstance(raw, dict) else None
        tag = properties.get("delivery_tag") if isinstance(properties, dict) else None
        if isinstance(tag, str) and tag in self.qos._delivered:
            self.basic_ack(tag)


class SentinelChannel(Channel, kombu_redis.SentinelChannel):
    """kombu's that asks sentinels for the master, made safe."""


class Transport(kombu_redis.Transport):
    """kombu's, with this channel."""

    Channel = Channel


class SentinelTransport(kombu_redis.SentinelTransport):
    """The same behind Sentinel."""

    Channel = SentinelChannel


def install() -> None:
    """Use it for all Redis URLs of this process; a setting of Celery would not reach `redis+socket://`."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
    TRANSPORT_ALIASES["sentinel"] = f"{__name__}:SentinelTransport"


def check_envelope(raw: Any) -> None:
    """Raise `ValueError` where kombu could not take a message out of its envelope."""
    properties = raw.get("properties") if isinstance(raw, dict) else None
    if not isinstance(properties, dict) or not isinstance(properties.get("delivery_tag"), str):
        raise ValueError("the envelope is not an object with properties and a delivery tag")
    place = properties.get("delivery_info")
    if not (isinstance(place, dict) and isinstance(place.get("exchange"), str) and "routing_key" in place):
        raise ValueError("the envelope does not say by which exchange and routing key it came")


def check_task(raw: dict[str, Any]) -> None:
    """Raise `ValueError` where a message is not a Celery task in JSON."""
    kind = raw.get("content-type")
    if kind != "application/json":
        raise ValueError(f"the content type is {kind!r}: application/json is accepted")
    headers = raw.get("headers") or {}
    if not isinstance(headers, dict):
        raise ValueError("the headers are not an object")
    text = raw.get("body") or ""
    body = json.loads(base64.b64decode(text) if raw["properties"].get("body_encoding") == "base64" else text)
    if "task" in headers:
        if not isinstance(headers["task"], str) or not isinstance(headers.get("id"), str):
            raise ValueError("the headers have no id or no name of a task")
        if not (isinstance(body, list) and list(map(type, body[:2])) == [list, dict] and len(body) == 3):
            raise ValueError("the body is not [arguments, keyword arguments, options]")
    elif not (isinstance(body, dict) and isinstance(body.get("task"), str) and isinstance(body.get("id"), str)):
        raise ValueError("no task is named, neither in the headers nor in the body")


def set_aside(client: Redis, queue: str, reason: str, message: object) -> None:
    """Put a message aside; where not even that works, say so in the log and go on."""
    log.warning("message.set_aside", queue=queue, reason=reason)
    try:
        poison.set_aside(client, queue, reason, message)
    except RedisError as error:
        log.error("message.lost", queue=queue, reason=reason, error=str(error))
