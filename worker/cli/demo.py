"""`janitor demo`: the whole system on this machine, from nothing, against a simulated API.

Everything is real but the API: an embedded Redis, a Celery worker process, a producer that knows Celery alone, the
command. Each outcome is provoked by how the simulated API behaves; no record is written by hand.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from worker.cli.output import note

KEY = "demo-key"
_PATIENCE_SECONDS = 30.0
_JANITOR = [sys.executable, "-m", "worker.cli"]

# A producer as another service would write it: it imports Celery and nothing of ours.
PRODUCER = """
import json, sys
from celery import Celery

app = Celery(broker=sys.argv[1], backend=sys.argv[1])
for arguments in json.loads(sys.argv[2]):
    app.send_task("finetunes.delete", queue="deletions", **arguments)
"""


@click.command()
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Keep the state in this folder.")
def demo(*, keep: Path | None) -> int:
    """Show the whole system on this machine, against a simulated API.

    Nothing is needed: no Redis, no Docker, no key. It takes some seconds.

    \b
    janitor demo
    """
    with tempfile.TemporaryDirectory(prefix="janitor-demo-") as folder:
        return _show(keep or Path(folder))


def _show(state_dir: Path) -> int:
    from worker import embedded  # noqa: PLC0415 -- not needed for --help
    from worker.sandbox import Sandbox  # noqa: PLC0415

    note("starting an embedded Redis, a simulated BFL API and a Celery worker ...")
    with embedded.running(state_dir) as url, Sandbox(keys={KEY}) as api:
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("BFL_", "JANITOR_"))},
            "REDIS_URL": url,
            "BFL_API_KEY": KEY,
            "BFL_API_URL": api.url,
            "JANITOR_STATE_DIR": str(state_dir),
            "JANITOR_LOG_LEVEL": "ERROR",
        }
        _prepare(api)
        with _worker(env, state_dir / "worker.log"):
            _play(api, url, env)
            note("the records, as `janitor list` shows them:\n")
            subprocess.run([*_JANITOR, "list"], env=env, check=True)  # noqa: S603 -- our own command
        deletes = [call for call in api.journal() if call["call"] == "delete_finetune"]
        note(
            f"\nthe API counted {len(deletes)} delete calls, {sum(c['effective'] for c in deletes)} finetunes are gone"
        )
    return 0
