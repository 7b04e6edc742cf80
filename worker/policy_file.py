"""The file with the cleanup policies: read anew each time, checked whole."""

from __future__ import annotations

from pathlib import Path

from tasks.errors import InvalidRequest
from tasks.policies import Policy, PolicyError, parse_policies


def read_policies(file: Path | None) -> tuple[Policy, ...]:
    """The policies in `file`; raises `InvalidRequest` with the file, the line and the reason."""
    if file is None:
        raise InvalidRequest("no policies: set JANITOR_POLICY_FILE to a TOML file, or give --file")
    try:
        return parse_policies(file.read_text(encoding="utf-8"))
    except PolicyError as error:
        raise InvalidRequest(f"{file}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InvalidRequest(f"{file} cannot be read: {reason}") from None
