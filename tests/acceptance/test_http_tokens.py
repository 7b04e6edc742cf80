"""Tokens of a running service: added, revoked, expired; and their quotas."""

import time
from types import SimpleNamespace

import pytest
import requests
from starlette.exceptions import HTTPException

from tasks.errors import IdConflict
from tasks.intake import Intake
from tasks.ledger import Ledger
from tasks.records import NewRequest
from tests.acceptance.http import Client, served, token_file
from tests.processes import environment, janitor_here, until
from worker.http import quotas
from worker.http.deletions import create_deletions
from worker.http.models import NewDeletions
from worker.http.quotas import Quotas
from worker.http.tokens import Token
from worker.local import embedded
from worker.redis_url import connect


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    with embedded.running(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def env(redis_url, tmp_path):
    with connect(redis_url) as client:
        client.flushall()  # what other tests have used of a quota
    return environment(redis_url, JANITOR_STATE_DIR=tmp_path, JANITOR_TOKENS_FILE=token_file(tmp_path))


def ids_of(answer):
    return [item["deletion"]["id"] for item in answer.json()["deletions"]]


def test_tokens_come_and_go_while_it_runs(env, tmp_path):
    with served(env, tmp_path / "log") as (base, _):

        def status(secret):
            headers = {"Authorization": f"Bearer {secret}"}
            return requests.get(f"{base}/v1/deletions", headers=headers, timeout=20).status_code

        # Given a service that runs, when a token is made, then it is let in without a restart;
        secret = janitor_here(env, "tokens", "new", "shipping").stdout.strip()
        until(lambda: status(secret) == 200, seconds=30, what="a new token")
        # a broken file changes nothing and is logged;
        file, good = tmp_path / "tokens.toml", (tmp_path / "tokens.toml").read_text()
        file.write_text("[broken")
        until(lambda: (status(secret), "http.tokens_not_read" in (tmp_path / "log").read_text()) == (200, True),
              seconds=30, what="a broken file")  # fmt: skip
        # one that has expired is refused and told so,
        shipping = good.index("[shipping]")
        file.write_text(f"{good}expires = 2020-01-01\n")
        until(lambda: status(secret) == 401, seconds=30, what="an expiry")
        told = requests.get(f"{base}/v1/deletions", headers={"Authorization": f"Bearer {secret}"}, timeout=20)
        assert "a token that expired at 2020-01-01T00:00:00.000Z" in told.json()["detail"]
        # and one that is revoked is not known.
        assert janitor_here(env, "tokens", "revoke", "shipping").returncode == 0
        assert file.read_text().strip() == good[:shipping].strip()
        until(lambda: status(secret) == 401, seconds=30, what="a revocation")
        assert secret not in (tmp_path / "log").read_text()


def test_a_token_has_a_quota_of_requests_a_minute(env, tmp_path):
    few = {**env, "JANITOR_HTTP_REQUESTS_PER_MINUTE": "3"}
    with served(few, tmp_path / "log") as (base, _), Client(base, "boss") as boss, Client(base, "reader") as other:
        # When a token makes more requests in a minute than its quota, then it is told how long to wait,
        answers = [boss.get("/v1/deletions") for _ in range(8)]  # at most six of them in two minutes
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {200, 429}
        for answer in refused:
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
            assert "'boss' has made 3 requests in this minute" in answer.json()["detail"]
        # and others, probes and metrics are not concerned.
        assert other.get("/v1/deletions").status_code == 200
        assert {boss.get(path).status_code for path in ("/metrics", "/healthz", "/readyz")} == {200}


def test_a_token_has_a_quota_of_unfinished_deletions(env, tmp_path):
    few = {**env, "JANITOR_HTTP_OPEN_DELETIONS": "5"}
    with served(few, tmp_path / "log") as (base, _), Client(base, "boss") as boss, Client(base, "writer") as other:
        # Given as many deletions as the quota, when more are asked for, then nothing of it is written;
        accepted = boss.ask("a", "b", "c", "d", "e", key="five", delay_seconds=3600)
        assert accepted.status_code == 202
        refused = boss.ask("f", "g", delay_seconds=3600)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "10")
        assert "whose quota is 5: wait until some have ended, or cancel some" in refused.json()["detail"]
        assert boss.get("/v1/deletions?finetune_id=f").json()["deletions"] == []
        # the same call again gets the same answer, and others are not concerned;
        again = boss.ask("a", "b", "c", "d", "e", key="five", delay_seconds=3600)
        assert (again.status_code, ids_of(again)) == (200, ids_of(accepted))
        assert other.ask("f", delay_seconds=3600).status_code == 202
        # and once some have ended there is room again.
        for id_ in ids_of(accepted)[:2]:
            boss.post(f"/v1/deletions/{id_}/cancel")
        until(lambda: boss.ask("f", "g", delay_seconds=3600).status_code == 202, seconds=60, what="room")
        assert boss.ask("h").status_code == 429


