"""The ledger and its Redis: full, restarted, with another role, another schema."""

from datetime import timedelta

import pytest
import redis

from tasks.errors import LedgerFull, LedgerRefused, LedgerUnavailable, WrongLedger
from tasks.ledger import server
from tasks.ledger.queries import Filter, get, known_accounts, list_deletions, stopped_accounts
from tasks.ledger.store import Ledger
from tasks.ledger.types import Finish
from tasks.records import State, to_ms
from tests.conftest import (
    NOW,
    PERMITS,
    accept,
    asking,
    carry_out_one,
    claim,
    claim_all,
    finish,
    mark,
    progress,
    states,
)
from worker.redis_url import connect

HOUR = timedelta(hours=1)
DAYS_400 = timedelta(days=400)
FAILED = Finish(result=State.FAILED, message="no")


class TestFullRedis:
    """Under `noeviction`, with no memory left, what was accepted can still be finished."""

    @pytest.fixture
    def work(self, ledger, clocked):
        """Deletions in every place, an old record, and then no memory left."""
        accept(ledger, asking("old", id="old"))
        carry_out_one(ledger)
        clocked.after(days=91)
        names = ("a-ends", "b-waits", "c-unclear", "d-due", "e-due")
        accept(ledger, *(asking(name, id=name, source="name") for name in names))
        accept(ledger, asking("later", id="later", delay=HOUR), asking("a-ends", id="sibling"))
        return ledger

    @pytest.fixture
    def full(self, work):
        work.redis.config_set("maxmemory-policy", "noeviction")
        work.redis.config_set("maxmemory", 1)
        yield work
        work.redis.config_set("maxmemory", 0)

    def test_claim_mark_finish_hand_back_and_renew_go_on(self, full, clocked):
        ends, waits, unclear = (claim(full) for _ in range(3))
        assert full.renew([ends, waits, unclear]) == set()
        assert mark(full, ends, incarnation='{"settings":{"mode":"style"}}') == "go"
        assert finish(full, ends, "deleted", attempt=1, lines=('{"at":1,"sent":true}',)) == "done"
        assert finish(full, waits, "back", delay=HOUR) == "done"
        assert mark(full, unclear) == "go"
        finished, claimed = full.finish(unclear, FAILED, progress(unclear, 1), "w:1")
        assert (finished.word, claimed.claim.id) == ("done", "d-due")
        assert states(full, "a-ends", "b-waits", "c-unclear") == ["deleted", "scheduled", "failed"]

    def test_cancel_pause_and_cool_down_go_on(self, full):
        assert full.cancel(["later", "d-due"])[0] == ["cancelled", "cancelled"]
        full.account("default", "pause", reason="test")
        full.account("default", "cool", reason="429", ms=1_000, step_ms=1_000, most_ms=60_000)
        assert stopped_accounts(full)["default"].paused == "test"
        full.account("default", "resume")

    def test_maintenance_goes_on_and_makes_room(self, full, clocked):
        claim(full)
        clocked.after(seconds=31)
        assert full.maintain("default", PERMITS).reclaimed == 1
        assert full.housekeep(["worker/0"], DAYS_400)[1] == 1
        assert states(full, "old") == [None]

    def test_surveys_verification_and_keeping_go_on(self, full, clocked):
        assert full.permit("default", "survey:0", PERMITS).word == "go"
        assert full.keep("protect", "default", ["a"], clocked.at_ms) == ([], [])
        finding = {
            "id": "old",
            "finished_at": to_ms(get(full, "old").finished_at or NOW),
            "word": "gone",
        }
        assert full.verify("default", [finding], "") == []
        assert get(full, "old").verified_at

    def test_reads_go_on(self, full):
        assert len(list_deletions(full, Filter()).deletions) == 8
        assert stopped_accounts(full) == {}

    def test_a_request_is_refused_before_anything_is_written(self, full):
        before = full.redis.dbsize()
        with pytest.raises(LedgerFull, match="give it more memory"):
            accept(full, asking(id="new"))
        assert (full.redis.dbsize(), states(full, "new")) == (before, [None])

    def test_the_script_itself_writes_nothing_of_a_request_that_redis_refuses(self, full, monkeypatch):
        # Given memory that was used up between the check and the script.
        monkeypatch.setattr(server, "check_room", lambda _: None)
        before = full.redis.dbsize()
        with pytest.raises(LedgerUnavailable, match="Redis is full"):
            accept(full, asking(id="new"))
        assert full.redis.dbsize() == before

    @pytest.mark.parametrize(("policy", "limit"), [("noeviction", 0), ("allkeys-lru", 1 << 30)])
    def test_without_a_limit_or_with_eviction_there_is_no_threshold(self, ledger, policy, limit):
        ledger.redis.config_set("maxmemory-policy", policy)
        ledger.redis.config_set("maxmemory", limit)
        try:
            assert server.free_memory(ledger.redis) == (None, 0)
        finally:
            ledger.redis.config_set("maxmemory-policy", "noeviction")
            ledger.redis.config_set("maxmemory", 0)

    @pytest.mark.parametrize(("limit", "least"), [(1 << 30, 16 << 20), (50 << 20, 5 << 20)])
    def test_a_tenth_or_sixteen_mebibytes_stay_free(self, ledger, limit, least):
        ledger.redis.config_set("maxmemory", limit)
        try:
            free, kept = server.free_memory(ledger.redis)
            assert (kept, 0 < free < limit) == (least, True)
        finally:
            ledger.redis.config_set("maxmemory", 0)


