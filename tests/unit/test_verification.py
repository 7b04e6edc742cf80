"""Verification: what the list and the details say about a record that is on file as deleted."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from tasks.api import errors
from tasks.api.client import Details, Listing
from tasks.api.incarnations import Incarnation
from tasks.records import to_ms
from tasks.verification import Unverified, finding, verify_round

END = datetime(2026, 3, 1, 12, tzinfo=UTC)
HERE = "api.bfl.ai 12345678"
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
CREATED = {"created_at": "2026-02-01T10:00:00Z", "mode": "style"}
DELETED = Incarnation(identity={"created_at": "2026-02-01T10:00:00Z"}, settings={"mode": "style"})


def record(hits=0, vantage=HERE, incarnation=DELETED):
    return Unverified("deletion-1", "my-finetune", END, vantage, incarnation.to_text(), hits)


@pytest.mark.parametrize(
    ("after", "hits", "listed", "is_same", "word", "again_after", "hits_then"),
    [
        # Not listed: verified, whenever that is seen.
        (timedelta(0), 0, False, False, "gone", None, None),
        (2 * DAY, 1, False, False, "gone", None, None),
        # Listed soon after: the list may lag behind.
        (MINUTE, 0, True, False, "again", 10 * MINUTE, 0),
        # The same incarnation after ten minutes, and once more an hour after the deletion.
        (10 * MINUTE, 0, True, True, "again", HOUR, 1),
        (HOUR, 1, True, True, "still_there", None, None),
        (3 * HOUR, 0, True, True, "again", 3 * HOUR + 50 * MINUTE, 1),
        # Anything else: hourly for a day, then it ends without a result.
        (10 * MINUTE, 0, True, False, "again", HOUR + 10 * MINUTE, 0),
        (HOUR, 1, True, False, "again", 2 * HOUR, 1),
        (MINUTE, 0, None, False, "again", HOUR + MINUTE, 0),
        (23 * HOUR + 30 * MINUTE, 0, None, False, "again", DAY, 0),
        (DAY, 0, None, False, "end", None, None),
        (DAY, 0, True, False, "end", None, None),
        (DAY, 1, True, True, "still_there", None, None),
    ],
)
def test_what_a_round_finds_decides(after, hits, listed, is_same, word, again_after, hits_then):
    found = finding(record(hits), END + after, listed=listed, is_same=is_same)
    again_at = None if again_after is None else to_ms(END + again_after)
    assert (found["word"], found.get("at"), found.get("hits")) == (word, again_at, hits_then)
    assert (found["id"], found["finished_at"]) == ("deletion-1", to_ms(END))


class FakeApi:
    """Lists these names; details answers with these fields, or raises."""

    vantage = HERE

    def __init__(self, *names, details: Any = CREATED, listing: Any = None, more=None):
        self.listing = listing or Listing(frozenset(names), len(names), more)
        self.details = details
        self.calls: list[str] = []

    def my_finetunes(self):
        self.calls.append("list")
        if isinstance(self.listing, Exception):
            raise self.listing
        return self.listing

    def finetune_details(self, finetune_id):
        self.calls.append("details")
        if isinstance(self.details, Exception):
            raise self.details
        return Details(self.details, None)


@pytest.fixture
def verify(clocked, ledger):
    """Put records up for verification, run a round some time later, and tell what the ledger was told."""

    def verify(api, after, *records):
        told: list[Any] = []
        clocked.after(milliseconds=to_ms(END + after) - ledger.now_ms())
        for one in records:
            fields = {
                "finetune_id": one.finetune_id,
                "finished_at": to_ms(one.finished_at),
                "verify_hits": one.hits,
            }
            fields |= {"vantage": one.vantage, "incarnation": one.incarnation}
            ledger.redis.hset(ledger.keys.deletion(one.id), mapping=fields)
            ledger.redis.zadd(ledger.keys.verify("default"), {one.id: to_ms(END)})

        def note(account, found, message):
            told.extend(found)
            return []

        ledger.verify = note
        verify_round(ledger, "default", api, 8)
        return told

    return verify


def words(found):
    return [one["word"] for one in found]


def test_what_the_list_lacks_is_gone_and_one_call_is_enough_for_all(verify, ledger):
    many = [Unverified(f"d-{n}", f"ft-{n}", END, HERE, "", 0) for n in range(300)]
    api = FakeApi("something-else")
    assert (words(verify(api, MINUTE, *many)), api.calls) == (["gone"] * 300, ["list"])
    assert ledger.redis.zcard(ledger.keys.permits("default")) == 0


def test_a_list_that_may_not_be_whole_proves_no_absence_and_the_log_says_why(verify):
    with capture_logs() as logged:
        assert words(verify(FakeApi(more="the field 'next'"), MINUTE, record())) == ["again"]
    assert "the field 'next' may speak of more" in str(logged)


def test_another_vantage_proves_nothing(verify):
    api = FakeApi()
    assert words(verify(api, MINUTE, record(vantage="api.bfl.ai 00000000"))) == ["again"]
    assert api.calls == ["list"]


@pytest.mark.parametrize(
    ("details", "word"),
    [
        (CREATED, "still_there"),
        ({**CREATED, "mode": "character", "new": "field"}, "still_there"),
        ({**CREATED, "created_at": "2026-03-01T13:00:00Z"}, "again"),  # the name was used again
        ({"mode": "style"}, "again"),  # equal settings alone are no proof
        (errors.NotFound("gone", http_status=404, from_api=True), "again"),
        (errors.Unclear("no answer"), "again"),
    ],
)
def test_only_the_same_identity_is_still_there(verify, details, word):
    assert words(verify(FakeApi("my-finetune", details=details), HOUR, record(hits=1))) == [word]


def test_settings_alone_do_not_identify_the_deleted_one_either(verify):
    known = record(hits=1, incarnation=Incarnation(settings={"mode": "style"}))
    assert words(verify(FakeApi("my-finetune", details={"mode": "style"}), HOUR, known)) == ["again"]


def test_a_round_asks_for_the_details_of_twenty_finetunes_at_most(verify):
    many = [Unverified(f"d-{n}", f"ft-{n}", END, HERE, DELETED.to_text(), 0) for n in range(25)]
    api = FakeApi(*(one.finetune_id for one in many))
    assert (len(verify(api, HOUR, *many)), api.calls.count("details")) == (20, 20)


def test_an_api_that_is_throttled_for_one_finetune_verifies_the_others(verify, ledger):
    # Given one that is still listed, whose details are refused for now, and two that are gone.
    throttled = errors.Throttled("slow down", http_status=429)
    others = [Unverified(f"d-{n}", f"ft-{n}", END, HERE, "", 0) for n in range(2)]
    api = FakeApi("my-finetune", details=throttled)
    # When a round is made, then the account cools down, and what the list told is kept.
    assert sorted(words(verify(api, HOUR, record(hits=1), *others))) == ["again", "gone", "gone"]
    assert ledger.redis.hget(ledger.keys.account("default"), "cool_until") is not None


def test_one_process_asks_in_a_minute_and_nobody_if_nothing_is_due(verify, ledger):
    api: Any = FakeApi()
    assert (verify(api, -MINUTE, record()), api.calls) == ([], [])
    assert words(verify(api, MINUTE, record())) == ["gone"]
    verify_round(ledger, "default", api, 8)
    assert api.calls == ["list"]


def test_without_a_permit_nothing_is_asked(verify, ledger):
    ledger.account("default", "park", reason="as the test says", probe_ms=1000)
    api = FakeApi()
    assert (verify(api, MINUTE, record()), api.calls) == ([], [])


@pytest.mark.parametrize("status", [429, 403, 500])
def test_an_api_that_does_not_answer_changes_no_record(verify, ledger, status):
    kind = errors.error_kind(status, told_to_wait=False)
    assert verify(FakeApi(listing=kind("no", http_status=status)), MINUTE, record()) == []
    assert ledger.redis.zcard(ledger.keys.verify("default")) == 1
    cools = ledger.redis.hget(ledger.keys.account("default"), "cool_until")
    assert (cools is not None) is (status == 429)
