"""Callbacks are published by a user of Redis of their own, if `JANITOR_CALLBACKS_URL` names one.

Their queues are chosen by strangers. `worker.message_callbacks` refuses the names of the ledger's keys, and a user
who cannot write there makes sure of it.
"""

from functools import cached_property
from typing import Any

from celery import Celery
from kombu import Connection, pools

from worker.message_fields import TASKS
from worker.redis_url import celery_options, celery_url, with_password
from worker.settings import Settings, SettingsError


class App(Celery):
    """Celery's app. callbacks_url: where tasks that are not ours are published; None if like all others."""

    callbacks_url: str | None = None

    def send_task(self, name: str, *arguments: Any, **options: Any) -> Any:
        if self.callbacks_url is None or name in TASKS:
            return super().send_task(name, *arguments, **options)
        # Instead of a producer that is given: Celery takes it from its own pool for all tasks of a group.
        with pools.producers[self._callbacks].acquire(block=True) as producer:
            return super().send_task(name, *arguments, **{**options, "producer": producer})

    @cached_property
    def _callbacks(self) -> Connection:
        url = self.callbacks_url or ""
        return self.connection_for_write(celery_url(url), transport_options=celery_options(url))


def callbacks_url(settings: Settings) -> str | None:
    """`JANITOR_CALLBACKS_URL` with its password; raises `SettingsError`."""
    if settings.callbacks_url is None:
        return None
    try:
        return with_password(settings.callbacks_url.get_secret_value(), settings.callbacks_password_file)
    except SettingsError as error:
        # The form is that of REDIS_URL.
        raise SettingsError(str(error).replace("REDIS_", "JANITOR_CALLBACKS_")) from None
