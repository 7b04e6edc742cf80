"""Results and callbacks of requests by name: a worker that dies before them leaves them to another."""

import json
import signal
from collections import Counter

import pytest
from celery import chain

from tasks.ledger.queries import get
from tests.chaos.harness import RECLAIM_SECONDS
from tests.processes import producer, until

# A result that is due is written after 5 s, then each minute; a message that runs callbacks is good
# for a minute.
DUE_SECONDS, AGAIN_SECONDS = 15, 150
POINTS = [
    "after the accept",
    "before the result",
    "between result and callbacks",
    pytest.param("after the finish", marks=pytest.mark.long),
    *(pytest.param(point, marks=[pytest.mark.long, pytest.mark.timeout(300)]) for point in (
        "before the callbacks' message", "in the callbacks' message", "after the callbacks",
    )),
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_before_it_has_answered_leaves_result_and_callbacks_to_another(system, api, point):
    # Given a request by name with a link, in a chain
    api.create("ft")
    app = producer(system.url)
    crashing = system.start_worker(crash_at=point)
    request = app.signature("finetunes.delete", ["ft"], queue="deletions")
    request.link(app.signature("theirs.link", queue="theirs"))
    last = chain(request, app.signature("theirs.next", queue="theirs"), app=app).apply_async()
    # When its worker dies
    assert crashing.process.wait(90) == -signal.SIGKILL
    system.start_worker()
    # Then the result is there, and so are both callbacks: once, unless it is not known whether they ran.
    seconds = AGAIN_SECONDS if "callbacks" in point else RECLAIM_SECONDS + DUE_SECONDS
    told = last.parent.get(timeout=seconds)
    kept = get(system.ledger, last.parent.id).to_json()
    assert told == kept | {"verified_at": told["verified_at"]}  # that may have come since then
    ledger, called = system.ledger, Counter()

    def is_done():
        return not ledger.redis.exists(ledger.keys.callbacks(last.parent.id))

    until(is_done, seconds=seconds, what="the end of the callbacks")
    called.update(json.loads(raw)["headers"]["task"] for raw in system.store.lrange("theirs", 0, -1))
    times = 2 if point == "after the callbacks" else 1
    assert called == {"theirs.link": times, "theirs.next": times}
    assert len(api.deletes()) == 1
    (deletion,) = system.deletions()
    assert (deletion.id, deletion.state) == (last.parent.id, "deleted")


@pytest.mark.long
def test_a_failure_and_its_callback_survive_a_crash_too(system, api):
    # Given a request for what does not exist, and a worker that dies before it has answered
    app = producer(system.url)
    crashing = system.start_worker(crash_at="before the result")
    failed = app.signature("theirs.failed", queue="theirs")
    result = app.send_task("finetunes.delete", ["nothing"], queue="deletions", link_error=failed)
    assert crashing.process.wait(20) == -signal.SIGKILL
    system.start_worker()
    with pytest.raises(Exception, match="not_found"):
        result.get(timeout=DUE_SECONDS)
    until(lambda: system.store.llen("theirs") == 1, seconds=DUE_SECONDS, what="the callback")
