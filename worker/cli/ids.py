"""The ids that people give: from a file, short, or a finetune's name by mistake."""

from collections.abc import Sequence
from typing import NamedTuple, TextIO

import click

from tasks.errors import InvalidRequest, UnknownDeletion
from tasks.ledger import Ledger
from tasks.ledger.queries import Filter, get_many, list_deletions
from tasks.text import in_command

_RECENT = 1000  # deletions among which a short id must be unique
_SHORTEST = 4
_MOST_LOOKED_UP = 20  # beyond that it is a list from elsewhere, not a person's typing
FILE = click.File("r", encoding="utf-8-sig")  # a BOM is no part of an id


class Found(NamedTuple):
    """The id of a deletion; as it was given if there is none, with the error that says why."""

    id: str
    error: str | None = None


def find(ledger: Ledger, given: Sequence[str]) -> list[Found]:
    """The deletion that each given id means, the same one once: its whole id, or a unique start of it."""
    known = {one.id for one in get_many(ledger, given) if one}
    unknown = [id_ for id_ in given if id_ not in known]
    recent: list[str] = []
    if 0 < len(unknown) <= _MOST_LOOKED_UP:
        recent = [one.id for one in list_deletions(ledger, Filter(), limit=_RECENT).deletions]
    return list(dict.fromkeys(Found(id_) if id_ in known else _unknown(ledger, id_, recent) for id_ in given))


def find_all(ledger: Ledger, given: Sequence[str]) -> list[str]:
    """The same; raises `UnknownDeletion` for the first that is not known."""
    found = find(ledger, given)
    for one in found:
        if one.error:
            raise UnknownDeletion(one.error)
    return [one.id for one in found]


def lines(file: TextIO | None) -> list[str]:
    """The ids in a file, one a line; empty lines and those that begin with # are left out."""
    try:
        stripped = [line.strip() for line in file or ()]
    except UnicodeDecodeError:
        raise InvalidRequest(f"{getattr(file, 'name', '')} is not text: give one id a line") from None
    return [line for line in stripped if line and not line.startswith("#")]


def _unknown(ledger: Ledger, given: str, recent: Sequence[str]) -> Found:
    nothing = f"no deletion has the id {given!r}"
    # Before short ids: a finetune's name may be the start of an id that somebody chose for another finetune.
    if given and recent and list_deletions(ledger, Filter(finetune_id=given), limit=1).deletions:
        look = f"`janitor list {in_command(given, '--finetune')}` lists its deletions with their ids"
        return Found(given, f"{nothing}, it is the name of a finetune: {look}")
    alike = [id_ for id_ in recent if id_.startswith(given)] if len(given) >= _SHORTEST else []
    if len(alike) == 1:
        return Found(alike[0])
    return Found(given, f"{nothing}, and {len(alike)} begin with it: give more of it" if alike else nothing)
