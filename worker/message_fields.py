"""The message protocol in tables: what each object of a message may hold."""

from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, NamedTuple

from tasks.by_name import ETA_HEADER, EXPIRES_HEADER
from tasks.celery_tasks import ROUTES
from tasks.durations import ACCEPTED_TIME, parse_time
from tasks.ledger.dead_letters import SEEN_HEADER
from tasks.text import is_line, shown

TASKS = tuple(ROUTES)
QUEUES = tuple(dict.fromkeys(route["queue"] for route in ROUTES.values()))


class RefusedMessage(ValueError):
    """The message cannot be carried out; the text says what the sender has to change."""


class Kind(NamedTuple):
    """What a field may hold: in words, as a type, and as a test of such a value. or_null: or else null."""

    words: str
    type: type | UnionType
    test: Callable[[Any], object] = lambda _: True
    or_null: bool = True

    def fits(self, value: Any) -> bool:
        # To Python, true and false are numbers too.
        if not isinstance(value, self.type) or (isinstance(value, bool) and self.type is not bool):
            return False
        try:
            return bool(self.test(value))
        except ValueError:
            return False


class Fields(NamedTuple):
    """The fields of one object. name: what such a field is called. only: whether no others are accepted."""

    name: str
    kinds: Mapping[str, Kind]
    needed: tuple[str, ...] = ()
    only: bool = False

    def check(self, given: Any, what: str, where: str = "") -> dict[str, Any]:
        """`given`, if it is such an object; else raises `RefusedMessage`.

        what: its name in an error. where: how an error about a field of it begins.
        """
        if not isinstance(given, dict):
            raise RefusedMessage(f"{what} is {shown(given)}: give an object")
        for name in self.needed:
            if given.get(name) is None:
                raise RefusedMessage(f"{where}{self.name} {name} is missing: give {self.kinds[name].words}")
        for name, value in given.items():
            kind = self.kinds.get(name)
            if kind and not kind.fits(value) and not (value is None and kind.or_null):
                raise RefusedMessage(f"{where}{self.name} {name} is {shown(value)}: give {kind.words}")
            if self.only and not kind:
                accepted = ", ".join(self.kinds)
                raise RefusedMessage(f"{where}{self.name} {shown(name)} is not accepted: accepted are {accepted}")
        return given


_ENCODINGS = ("utf-8", "utf8", "us-ascii", "ascii", "binary")
# 155 is what Celery's own result tables hold.
ID = Kind("an id of 1 to 155 printable characters", str, lambda text: text and is_line(text, 155))
NAME = Kind("a name of 1 to 255 printable characters", str, lambda text: text and is_line(text, 255))
TEXT, FLAG = Kind("text", str), Kind("true or false", bool)
LIST, OBJECT = Kind("a list", list), Kind("an object", dict)
COUNT = Kind("a whole number from 0 to 1,000,000", int, lambda count: 0 <= count <= 1_000_000)
PRIORITY = Kind("a whole number from 0 to 255", int, lambda priority: 0 <= priority <= 255)
NUMBER = Kind("a number", int | float, lambda number: -1e12 < number < 1e12)
TIME = Kind(ACCEPTED_TIME, str, parse_time)
WHEN = Kind(f"{ACCEPTED_TIME}, or a number of seconds", object, lambda when: TIME.fits(when) or NUMBER.fits(when))
LIMITS = Kind(
    "a list of two numbers of seconds or null", list,
    lambda limits: len(limits) == 2 and all(one is None or NUMBER.fits(one) for one in limits),
)  # fmt: skip
WORDS = Kind("a list of texts", list, lambda words: all(map(TEXT.fits, words)))
SIGNATURES = Kind("a signature or a list of them", list | dict)
BODY = Kind(
    "[arguments, keyword arguments, options]", list,
    lambda parts: len(parts) == 3 and LIST.fits(parts[0]) and OBJECT.fits(parts[1]),
)  # fmt: skip

ENVELOPE = Fields("the field", {
    "content-encoding": Kind(" or ".join(_ENCODINGS), str, lambda text: text.lower() in _ENCODINGS),
})  # fmt: skip
PROPERTIES = Fields("the property", {
    "delivery_tag": ID, "delivery_info": OBJECT, "body_encoding": Kind("base64", str, "base64".__eq__),
    "priority": PRIORITY, "correlation_id": NAME, "reply_to": NAME, "delivery_mode": COUNT,
}, needed=("delivery_tag",))  # fmt: skip
HEADERS = Fields("the header", {
    "task": NAME, "id": ID, "root_id": ID, "parent_id": ID, "group": ID, "group_index": COUNT, "shadow": NAME,
    "lang": TEXT, "meth": TEXT, "origin": TEXT, "argsrepr": TEXT, "kwargsrepr": TEXT,
    "eta": TIME, ETA_HEADER: TIME, SEEN_HEADER: TIME, "expires": TIME, EXPIRES_HEADER: TIME,
    "retries": COUNT, "timelimit": LIMITS, "ignore_result": FLAG, "replaced_task_nesting": COUNT,
    "stamped_headers": WORDS, "stamps": OBJECT, "headers": OBJECT, "redelivered": FLAG, "compression": TEXT,
}, needed=("task", "id"))  # fmt: skip
EMBEDDED = Fields(
    "the option", {"callbacks": LIST, "errbacks": LIST, "chain": LIST, "chord": OBJECT}, only=True
)  # fmt: skip
SIGNATURE = Fields("the field", {
    "task": NAME, "args": LIST, "kwargs": OBJECT, "options": OBJECT, "immutable": FLAG, "chord_size": COUNT,
    "subtask_type": Kind("chain, group or chord", str, ("chain", "group", "chord").__contains__),
}, needed=("task", "args", "kwargs", "options"), only=True)  # fmt: skip
# The options of a signature that hold signatures.
NESTED = {"link": SIGNATURES, "link_error": SIGNATURES, "chain": LIST, "chord": OBJECT}
OPTIONS = Fields("the option", {
    # In a group, Celery takes a null for the id of a task.
    "task_id": ID._replace(or_null=False),
    "queue": NAME, "root_id": ID, "parent_id": ID, "group_id": ID, "group_index": COUNT, "reply_to": NAME,
    "priority": PRIORITY, "retries": COUNT, "countdown": NUMBER, "eta": TIME, "expires": WHEN,
    "time_limit": NUMBER, "soft_time_limit": NUMBER, "shadow": NAME,
    "serializer": Kind("json", str, "json".__eq__), "ignore_result": FLAG, "headers": OBJECT,
    "replaced_task_nesting": COUNT, "origin": TEXT, "add_to_parent": FLAG, **NESTED,
}, only=True)  # fmt: skip
_TASKS = Fields("the field", {"tasks": LIST}, needed=("tasks",), only=True)
# What a signature of several tasks keeps in its kwargs.
PARTS = {"chain": _TASKS, "group": _TASKS, "chord": Fields("the field", {
    "header": SIGNATURES, "body": OBJECT, "kwargs": OBJECT,
}, needed=("header", "body", "kwargs"), only=True)}  # fmt: skip
