"""redis-py's errors as ours, each in one line that says what to do, and a client that raises no others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.client import Pipeline
from redis.exceptions import AuthenticationError, ConnectionError, RedisError, ResponseError, TimeoutError

from tasks.errors import LedgerRefused, LedgerUnavailable

# Why Redis refuses everything, until that is over or corrected. Within a script all of these come as plain errors.
# The last four are about rights and commands that it lacks, in the words of Redis 6 to 8 and Valkey.
_PASSING = (
    "OOM", "MISCONF", "NOREPLICAS", "READONLY", "BUSY", "LOADING", "MASTERDOWN", "TRYAGAIN",
    "user executing the script", "ACL failure in script", "command called from", "not allowed from script",
)  # fmt: skip


@contextmanager
def unavailable() -> Iterator[None]:
    """Turn redis-py's errors into `LedgerUnavailable` with one line."""
    try:
        yield
    except RedisError as error:
        lasting = type(error) is ResponseError and not any(word in str(error) for word in _PASSING)
        raise (LedgerRefused if lasting else LedgerUnavailable)(_in_words(error)) from error


class Client(redis.Redis):
    """A client, on the connections of another one: it raises redis-py's errors as `unavailable` does."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(connection_pool=client.connection_pool)

    def execute_command(self, *args: Any, **options: Any) -> Any:
        with unavailable():
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call] # redis-py has no types here

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:  # noqa: FBT001, FBT002 -- redis-py's signature
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _Pipeline(Pipeline):
    def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002 -- redis-py's signature
        with unavailable():
            return super().execute(raise_on_error)


def _in_words(error: RedisError) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "command not allowed when used memory" in reason:
        return "Redis is full (maxmemory), nothing was written: give it more memory"
    if isinstance(error, AuthenticationError) or "NOAUTH" in reason or "must be called with the client" in reason:
        return "Redis wants a password: give the right one in REDIS_URL or REDIS_PASSWORD_FILE"
    if isinstance(error, ConnectionError | TimeoutError):
        return f"Redis cannot be reached ({reason}): is it running, and is REDIS_URL right?"
    return f"Redis did not take it: {reason}"
