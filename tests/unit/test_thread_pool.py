"""A slot whose task takes far too long is noticed, once, and not before that is sure."""

from dataclasses import dataclass
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from worker.thread_pool import SlotWatch


@dataclass(eq=False)
class Request:
    """As Celery's, hashable by what it is."""

    type: str
    id: str = "some-id"
    name: str = "finetunes.tick"  # what its sender calls it in the header `shadow`


class Slots:
    """Requests in work, and a clock."""

    def __init__(self):
        self.running, self.now = {}, 1000.0
        self.watch = SlotWatch(self.running, timedelta(seconds=100), clock=lambda: self.now)

    def start(self, name="finetunes.work"):
        request = Request(name)
        self.running[request] = self.now
        return request

    def looks(self, seconds):
        """What a look each second finds last, and what was logged."""
        with capture_logs() as logs:
            for _ in range(seconds):
                self.now += 1
                found = self.watch.look()
        return found, logs


def test_a_task_that_takes_too_long_is_counted_while_it_does_and_logged_once():
    # Given a task that goes on and on
    slots = Slots()
    request = slots.start()
    # When it has taken as long as a task may, nothing is said; then, once that is sure, it is told once
    assert slots.looks(109) == (0, [])
    found, logs = slots.looks(60)
    assert found == 1
    assert [(one["event"], one["log_level"], one["task"], one["id"]) for one in logs] == [
        ("slot.stuck", "error", "finetunes.work", "some-id")
    ]
    # And another one beside it is told by itself, until both give their slots back
    slots.start()
    found, logs = slots.looks(120)
    assert (found, len(logs)) == (2, 1)
    slots.running.clear()
    assert slots.looks(1) == (0, [])
    slots.running[request] = slots.now
    assert slots.looks(50) == (0, [])


@pytest.mark.parametrize("waited", [101, 10_000])
def test_a_task_that_waited_for_redis_or_with_its_process_is_not_counted(waited):
    # Given a task that is late when looks begin again, and ends right afterwards
    slots = Slots()
    request = slots.start()
    slots.now += waited
    assert slots.looks(5) == (0, [])
    del slots.running[request]
    assert slots.looks(100) == (0, [])


def test_a_survey_takes_as_long_as_it_takes():
    slots = Slots()
    slots.start("finetunes.tick")
    assert slots.looks(1000) == (0, [])
