"""What an observation means, as one table; and whether a sibling has deleted what was meant."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tasks.api.incarnations import Incarnation, incarnation_of
from tasks.api.observations import Observation, Presence
from tasks.durations import iso
from tasks.judgement import Known, judge, sibling_deleted
from tasks.ledger.types import Finish, Try
from tasks.records import State
from tests.unit.fakes import (
    AGELESS,
    AGELESS_OTHER,
    CHANGED,
    ELSEWHERE,
    HERE,
    NEWER,
    NOW,
    OURS,
    SEEN,
    THERE,
    claimed,
    shown,
)  # fmt: skip

HOUR = timedelta(hours=1)
LATE = timedelta(minutes=61)
SECONDS = timedelta(seconds=1)
A_MINUTE_AGO, AN_HOUR_AGO = NOW - timedelta(minutes=1), NOW - HOUR
# How long before NOW the finetune of THERE was created.
AGE = timedelta(days=28, hours=2)
# Tells apart no incarnation from another: THERE with a creation date alone.
MOVED_NEWER = {**AGELESS, "timestamp": NEWER["created_at"]}
MOVED = {**AGELESS, "timestamp": THERE["created_at"]}
WITH_ID, TOUCHED = {**THERE, "id": "u-1"}, {**NEWER, "id": "u-1"}
ONLY_ID = {**AGELESS, "id": "u-1"}
MOVED_OLDER = {**AGELESS, "timestamp": "2026-01-01T10:00:00Z"}
DAY_ONLY = {**THERE, "created_at": "2026-02-01"}


def present(fields, vantage=HERE, date=NOW):
    incarnation = incarnation_of(fields, OURS)
    return Observation(Presence.PRESENT, incarnation, vantage, "api.test", date=date)


def without_details(presence, vantage=HERE):
    return Observation(presence, None, vantage, "api.test", date=None)


ABSENT = without_details(Presence.ABSENT)
UNLISTED = without_details(Presence.UNLISTED)
LISTED = without_details(Presence.PRESENT)

NEVER = Known()
LISTED_BEFORE = Known(vantage=HERE, observed_at=A_MINUTE_AGO)


def known(fields, vantage=HERE, observed_at=A_MINUTE_AGO):
    return Known(incarnation_of(fields, OURS), observed_at, vantage)


def unclear(known_, at=A_MINUTE_AGO):
    """The same, with an attempt that may have been applied."""
    return replace(known_, unclear_at=at)


def trying(mark, finish, result="deleted", *, state="deleted", evidence="response", **fields):
    """A sibling's attempt. The deletion that is judged was accepted as number 10."""
    return Try(
        "sibling", mark, finish, result, **{"vantage": HERE, "state": state, "evidence": evidence, **fields}
    )


UNDER_WAY = (trying(8, 12),)
UNDER_WAY_UNCLEAR = (trying(8, 12, "unclear", state="review", evidence=""),)
ENDED_BEFORE = (trying(8, 9),)
MET_ANOTHER = (trying(11, 12, incarnation=incarnation_of(NEWER, OURS).to_text()),)
MET_ID = (trying(11, 12, incarnation=incarnation_of(ONLY_ID, OURS).to_text()),)
MAY_HAVE_MET_ID = (replace(MET_ID[0], result="unclear", state="review", evidence=""),)
MET_NEWER = (trying(11, 12, born_after=round((NOW - timedelta(seconds=10)).timestamp() * 1000)),)
CLEANUP = {"cleanup": True}
WAITED = {"asked_ago": LATE}
OVERTAKEN = {"asked_ago": AGE + HOUR}  # asked for before the finetune of THERE was created

