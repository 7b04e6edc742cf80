"""`janitor demo`: the whole system on this machine, from nothing, against a simulated API.

Everything is real but the API: an embedded Redis, a Celery worker process, a producer that knows Celery alone, the
command. Each outcome is provoked by how the simulated API behaves; no record is written by hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from tasks.ledger import Ledger
from tasks.ledger.queries import workers_seen
from worker.cli.output import note
from worker.local import embedded
from worker.local.supervise import Spec, started
from worker.redis_url import celery_url, connect
from worker.sandbox.api import Sandbox

KEY = "demo-key"
_PATIENCE_SECONDS = "30"
_JANITOR = [sys.executable, "-m", "worker.cli"]

# A producer as another service would write it: it imports Celery and nothing of ours.
PRODUCER = """
import json, sys
from celery import Celery

app = Celery(broker=sys.argv[1], backend=sys.argv[1], set_as_current=False)
for arguments in json.loads(sys.argv[2]):
    deletion = app.send_task("finetunes.delete", kwargs=arguments, queue="deletions")
    print(deletion.id)
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
    note("starting an embedded Redis, a simulated BFL API and a Celery worker ...")
    with embedded.running(state_dir) as url, Sandbox(keys={KEY}) as api:
        env = _environment(url, api.url, state_dir)
        with started(_worker(env, state_dir)):
            _provoke(api)
            ids = [*_by_name(url, env), *_by_command(env)]
            note("waiting for the outcomes ...")
            _janitor(env, "wait", *ids, "--timeout", _PATIENCE_SECONDS, "--json", codes=(0, 1))
            note("the records, as `janitor list` shows them:\n")
            subprocess.run([*_JANITOR, "list"], env=env, check=True, timeout=60)  # noqa: S603 -- our own command
        deletes = api.deletes()
        gone = sum(call["effective"] for call in deletes)
        note(f"\nthe API counted {len(deletes)} delete calls, and {gone} finetunes are gone")
    return 0


def _environment(url: str, api_url: str, state_dir: Path) -> dict[str, str]:
    ours = ("BFL_", "JANITOR_", "REDIS_")
    return {
        **{name: value for name, value in os.environ.items() if not name.upper().startswith(ours)},
        "REDIS_URL": url,
        "BFL_API_KEY": KEY,
        "BFL_API_URL": api_url,
        "JANITOR_STATE_DIR": str(state_dir),
    }


def _worker(env: Mapping[str, str], state_dir: Path) -> Spec:
    """A plain Celery worker; ready once its maintenance, which starts last, has made it known."""
    ledger = Ledger(connect(env["REDIS_URL"]))
    options = ["-P", "threads", "--without-mingle", "--without-gossip"]
    argv = [sys.executable, "-m", "celery", "-A", "worker", "worker", *options]
    return Spec("worker", argv, env, ready=lambda: bool(workers_seen(ledger)), log=state_dir / "worker.log")


def _provoke(api: Sandbox) -> None:
    """How the simulated API behaves, finetune by finetune; `demo-gone` it does not know at all."""
    for name in ("by-name", "by-command", "lost-answer", "refused", "withdrawn"):
        api.create(f"demo-{name}")
    # Without a creation time, nothing shows that `demo-undated` is still the finetune that was meant hours ago.
    api.create("demo-undated", timestamp=None)
    # Created after it was asked for: the name belongs to another finetune by now.
    api.create("demo-reborn", timestamp=datetime.now(UTC).isoformat())
    # The delete happens, and its answer is lost on the way: only an observation can tell.
    api.fault("reset", finetune_id="demo-lost-answer", applies=True)
    problem = {"loc": ["body", "finetune_id"], "msg": "this finetune is still training", "type": "value_error"}
    api.fault("status", finetune_id="demo-refused", status=422, body={"detail": [problem]})


def _by_name(url: str, env: Mapping[str, str]) -> list[str]:
    now = datetime.now(UTC).isoformat()
    long_ago = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    wanted: list[dict[str, Any]] = [
        {"finetune_id": "demo-by-name", "requested_by": "billing", "reason": "customer left", "requested_at": now},
        {"finetune_id": "demo-lost-answer", "requested_by": "billing", "requested_at": now},
        {"finetune_id": "demo-refused", "requested_at": now},
        {"finetune_id": "demo-undated", "requested_at": long_ago},
        {"finetune_id": "demo-reborn", "requested_at": long_ago},
    ]
    note("a producer that knows Celery alone asks for five of them by name, for two of them two hours late ...")
    argv = [sys.executable, "-c", PRODUCER, celery_url(url), json.dumps(wanted)]
    done = subprocess.run(argv, env=env, check=True, capture_output=True, text=True, timeout=30)  # noqa: S603 -- ours
    return done.stdout.split()


def _by_command(env: Mapping[str, str]) -> list[str]:
    note("and the command for three more, of which one is withdrawn ...")
    by_command, gone = _delete(env, "demo-by-command", "demo-gone")
    (withdrawn,) = _delete(env, "demo-withdrawn", "--in", "1h")
    _janitor(env, "cancel", withdrawn, "--reason", "it is used again")
    return [by_command, gone, withdrawn]


def _delete(env: Mapping[str, str], *arguments: str) -> list[str]:
    return [json.loads(line)["id"] for line in _janitor(env, "delete", *arguments, "--json").splitlines()]


def _janitor(env: Mapping[str, str], *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    argv = [*_JANITOR, *arguments]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603 -- ours
    if done.returncode not in codes:
        raise click.ClickException(f"`janitor {' '.join(arguments)}` ended with {done.returncode}: {done.stderr}")
    return done.stdout
