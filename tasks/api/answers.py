"""What the bodies of answers say: pure functions on bytes and JSON. No shape is taken for granted."""

import json
import re
from typing import Any

_ID_FIELDS = ("finetune_id", "id", "name")
_SPEAKS_OF_MORE = re.compile(r"next|cursor|more|truncated", re.IGNORECASE)
_COUNTS = re.compile(r"total|count|pages", re.IGNORECASE)
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


def is_whole(content: dict[str, Any], count: int) -> bool:
    """Whether nothing beside `finetunes` speaks of more: a next page, a cursor, `has_more`, a larger total."""
    leaves: list[tuple[str, Any]] = []
    for name, value in content.items():
        if name != "finetunes":
            # Paging is often kept in an object of its own.
            leaves += value.items() if isinstance(value, dict) else [(name, value)]
    return not any(_is_more(name, value, count) for name, value in leaves)


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


def _is_more(name: str, value: Any, count: int) -> bool:
    if _SPEAKS_OF_MORE.search(name):
        return bool(value)
    expected = 1 if "page" in name.lower() else count
    return bool(_COUNTS.search(name)) and str(value).isdecimal() and float(str(value)) > expected


def _problem(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    where = item.get("loc") or []
    place = ".".join(map(str, where if isinstance(where, list) else [where]))
    return ": ".join(filter(None, (place, str(item.get("msg", "")))))
