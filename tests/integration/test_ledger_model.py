"""The scripts on a real Redis beside a small model: claims, ends, cancels, joins, crashes, time in any order."""

import json
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tasks.claims import Terms
from tasks.inventory import protect, protected_among, touch, unprotect
from tasks.ledger import Ledger
from tasks.queries import Filter, get, list_deletions
from tasks.records import TRANSITIONS, NewRequest, State, from_ms
from tests.conftest import outcome

NAMES = ("ft-1", "ft-2", "ft-3")
PERMITS = 4
MOMENTS = st.sampled_from([0.2, 1, 5, 25, 35, 70, 4000])


def pick(data, options):
    """One of them; what there is depends on the clock, and what hypothesis draws must not."""
    return options[data.draw(st.integers(0, 99)) % len(options)]


class Model(RuleBasedStateMachine):
    """What must hold whatever happens; `redis` is set by the test."""

    redis: Any  # redis-py's types allow for its async client

    def __init__(self):
        super().__init__()
        self.passed = timedelta(0)
        self.number = 0
        self.requests = {}  # request id -> finetune
        self.held = []  # every claim that was ever given, concluded or not
        self.tokens = set()
        self.states = {}  # deletion id -> the state it was last seen in
        self.planned = {}  # a cleanup's request -> when its plan was made
        self.used = dict.fromkeys(NAMES, 0)
        self.cancels = {}  # deletion id -> when somebody cancelled it last

    @initialize()
    def start(self):
        self.redis.flushall()
        self.ledger.account("default", "register", max_concurrent=PERMITS)

    @property
    def ledger(self):
        return Ledger(self.redis, Terms(retention=timedelta(days=1)), skew=self.passed)

    @rule(
        name=st.sampled_from(NAMES), delay=st.sampled_from([0, 3, 3600]), bulk=st.booleans(), missing=st.booleans()
    )
    def ask(self, name, delay, bulk, missing):
        self.number += 1
        request = NewRequest(
            f"r{self.number}", name, delay=timedelta(seconds=delay), bulk=bulk, missing_ok=missing, source="name"
        )
        open_before = self.redis.hget("janitor:open:default", name)
        (accepted,), _ = self.ledger.accept([request])
        assert accepted.created == (open_before is None)
        assert accepted.deletion_id == (open_before or request.id)
        self.requests[request.id] = name

    @rule(name=st.sampled_from(NAMES), ago=st.sampled_from([0, 2, 60, 5000]), delay=st.sampled_from([0, 3, 3600]))
    def clean_up(self, name, ago, delay):
        self.number += 1
        now = self.ledger.now_ms()
        request = NewRequest(
            f"c{self.number}", name, delay=timedelta(seconds=delay), bulk=True, source="cleanup:plan",
            requested_at=from_ms(now) - timedelta(seconds=ago), fingerprint=f"v1:mode={self.number % 2}",
        )  # fmt: skip
        self.ledger.accept([request])
        self.requests[request.id] = name
        self.planned[request.id] = now - 1000 * ago

    @rule(name=st.sampled_from(NAMES))
    def clean_up_what_somebody_wants_gone_later(self, name):
        self.clean_up(name, ago=2, delay=0)
        self.ask(name, delay=3600, bulk=False, missing=False)

    @rule(name=st.sampled_from(NAMES))
    def use(self, name):
        touch(self.ledger, "default", [name])
        self.used[name] = self.ledger.now_ms()
        self.no_cleanup_waits_for(name)

    @rule(name=st.sampled_from(NAMES), seconds=st.sampled_from([None, 3, 4000]))
    def protect(self, name, seconds):
        until = from_ms(self.ledger.now_ms()) + timedelta(seconds=seconds) if seconds else None
        protect(self.ledger, "default", [name], until)
        self.no_cleanup_waits_for(name)

    @rule(name=st.sampled_from(NAMES))
    def unprotect(self, name):
        unprotect(self.ledger, "default", [name])

    def no_cleanup_waits_for(self, name):
        id_ = self.redis.hget("janitor:open:default", name)
        requests = get(self.ledger, id_).requests if id_ else ()
        assert all(request.withdrawn_at for request in requests if request.id in self.planned)

    @rule(data=st.data())
    @precondition(lambda self: self.requests)
    def ask_the_same_again(self, data):
        id_ = pick(data, sorted(self.requests))
        before = get(self.ledger, id_)
        (accepted,), _ = self.ledger.accept([NewRequest(id_, self.requests[id_], source="name")])
        assert (accepted.created, accepted.known, accepted.deletion_id) == (False, True, before.id)
        assert get(self.ledger, id_) == before

    @rule(owner=st.sampled_from(["a", "b"]), want=st.integers(1, 5), looks_first=st.booleans())
    def claim(self, owner, want, looks_first):
        now = from_ms(self.ledger.now_ms())
        claimed, _ = self.ledger.claim("default", owner, want, looks_first=looks_first)
        assert len(claimed) <= want
        for one in claimed:
            deletion = get(self.ledger, one.id)
            if one.kind == "delete":
                assert deletion.state == "running"
                assert deletion.due_at <= now + timedelta(seconds=1) or deletion.cancel_requested_at
                assert (one.id, one.token) not in self.tokens, "a token is given once"
                self.tokens.add((one.id, one.token))
                self.somebody_still_wants(deletion, one)
            self.held.append(one)

    def somebody_still_wants(self, deletion, one):
        wanted = [request for request in deletion.requests if not request.withdrawn_at]
        if one.cancel_requested_at or any(request.id not in self.planned for request in wanted):
            return
        assert wanted, "a cleanup's alone, and it was withdrawn"
        assert not protected_among(self.ledger, "default", [deletion.finetune_id])
        assert all(self.used[deletion.finetune_id] <= self.planned[request.id] + 1 for request in wanted)

    @rule(
        data=st.data(), end=st.sampled_from(["deleted", "failed", "not_found", "superseded", "review", "queued"])
    )
    @precondition(lambda self: self.held)
    def conclude(self, data, end):
        one = pick(data, self.held)
        before = get(self.ledger, one.id)
        token = self.redis.hget(f"janitor:d:{one.id}", "token")
        mine = before.state == "running" and one.kind == "delete" and int(token) == one.token
        fields = {"evidence": "response"} if end == "deleted" else {}
        if one.kind == "look":
            end = end if end in ("not_found", "superseded") else None
        if end == "queued":
            fields["delay_ms"] = data.draw(st.sampled_from([None, 5000]))
        if end == "superseded":
            fields["since_ms"] = one.claimed_at
        self.ledger.conclude([outcome(one, end, **fields)])
        after = get(self.ledger, one.id)
        if one.kind == "delete" and not mine:
            assert after.state == before.state or after.state == "deleted"
        if mine and end not in ("queued", None):
            assert after.state == end

    @rule(data=st.data())
    @precondition(lambda self: self.held)
    def check(self, data):
        one = pick(data, self.held)
        (verdict,) = self.ledger.check([one], look=data.draw(st.booleans()), mark=data.draw(st.booleans()))
        deletion, token = get(self.ledger, one.id), self.redis.hget(f"janitor:d:{one.id}", "token")
        if verdict.word == "go":
            assert (deletion.state, int(token)) == ("running", one.token)

    @rule(data=st.data())
    @precondition(lambda self: self.held)
    def wait(self, data):
        one = pick(data, [one for one in self.held if one.kind == "delete"] or self.held)
        attempt = json.dumps({"at": 1, "sent": True, "http_status": 408})
        self.ledger.wait(one, attempt, data.draw(st.sampled_from([0, one.claimed_at])))

    @rule(data=st.data())
    @precondition(lambda self: self.requests)
    def cancel(self, data):
        id_ = pick(data, sorted(self.requests))
        before = get(self.ledger, id_)
        ((answer, deletion_id),) = self.ledger.cancel([id_])
        after = get(self.ledger, id_)
        assert deletion_id == before.id
        assert (answer == "final") == before.state.is_final
        assert answer != "cancelled" or after.state == "cancelled"
        assert answer != "requested" or not after.state.is_final
        self.cancels[before.id] = True

    @rule(seconds=MOMENTS)
    def time_passes(self, seconds):
        self.passed += timedelta(seconds=seconds)

    @rule()
    def dispatch(self):
        self.ledger.dispatch(["w/0"], alive_for=timedelta(days=400))
        leases = self.redis.zrange("janitor:leases:default", 0, -1, withscores=True)
        assert all(end > self.ledger.now_ms() - 1000 for _, end in leases), "ended leases are taken back"

    @rule(switch=st.sampled_from(["pause", "resume", "unpark"]))
    def switch(self, switch):
        self.ledger.account("default", switch)

    @invariant()
    def the_table_holds(self):
        deletions = list_deletions(self.ledger, Filter(), limit=1000).deletions
        for deletion in deletions:
            before = self.states.get(deletion.id)
            if before and before.is_final and before != deletion.state:
                assert deletion.state in TRANSITIONS[before]
            self.states[deletion.id] = deletion.state
            assert bool(deletion.finished_at) == deletion.state.is_final
            assert not deletion.state.is_final or (deletion.status and deletion.message and deletion.timestamp)

    @invariant()
    def nobody_else_is_withdrawn_with_a_cleanup(self):
        for id_ in self.requests.keys() - self.planned.keys():
            deletion = get(self.ledger, id_)
            assert id_ not in [request.id for request in deletion.requests if request.withdrawn_at]
            assert deletion.state != "cancelled" or deletion.id in self.cancels

    @invariant()
    def what_waits_is_due_when_the_first_of_those_left_wants_it(self):
        for id_ in self.redis.hvals("janitor:open:default"):
            deletion, backoffs = get(self.ledger, id_), self.redis.hget(f"janitor:d:{id_}", "backoffs")
            left = [request for request in deletion.requests if not request.withdrawn_at]
            if left and not backoffs and not deletion.cancel_requested_at:
                assert deletion.due_at >= min(request.due_at for request in left)

    @invariant()
    def every_request_is_answered_by_one_deletion_of_its_finetune(self):
        for id_, name in self.requests.items():
            deletion = get(self.ledger, id_)
            assert deletion.finetune_id == name
            assert deletion.request(id_) is not None

    @invariant()
    def every_deletion_stands_in_one_order_and_one_list(self):
        orders = {
            State.SCHEDULED: ["janitor:wait:default"],
            State.QUEUED: [f"janitor:queue:default:{lane}" for lane in ("resolve", "single", "bulk")],
            State.RUNNING: ["janitor:leases:default"],
        }
        ids = list(self.states)
        for deletion in (get(self.ledger, id_) for id_ in ids):
            places = [key for keys in orders.values() for key in keys if self._has(key, deletion.id)]
            assert set(places) <= set(orders.get(deletion.state, []))
            assert len(places) == (0 if deletion.state.is_final else 1)
            assert self._has("janitor:finished", deletion.id) == deletion.state.is_final
            lists = [state for state in State if self._has(f"janitor:ix:default:{state}", deletion.id)]
            assert lists == [deletion.state]
            is_open = self.redis.hget("janitor:open:default", deletion.finetune_id) == deletion.id
            assert is_open == (not deletion.state.is_final)

    @invariant()
    def permits_are_never_more_than_there_are(self):
        live = self.redis.zcount("janitor:permits:default", self.ledger.now_ms(), "+inf")
        assert live <= PERMITS

    def _has(self, key, id_):
        return self.redis.zscore(key, id_) is not None


def test_whatever_happens_the_books_balance(redis_client):
    Model.redis = redis_client
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
