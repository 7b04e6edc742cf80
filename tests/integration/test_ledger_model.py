"""The scripts on a real Redis beside a small model: requests, claims, ends, cancels, crashes in any order."""

from datetime import timedelta
from functools import partial
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)  # fmt: skip

from tasks.ledger.keys import LANES
from tasks.ledger.queries import Filter, each, ended, get, list_deletions
from tasks.ledger.store import Ledger
from tasks.ledger.types import Terms
from tasks.records import FINAL, TRANSITIONS, UNFINISHED, NewRequest, State, from_ms
from tasks.text import finetune_key
from tests.conftest import NOW, Clocked, finish, mark, register

UUID = "3fa85f64-5717-4562-b3fc-2c963f66afa6"
NAMES = ("ft-1", UUID, UUID.upper())
PERMITS = 3
# What may be left once every deletion is final, by the first part of the key.
LEFT = {
    "d", "a", "cb", "ix", "names", "finished", "results", "verify", "accounts", "account", "paused", "stats",
    "seq", "workers", "maintained", "memo", "used", "protected", "reports-clear",
}  # fmt: skip


def pick(data, options):
    """One of them; what there is depends on the clock, and what hypothesis draws must not."""
    return options[data.draw(st.integers(0, 99)) % len(options)]


def _score(pipe, key, *, id_):
    return pipe.zscore(key, id_)


