"""All checks of `janitor doctor`, in the order in which they are told."""

from collections.abc import Callable, Iterator

from tasks.errors import LedgerUnavailable
from tasks.ledger import Ledger
from tasks.ledger.redis_errors import unavailable
from tasks.ledger.statistics import statistics
from worker.doctor.api import check_api, check_proxy
from worker.doctor.ledger import check_ledger
from worker.doctor.retries import retries
from worker.doctor.server import Finding, check_server
from worker.settings import Settings, SettingsError


def check(settings: Settings, ledger: Callable[[], Ledger]) -> Iterator[Finding]:
    """Everything that can be known from here, one finding at a time.

    ledger: opens the ledger, or raises `SettingsError` or `LedgerUnavailable`. Raises `WrongLedger`.
    """
    try:
        accounts = settings.accounts
        yield Finding("settings", "ok", "no setting contradicts another (--settings lists them)")
    except SettingsError as error:
        accounts = {}
        yield Finding("settings", "error", str(error))
    try:
        with unavailable():
            yield from check_server(ledger().client)
        found = statistics(ledger())
        tried_again = retries(ledger(), found.accounts)
        yield from check_ledger(ledger(), settings.tick_every, found, tried_again)
    except SettingsError as error:
        yield Finding("redis", "error", str(error))
    except LedgerUnavailable as error:
        yield Finding("redis", "unreachable", str(error))
    if not accounts:
        yield Finding("api", "warning", "no key here: set BFL_API_KEY where workers run; producers need none")
        return
    yield from check_proxy()
    for account in accounts.values():
        yield from check_api(settings, account)