# observation, what is known, fields of the claim, result
TABLE = {
    "absent: never seen": (ABSENT, NEVER, {}, "not_found"),
    "absent: never seen, waited": (ABSENT, NEVER, WAITED, "not_found"),
    "absent: never seen, cleanup": (ABSENT, NEVER, CLEANUP, "not_found"),
    "absent: seen from here, nothing tried": (ABSENT, known(THERE), {}, "not_found"),
    "absent: seen from elsewhere": (ABSENT, known(THERE, ELSEWHERE), {}, "review"),
    "absent: seen from here, unclear attempt": (ABSENT, unclear(known(THERE)), {}, "deleted/read-back"),
    "absent: seen in the list alone, unclear attempt": (ABSENT, unclear(LISTED_BEFORE), {}, "deleted/read-back"),
    "absent: seen from elsewhere, unclear attempt": (ABSENT, unclear(known(THERE, ELSEWHERE)), {}, "review"),
    "absent: never seen, unclear attempt": (ABSENT, unclear(NEVER), {}, "review"),
    "absent: a sibling that was under way has deleted": (ABSENT, NEVER, {"tries": UNDER_WAY}, "deleted/sibling"),
    "absent: likewise, seen before": (ABSENT, known(THERE), {"tries": UNDER_WAY}, "deleted/sibling"),
    "absent: a sibling has deleted, seen from elsewhere": (
        ABSENT, NEVER, {"tries": (trying(8, 12, vantage=ELSEWHERE),)}, "review"
    ),
    "absent: a sibling has deleted another one": (ABSENT, known(THERE), {"tries": MET_ANOTHER}, "not_found"),
    "absent: a sibling has deleted one created after this was asked for": (
        ABSENT, NEVER, {"tries": MET_NEWER}, "not_found"
    ),
    "absent: a sibling has deleted one that cannot be compared": (
        ABSENT, known(THERE), {"tries": MET_ID}, "review"
    ),
    "absent: a sibling may have deleted": (ABSENT, NEVER, {"tries": UNDER_WAY_UNCLEAR}, "review"),
    "absent: a sibling has deleted before it was asked for": (ABSENT, NEVER, {"tries": ENDED_BEFORE}, "not_found"),

    "unlisted: right away": (UNLISTED, NEVER, {}, "stays"),
    "unlisted: waited": (UNLISTED, NEVER, WAITED, "review"),
    "unlisted: cleanup": (UNLISTED, NEVER, CLEANUP, "cancelled"),
    "unlisted: unclear attempt": (UNLISTED, unclear(NEVER), {}, "review"),

    "first: there before it was asked for": (present(THERE), NEVER, {}, "stays"),
    "first: there before, waited": (present(THERE), NEVER, WAITED, "stays"),
    "first: there before, cleanup": (present(THERE), NEVER, CLEANUP, "stays"),
    "first: there before, a sibling was under way": (present(THERE), NEVER, {"tries": UNDER_WAY}, "stays"),
    "first: created since": (present(THERE), NEVER, OVERTAKEN, "superseded"),
    "first: created since, cleanup": (present(THERE), NEVER, OVERTAKEN | CLEANUP, "superseded"),
    "first: created since, unclear attempt": (present(THERE), unclear(NEVER), OVERTAKEN, "review"),
    "first: Redis's clock was set back since": (present(NEWER), NEVER, {"asked_ago": -600 * SECONDS}, "review"),
    "first: likewise, but it is long there": (present(THERE), NEVER, {"asked_ago": -600 * SECONDS}, "stays"),
    "first: likewise, no creation time, long ago": (present(AGELESS), NEVER, {"asked_ago": -LATE}, "review"),
    "first: within the tolerance of two clocks": (
        present(THERE), NEVER, {"asked_ago": AGE + 4 * SECONDS}, "stays"
    ),
    "first: beyond the tolerance": (present(THERE), NEVER, {"asked_ago": AGE + 6 * SECONDS}, "superseded"),
    "first: no Date, within a minute": (
        present(THERE, date=None), NEVER, {"asked_ago": AGE + 59 * SECONDS}, "stays"
    ),
    "first: no Date, beyond a minute": (
        present(THERE, date=None), NEVER, {"asked_ago": AGE + 61 * SECONDS}, "superseded"
    ),
    "first: the API's clock is an hour ahead": (present(THERE, date=NOW + HOUR), NEVER, {}, "stays"),
    "first: no creation time": (present(AGELESS), NEVER, {}, "stays"),
    "first: no creation time, waited": (present(AGELESS), NEVER, WAITED, "review"),
    "first: no creation time, cleanup": (present(AGELESS), NEVER, CLEANUP, "cancelled"),
    "first: no creation time, unclear attempt": (present(AGELESS), unclear(NEVER), {}, "review"),
    "first: no creation time, a sibling was under way": (present(AGELESS), NEVER, {"tries": UNDER_WAY}, "review"),
    "first: no creation time, one may have deleted": (
        present(AGELESS), NEVER, {"tries": UNDER_WAY_UNCLEAR}, "review"
    ),
    "first: no creation time, a sibling had ended": (present(AGELESS), NEVER, {"tries": ENDED_BEFORE}, "stays"),
    "first: a date alone, waited": (present(DAY_ONLY), NEVER, WAITED, "review"),
    "first: the list alone": (LISTED, NEVER, {}, "stays"),
    "first: the list alone, waited": (LISTED, NEVER, WAITED, "review"),

    "first: a sibling met another one": (
        present({**ONLY_ID, "id": "u-2"}), NEVER, {"tries": MAY_HAVE_MET_ID}, "superseded"
    ),
    "first: a sibling met it": (present(ONLY_ID), NEVER, {"tries": MAY_HAVE_MET_ID}, "stays"),
    "first: a sibling met it, waited": (present(ONLY_ID), NEVER, WAITED | {"tries": MAY_HAVE_MET_ID}, "review"),
    "first: a sibling met it, one was under way before": (
        present(ONLY_ID), NEVER, {"tries": (*UNDER_WAY, *MAY_HAVE_MET_ID)}, "review"
    ),
    "first: a sibling met it, created since": (
        present(THERE), NEVER, OVERTAKEN | {"tries": (trying(11, 12, "unclear", incarnation=SEEN),)}, "superseded"
    ),
    "first: a sibling met one before this was asked for": (
        present({**ONLY_ID, "id": "u-2"}), NEVER,
        {"tries": (trying(8, 9, incarnation=incarnation_of(ONLY_ID, OURS).to_text()),)}, "stays",
    ),
    "first: a sibling met one, and the list alone tells": (LISTED, NEVER, {"tries": MAY_HAVE_MET_ID}, "waits"),

    "same": (present(THERE), known(THERE), {}, "stays"),
    "same, waited": (present(THERE), known(THERE), WAITED, "stays"),
    "same, cleanup": (present(THERE), known(THERE), CLEANUP, "stays"),
    "same, unclear attempt": (present(THERE), unclear(known(THERE)), {}, "stays"),
    "same, seen from elsewhere": (present(THERE), known(THERE, ELSEWHERE), {}, "stays"),
    "same settings within the hour": (present(AGELESS), known(AGELESS), WAITED, "stays"),
    "same settings, too long ago": (
        present(AGELESS), known(AGELESS, observed_at=NOW - LATE), WAITED, "review"
    ),
    "other": (present(NEWER), known(THERE), {}, "superseded"),
    "other, cleanup": (present(NEWER), known(THERE), CLEANUP, "superseded"),
    "other settings": (present(AGELESS_OTHER), known(AGELESS), {}, "superseded"),
    "other, created after the attempt": (present(NEWER), unclear(known(THERE)), {}, "deleted/read-back"),
    "other, created after an attempt long ago": (
        present(NEWER), unclear(known(THERE), AN_HOUR_AGO), {}, "deleted/read-back"
    ),
    "other, may be older than the attempt": (
        present(NEWER), unclear(known(THERE), NOW - 33 * SECONDS), {}, "review"
    ),
    "other settings, unclear attempt": (present(AGELESS_OTHER), unclear(known(AGELESS)), {}, "review"),
    "unknown": (present({**AGELESS, "views": 7}), known(CHANGED), {}, "stays, not the same"),
    "unknown, waited": (present({**AGELESS, "views": 7}), known(CHANGED), WAITED, "review"),
    "unknown, cleanup": (present({**AGELESS, "views": 7}), known(CHANGED), CLEANUP, "cancelled"),
    "unknown, unclear attempt": (present({**AGELESS, "views": 7}), unclear(known(CHANGED)), {}, "review"),
    "details work no more": (LISTED, known(THERE), {}, "waits"),
    "details work no more, unclear attempt": (LISTED, unclear(known(THERE)), {}, "waits"),
    "details tell less than before": (present(AGELESS), known(THERE), {}, "waits"),
    "details tell an id instead of the creation time": (present(ONLY_ID), known(THERE), {}, "waits"),
    "likewise, unclear attempt": (present(ONLY_ID), unclear(known(THERE)), {}, "waits"),
    "details tell a date alone instead of the creation time": (present(DAY_ONLY), known(THERE), {}, "waits"),
    "details tell the creation time instead of an id": (present(THERE), known(ONLY_ID), {}, "stays"),
    "the same id, and only now a creation time": (present(WITH_ID), known(ONLY_ID), {}, "stays"),
    "the same id, and only now a newer time": (present(TOUCHED), known(ONLY_ID), {}, "superseded"),
    "the same id, a date before, and now a newer time": (
        present(TOUCHED), known({**ONLY_ID, "created_at": "2026-03-01"}), {}, "superseded"
    ),
    "the same id, and a newer time in another field": (
        present({**ONLY_ID, "timestamp": NEWER["created_at"]}), known(WITH_ID), {}, "superseded"
    ),
    "the same id, and only now a newer time, unclear attempt": (
        present(TOUCHED), unclear(known(ONLY_ID)), {}, "review"
    ),
    "details work no more, the list lacks it": (UNLISTED, known(THERE), {}, "waits"),
    "details never told it apart": (LISTED, known(AGELESS), {}, "stays, not the same"),
    "a newer one that tells it in another field": (present(MOVED_NEWER), known(THERE), {}, "superseded"),
    "another creation time in another field": (present(MOVED_OLDER), known(THERE), {}, "review"),
    "another creation time in another field, Redis's clock was set back": (
        present(MOVED_OLDER), known(THERE, observed_at=NOW + HOUR), {}, "review"
    ),
    "another creation time in another field, cleanup": (present(MOVED_OLDER), known(THERE), CLEANUP, "cancelled"),
    "another creation time in another field, unclear attempt": (
        present(MOVED_OLDER), unclear(known(THERE)), {}, "review"
    ),
    "the same creation time in another field": (present(MOVED), known(THERE), {}, "stays"),
    "the same id, and a newer time": (present(TOUCHED), known(WITH_ID), {}, "review"),
    "the same id, and a newer time, unclear attempt": (present(TOUCHED), unclear(known(WITH_ID)), {}, "review"),
    "a newer one that tells more": (present(MOVED_NEWER), known(AGELESS), {}, "superseded"),
    "a newer one in another field, created after the attempt": (
        present(MOVED_NEWER), unclear(known(THERE)), {}, "review"
    ),
    "a newer one in another field, may be older than the attempt": (
        present(MOVED_NEWER), unclear(known(THERE), NOW - 33 * SECONDS), {}, "review"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("seen", "known_", "claim", "result"), list(TABLE.values()), ids=list(TABLE))
def test_what_an_observation_means(seen, known_, claim, result):
    # Given what was known, when this is seen,
    found = judge(claimed(**claim), known_, seen, NOW, HOUR)
    # then it ends so, or stays.
    names = {True: "stays", False: "stays, not the same", None: "waits"}
    assert (shown(found) if isinstance(found, Finish) else names[found and found.is_same]) == result
    assert not isinstance(found, Finish) or found.message


def test_a_message_names_the_host_the_vantages_and_what_has_changed():
    def message(known_, seen):
        found = judge(claimed(), known_, seen, NOW, HOUR)
        return found.message if isinstance(found, Finish) else ""

    assert "api.test" in message(NEVER, ABSENT)
    assert message(NEVER, ABSENT).endswith(f", looked for at {iso(NOW)}")
    assert {HERE, ELSEWHERE} == {v for v in (HERE, ELSEWHERE) if v in message(known(THERE, ELSEWHERE), ABSENT)}
    assert "2026-02-01T10:00:00Z to 2026-03-01T11:59:30Z" in message(known(THERE), present(NEWER))


class TestWhatIsKept:
    @pytest.mark.parametrize(("ago", "settled"), [(29, False), (30, True)])
    def test_an_attempt_is_settled_thirty_seconds_after_it(self, ago, settled):
        before = unclear(known(THERE), NOW - timedelta(seconds=ago))
        assert (before.with_seen(present(THERE), NOW).unclear_at is None) is settled

    def test_the_last_vantage_and_moment_count(self):
        after = known(THERE, ELSEWHERE).with_seen(present(THERE), NOW)
        assert (after.vantage, after.observed_at) == (HERE, NOW)

    def test_an_identity_that_was_seen_once_stays_known(self):
        after = known(THERE).with_seen(present(AGELESS), NOW).incarnation
        assert after is not None
        assert after.created == incarnation_of(THERE, OURS).created

    def test_the_list_alone_changes_no_incarnation(self):
        assert known(THERE).with_seen(LISTED, NOW).incarnation == incarnation_of(THERE, OURS)

    @pytest.mark.parametrize(("date", "tolerance"), [(NOW, 5), (None, 60)])
    def test_since_when_it_certainly_exists_at_most(self, date, tolerance):
        after = NEVER.with_seen(present(THERE, date=date), NOW)
        assert after.born_after == NOW - AGE - timedelta(seconds=tolerance)


OTHER_SEEN = incarnation_of(NEWER, OURS).to_text()
LATER_BORN = round((NOW - timedelta(seconds=10)).timestamp() * 1000)

SIBLINGS = {
    "none": ((), "", None),
    "marked after it was accepted": ((trying(11, 12),), "", "sibling"),
    "marked before": ((trying(9, 12),), "", None),
    "ended before": ((trying(8, 9),), "", None),
    "not applied for sure": ((trying(11, 12, "unclear", state="review", evidence=""),), "", None),
    "unclear, but deleted by a sibling of its own": ((trying(11, 12, "unclear", evidence="sibling"),), "", None),
    "deleted, then found again": ((trying(11, 12, state="review"),), "", None),
    "the same incarnation as seen": ((trying(11, 12, incarnation=SEEN),), SEEN, "sibling"),
    "another incarnation than seen": ((trying(11, 12, incarnation=OTHER_SEEN),), SEEN, None),
    "one that cannot be compared": (MET_ID, SEEN, None),
    "it told no incarnation": ((trying(11, 12),), SEEN, "sibling"),
    "created after this was asked for": ((trying(11, 12, born_after=LATER_BORN),), "", None),
    "the first one counts": (
        (replace(trying(13, 14), by="second"), replace(trying(11, 16), by="first")), "", "first"
    ),
    "the first that fits": (
        (replace(trying(11, 12, incarnation=OTHER_SEEN), by="first"), replace(trying(13, 14), by="second")),
        SEEN, "second",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("tries", "incarnation", "by"), list(SIBLINGS.values()), ids=list(SIBLINGS))
def test_whether_a_sibling_has_deleted_what_was_meant(tries, incarnation, by):
    found = sibling_deleted(claimed(tries=tries, incarnation=incarnation))
    assert (found and found.deleted_by) == by
    assert found is None or shown(found) == "deleted/sibling"


def test_what_a_sibling_has_deleted_is_taken_over():
    found = sibling_deleted(claimed(tries=(trying(11, 12, incarnation=SEEN, vantage=ELSEWHERE),)))
    assert found is not None
    assert (found.incarnation, found.vantage) == (SEEN, ELSEWHERE)


def test_what_this_one_has_seen_stays_if_the_sibling_was_told_nothing():
    found = sibling_deleted(claimed(tries=(trying(11, 12, vantage=ELSEWHERE),), incarnation=SEEN, vantage=HERE))
    assert found is not None
    assert (found.incarnation, found.vantage) == (None, None)
    # If this one has seen nothing, the place of that attempt is all there is.
    found = sibling_deleted(claimed(tries=(trying(11, 12, vantage=ELSEWHERE),)))
    assert found is not None
    assert (found.incarnation, found.vantage) == (None, ELSEWHERE)


@pytest.mark.parametrize("days", [-400, -1, 0, 1, 400])
def test_no_clock_orders_siblings(days):
    # Given the same numbers, when a clock was set or a request is dated otherwise, then the verdict is the same.
    shift = timedelta(days=days)
    claim = claimed(asked_ago=timedelta(minutes=1) + shift, tries=UNDER_WAY)
    assert sibling_deleted(claim) is None
    absent = judge(claim, NEVER, ABSENT, NOW, HOUR)
    assert isinstance(absent, Finish)
    assert absent.result is State.DELETED
    assert sibling_deleted(claimed(asked_ago=timedelta(minutes=1) + shift, tries=(trying(11, 12),)))


def test_an_empty_incarnation_is_none():
    assert Incarnation.from_text("") is None
