"""The `janitor` command; each subcommand is imported only when it is called, so that help is quick."""

import codecs
import io
import json
import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import click

from tasks.api.errors import ApiError
from tasks.errors import JanitorError, LedgerUnavailable, PlanRefused, UnknownDeletion, UnknownPlan
from tasks.text import shown
from worker.cli.text import visible
from worker.cli.times import unknown_zone

# command: (module below worker.cli, what it does)
_COMMANDS = {
    "demo": ("demo", "Show the whole system here, against a simulated API."),
    "up": ("processes", "Run Redis, worker and beat here, in the foreground."),
    "delete": ("deletions", "Ask for finetunes to be deleted."),
    "show": ("deletions", "Show one record."),
    "list": ("deletions", "List records, newest first."),
    "export": ("export", "Write all records of a period, as JSON lines or CSV."),
    "wait": ("deletions", "Wait until deletions have ended."),
    "cancel": ("deletions", "Withdraw deletions."),
    "retry": ("deletions", "Ask again for deletions that did not end as asked."),
    "resolve": ("control", "Note what was found out about a deletion in review."),
    "status": ("status", "Show on one screen what needs a person, and what happens."),
    "pause": ("control", "Stop all deleting within 2 seconds, everywhere."),
    "resume": ("control", "Resume deleting after a pause."),
    "dead-letters": ("control", "List, show, requeue or drop unreadable messages."),
    "audit": ("audit", "Show who did what, when and why."),
    "finetunes": ("finetunes", "Show what is there: age, last use, stale or not."),
    "protect": ("finetunes", "Protect finetunes from cleanups."),
    "unprotect": ("finetunes", "Let cleanups delete finetunes again."),
    "hold": ("finetunes", "Keep a finetune from every deletion, a person's too."),
    "release": ("finetunes", "Let a finetune that is held be deleted again."),
    "holds": ("finetunes", "List what is held, who holds it and why."),
    "touch": ("finetunes", "Report that finetunes are used."),
    "cleanup": ("cleanup", "Find stale finetunes: check, plan, show, list, apply."),
    "doctor": ("doctor", "Check settings, Redis, the API and the workers."),
    "health": ("health", "Say whether the worker, beat or HTTP service here is well."),
    "worker": ("processes", "Run a worker."),
    "beat": ("processes", "Run beat, which starts scheduled cleanups."),
    "serve": ("processes", "Run the HTTP service."),
    "tokens": ("tokens", "Make, list and revoke tokens of the HTTP service."),
    "metrics": ("processes", "Serve Prometheus metrics."),
    "sandbox": ("processes", "Run a simulated BFL API."),
}
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}
_EXTRA = ("fastapi", "prometheus_client", "uvicorn")  # what the extra `http` brings
WRONG_USAGE, UNREACHABLE, NOT_IN_TIME, UNREAD = 2, 3, 4, 141  # exit codes; the last one as by SIGPIPE


class _LazyGroup(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:  # click would make it exit code 1
            _drop(sys.stdout, sys.stderr)
            code = UNREAD
        return code

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 -- click's
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"worker.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, "list_" if cmd_name == "list" else cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 -- click's
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in _COMMANDS.items()])


# The names are for click's suggestions; the commands themselves come from `get_command`.
@click.group(
    cls=_LazyGroup, commands={name: click.Command(name) for name in _COMMANDS}, context_settings=_SETTINGS
)
@click.version_option(package_name="finetune-janitor", prog_name="janitor")
def cli() -> None:
    """Delete finetunes at the BFL API: queued, carried out by workers, every outcome on record.

    \b
    janitor demo                        see it work, nothing needed
    janitor up                          run it here
    janitor delete my-finetune --wait   delete one and see its record

    Settings come from the environment; `janitor doctor --settings` lists them. Exit codes: 0 done as asked,
    1 a deletion ended otherwise, 2 wrong usage, 3 Redis or the API cannot be reached, 4 not done in time.
    """
    if why := unknown_zone():
        click.echo(f"warning: {visible(why)}", err=True)


def main(argv: list[str] | None = None) -> None:
    """Run the command; every expected error ends in one line on stderr and its exit code."""
    _open_streams()
    try:
        code: int | None = cli.main(argv, prog_name="janitor", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except JanitorError as error:
        click.echo(f"Error: {visible(str(error))}", err=True)
        code = exit_code(error)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        needs = "this command needs `pip install '.[http]'` in a checkout"
        click.echo(f"Error: {error.name} is not installed: {needs}", err=True)
        code = WRONG_USAGE
    except UnicodeEncodeError as error:
        click.echo(f"Error: {shown(error.object)} cannot be written as {error.encoding}: give UTF-8", err=True)
        code = WRONG_USAGE
    except OSError as error:
        _drop(sys.stdout)
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"Error: {where}{error.strerror or error}", err=True)
        code = 1
    sys.exit(code)


def _open_streams() -> None:
    """Replace a closed standard stream by /dev/null: otherwise the next file or socket would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 -- it stays open
    # What was accepted must be told in any encoding. JSON stays JSON.
    codecs.register_error("escape", _escape)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="escape")


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _drop(*streams: TextIO) -> None:
    """What is still in a buffer would fail again at the exit, and change the exit code."""
    for stream in streams:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def exit_code(error: Exception) -> int:
    """The exit code for an error: 1 unknown or a refused plan, 3 unreachable, 2 what a person can correct."""
    if isinstance(error, LedgerUnavailable | ApiError):
        return UNREACHABLE
    return 1 if isinstance(error, UnknownDeletion | UnknownPlan | PlanRefused) else WRONG_USAGE
