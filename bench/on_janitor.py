"""The janitor: requests by the way that the command and HTTP take, records as results."""

from __future__ import annotations

import uuid
from functools import partial

from tasks.definitions import wake
from tasks.intake import BULK, Intake
from tasks.ledger import Ledger
from tasks.records import NewRequest
from worker.app import create_app
from worker.connections import connect
from worker.settings import load_settings


class Producer:
    def __init__(self, url: str) -> None:
        self.ledger = Ledger(connect(url, patient=False))
        self.intake = Intake(self.ledger, partial(wake, create_app(load_settings(), url)))

    def one_by_one(self, ids: list[str]) -> None:
        for one in ids:
            self.intake.accept([_request(one, bulk=False)])

    def many(self, ids: list[str]) -> None:
        self.intake.accept([_request(one, bulk=len(ids) > BULK) for one in ids])

    def done(self) -> int:
        return int(self.ledger.redis.zcard("janitor:ix:default:deleted"))


def _request(finetune_id: str, *, bulk: bool) -> NewRequest:
    return NewRequest(str(uuid.uuid4()), finetune_id, requested_by="bench", reason="measured", bulk=bulk)


producer = Producer
