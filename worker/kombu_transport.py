"""kombu's Redis transport, in which no message stops the worker or keeps a slot; Celery's result backend.

As it comes, kombu 5.7 ends the worker on an envelope that it cannot read, and loses the message. The differences:

- Each message is checked whole before Celery sees it (`worker.message_check`); what fails becomes a dead letter.
- An acknowledgement that Redis did not answer frees its slot all the same: the note in `unacked` stays, so the
  message comes again after the visibility timeout, and a repeated request changes nothing.
- A message that Redis is too full to note in `unacked` goes back to its queue; kombu has popped it and forgets it.
- A server that is no longer the master is left (`worker.redis_url.following`), by the result backend too.
- A callback that could not be published makes no failure of its deletion.
- Celery's `revoke` is refused: it would write a final result while the deletion goes on, and drop its callbacks.
"""

import uuid
from collections.abc import Callable
from contextlib import suppress
from queue import Empty
from typing import Any

import redis
import structlog
from celery import concurrency
from celery.app import backends
from celery.backends.redis import RedisBackend
from celery.worker import control
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps
from redis.exceptions import RedisError, ResponseError

from tasks.by_name import header
from tasks.celery_tasks import AGAIN_HEADER
from tasks.errors import DeletionNotDone
from tasks.ledger import dead_letters
from tasks.text import one_line
from worker.message_check import check_message, read
from worker.message_fields import QUEUES, RefusedMessage
from worker.redis_url import following

log = structlog.get_logger()

# A script that begins with a DEL may write when Redis is full (tasks.ledger.scripts).
_GIVE_BACK = "redis.call('DEL', KEYS[1] .. ':nothing') return redis.call('RPUSH', KEYS[1], ARGV[1])"


def install() -> None:
    """Use it for all Redis URLs of this process, with our result backend and our threads pool.

    Celery has settings for these, but they reach neither `redis+socket://` nor `-P threads`, so its tables of
    names are changed.
    """
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
        backends.BACKEND_ALIASES[scheme] = f"{__name__}:Backend"
    TRANSPORT_ALIASES["sentinel"] = f"{__name__}:SentinelTransport"
    concurrency.ALIASES["threads"] = "worker.thread_pool:TaskPool"  # type: ignore[attr-defined] # not in the stubs
    control.Panel.data.update(
        dict.fromkeys(("revoke", "revoke_by_stamped_headers", "terminate"), _revokes_nothing), hello=_hello
    )


def _revokes_nothing(*_: Any, **__: Any) -> dict[str, str]:
    log.warning("revoke.refused")
    return {"error": "this worker revokes nothing: send finetunes.cancel"}


def _hello(state: Any, **_: Any) -> dict[str, Any]:
    """Celery's takes over what another worker has revoked."""
    return {"revoked": [], "clock": state.app.clock.forward()}


def unforeseen(what: str, error: BaseException) -> str:
    """The reason of a dead letter that our checks did not foresee."""
    why = f"{type(error).__name__}: {one_line(str(error))[:200]}"
    return f"Celery could not {what} it ({why}): see the worker's log, correct the message or send it again"


def set_aside(client: redis.Redis, queue: str, reason: str, message: object) -> bool:
    """Make a dead letter of a message; False if not even that works, which the log says."""
    log.warning("message.dead_letter", queue=queue, reason=reason)
    try:
        dead_letters.keep(client, queue, reason, message)
    # Whatever a hostile message does to its own copy, the worker goes on.
    except Exception as error:
        log.error("message.lost", queue=queue, reason=reason, error=type(error).__name__)
        return False
    return True


class Client(redis.Redis):
    """A client whose BRPOP returns only what kombu can decode: it decodes before any code of ours is asked."""

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        answer = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call] # redis-py has no types here
        if command_name != "BRPOP" or not answer:
            return answer
        queue, item = answer
        try:
            read(item)
        except RefusedMessage as error:
            # A client of its own: this one's connection is the one that BRPOP waits on.
            client = redis.Redis(connection_pool=self.connection_pool)
            set_aside(client, queue.decode(errors="backslashreplace"), str(error), item)
            return None  # as if nothing had been there
        return answer


