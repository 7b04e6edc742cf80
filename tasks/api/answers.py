"""What the bodies of answers say: pure functions on bytes and JSON. No shape is taken for granted."""

import json
import re
from collections.abc import Mapping
from typing import Any

from tasks.text import one_line

_ID_FIELDS = ("finetune_id", "id", "name")
# What may stand beside a list, by name as `plain_name` spells it. Anything else may speak of more.
_HOLDERS = ("meta", "metadata", "pagination", "paging", "pageinfo")  # objects that are looked into
_MORE = ("more", "hasmore", "next", "hasnext", "hasnextpage", "truncated", "istruncated", "partial")  # if false
_TOTALS = ("total", "totalcount", "count")  # if it is the number of items
_LABELS = ("id", "requestid", "timestamp", "createdat", "version")  # any text or number
# Nobody has documented the words that BFL uses in `status`; only these are believed, in any case.
WORDS_OF_SUCCESS = ("success", "successful", "succeeded", "ok", "deleted", "done", "complete", "completed")
_HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs: JSON can hold one alone, nothing else can


def parsed(raw: bytes) -> Any:
    """The JSON in `raw`, None if it is not JSON."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def listed_names(content: Any) -> list[str] | None:
    """The names in an answer of `my_finetunes`, None if its shape is not known."""
    items = content.get("finetunes") if isinstance(content, dict) else None
    if not isinstance(items, list):
        return None
    names = [_name(item) for item in items]
    return names if all(name and not _HALVES.search(name) for name in names) else None


def more(content: Mapping[str, Any], count: int, status: int, headers: Mapping[str, str]) -> str | None:
    """What may say that there are more finetunes than the `count` listed ones, None if nothing does.

    APIs speak of more in too many words to know them all: what is not known to be harmless counts.
    """
    if status != 200:
        return f"HTTP status {status}"
    if "next" in headers.get("Link", "").lower():
        return "the header Link"
    if headers.get("X-Total-Count", str(count)) != str(count):
        return "the header X-Total-Count"
    beside = [(name, value) for name, value in content.items() if name != "finetunes"]
    for name, value in beside:
        if isinstance(value, dict) and plain_name(name) in _HOLDERS:
            beside += value.items()
        elif not _is_harmless(plain_name(name), value, count):
            return f"the field {one_line(name, most=60)!r}"
    return None


def plain_name(name: str) -> str:
    """One spelling for `base_model`, `baseModel`, `base-model` and `Base Model`."""
    return re.sub("[-_ ]", "", name.lower())


def is_success(status: Any) -> bool:
    """Whether it is a known word of success."""
    return isinstance(status, str) and status.strip().lower() in WORDS_OF_SUCCESS


def detail(content: Any) -> str | None:
    """The API's words in either of its error shapes: `detail` as a string, or as a list of problems."""
    found = content.get("detail") if isinstance(content, dict) else None
    if isinstance(found, list):
        return "; ".join(map(_problem, found))
    return (found if isinstance(found, str) else json.dumps(found)) if found else None


def _name(item: Any) -> str:
    """The name that an item of the list has, "" if it has none or several."""
    if isinstance(item, str):
        return item
    ids = [item[field] for field in _ID_FIELDS if item.get(field) is not None] if isinstance(item, dict) else []
    return ids[0] if ids and isinstance(ids[0], str) and all(one == ids[0] for one in ids) else ""


def _is_harmless(name: str, value: Any, count: int) -> bool:
    if value in (None, "", [], {}):
        return True
    return (
        (name in _MORE and value is False)
        or (name in _TOTALS and str(value) == str(count))
        or (name in _LABELS and isinstance(value, str | int | float))
        or (name == "object" and value == "list")
        or (name == "status" and is_success(value))
    )


def _problem(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    where = item.get("loc") or []
    place = ".".join(map(str, where if isinstance(where, list) else [where]))
    return ": ".join(filter(None, (place, str(item.get("msg", "")))))
