"""Words from elsewhere on a terminal: made visible, compared with what is known, and when a name may mislead."""

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

_INVISIBLE = ("FILLER", "JOINER", "VARIATION SELECTOR", "PATTERN BLANK", "ZERO WIDTH")
_LIKE_A_HYPHEN = {"Pc", "Pd", "Sm"}  # Unicode's categories of connectors, dashes and mathematical signs
# These are written together, and with Latin letters, in Chinese, Japanese and Korean.
_WRITTEN_TOGETHER = {"BOPOMOFO", "CJK", "HANGUL", "HIRAGANA", "IDEOGRAPHIC", "KATAKANA"}


def visible(text: str, *, keep: str = "") -> str:
    r"""`text` without control, direction and other invisible characters: each is shown as its escape, `\x1b`.

    keep: "\n" for what has several lines. A name keeps all that tells it from another one, unlike with
    `tasks.text.one_line`.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escape(char) for char in text)


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that is not known: a question, or nothing if no known one is like it."""
    by_lower_case = {name.lower(): str(name) for name in known}
    found = get_close_matches(word.lower(), by_lower_case, n=1)
    return f"; did you mean {by_lower_case[found[0]]!r}?" if found else ""


def confusing(name: str) -> str | None:
    """Why a name may be taken for another one that looks the same; None if it has nothing of the kind."""
    if not name.isprintable() or any(word in unicodedata.name(char, "") for char in name for word in _INVISIBLE):
        return "has invisible characters"
    if unicodedata.normalize("NFKC", name) != name:
        return "has characters in an unusual form"
    if any(not char.isascii() and unicodedata.category(char) in _LIKE_A_HYPHEN for char in name):
        return "has a character that looks like a hyphen"
    if "*" in name:
        return "has a *, which stands for itself here"
    scripts = {unicodedata.name(char, "").replace("-", " ").partition(" ")[0] for char in name if char.isalpha()}
    mixed = [script.capitalize() for script in sorted(scripts - _WRITTEN_TOGETHER)]
    return f"mixes {' and '.join(mixed)} letters" if len(mixed) > 1 else None


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()
