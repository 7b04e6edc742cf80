"""Why an unfinished deletion waits: a table of what is found against the one line that a person reads."""

import itertools
from collections import Counter
from contextlib import nullcontext
from datetime import timedelta

import pytest
import redis
from celery import Celery
from celery.beat import Scheduler

from tasks.api.client import BflClient
from tasks.api.errors import ApiError
from tasks.cleanup.policies import UNREADABLE
from tasks.durations import iso
from tasks.errors import LedgerUnavailable
from tasks.ledger.queries import Stop, get, get_many
from tasks.ledger.types import Act
from tasks.maintenance import TOUCHES
from tasks.records import Deletion, State
from tasks.waiting import Around, Place, Worker, explained, read_entry, why
from tests.conftest import NOW, accept, asking, claim, finish
from worker.app import Services, configuration
from worker.cli import following
from worker.doctor.retries import retries
from worker.settings import Settings

EVER = timedelta(days=400)
ALL = (Worker("one:1", {}, "1"),)
QUEUED = Deletion(
    id="d-1", finetune_id="my-finetune", account="default", state=State.QUEUED, created_at=NOW, asked_at=NOW,
    due_at=NOW, next_try_at=NOW, deadline=NOW + EVER,
)  # fmt: skip


def deletion(**changes):
    return Deletion(**{**vars(QUEUED), **changes})


def after(seconds):
    return NOW + timedelta(seconds=seconds)


RETRIED = {"state": State.SCHEDULED, "next_try_at": after(30), "message": "HTTP 500: broken"}
PAUSED = Stop("a complaint", None, None, paused_at=NOW, paused_by="ann@host")
PARKED = Stop(None, "HTTP 403: no", None, parked_at=NOW)
COOLING = Stop(None, None, "HTTP 429: slow down", cool_until=after(9))
HERE = {"now": NOW, "workers": ALL}
NOBODY = {"now": NOW, "workers": ()}

REASONS = [
    # what the record says, where it stands, what is around; the line
    ("it runs", {"state": State.RUNNING}, Place(), NOBODY, None),
    ("it is final", {"state": State.DELETED}, Place(), NOBODY, None),
    ("an unknown state", {"state": "held"}, Place(), NOBODY, None),
    ("no worker", {}, Place(), NOBODY, "no worker is seen: start one with `janitor worker` or `janitor up`"),
    ("no key", {}, Place(), {"now": NOW, "workers": [read_entry("one:1 accounts=emea,us queues=wakeups 1")]},
     "no running worker has the key of account default: set BFL_API_KEY for one"),
    ("no key of a named account", {"account": "emea"}, Place(),
     {"now": NOW, "workers": [read_entry("one:1 accounts=default 1")]},
     "no running worker has the key of account emea: set BFL_API_KEY_EMEA for one"),
    ("no reader of wake-ups", {}, Place(), {"now": NOW, "workers": [read_entry("one:1 queues=deletions 1")]},
     "no worker reads the queue wakeups: start one without -Q"),
    ("paused", {}, Place(), HERE | {"stops": {"default": PAUSED}},
     "account default is paused since 2026-03-01T12:00:00.000Z by ann@host (a complaint): "
     "ask ann@host before `janitor resume --account default`"),
    ("all paused, by an earlier version", {}, Place(), HERE | {"stops": {"*": Stop("by request", None, None)}},
     "all accounts are paused (by request): `janitor resume`"),
    ("another account is paused", {}, Place(), HERE | {"stops": {"emea": PAUSED}}, "it is next in line"),
    ("paused and withdrawn", {"cancel_requested_at": NOW}, Place(), HERE | {"stops": {"*": PAUSED}},
     "it is next in line"),
    ("parked", {}, Place(), HERE | {"stops": {"default": PARKED}},
     "account default is parked since 2026-03-01T12:00:00.000Z: the API refuses its key (HTTP 403: no)"),
    ("parked comes before its retry", RETRIED, Place(tries=1), HERE | {"stops": {"default": PARKED}},
     "account default is parked since 2026-03-01T12:00:00.000Z: the API refuses its key (HTTP 403: no)"),
    ("cooling down", {}, Place(), HERE | {"stops": {"default": COOLING}},
     "account default cools down until 2026-03-01T12:00:09.000Z, as the API asked: HTTP 429: slow down"),
    ("a retry", RETRIED, Place(tries=2), HERE,
     "it is tried again at 2026-03-01T12:00:30.000Z (try 3), after: HTTP 500: broken"),
    ("a retry that is due", RETRIED | {"next_try_at": after(0)}, Place(tries=2), HERE, "it is next in line"),
    ("its own time, whatever else", {"state": State.SCHEDULED, "due_at": after(60), "next_try_at": after(60)},
     Place(), NOBODY, "it is not due before 2026-03-01T12:01:00.000Z"),
    ("a sibling", {}, Place(sibling="d-0"), HERE, "another deletion of the same finetune goes first: d-0"),
    ("a sibling that is not to be named", {}, Place(sibling=""), HERE,
     "another deletion of the same finetune goes first"),
    ("a report of use", {}, Place(report=True), HERE,
     "a report of use may be waiting: a cleanup starts once the queue touches was seen empty"),
    ("a full Redis", {}, Place(ahead=3), HERE | {"free_bytes": 12 << 10},
     "Redis is full (12 KiB are left): give it more memory (maxmemory)"),
    ("others", {}, Place(ahead=3), HERE, "it is in line, behind 3 others"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "place", "around", "line"), [row[1:] for row in REASONS], ids=[row[0] for row in REASONS]
)
def test_the_reason_is_told_in_one_line(changes, place, around, line):
    assert why(deletion(**changes), place, Around(**around)) == line


