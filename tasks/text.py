"""Text from elsewhere, made safe to print and store; and when two names mean one finetune."""

import re
import shlex
from pathlib import Path

_MOST_BYTES = 1 << 20  # of a file
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def one_line(text: str, *, most: int = 500) -> str:
    """`text` as one printable line of at most `most` characters; a longer one ends in `...`.

    Control characters, escapes, line breaks, invisible characters, direction overrides and halves of surrogate
    pairs become a space, so a terminal, a table or a log shows the line as it is.
    """
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def read_file(file: Path) -> str:
    """The text of a file that a setting names. Raises `OSError`, or `ValueError` with the reason."""
    with file.open("rb") as opened:
        data = opened.read(_MOST_BYTES + 1)  # some files never end
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("it is not text") from None


def finetune_key(finetune_id: str) -> str:
    """The one spelling of a finetune's name: a hyphenated UUID in lower case, any other name as it is."""
    return finetune_id.lower() if _UUID.fullmatch(finetune_id) else finetune_id


def is_same_name(one: str, other: str) -> bool:
    """Whether two names mean one finetune: equal, or two spellings of one hyphenated UUID."""
    return finetune_key(one) == finetune_key(other)


def is_line(value: object, most: int) -> bool:
    """Whether it is a printable text of at most `most` characters."""
    return isinstance(value, str) and len(value) <= most and value.isprintable()


def shown(value: object) -> str:
    """How a message shows what was given: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def in_command(name: str, option: str = "") -> str:
    """A name as a command to copy has it, quoted for a shell; options go before it. option: whose value it is."""
    if option:
        return f"{option} {shlex.quote(name)}"
    return f"{'-- ' if name.startswith('-') else ''}{shlex.quote(name)}"
