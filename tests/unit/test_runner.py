"""Runners: how many, how long, what they write, and what they leave behind if something fails."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from tasks.deletion import Rules
from tasks.errors import HandBack, LedgerRefused, LedgerUnavailable
from tasks.ledger.types import Claim, Claimed, Findings, Finish, Finished, Progress, Terms
from tasks.records import State
from tasks.runner import Runners


class Clock:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


class FakeLedger:
    """Gives the claims in its lists; each entry of `fails` is raised by the next finish instead."""

    terms = Terms(call_deadline=timedelta(seconds=20))

    def __init__(self, *, due=0, more=False, **due_by_account):
        self.due = {"default": due, **due_by_account}
        self.more = more
        self.calls = []  # (what, account or id, token)
        self.next_tokens = []  # of the claims that came with a finish
        self.fails = []
        self.lost = set()
        self.renewed = []
        self.results = True

    def claim(self, account, token, *, begun=False):
        self.calls.append(("claim begun" if begun else "claim", account, token))
        if not self.due[account]:
            return Claimed(None, why="idle")
        self.due[account] -= 1
        id_ = f"{account}-{self.due[account]}"
        claim = Claim(id_, "delete", token, "single", account, f"ft-{id_}", now=0)
        return Claimed(claim, more=self.more)

    def finish(self, claim, finish, progress, next_token=None):
        self.next_tokens += [next_token] if next_token else []
        self.calls.append(("finish", claim.id, ""))
        if self.fails:
            raise self.fails.pop(0)
        finished = Finished("done", due=self.results)
        return finished, self.claim(claim.account, next_token) if next_token else Claimed()

    def renew(self, claims):
        self.renewed.append({claim.id for claim in claims})
        return self.lost

    @property
    def names(self):
        return [what for what, *_ in self.calls]

    @property
    def tokens(self):
        return [token for what, _, token in self.calls if what.startswith("claim")]


class Desk:
    """Runners with fakes around them. during: called in each deletion, with its claim."""

    def __init__(self, ledger, *, threads=1, accounts=("default",), during=lambda claim, more: None):
        self.ledger, self.clock, self.stopping = ledger, Clock(), threading.Event()
        self.woken: list[str] = []
        self.written: list[str] = []
        self.during = during
        clients: Any = dict.fromkeys(accounts)
        self.runners = Runners(
            ledger=ledger, clients=clients, rules=Rules(), threads=threads, wake=self.woken.append,
            write_results=self.written.extend, stopping=self.stopping, carry_out=self.carry_out, clock=self.clock,
        )  # fmt: skip

    def carry_out(self, claim, *, on_mark, **_):
        self.during(claim, on_mark)
        return Finish(result=State.DELETED, message="as the test says"), Progress(1, Findings())

    def run(self, account="default", *, begun=True):
        self.runners.run(account, begun=begun)
        return self


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("tasks.runner._FINISH_EVERY_SECONDS", 0)


def test_a_runner_goes_on_until_nothing_is_left_with_one_round_trip_between_two_deletions():
    desk = Desk(FakeLedger(due=3)).run()
    assert desk.ledger.names == ["claim begun", *["finish", "claim"] * 3]
    assert (desk.woken, desk.written) == ([], ["default-2", "default-1", "default-0"])


def test_the_task_that_accepted_a_request_is_no_wake_up():
    assert Desk(FakeLedger()).run(begun=False).ledger.names == ["claim"]


def test_if_more_can_start_one_more_wake_up_is_published():
    assert Desk(FakeLedger(due=2, more=True)).run().woken == ["default"] * 2


def test_no_two_claims_have_the_same_token_in_any_process():
    tokens = []
    for _ in range(2):
        desk = Desk(FakeLedger(due=2)).run()
        desk.ledger.due["default"] = 2
        tokens += desk.run().ledger.tokens
    assert len(tokens) == len(set(tokens)) == 2 * 6


def test_a_runner_too_many_returns_at_once_and_its_account_is_woken_when_there_is_room():
    # Given one thread, taken by a first account, when a wake-up for another one comes,
    desk = Desk(FakeLedger(due=2, other=1), accounts=("default", "other"))
    desk.during = lambda claim, _: claim.id == "default-1" and desk.run("other")
    desk.run()
    # then the first account's runner ends after its deletion, and both accounts are woken.
    assert desk.ledger.names == ["claim begun", "finish"]
    assert desk.woken == ["other", "default"]


def test_a_runner_that_ends_idle_wakes_the_account_that_waits():
    desk = Desk(FakeLedger(due=0, other=1), accounts=("default", "other"))

    def claim(account, *_, **__):
        if account == "default":
            desk.run("other")
        return Claimed(None)

    desk.ledger.claim = claim
    assert desk.run().woken == ["other"]


def test_a_runner_makes_no_room_for_its_own_account():
    desk = Desk(FakeLedger(due=2))
    desk.during = lambda *_: desk.run("default")
    assert desk.run().ledger.names == ["claim begun", "finish", "claim", "finish", "claim"]
    assert desk.woken == []


def test_accounts_with_equal_shares_do_not_displace_each_other():
    # Given two threads, one for each account, and wake-ups of both that find no room,
    desk = Desk(FakeLedger(due=1, other=3), threads=2, accounts=("default", "other"))

    def during(claim, _):
        if claim.account == "default":
            desk.run("other")
        else:
            desk.run("default")
            desk.run("other")

    desk.during = during
    desk.run()
    # then the runner inside, of the other account, goes on to its end.
    assert desk.ledger.due == {"default": 0, "other": 0}


def test_after_ten_seconds_a_runner_ends_and_wakes_its_account_again():
    desk = Desk(FakeLedger(due=9))

    def takes_four_seconds(*_):
        desk.clock.seconds += 4

    desk.during = takes_four_seconds
    desk.run()
    assert (desk.ledger.names.count("finish"), desk.ledger.names[-1], desk.woken) == (3, "finish", ["default"])


def test_a_stop_ends_a_runner_after_its_deletion_and_interrupts_its_waits():
    desk = Desk(FakeLedger(due=9))

    def stops(*_):
        desk.runners.sleep(0)
        desk.stopping.set()
        with pytest.raises(HandBack):
            desk.runners.sleep(3600)
        with pytest.raises(HandBack):
            desk.runners.sleep(0)

    desk.during = stops
    assert desk.run().ledger.names == ["claim begun", "finish"]
    assert desk.woken == ["default"]
    # What comes after the stop is left to others; a wake-up could come back to this process for ever.
    assert desk.run().ledger.names == ["claim begun", "finish"]
    assert desk.woken == ["default"]


def test_without_a_key_nothing_is_claimed_and_the_log_says_so_once_a_minute():
    desk = Desk(FakeLedger())
    with capture_logs() as logs:
        for seconds in (0, 1, 58, 2):
            desk.clock.seconds += seconds
            desk.run("stranger")
    assert ([line["event"] for line in logs], desk.ledger.calls, desk.woken) == (["runner.no_key"] * 2, [], [])


def test_an_outcome_that_redis_refuses_is_logged_and_the_runner_goes_on_with_the_same_claim():
    ledger = FakeLedger(due=2)
    ledger.fails = [LedgerRefused("as the test says")]
    with capture_logs() as logs:
        desk = Desk(ledger).run()
    assert "finish.refused" in [line["event"] for line in logs]
    assert desk.written == ["default-0"]
    assert ledger.tokens[1:] == ledger.next_tokens


def test_while_redis_is_away_an_outcome_is_kept_until_it_can_be_written():
    ledger = FakeLedger(due=1)
    ledger.fails = [LedgerUnavailable("as the test says")] * 5
    with capture_logs() as logs:
        assert Desk(ledger).run().written == ["default-0"]
    assert [line["event"] for line in logs].count("finish.waits") == 1


def test_a_stop_while_redis_is_away_waits_for_four_seconds_in_all():
    desk = Desk(FakeLedger(due=1))

    def refuses(*_):
        desk.clock.seconds += 1
        raise LedgerUnavailable("as the test says")

    desk.ledger.finish = refuses
    desk.during = lambda *_: desk.stopping.set()
    began = desk.clock()
    desk.run()
    assert desk.clock() - began == 5
    desk.runners.stopping.clear()  # a second runner of the same process, stopped at the same time
    desk.ledger.due["default"] = 1
    desk.run()
    assert desk.clock() - began == 6


@pytest.mark.parametrize("error", [RuntimeError("a bug"), LedgerUnavailable("away"), LedgerRefused("refused")])
@pytest.mark.parametrize("where", ["claim", "carry_out"])
def test_whatever_is_raised_the_slot_is_given_back(error, where):
    desk = Desk(FakeLedger(due=2))

    def fails(*_, **__):
        raise error

    if where == "claim":
        usual, desk.ledger.claim = desk.ledger.claim, fails
    else:
        desk.during = fails
    desk.run()
    desk.during = lambda *_: None
    if where == "claim":
        desk.ledger.claim = usual
    assert desk.run().ledger.due == {"default": 0}


@pytest.mark.parametrize(
    ("seconds", "marked_after", "is_renewed"), [(145, None, True), (146, None, False), (200, 100, True)]
)
def test_a_lease_is_renewed_for_the_budget_and_seven_calls_since_the_claim_or_the_last_mark(
    seconds, marked_after, is_renewed
):
    desk = Desk(FakeLedger(due=1))

    def takes_long(claim, on_mark):
        began = desk.clock.seconds
        if marked_after:
            desk.clock.seconds += marked_after
            on_mark()
        desk.clock.seconds = began + seconds
        desk.runners.renew()
        desk.runners.renew()

    desk.during = takes_long
    with capture_logs() as logs:
        desk.run()
    assert desk.ledger.renewed == ([{"default-0"}] * 2 if is_renewed else [])
    assert [line["event"] for line in logs].count("lease.lapses") == (0 if is_renewed else 1)


def test_what_is_finished_is_not_renewed_and_a_lost_lease_is_logged():
    desk = Desk(FakeLedger(due=1)).run()
    desk.runners.renew()
    assert desk.ledger.renewed == []
    desk.ledger.due, desk.ledger.lost = {"default": 1}, {"default-0"}
    desk.during = lambda *_: desk.runners.renew()
    with capture_logs() as logs:
        desk.run()
    assert [line["deletion"] for line in logs if line["event"] == "lease.lost"] == ["default-0"]


def test_an_alarm_of_the_api_is_logged_as_an_error():
    desk = Desk(FakeLedger(due=1))
    alarm = Finish(result=State.REVIEW, message="it deleted another one", pause="it deleted another one")
    desk.runners._carry_out = lambda *_, **__: (alarm, Progress(1, Findings()))
    with capture_logs() as logs:
        desk.run()
    levels = {line["event"]: line["log_level"] for line in logs}
    assert levels == {"account.paused": "error", "deletion.finished": "info"}
