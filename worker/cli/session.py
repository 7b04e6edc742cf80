"""What commands work with: settings, a ledger, and what is built on them; a bar for long work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from tasks.intake import Intake
from tasks.ledger import Ledger
from tasks.ledger.queries import known_accounts
from worker.cli.options import known_account
from worker.logs import configure as configure_logs
from worker.redis_url import connect, redis_url
from worker.settings import Settings, load_settings, require_accounts, terms

if TYPE_CHECKING:
    from tasks.cleanup.schedule import Cleaner


class Session:
    """What one command works with. Raises `SettingsError`; each other part is made when it is first used.

    account: what was given with --account, to be checked once the accounts that workers have are known.
    """

    def __init__(self, account: str | None = None) -> None:
        self._account = account
        self.settings: Settings = load_settings()
        configure_logs("WARNING")  # on stderr: stdout is for records

    @cached_property
    def ledger(self) -> Ledger:
        """Raises `LedgerUnavailable` at once if Redis is away, `WrongLedger`, `InvalidRequest` for the account."""
        ledger = Ledger(connect(redis_url(self.settings), patient=False), terms(self.settings))
        ledger.check_schema()
        if self._account is not None:
            known_account(self._account, known_accounts(ledger))
        return ledger

    @cached_property
    def intake(self) -> Intake:
        return Intake(self.ledger, self._wake, allow_org_ids=self.settings.allow_org_ids)

    @cached_property
    def cleaner(self) -> Cleaner:
        """What reads the API and makes plans; raises `SettingsError` without a key."""
        from worker.app import cleaner  # noqa: PLC0415 -- brings in Celery

        require_accounts(self.settings)
        return cleaner(self.settings, self.ledger, self.intake, time.sleep)

    def _wake(self, account: str) -> None:
        """Publish a wake-up."""
        from tasks.celery_tasks import wake  # noqa: PLC0415 -- brings in Celery
        from worker.app import create_app  # noqa: PLC0415 -- brings in Celery

        wake(create_app(self.settings), account)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for long work, told (done, total); on a terminal only."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
