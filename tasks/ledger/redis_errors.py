"""redis-py's errors as ours, each in one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import AuthenticationError, ConnectionError, RedisError, ResponseError, TimeoutError

from tasks.errors import LedgerRefused, LedgerUnavailable

# Why Redis refuses for a while. Within a script all of these come as plain errors.
_PASSING = ("OOM", "MISCONF", "NOREPLICAS", "READONLY", "BUSY", "LOADING", "MASTERDOWN", "TRYAGAIN")


@contextmanager
def unavailable() -> Iterator[None]:
    """Turn redis-py's errors into `LedgerUnavailable` with one line."""
    try:
        yield
    except RedisError as error:
        lasting = type(error) is ResponseError and not any(word in str(error) for word in _PASSING)
        raise (LedgerRefused if lasting else LedgerUnavailable)(_in_words(error)) from error


def _in_words(error: RedisError) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "command not allowed when used memory" in reason:
        return "Redis is full (maxmemory), nothing was written: give it more memory"
    if isinstance(error, AuthenticationError) or "NOAUTH" in reason or "must be called with the client" in reason:
        return "Redis wants a password: give the right one in REDIS_URL or REDIS_PASSWORD_FILE"
    if isinstance(error, ConnectionError | TimeoutError):
        return f"Redis cannot be reached ({reason}): is it running, and is REDIS_URL right?"
    return f"Redis did not take it: {reason}"
