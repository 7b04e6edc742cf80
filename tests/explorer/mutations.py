"""Rules switched off, one at a time: each of these changes must make the explorer fail."""

from __future__ import annotations

from typing import NamedTuple

from tests.explorer import mutations_lua, mutations_python


class Mutation(NamedTuple):
    """file: in `tasks/`. caught_by: an argument of `tests.explorer.replay`. old: stands exactly once in the file."""

    name: str
    file: str
    caught_by: str
    old: str
    new: str


MUTATIONS = (
    *(Mutation(name, f"ledger/lua/{file}", *rest) for name, file, *rest in mutations_lua.ROWS),
    *(Mutation(*row) for row in mutations_python.ROWS),
)

# Played by `make test`; all of them by `make chaos`.
SHORT = frozenset((
    "a renewal without its token check", "a renewal that does not renew", "a mark that forgets what was observed",
    "an outcome that forgets its number", "a permit not given back",
    "a mark without its token check", "a mark in spite of a cancel", "a mark in spite of a person's hold", "a finish without its token check", "a claim in spite of a hold",
    "a claim without the attempts of siblings", "one that holds is not put back", "a retry that forgets an unclear attempt",
    "attempts settle at once", "absent from anywhere", "another incarnation is deleted", "younger than its request",
    "asked for during a sibling's attempt", "an old observation", "an unclear answer is not noted",
))  # fmt: skip