def reason(ledger, id_, **more):
    """Why the deletion with this id waits."""
    return explained(ledger, [get(ledger, id_)], **more)[0].waiting_for


def test_a_deletion_behind_another_one_of_its_finetune_says_which(ledger):
    # Given two deletions of one finetune, in two spellings, of which the first runs,
    uuid = "0D3F5C1E-6A55-4B0E-9A53-2F1F6B1F3F10"
    accept(ledger, asking(uuid, id="first"), asking(uuid.lower(), id="second"))
    assert claim(ledger).id == "first"
    # when the second waits, in the queue or already behind the first, then it says for which,
    told = "another deletion of the same finetune goes first: first"
    assert reason(ledger, "second") == told
    assert claim(ledger) is None
    assert reason(ledger, "second") == told
    # but not to a reader who may not see that one; and the one that runs waits for nothing.
    assert reason(ledger, "second", name_others=False) == told.removesuffix(": first")
    assert reason(ledger, "first") is None


def test_a_retry_says_when_and_after_which_answer(ledger):
    accept(ledger, asking(id="d"))
    finish(ledger, claim(ledger), "back", message="HTTP 500: broken", delay=timedelta(seconds=30))
    assert reason(ledger, "d") == "it is tried again at 2026-03-01T12:00:30.000Z (try 2), after: HTTP 500: broken"


def test_those_in_line_count_the_ones_before_them(ledger):
    accept(ledger, *(asking(f"ft-{n}", id=f"d-{n}") for n in range(3)))
    assert [reason(ledger, f"d-{n}") for n in range(3)] == [
        "it is next in line", "it is in line, behind 1 other", "it is in line, behind 2 others"
    ]  # fmt: skip


def test_a_cleanup_waits_until_no_report_of_use_may_be_waiting(ledger, clocked):
    # Given a due deletion of a cleanup,
    accept(ledger, asking(id="d", source="cleanup:plan"))
    # when nobody has seen the queue of reports empty since, then it waits for that,
    assert reason(ledger, "d").startswith("a report of use may be waiting")
    # and once somebody has, it does not.
    later = clocked.after(seconds=1)
    later.redis.set(later.keys.reports_clear, later.now_ms())
    assert reason(later, "d") == "it is next in line"


def test_who_paused_and_since_when_is_kept(ledger):
    accept(ledger, asking(id="d"))
    ledger.account("*", "pause", Act("ann@host", "command"), reason="a complaint")
    assert "paused since 2026-03-01T12:00:00.000Z by ann@host (a complaint)" in reason(ledger, "d")


def test_an_alarm_that_paused_is_told_from_a_person(ledger):
    # Given an answer that named another finetune, which pauses the account,
    accept(ledger, asking("other", id="alarm"), asking(id="d"))
    finish(ledger, claim(ledger), "review", pause="asked to delete 'a', the API says it deleted 'b'")
    # when another deletion waits for that, then it says that no person did it.
    assert "is paused since 2026-03-01T12:00:00.000Z by an alarm (asked to delete" in reason(ledger, "d")


