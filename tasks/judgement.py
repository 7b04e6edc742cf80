"""What an observation means for a deletion: the one table of outcomes. Pure.

`judge` is asked before each delete, after each unclear answer, and when no further attempt is allowed. It answers
with how the deletion ends, with `Stays` if the finetune is still there, or with None if the API tells too little.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tasks.api.incarnations import Incarnation, Verdict, compare, is_comparable
from tasks.api.moments import is_same_moment
from tasks.api.observations import Observation, Presence, existed
from tasks.durations import iso
from tasks.ledger.types import Claim, Findings, Finish, Try
from tasks.records import Evidence, State, from_ms, moment, to_ms

# A finetune that is still there after this long was not deleted by the attempt.
SETTLED_AFTER = timedelta(seconds=30)


@dataclass(frozen=True)
class Known:
    """What is known of the finetune that a deletion means.

    incarnation: from earlier observations, None if there was none or it showed nothing. vantage: from where it
    was last seen, "" if never. unclear_at: when an attempt was made that may have been applied, None if there is
    none.
    born_after: it was certainly created after this moment, on Redis's clock.
    """

    incarnation: Incarnation | None = None
    observed_at: datetime | None = None
    vantage: str = ""
    unclear_at: datetime | None = None
    born_after: datetime | None = None

    @classmethod
    def of(cls, claim: Claim) -> "Known":
        """What the record says. Raises `ValueError` if that cannot be read."""
        times = (moment(at or None) for at in (claim.observed_at, claim.unclear_at, claim.born_after))
        observed_at, unclear_at, born_after = times
        return cls(Incarnation.from_text(claim.incarnation), observed_at, claim.vantage, unclear_at, born_after)

    def findings(self) -> Findings:
        """The same as the record keeps it."""
        times = (self.observed_at, self.unclear_at, self.born_after)
        observed_at, unclear_at, born_after = (to_ms(at) if at else 0 for at in times)
        return Findings(
            incarnation=self.incarnation.to_text() if self.incarnation else "", observed_at=observed_at,
            vantage=self.vantage, unclear_at=unclear_at, born_after=born_after,
        )  # fmt: skip

    def unsettled_for(self, now: datetime) -> timedelta:
        """How long until an observation tells whether the last unclear attempt was applied."""
        return (
            timedelta(0) if self.unclear_at is None else max(timedelta(0), self.unclear_at + SETTLED_AFTER - now)
        )

    def with_seen(self, seen: Observation, now: datetime) -> "Known":
        """What is known after another observation of the same incarnation.

        An identity that was seen once stays known.
        """
        incarnation = seen.incarnation or self.incarnation
        if incarnation and self.incarnation:
            incarnation = replace(incarnation, identity={**self.incarnation.identity, **incarnation.identity})
        age = seen.age(now)
        born_after = self.born_after if age is None else now - age - seen.tolerance
        unclear_at = self.unclear_at if self.unsettled_for(now) else None
        return Known(incarnation, now, seen.vantage, unclear_at, born_after)


@dataclass(frozen=True)
class Stays:
    """The finetune is there. is_same: whether it is the incarnation seen before; True if none was."""

    is_same: bool


STAYS = Stays(is_same=True)


def judge_between(
    claim: Claim, known: Known, seen: Observation, moments: tuple[datetime, datetime], within: timedelta
) -> Finish | Stays | None:
    """What `seen` means. The API made its answer at some moment between `moments`.

    None if the result depends on which, or if the answer tells too little.
    """
    found, at_end = (judge(claim, known, seen, at, within) for at in moments)
    return found if getattr(found, "result", None) == getattr(at_end, "result", None) else None


def judge(
    claim: Claim, known: Known, seen: Observation, now: datetime, within: timedelta
) -> Finish | Stays | None:
    """What `seen` means; None if the API told before which finetune it is, and now does not.

    now: Redis's clock when the observation began. within: how long the name alone tells which finetune was meant
    (`JANITOR_OBSERVE_WITHIN`).
    """
    if seen.presence is Presence.ABSENT:
        return _absent(claim, known, seen, now)
    met, tells = known.incarnation or _met_by_sibling(claim), seen.incarnation or Incarnation()
    if seen.presence is Presence.UNLISTED:
        why = f"details does not work at {seen.host} and the list lacks it, which proves nothing"
        return None if _tells_less(met, tells) else _undecided(claim, known, now, within, why)
    if known.incarnation is None:
        verdict, why = compare(met or Incarnation(), tells, gap=timedelta(0), within=within)
        if verdict is Verdict.OTHER:
            return _another(known, seen, now, why)
        is_dated = existed(seen, from_ms(claim.asked_at), now) is not None
        waits = not is_dated and _tells_less(met, tells)
        return None if waits else _first_seen(claim, known, seen, now, within)
    return _seen_again(claim, known, seen, now, within)


def sibling_deleted(claim: Claim) -> Finish | None:
    """The end of a deletion whose finetune a sibling has deleted, before any call; None if none has.

    An attempt that was marked after this deletion was accepted met the finetune that this one meant, unless this
    one has seen another incarnation, or the deleted one was created after it was asked for.
    """
    ours = Incarnation.from_text(claim.incarnation)
    for try_ in sorted(claim.tries, key=lambda one: one.mark):
        counts = try_.mark >= claim.accepted and try_.result == "deleted" and try_.has_deleted
        if counts and _met_another(claim, ours, try_) is False:
            return _by_sibling(claim, try_)
    return None


def _absent(claim: Claim, known: Known, seen: Observation, now: datetime) -> Finish:
    if known.vantage and known.vantage != seen.vantage:
        why = f"not visible at {seen.vantage}, but it was last seen at {known.vantage}: key or host has changed"
        return Finish(State.REVIEW, f"{why}, so whether it is deleted is not known")
    if known.unclear_at and not known.vantage:
        return Finish(State.REVIEW, "not visible after an attempt, but it never was: the attempt is unclear")
    if known.unclear_at:
        message = "not visible any more after an attempt that was not clearly answered"
        return Finish(State.DELETED, message, evidence=Evidence.READ_BACK)
    # An attempt of a sibling that ended after this was accepted may have removed what was meant.
    for try_ in claim.tries:
        is_of_another = _met_another(claim, known.incarnation, try_)
        # One that is unclear may have been applied late, to whatever had the name then.
        if try_.finish > claim.accepted and not (try_.result == "deleted" and is_of_another):
            if try_.has_deleted and try_.vantage == seen.vantage and is_of_another is False:
                return _by_sibling(claim, try_)
            tried = f"an attempt of deletion {try_.by} at {try_.vantage or 'another one'} may have removed it"
            why = f"not visible at {seen.vantage}, and {tried}: whether it has is not known"
            return Finish(State.REVIEW, why)
    # Not in `observed_at` and `vantage`: these tell a retry where the finetune was last seen.
    where = f"{seen.host} with the key of account {claim.account}"
    return Finish(State.NOT_FOUND, f"not visible at {where}, looked for at {iso(now)}")


def _first_seen(claim: Claim, known: Known, seen: Observation, now: datetime, within: timedelta) -> Finish | Stays:
    age, ahead = seen.age(now), from_ms(claim.asked_at) - now
    if age is not None and age < within and ahead > seen.tolerance:
        return _undecided(claim, known, None, within, "Redis's clock was set back since it was asked for")
    there_before = existed(seen, from_ms(claim.asked_at), now)
    if there_before is False:
        return _newer(known)
    if there_before:
        return STAYS
    if any(try_.mark < claim.accepted < try_.finish for try_ in claim.tries):
        why = "it was asked for while another deletion of it was carried out, and the API tells no creation time"
        return Finish(State.REVIEW, f"{why}: whether this finetune was meant is not known")
    return _undecided(claim, known, now, within, "the API tells no creation time")


def _seen_again(
    claim: Claim, known: Known, seen: Observation, now: datetime, within: timedelta
) -> Finish | Stays | None:
    told, tells = known.incarnation or Incarnation(), seen.incarnation or Incarnation()
    there_before = existed(seen, from_ms(claim.asked_at), now)
    is_newer = there_before is False
    shares_field = bool(told.identity.keys() & tells.identity.keys())
    is_same_time = is_same_moment(str(told.created), str(tells.created))
    has_moved = not shares_field and is_same_time is False
    # Equal settings count for nothing if it was created after the request, or another time was told before.
    since = known.observed_at if not (is_newer or has_moved) else None
    gap = abs(now - since) if since else timedelta.max
    verdict, why = compare(told, tells, gap=gap, within=within)
    if verdict is Verdict.OTHER:
        return _another(known, seen, now, why)
    if verdict is Verdict.SAME and is_newer and not is_same_time:  # the first observation did not tell so
        return _newer(known)
    if has_moved:
        why = f"its creation time was {told.created}, and another field tells {tells.created}"
    if verdict is Verdict.UNKNOWN and is_newer:
        has_same_id = told.unique_id is not None and told.unique_id == tells.unique_id
        if has_same_id or (has_moved and known.unclear_at):
            return _undecided(claim, known, None, within, why)
        return _another(known, seen, now, "this one was created after the request")
    if there_before is None and _tells_less(told, tells):
        return None
    return STAYS if verdict is Verdict.SAME else _undecided(claim, known, None if has_moved else now, within, why)


def _met_by_sibling(claim: Claim) -> Incarnation | None:
    """What an attempt met that was marked after this deletion was accepted; None if there is none.

    It is the finetune that this deletion means, or a newer one. So it shows that one that is there now is another,
    and never that it is the one that was meant.
    """
    ours = (try_ for try_ in claim.tries if try_.mark >= claim.accepted and try_.born_after <= claim.asked_at)
    return next((Incarnation.from_text(one.incarnation) for one in ours if one.incarnation), None)


def _newer(known: Known) -> Finish:
    """What has the name now was created after the request."""
    if known.unclear_at:
        return Finish(State.REVIEW, "an attempt is unclear, and the name belongs to a newer finetune now")
    why = "the name belongs to another finetune now: this one was created after the request"
    return Finish(State.SUPERSEDED, why)


def _another(known: Known, seen: Observation, now: datetime, why: str) -> Finish:
    """The name belongs to another finetune now."""
    if known.unclear_at is None:
        return Finish(State.SUPERSEDED, f"the name belongs to another finetune now: {why}")
    if existed(seen, known.unclear_at, now) is False:
        message = f"another finetune, created after the attempt, has the name now: {why}"
        return Finish(State.DELETED, message, evidence=Evidence.READ_BACK)
    message = f"an attempt is unclear, and another finetune that may be older has the name: {why}"
    return Finish(State.REVIEW, message)


def _tells_less(told: Incarnation | None, tells: Incarnation | None) -> bool:
    """Whether the API told before which incarnation it is, and now tells nothing that can be compared with it."""
    before, now = told or Incarnation(), tells or Incarnation()
    return is_comparable(before, before) and not is_comparable(before, now)


def _undecided(claim: Claim, known: Known, now: datetime | None, within: timedelta, why: str) -> Finish | Stays:
    """Which finetune this is cannot be told: what is carried out right away goes on, nothing else does.

    now: None if that cannot be told either.
    """
    if known.unclear_at:
        return Finish(State.REVIEW, f"an attempt is unclear, and {why}")
    if claim.cleanup:
        return Finish(State.CANCELLED, f"kept: {why}")
    if now and abs(now - from_ms(claim.asked_at)) <= within:
        return Stays(is_same=known.incarnation is None)
    return Finish(State.REVIEW, f"it waited too long to tell whether this finetune was meant: {why}")


def _by_sibling(claim: Claim, try_: Try) -> Finish:
    # A sibling that was told nothing takes the place of nothing that this one has seen.
    is_taken_over = try_.incarnation or not claim.vantage
    return Finish(
        State.DELETED, "another deletion of the same finetune has deleted it", evidence=Evidence.SIBLING,
        deleted_by=try_.by, incarnation=try_.incarnation or None, vantage=try_.vantage if is_taken_over else None,
    )  # fmt: skip


def _met_another(claim: Claim, ours: Incarnation | None, try_: Try) -> bool | None:
    """Whether that attempt met another finetune than this deletion means: another incarnation, or a newer one.

    None if the API told what each of the two is, in ways that cannot be compared.
    """
    theirs = Incarnation.from_text(try_.incarnation) or Incarnation()
    verdict, _ = compare(ours or Incarnation(), theirs, gap=timedelta(0), within=timedelta.max)
    if try_.born_after > claim.asked_at or verdict is Verdict.OTHER:
        return True
    return None if theirs.identity and _tells_less(ours, theirs) else False
