"""`janitor demo`: the whole system on this machine, from nothing, against a simulated API.

Everything is real but the API: an embedded Redis, a Celery worker process, a Celery producer, the command. Each
outcome is provoked by how the simulated API behaves; no record is written by hand.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import click
from celery import Celery

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


@click.command()
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Keep the state in this folder.")
def demo(*, keep: Path | None) -> None:
    """Show the whole system on this machine, against a simulated API.

    Nothing is needed: no Redis, no Docker, no key. It takes some seconds.

    \b
    janitor demo
    """
    with tempfile.TemporaryDirectory(prefix="janitor-demo-") as folder:
        _show(keep or Path(folder))


def _show(state_dir: Path) -> None:
    note("starting an embedded Redis, a simulated BFL API and a Celery worker ...")
    with embedded.running(state_dir) as url, Sandbox(keys={KEY}) as api:
        env = _environment(url, api.url, state_dir)
        with started(_worker(env, state_dir)):
            _provoke(api)
            ids = [*_by_name(url), *_by_command(env)]
            note("waiting for the outcomes ...")
            _janitor(env, "wait", *ids, "--timeout", _PATIENCE_SECONDS, codes=(0, 1))
            note("the records, as `janitor list` shows them:")
            note("")
            subprocess.run([*_JANITOR, "list"], env=env, check=True, timeout=60)  # noqa: S603 -- our own command
        deletes = api.deletes()
        gone = sum(call["effective"] for call in deletes)
        note("")
        note(f"the API counted {len(deletes)} delete calls, and {gone} finetunes are gone")


def _environment(url: str, api_url: str, state_dir: Path) -> dict[str, str]:
    ours = ("BFL_", "JANITOR_", "REDIS_")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(ours)}
    here = {"REDIS_URL": url, "BFL_API_KEY": KEY, "BFL_API_URL": api_url, "JANITOR_STATE_DIR": str(state_dir)}
    return kept | here


def _worker(env: Mapping[str, str], state_dir: Path) -> Spec:
    """A Celery worker; ready once its maintenance, which starts last, has made it known."""
    ledger, log = Ledger(connect(env["REDIS_URL"])), state_dir / "worker.log"
    return Spec("worker", [*_JANITOR, "worker"], env, ready=lambda: bool(workers_seen(ledger)), log=log)


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


def _by_name(url: str) -> list[str]:
    """As another service sends them: with Celery, and with nothing of ours."""
    now = datetime.now(UTC)
    long_ago = {"requested_at": (now - timedelta(hours=2)).isoformat()}
    wanted: dict[str, dict[str, str]] = {
        "demo-by-name": {"requested_by": "billing", "reason": "customer left"},
        "demo-lost-answer": {"requested_by": "billing"},
        "demo-refused": {},
        "demo-undated": long_ago,
        "demo-reborn": long_ago,
    }
    note("a producer that knows Celery alone asks for five of them by name, for two of them two hours late ...")
    with Celery(broker=celery_url(url), backend=celery_url(url), set_as_current=False) as app:
        send = partial(app.send_task, "finetunes.delete", queue="deletions")
        return [send([name], {"requested_at": now.isoformat(), **more}).id for name, more in wanted.items()]


def _by_command(env: Mapping[str, str]) -> list[str]:
    note("and the command for three more, of which one is withdrawn ...")
    by_command, gone = _janitor(env, "delete", "demo-by-command", "demo-gone")
    (withdrawn,) = _janitor(env, "delete", "demo-withdrawn", "--in", "1h")
    _janitor(env, "cancel", withdrawn, "--reason", "it is used again")
    return [by_command, gone, withdrawn]


def _janitor(env: Mapping[str, str], *arguments: str, codes: tuple[int, ...] = (0,)) -> list[str]:
    """Run a command; the ids of the records that it prints."""
    argv = [*_JANITOR, *arguments, "--json"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603 -- ours
    if done.returncode not in codes:
        raise click.ClickException(f"`janitor {' '.join(arguments)}` ended with {done.returncode}: {done.stderr}")
    return [json.loads(line)["id"] for line in done.stdout.splitlines()]