class TestServerTrouble:
    @pytest.fixture
    def swapping(self, ledger, redis_url, monkeypatch):
        """A ledger as workers connect to it. Its Redis has become a replica, until somebody connects again."""
        with connect(redis_url) as client:
            pool = client.connection_pool
            disconnect = pool.disconnect

            def connect_again(**options):
                disconnect(**options)
                ledger.redis.replicaof("NO", "ONE")

            theirs = Ledger(client, now_ms=ledger.now_ms)
            accept(theirs, asking("a", id="r1"), asking("b", id="r2"))
            monkeypatch.setattr(pool, "disconnect", connect_again)
            ledger.redis.replicaof("127.0.0.1", "1")
            yield theirs
        ledger.redis.replicaof("NO", "ONE")

    def test_master_and_replica_that_swap_roles_are_followed(self, swapping):
        assert accept(swapping, asking(id="r3")) == ["accepted"]

    def test_also_between_a_finish_and_the_next_claim(self, swapping, ledger):
        claimed = claim(swapping)
        ledger.redis.replicaof("127.0.0.1", "1")
        finished, following = swapping.finish(claimed, FAILED, progress(claimed), "w:1")
        assert (finished.word, following.claim.id) == ("done", "r2")

    def test_and_by_plain_commands(self, swapping):
        assert swapping.new_callbacks_nonce("r1")[0]

    def test_a_server_that_has_forgotten_the_scripts_gets_them_again(self, ledger):
        accept(ledger, asking(id="r1"))
        ledger.redis.script_flush()
        claimed = claim(ledger)
        ledger.redis.script_flush()
        finished, _ = ledger.finish(claimed, FAILED, progress(claimed), "w:1")
        assert finished.word == "done"

    def test_a_passing_refusal_is_not_taken_for_a_lasting_one(self, ledger):
        ledger.redis.config_set("min-replicas-to-write", 1)
        try:
            with pytest.raises(LedgerUnavailable) as raised:
                accept(ledger, asking())
        finally:
            ledger.redis.config_set("min-replicas-to-write", 0)
        assert not isinstance(raised.value, LedgerRefused)

    def test_a_right_that_a_script_lacks_is_waited_for(self, ledger):
        # Given a user of Redis that may run scripts, but not all of what they do: that holds for every request.
        ledger.redis.acl_setuser(
            "narrow", enabled=True, nopass=True, keys=["janitor:*"], categories=["+@all"], commands=["-hset"]
        )
        path = ledger.redis.connection_pool.connection_kwargs["path"]
        narrow = redis.Redis(unix_socket_path=path, username="narrow", password="x", decode_responses=True)
        # When a request is written with it, then that is no refusal of this request alone.
        with narrow, pytest.raises(LedgerUnavailable, match="script") as raised:
            accept(Ledger(narrow), asking())
        assert not isinstance(raised.value, LedgerRefused)
        ledger.redis.acl_deluser("narrow")

    def test_a_key_of_another_type_is_a_lasting_refusal(self, ledger):
        ledger.redis.lpush(ledger.keys.paused, "a message")
        with pytest.raises(LedgerRefused):
            ledger.claim("default", "w:1")

    def test_accounts_are_known_again_after_a_flush(self, ledger):
        ledger.redis.flushall()
        ledger.maintain("other", 2)
        assert known_accounts(ledger) == {"default", "other"}
        accept(ledger, *(asking(f"ft-{n}", account="other") for n in range(3)))
        assert len(claim_all(ledger, "other")) == 2


class TestSchema:
    def test_the_first_process_writes_it(self, ledger):
        ledger.check_schema()
        ledger.check_schema()
        assert ledger.redis.get(ledger.keys.schema) == "1"

    def test_a_ledger_of_the_first_edition_is_refused_in_one_line(self, ledger):
        ledger.redis.sadd("janitor:accounts", "default")
        with pytest.raises(WrongLedger, match=r"finetune-janitor 0\.1") as raised:
            ledger.check_schema()
        assert len(str(raised.value).splitlines()) == 1
        assert ledger.redis.get(ledger.keys.schema) is None

    def test_one_beside_ours_is_no_obstacle(self, ledger):
        ledger.check_schema()
        ledger.redis.sadd("janitor:accounts", "default")
        ledger.check_schema()

    def test_a_user_who_may_only_read_does_not_write_it(self, ledger, redis_url):
        # Given a user of Redis who may not write
        ledger.redis.execute_command("ACL", "SETUSER", "reader", "reset", "on", "nopass", "~*", "+@read")
        only_reads = Ledger(connect(redis_url.replace("//", "//reader:any@", 1), patient=False))
        # When it comes first, then it goes on, and nothing is written
        only_reads.check_schema()
        assert ledger.redis.get(ledger.keys.schema) is None
        # When the ledger is of a newer version, then it is refused
        ledger.redis.set(ledger.keys.schema, 2)
        with pytest.raises(WrongLedger, match="schema 2"):
            only_reads.check_schema()
        ledger.redis.execute_command("ACL", "DELUSER", "reader")

    def test_a_newer_schema_is_refused(self, ledger):
        ledger.redis.set(ledger.keys.schema, 2)
        with pytest.raises(WrongLedger, match="schema 2"):
            ledger.check_schema()

    def test_every_key_is_under_the_prefix(self, ledger, clocked):
        accept(ledger, asking("a", source="name", callbacks={"link": []}), asking("a"), asking("b", delay=HOUR))
        carry_out_one(ledger)
        ledger.check_schema()
        assert all(key.startswith("janitor:2:") for key in ledger.redis.scan_iter())
