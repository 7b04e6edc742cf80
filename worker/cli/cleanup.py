"""Commands about stale finetunes: check."""

from __future__ import annotations

from pathlib import Path

import click

from tasks.durations import format_duration
from tasks.errors import InvalidRequest
from tasks.policies import Policy, PolicyError, parse_policies
from worker.settings import load_settings

_PATH = click.Path(dir_okay=False, path_type=Path)


@click.group()
def cleanup() -> None:
    """Find the finetunes nobody needs any more.

    The policies are a TOML file, reviewed like code: docs/policies.example.toml shows one.

    \b
    janitor cleanup check
    """


@cleanup.command()
@click.option(
    "--file", "file", type=click.Path(dir_okay=False, path_type=Path), help="Instead of JANITOR_POLICY_FILE."
)
def check(*, file: Path | None) -> int:
    """Check the policies, and nothing else; say what each would do.

    \b
    janitor cleanup check
    janitor cleanup check --file policies.toml
    """
    for policy in read_policies(file or load_settings().policy_file):
        click.echo(_in_words(policy))
    return 0


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


def _in_words(policy: Policy) -> str:
    ages = [("older than", policy.older_than), ("unused for", policy.unused_for)]
    rules = [f"match {', '.join(policy.match)}"]
    rules += [f"{what} {format_duration(age)}" for what, age in ages if age]
    rules += [f"keep the newest {policy.keep_newest}"] if policy.keep_newest else []
    rules += [f"never {', '.join(policy.protect)}"] if policy.protect else []
    caps = (
        f"at most {policy.max_deletions} and {policy.max_percent} % at once, after {format_duration(policy.grace)}"
    )
    when = f"{policy.mode} at {policy.schedule} UTC" if policy.schedule else "when asked"
    return f"{policy.name} ({policy.account}): {'; '.join(rules)}; {caps}; {when}"
