"""`janitor health`: for the health checks of Compose, Kubernetes and scripts."""

import os
from pathlib import Path

import click

from worker.health import KINDS, probe


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
def health(*, kind: str) -> int:
    """Say whether the workers, beat or the HTTP service on this machine or in this container do their work.

    Exit code 0 if all of them do, 1 if one does not or none runs. Each process notes it in JANITOR_STATE_DIR after
    it has asked Redis; this command asks nobody.

    \b
    janitor health worker
    """
    is_healthy, line = probe(kind, _state_dir())
    click.echo(line, err=not is_healthy)
    return 0 if is_healthy else 1


def _state_dir() -> Path:
    """As the settings say. Reading them all would take longer than the probe."""
    if given := os.environ.get("JANITOR_STATE_DIR"):
        return Path(os.path.expanduser(given))  # Path.expanduser raises if there is no such user
    from platformdirs import user_state_path  # noqa: PLC0415 -- only if it is needed

    return user_state_path("finetune-janitor", appauthor=False)