class Unacknowledged(kombu_redis.QoS):
    """Counts the deliveries that are not acknowledged; a failed acknowledgement does not keep its slot."""

    def ack(self, delivery_tag: str) -> None:
        self._freeing(delivery_tag, super().ack, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 -- kombu's signature
        self._freeing(delivery_tag, super().reject, delivery_tag, requeue)

    def free(self, delivery_tag: str) -> None:
        """Free its slot alone: the note in `unacked` brings the message again."""
        virtual.QoS.ack(self, delivery_tag)

    def _freeing(self, delivery_tag: str, settle: Callable[..., Any], *arguments: Any) -> None:
        try:
            settle(*arguments)
        except Exception:
            self.free(delivery_tag)
            raise


_Channel: Any = kombu_redis.Channel  # its stubs lack what is private


class Channel(_Channel):  # type: ignore[misc] # it is Any
    """kombu's channel, made safe."""

    QoS: Any = Unacknowledged

    def _get_client(self) -> type[Client]:
        return Client

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 -- kombu's signature
        if self.connection is None or self.connection.client is None:
            # kombu 5.7 gives messages back over channels that it has closed; its AttributeError ends the worker.
            raise redis.ConnectionError("this channel is closed: its messages come again")
        params: dict[str, Any] = super()._connparams(asynchronous)
        params["connection_class"] = following(params["connection_class"], self._drop_idle)
        return params

    def _drop_idle(self) -> None:
        for pool in filter(None, (self._pool, self._async_pool)):
            pool.disconnect(inuse_connections=False)

    def _receive_one(self, client: Any) -> Any:
        try:
            return super()._receive_one(client)
        except RecursionError:  # an event or command nested too deep; kombu expects only bad JSON
            raise Empty from None

    def basic_consume(self, queue: str, *arguments: Any, **options: Any) -> Any:
        super().basic_consume(queue, *arguments, **options)
        callbacks = self.connection._callbacks
        deliver = callbacks[queue]

        def delivered(raw: Any) -> None:
            tag = str(uuid.uuid4())  # ours: a sender's own could be that of another message
            try:
                message = check_message(raw, queue) if queue in QUEUES else raw
                message["properties"]["delivery_tag"] = tag
                deliver(message)
            except ResponseError:
                with self.conn_or_acquire() as client, suppress(RedisError):
                    client.eval(_GIVE_BACK, 1, queue, dumps(raw))
                raise
            except (RedisError, OSError):
                raise  # the connection's trouble, not the message's
            except Exception as error:
                reason = str(error) if isinstance(error, RefusedMessage) else unforeseen("take", error)
                with self.conn_or_acquire() as client:
                    is_kept = set_aside(client, queue, reason, raw)
                if tag in self.qos._delivered:
                    settle = self.qos.ack if is_kept else self.qos.free
                    settle(tag)

        callbacks[queue] = delivered


class SentinelChannel(Channel, kombu_redis.SentinelChannel):
    """The same behind Sentinel: kombu's asks the sentinels for the master."""


class Transport(kombu_redis.Transport):
    """kombu's, with this channel."""

    Channel = Channel


class SentinelTransport(kombu_redis.SentinelTransport):
    """kombu's, with the channel behind Sentinel."""

    Channel = SentinelChannel


class Backend(RedisBackend):
    """Celery's, with connections that connect again after READONLY.

    As it comes, Celery 5.7 takes READONLY for an error of the task: a result is lost, or raises in a pool thread.
    After a connection error it tries again.
    """

    connparams: dict[str, Any]  # redis-py's options; not in Celery's stubs
    client: redis.Redis

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        base = self.connparams.get("connection_class", redis.Connection)
        self.connparams["connection_class"] = following(base, self._drop_idle)

    def mark_as_failure(  # type: ignore[override] # what is not named is passed on
        self, task_id: str, exc: Any, traceback: Any = None, request: Any = None, **more: Any
    ) -> Any:
        """Not if only a callback could not be published: the next try does that, a minute later."""
        if request and header(request, AGAIN_HEADER) and not isinstance(exc, DeletionNotDone):
            return None
        return super().mark_as_failure(task_id, exc, traceback, request, **more)

    def _drop_idle(self) -> None:
        self.client.connection_pool.disconnect(inuse_connections=False)
