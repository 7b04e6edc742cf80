"""What people know a finetune by, beside its name: comment, trigger word, type, base model.

It is read from the API's details when a plan is made, and kept nowhere: a comment can hold personal data. A policy
that selects by it keeps every finetune of which it is not known.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from tasks.api.incarnations import letters, scalars
from tasks.text import one_line

About = Mapping[str, tuple[str, ...]]  # key of a policy -> the values that the details have, one line each
# key of a policy: (how people say it, letters of the fields that have it)
KEYS = {
    "comment": ("comment", ("finetunecomment", "comment")),
    "trigger": ("trigger word", ("triggerword", "triggerphrase", "trigger")),
    "type": ("type", ("finetunetype", "type")),
    "base_model": ("base model", ("basemodel", "model")),
}


def about(details: Mapping[str, Any]) -> About:
    """What the details tell of each key."""
    told = [(letters(path), one_line(str(value))) for path, value in scalars(details)]
    return {
        key: tuple(text for field, text in told if text and field in fields) for key, (_, fields) in KEYS.items()
    }


def why_not(wanted: Mapping[str, Sequence[str]], found: About | None) -> str | None:
    """Why a finetune is not what is wanted, None if it is: each key has a value, and a pattern fits each value.

    found: None if its details were not read. Case is ignored.
    """
    for key, patterns in wanted.items():
        if found is None:
            return "its details were not read"
        name, values = KEYS[key][0], found.get(key, ())
        if not values:
            return f"its details have no {name}"
        if not all(any(fnmatchcase(one.lower(), pattern.lower()) for pattern in patterns) for one in values):
            return f"its {name} does not match"
    return None


def in_words(keys: Iterable[str]) -> str:
    """The names of these keys, as in `comment and type`."""
    return " and ".join(KEYS[key][0] for key in keys)


def short(found: About | None) -> str:
    """All of it, for one column of a table."""
    return one_line("; ".join(text for texts in (found or {}).values() for text in texts), most=60)
