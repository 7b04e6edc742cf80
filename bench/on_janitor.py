"""The janitor: single requests by name, as other services send them, many by the way of HTTP and the command."""

from __future__ import annotations

import uuid
from functools import partial

from celery import Celery

from tasks.celery_tasks import wake
from tasks.intake import BULK, Intake
from tasks.ledger import Ledger
from tasks.records import NewRequest
from worker.app import create_app
from worker.redis_url import celery_url, connect
from worker.settings import load_settings


class Producer:
    def __init__(self, url: str) -> None:
        self.ledger = Ledger(connect(url, patient=False))
        self.intake = Intake(self.ledger, partial(wake, create_app(load_settings(), url)))
        self.app = Celery("bench", broker=celery_url(url), backend=celery_url(url), set_as_current=False)

    def one_by_one(self, ids: list[str]) -> None:
        for one in ids:
            self.app.send_task("finetunes.delete", args=[one], queue="deletions")

    def many(self, ids: list[str]) -> None:
        self.intake.accept([_request(one, bulk=len(ids) > BULK) for one in ids])

    def done(self) -> int:
        return int(self.ledger.redis.zcard(self.ledger.keys.index("default", "deleted")))


def _request(finetune_id: str, *, bulk: bool) -> NewRequest:
    return NewRequest(str(uuid.uuid4()), finetune_id, requested_by="bench", reason="measured", bulk=bulk)


producer = Producer