class TestQuotas:
    """Of the counting itself, with a clock."""

    @pytest.fixture
    def ledger(self, redis_url):
        ledger = Ledger(connect(redis_url, patient=False))
        ledger.redis.flushdb()
        return ledger

    def test_requests_are_counted_for_each_minute_and_forgotten(self, ledger):
        at = [120.0]
        counted = Quotas(ledger, 2, 10, lambda: at[0])
        assert [counted.count_request("a") for _ in range(3)] == [None, None, 60]
        assert counted.count_request("b") is None
        at[0] = 179
        assert counted.count_request("a") == 1
        at[0] = 180
        assert counted.count_request("a") is None
        keys = list(ledger.redis.scan_iter())
        assert len(keys) == 3
        assert all(0 < ledger.redis.ttl(key) <= 60 for key in keys)

    def test_what_has_ended_or_was_never_written_is_not_counted(self, ledger, monkeypatch):
        monkeypatch.setattr(quotas, "_AT_ONCE", 3)  # several rounds
        at = [1000.0]
        counted = Quotas(ledger, 1, 10, lambda: at[0])
        ids = [f"id-{n}" for n in range(10)]
        counted.reserve("a", ids)
        ledger.accept([NewRequest(id_, id_, source="http", digest="x") for id_ in ids[:8]])
        with pytest.raises(HTTPException):
            counted.reserve("a", ["new"])
        # Given two that were never written and four cancelled, when ten seconds have passed, then six are free.
        ledger.cancel(ids[:4])
        at[0] += 10
        counted.reserve("a", [f"new-{n}" for n in range(6)])
        with pytest.raises(HTTPException):
            counted.reserve("a", ["one-more"])
        assert ledger.redis.ttl(ledger.keys.token_open("a")) > 86_400

    def test_a_conflict_gives_back_nothing_that_another_call_of_the_key_has_reserved(self, ledger):
        # Given a call of three under a key that has written the first one, and is about to write the others,
        counted = Quotas(ledger, 1, 10)
        token = Token(name="a", sha256="0" * 64, scopes=("enqueue",), accounts=("*",))

        def body(*names):
            return NewDeletions.model_validate({"deletions": [{"finetune_id": name} for name in names]})

        asked = body("a", "b", "c").requests("a", "k")
        counted.reserve("a", [one.id for one in asked])
        ledger.accept(asked[:1])
        # when another body comes under the key, then it is refused, and all three are counted.
        request = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(quotas=counted)))
        with pytest.raises(IdConflict):
            create_deletions(body("x", "y", "z"), request, Intake(ledger, id), token, "k")
        assert ledger.redis.zcard(ledger.keys.token_open("a")) == 3

    def test_a_refused_repeat_gives_back_nothing_that_the_first_call_has_reserved(self, ledger):
        # Given a call that is about to write what it has reserved, and another one that is about to be refused,
        counted = Quotas(ledger, 1, 4)
        counted.reserve("a", ["1", "2", "3"])
        ledger.redis.zadd(ledger.keys.token_open("a"), {"x": time.time(), "y": time.time()})
        # when the first one comes again, then it is refused, and all are still counted.
        with pytest.raises(HTTPException):
            counted.reserve("a", ["1", "2", "3"])
        assert ledger.redis.zcard(ledger.keys.token_open("a")) == 5

    def test_each_is_looked_at_once_in_ten_seconds(self, ledger, monkeypatch):
        at, looks = [1000.0], []
        ended = quotas.ended

        def counting(ledger, ids):
            looks.extend(ids)
            return ended(ledger, ids)

        monkeypatch.setattr(quotas, "ended", counting)
        counted = Quotas(ledger, 1, 3, lambda: at[0])
        ids = ["a", "b", "c"]
        counted.reserve("t", ids)
        ledger.accept([NewRequest(id_, id_, source="http", digest="x") for id_ in ids])
        for now in (1011.0, 1012.0, 1013.0):
            at[0] = now
            with pytest.raises(HTTPException):
                counted.reserve("t", ["d"])
        assert sorted(looks) == ids

    def test_a_full_redis_does_not_refuse_reads_and_cancels(self, ledger):
        ledger.redis.config_set("maxmemory", 1)
        try:
            assert Quotas(ledger, 1, 1).count_request("a") is None
        finally:
            ledger.redis.config_set("maxmemory", 0)