def test_a_list_takes_as_many_round_trips_as_one(ledger, monkeypatch):
    # Given a hundred deletions that wait,
    accept(ledger, *(asking(f"ft-{n}", id=f"d-{n}") for n in range(100)))
    trips = Counter()

    def counted(kind, name):
        real = getattr(kind, name)

        def count(self, *given, **more):
            trips["all"] += 1
            return real(self, *given, **more)

        monkeypatch.setattr(kind, name, count)

    counted(redis.Redis, "execute_command")
    counted(redis.client.Pipeline, "execute")

    def round_trips(count):
        records = get_many(ledger, [f"d-{n}" for n in range(count)])
        trips.clear()
        assert all(one.waiting_for for one in explained(ledger, records))
        return trips["all"]

    # when one of them is explained, or all, then Redis is asked equally often, and not at all for none.
    assert round_trips(1) == round_trips(100)
    assert round_trips(0) == 0


def test_an_api_that_answers_nothing_is_known_by_the_words_of_its_client(ledger):
    # Given a deletion whose last try met a host that does not answer, in the words of the real client,
    client = BflClient("http://127.0.0.1:1", "a-key", url_variable="BFL_API_URL_EMEA")
    with pytest.raises(ApiError) as error:
        client.my_finetunes()
    accept(ledger, asking(id="d"))
    finish(ledger, claim(ledger), "back", message=str(error.value), delay=timedelta(seconds=30))
    # when what is tried again is read, then it counts as without an answer.
    (found,) = retries(ledger, ["default"])
    assert (found.deletions, found.without_answer, found.oldest_due_at) == (1, True, iso(NOW))
    # A deletion that got an answer changes that.
    accept(ledger, asking("another", id="e"))
    finish(ledger, claim(ledger), "back", message="HTTP 500: broken", delay=timedelta(seconds=30))
    (found,) = retries(ledger, ["default"])
    assert (found.deletions, found.without_answer) == (2, False)


def test_beat_is_seen_as_soon_as_it_starts_and_if_its_clock_is_behind():
    # Given beat's schedule with the settings as they come,
    app = Celery(set_as_current=False)
    app.conf.beat_schedule = configuration(Settings(), "redis://localhost")["beat_schedule"]
    # when it starts, then its tick is due at once, and not a minute later.
    tick = Scheduler(app).schedule["tick"]
    assert tick.is_due().is_due
    # A worker whose clock is half an hour ahead of beat's does not take the tick for an old one.
    assert timedelta(seconds=tick.options["expires"]) > timedelta(minutes=30)


def test_a_worker_tells_of_itself_what_it_started_with(tmp_path, monkeypatch):
    # Given a worker
    app = Celery(set_as_current=False)
    app.conf.task_queues = configuration(Settings(), "redis://localhost")["task_queues"]
    services = Services(Settings(policy_file=tmp_path / "policies.toml"), "redis://localhost", app)
    entry = services.maintenance(lambda _: 0).entry
    before = read_entry(entry(0))
    # that takes no requests for a while, since Redis is full, and whose package is replaced under it,
    app.amqp.queues.deselect(TOUCHES)
    monkeypatch.setattr("worker.app.version", lambda _: "9.9")
    (tmp_path / "policies.toml").write_text("")
    # then only what is so for a while has changed.
    after_ = read_entry(entry(3))
    assert (after_.version, after_.facts["queues"]) == (before.version, before.facts["queues"])
    assert (before.facts["policies"], after_.facts["stuck"]) == (UNREADABLE, "3")
    assert after_.facts["policies"] != UNREADABLE


@pytest.mark.parametrize(
    ("away_for", "timeout", "shown"), [(3, None, True), (3, 60, True), (10**9, None, False), (3, 0, False)]
)
def test_a_wait_outlasts_a_short_absence_of_redis(ledger, monkeypatch, away_for, timeout, shown):
    # Given a deletion that has ended, and a Redis that does not answer at first,
    accept(ledger, asking(id="d"))
    finish(ledger, claim(ledger))
    calls = itertools.count()

    def asked(*given):
        if next(calls) < away_for:
            raise LedgerUnavailable("as the test says")
        return get_many(*given)

    monkeypatch.setattr(following, "get_many", asked)
    monkeypatch.setattr(following, "with_reasons", lambda _, found: found)
    monkeypatch.setattr(following, "print_in_full", lambda _: None)
    monkeypatch.setattr(following, "_AWAY_SECONDS", 0.2)
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.001)
    # when somebody waits for it, then it is shown once Redis answers; else the error says why not.
    with nullcontext() if shown else pytest.raises(LedgerUnavailable):
        assert following.follow(ledger, ["d"], timeout) == 0
