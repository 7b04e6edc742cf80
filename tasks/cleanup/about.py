"""What people know a finetune by, beside its name: comment, trigger word, type, base model.

It is read from the API's details when a plan is made, and kept nowhere: a comment can hold personal data. A policy
that selects by it keeps every finetune of which it is not known.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from tasks.api.answers import plain_name
from tasks.text import one_line

About = Mapping[str, tuple[str, ...]]  # key of a policy -> the values that the details have, one line each
# key of a policy: (how people say it, the fields that have it)
KEYS = {
    "comment": ("comment", ("finetunecomment", "comment")),
    "trigger": ("trigger word", ("triggerword", "triggerphrase", "trigger")),
    "type": ("type", ("finetunetype", "type")),
    "base_model": ("base model", ("basemodel", "model")),
}


def about(details: Mapping[str, Any]) -> About:
    """What the details tell of each key, at their top level: what is deeper may be said of something else."""
    told = [(plain_name(name), value) for name, value in details.items() if value is not None]
    return {key: _texts([value for name, value in told if name in names]) for key, (_, names) in KEYS.items()}


def why_not(wanted: Mapping[str, Sequence[str]], found: About | None) -> str | None:
    """Why a finetune is not what is wanted, None if it is: each key has a value, and a pattern fits each value.

    found: None if its details were not read. Case is ignored.
    """
    for key, patterns in wanted.items():
        if found is None:
            return "its details were not read"
        name, values = KEYS[key][0], found.get(key, ())
        if not values:
            return f"its details have no readable {name}"
        if not all(any(fnmatchcase(one.lower(), pattern.lower()) for pattern in patterns) for one in values):
            return f"its {name} does not match"
    return None


def in_words(keys: Iterable[str]) -> str:
    """The names of these keys, as in `comment and type`."""
    return " and ".join(KEYS[key][0] for key in keys)


def short(found: About | None) -> str:
    """All of it, for one column of a table."""
    return one_line("; ".join(text for texts in (found or {}).values() for text in texts), most=60)


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    """The values that are not empty; none if one is neither text nor number: nobody knows what it says."""
    if not all(type(value) in (str, int, float) for value in values):
        return ()
    return tuple(text for value in values if (text := one_line(str(value))))