class Model(RuleBasedStateMachine):
    """What must hold whatever happens; `redis` is set by the test."""

    redis: Any  # redis-py's types allow for its async client

    def __init__(self):
        super().__init__()
        self.clock = Clocked(self.redis)
        self.latest = self.clock.now  # the clock may be set back: what was due stays so
        self.number = 0
        self.requests: dict[str, NewRequest] = {}
        self.held: list[Any] = []  # every claim that was ever given, finished or not
        self.states: dict[str, State | str] = {}  # as they were last seen
        self.cancelled: set[str] = set()

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.redis, Terms(retention=timedelta(days=1)), now_ms=lambda: self.clock.at_ms)

    @initialize()
    def start(self):
        self.redis.flushall()
        register(self.ledger, permits=PERMITS)

    def accept(self, kind, **fields):
        self.number += 1
        request = NewRequest(f"{kind}{self.number}", digest="d", **fields)
        before = dict(self.states)
        (accepted,), _ = self.ledger.accept([request])
        assert accepted.answer == "accepted"
        self.requests[request.id] = request
        assert {id_: get(self.ledger, id_).state for id_ in before} == before, "a request changes no other"

    @rule(name=st.sampled_from(NAMES), delay=st.sampled_from([0, 3, 3600]), bulk=st.booleans())
    def ask(self, name, delay, bulk):
        self.accept("r", finetune_id=name, delay=timedelta(seconds=delay), bulk=bulk, source="name")

    @rule(name=st.sampled_from(NAMES), ago=st.sampled_from([0, 60]), delay=st.sampled_from([0, 3600]))
    def clean_up(self, name, ago, delay):
        made_at = from_ms(self.clock.at_ms) - timedelta(seconds=ago)
        self.accept(
            "c", finetune_id=name, delay=timedelta(seconds=delay), source="cleanup:plan", incarnation="{}",
            requested_at=made_at,
        )  # fmt: skip

    @rule(data=st.data())
    @precondition(lambda self: any(state in FINAL for state in self.states.values()))
    def retry(self, data):
        old = pick(
            data, sorted(id_ for id_, state in self.states.items() if state in FINAL and get(self.ledger, id_))
        )
        # One of a cleanup stays a cleanup's.
        kind = "c" if old.startswith("c") else "n"
        self.accept(kind, finetune_id=self.requests[old].finetune_id, retry_of=old)
        assert get(self.ledger, f"{kind}{self.number}").asked_at == get(self.ledger, old).asked_at

    @rule(data=st.data(), digest=st.sampled_from(["d", "other"]))
    @precondition(lambda self: self.requests)
    def ask_with_the_same_id(self, data, digest):
        request = self.requests[pick(data, sorted(self.requests))]
        before = get(self.ledger, request.id)
        (accepted,), _ = self.ledger.accept([NewRequest(request.id, request.finetune_id, digest=digest)])
        assert accepted.answer == ("known" if digest == "d" else "conflict")
        assert get(self.ledger, request.id) == before

    @rule(name=st.sampled_from(NAMES), action=st.sampled_from(["touch", "protect", "unprotect"]))
    def keep(self, name, action):
        until = None if action == "touch" else self.clock.at_ms + 60_000
        withdrawn = self.ledger.keep(action, "default", [name], until)
        told = {*withdrawn.withdrawn, *withdrawn.under_way}
        assert all(id_.startswith("c") for id_ in told)
        self.cancelled |= told
        waiting = [id_ for id_ in self.unfinished(name) if id_.startswith("c")]
        if action != "unprotect":
            assert all(get(self.ledger, id_).cancel_requested_at for id_ in waiting)

    @rule(runner=st.sampled_from(["a", "b"]), repeated=st.booleans())
    def claim(self, runner, repeated):
        self.number += 1
        claimed = self.ledger.claim("default", f"{runner}:{self.number}")
        if repeated:
            assert self.ledger.claim("default", f"{runner}:{self.number}") == claimed
        if claimed.claim is None:
            return
        deletion = get(self.ledger, claimed.claim.id)
        assert deletion.state == State.RUNNING
        assert (
            claimed.claim.kind == "observe" or deletion.next_try_at <= self.latest or deletion.cancel_requested_at
        )
        assert claimed.claim.token not in [one.token for one in self.held]
        assert not (deletion.cancel_requested_at and claimed.claim.kind == "delete")
        self.held.append(claimed.claim)

    @rule(data=st.data(), attempt=st.integers(1, 2), unclear=st.booleans())
    @precondition(lambda self: self.held)
    def mark(self, data, attempt, unclear):
        one = pick(data, self.held)
        is_theirs, cancelled = self.is_theirs(one), get(self.ledger, one.id).cancel_requested_at
        word = mark(self.ledger, one, attempt, unclear_at=self.clock.at_ms if unclear else one.unclear_at)
        assert (word == "lost") == (not is_theirs)
        assert word != "go" or not cancelled

    @rule(
        data=st.data(), end=st.sampled_from([*sorted(FINAL), "back"]), unclear=st.booleans(),
        delay=st.sampled_from([None, 5, 5000]), attempt=st.integers(0, 2), twice=st.booleans(),
    )  # fmt: skip
    @precondition(lambda self: self.held)
    def finish(self, data, end, unclear, delay, attempt, twice):
        one = pick(data, self.held)
        before, is_theirs = get(self.ledger, one.id), self.is_theirs(one)
        if one.kind == "observe" and end == "back":
            end = data.draw(st.sampled_from(["back", "observed"]))
        given = {"delay": None if delay is None else timedelta(seconds=delay), "attempt": attempt}
        found = {"unclear_at": self.clock.at_ms if unclear and attempt else one.unclear_at}
        word = finish(self.ledger, one, end, found=found, **given)
        after = get(self.ledger, one.id)
        if word == "late":
            assert after.state in (before.state, "deleted", "review")
        elif is_theirs and end in FINAL:
            assert after.state == end
        if twice:
            assert finish(self.ledger, one, end, found=found, **given) == word
            assert get(self.ledger, one.id) == after

    @rule(data=st.data())
    @precondition(lambda self: self.requests)
    def cancel(self, data):
        id_ = pick(data, sorted(self.requests))
        before = get(self.ledger, id_)
        (answer,), _ = self.ledger.cancel([id_])
        after = get(self.ledger, id_)
        assert (answer == "final") == before.is_final
        assert (answer == "cancelled") == (after.state == "cancelled" and not before.is_final)
        others = {other: state for other, state in self.states.items() if other != id_}
        assert {other: get(self.ledger, other).state for other in others} == others
        self.cancelled.add(id_)

    @rule(data=st.data())
    @precondition(lambda self: self.held)
    def renew(self, data):
        one = pick(data, self.held)
        assert (self.ledger.renew([one]) == {one.id}) == (not self.is_theirs(one))

    @rule(seconds=st.sampled_from([0.2, 1, 5, 25, 35, 70, 4000, -600]))
    def time_passes(self, seconds):
        self.clock.after(seconds=seconds)
        self.latest = max(self.latest, self.clock.now)

    @rule()
    def maintain(self):
        for lane, _, ends in self.ledger.maintain("default", PERMITS).leases:
            assert ends > self.clock.at_ms, f"a lease in {lane} that has ended is taken back"

    @rule(action=st.sampled_from(["pause", "resume"]))
    def switch(self, action):
        self.ledger.account("default", action)

    @rule()
    def no_report_waits(self):
        self.redis.set(self.ledger.keys.reports_clear, self.clock.at_ms)

    @invariant()
    def everything_holds(self):
        self.the_table_of_states_holds()
        self.only_what_was_withdrawn_is_cancelled()
        self.each_stands_in_exactly_one_place()
        self.at_most_one_sibling_runs_and_permits_are_kept()
        self.what_waits_behind_a_sibling_is_put_back()
        self.the_unfinished_of_a_finetune_are_known()

    def the_table_of_states_holds(self):
        for deletion in list_deletions(self.ledger, Filter(), limit=1000).deletions:
            before = self.states.get(deletion.id)
            if before in FINAL and before != deletion.state:
                assert deletion.state in TRANSITIONS[State(before)]
            self.states[deletion.id] = deletion.state
            assert bool(deletion.finished_at) == deletion.is_final
            assert not deletion.is_final or (deletion.status and deletion.message and deletion.timestamp)
        assert self.states.keys() == self.requests.keys(), "what was accepted has a record"

    def only_what_was_withdrawn_is_cancelled(self):
        for id_, state in self.states.items():
            ended_so = any(one.id == id_ for one in self.held)  # the rule `finish` may say so
            assert state != "cancelled" or ended_so or id_ in self.cancelled or id_.startswith("c")

    def each_stands_in_exactly_one_place(self):
        keys = self.ledger.keys
        for id_, state in self.states.items():
            name = finetune_key(self.requests[id_].finetune_id)
            rows: list[tuple[str, str]] = [
                ("scheduled", keys.wait("default")),
                ("queued", keys.siblings("default", name)),
                *(("queued", keys.queue("default", lane)) for lane in LANES),
                *(("running", keys.leases("default", lane)) for lane in LANES),
                ("final", keys.finished),
                *(("index", keys.index("default", one)) for one in State),
            ]
            scores = each(self.ledger, [key for _, key in rows], partial(_score, id_=id_))
            found = [row for row, score in zip(rows, scores, strict=True) if score is not None]
            place = state if state in UNFINISHED else "final"
            assert [at for at, _ in found] == [place, "index"], (id_, state, found)
            assert found[-1][1] == keys.index("default", state)

    def at_most_one_sibling_runs_and_permits_are_kept(self):
        running = [id_ for id_, state in self.states.items() if state == State.RUNNING]
        names = [finetune_key(self.requests[id_].finetune_id) for id_ in running]
        assert len(names) == len(set(names))
        assert len(running) <= PERMITS

    def what_waits_behind_a_sibling_is_put_back(self):
        for name in {finetune_key(name) for name in NAMES}:
            waiting = self.redis.zrange(self.ledger.keys.siblings("default", name), 0, -1)
            others = [id_ for id_ in self.unfinished(name) if id_ not in waiting]
            holder = self.redis.hget(self.ledger.keys.finetune("default", name), "held")
            alive = [id_ for id_ in others if self.states[id_] in ("queued", "running") or id_ == holder]
            assert not waiting or alive
            assert not waiting or self.has(self.ledger.keys.blocked("default"), name)

    def the_unfinished_of_a_finetune_are_known(self):
        for name in NAMES:
            found = self.redis.smembers(self.ledger.keys.unfinished("default", finetune_key(name)))
            assert found == set(self.unfinished(name))

    def teardown(self):
        """Once everything has been let run, everything is final and nothing is left."""
        self.ledger.account("default", "resume")
        for _ in range(200):
            self.clock.after(minutes=10)
            self.no_report_waits()
            self.ledger.maintain("default", PERMITS)
            while claimed := self.ledger.claim("default", f"last:{self.number}").claim:
                self.number += 1
                finish(self.ledger, claimed, "observed" if claimed.kind == "observe" else State.FAILED)
            self.number += 1
            if ended(self.ledger, list(self.requests)) == self.requests.keys():
                break
        assert ended(self.ledger, list(self.requests)) == self.requests.keys()
        self.ledger.maintain("default", PERMITS)
        kinds = {key.removeprefix("janitor:2:").split(":")[0] for key in self.redis.scan_iter()}
        assert kinds <= LEFT

    def unfinished(self, name):
        key = finetune_key(name)
        ids = [id_ for id_, one in self.requests.items() if finetune_key(one.finetune_id) == key]
        return [id_ for id_ in ids if self.states.get(id_) not in FINAL]

    def is_theirs(self, one):
        token = self.redis.hget(self.ledger.keys.deletion(one.id), "token")
        return get(self.ledger, one.id).state == State.RUNNING and token == one.token

    def has(self, key, id_):
        return self.redis.zscore(key, id_) is not None


def test_whatever_happens_the_books_balance(redis_client):
    Model.redis = redis_client
    assert Clocked(redis_client).now == NOW
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=set(Phase) - {Phase.explain},  # it traces each line, and takes minutes here
        ),
    )
