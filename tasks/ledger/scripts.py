"""The Lua scripts: put together from their parts, loaded once, run by name."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import redis
from redis.exceptions import NoScriptError

from tasks.ledger.inputs import encoded
from tasks.ledger.keys import PREFIX, lua_table
from tasks.ledger.redis_errors import unavailable
from tasks.records import FINAL, TRANSITIONS

_LUA = files("tasks.ledger") / "lua"
# When Redis is full it refuses a script at its first write, unless it has written before: a DEL is always
# allowed. So everything but accepting goes on when memory is short (seen on Redis 6.2 and 7.0).
_WRITES_WHEN_FULL = f"redis.call('DEL', '{PREFIX}nothing')\n"
_MAY_BE_REFUSED = ("accept",)


@dataclass(frozen=True)
class Scripts:
    """The scripts of one ledger.

    client: with `decode_responses=True`. constants: part of the input of each script. now_ms: a clock for tests
    instead of Redis's own.
    """

    client: redis.Redis
    constants: dict[str, Any]
    now_ms: Callable[[], int] | None = None

    def run(self, name: str, **given: Any) -> Any:
        """The answer of one script. Raises `LedgerUnavailable`."""
        return self.run_all((name, given))[0]

    def run_all(self, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
        """The answers of several scripts, in one round trip and in this order; each by itself is atomic."""
        with unavailable():
            try:
                return self._send(calls)
            except NoScriptError:
                for name, _ in calls:
                    self.client.script_load(script_text(name))
            return self._send(calls)

    def _send(self, calls: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
        if len(calls) == 1:
            name, given = calls[0]
            return [self.client.evalsha(_sha(name), 0, self._input(given))]
        with self.client.pipeline(transaction=False) as pipe:
            for name, given in calls:
                pipe.evalsha(_sha(name), 0, self._input(given))
            return pipe.execute()

    def _input(self, given: dict[str, Any]) -> str:
        clock = {} if self.now_ms is None else {"now_ms": self.now_ms()}
        return json.dumps({**self.constants, **given, **clock}, default=encoded)


@cache
def script_text(name: str) -> str:
    """A script as Redis gets it: keys, transitions, the shared parts that its first line names, and its body."""
    body = (_LUA / f"{name}.lua").read_text(encoding="utf-8")
    parts = ["base", *body.partition("\n")[0].removeprefix("-- needs: ").split()]
    shared = "".join((_LUA / f"lib_{part}.lua").read_text(encoding="utf-8") for part in parts)
    after_final = "".join(f"{state} = '{' '.join(TRANSITIONS[state])}', " for state in sorted(FINAL))
    used = set(re.findall(r"\bkey\.(\w+)", shared + body))  # making the functions costs time at each run
    head = "" if name in _MAY_BE_REFUSED else _WRITES_WHEN_FULL
    return f"{head}local AFTER_FINAL = {{{after_final}}}\n{lua_table(used)}{shared}{body}"


@cache
def _sha(name: str) -> str:
    return hashlib.sha1(script_text(name).encode()).hexdigest()  # noqa: S324 -- Redis names scripts by SHA-1


def script_names() -> list[str]:
    """The scripts there are, without their shared parts."""
    names = [path.name.removesuffix(".lua") for path in _LUA.iterdir() if path.name.endswith(".lua")]
    return sorted(name for name in names if not name.startswith("lib_"))
