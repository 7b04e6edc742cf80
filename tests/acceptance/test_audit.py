"""The audit log and `resolve`, as people, services and producers use them."""

import uuid

import pytest

from tasks.cleanup.plans import empty_plan, store
from tasks.cleanup.policies import read_policies
from tasks.ledger import Ledger
from tasks.ledger.queries import get
from tasks.records import State, from_ms
from tests.acceptance.http import Client
from tests.conftest import accept, asking, claim, finish
from tests.processes import janitor_here, producer, records
from worker.cli.options import login
from worker.redis_url import connect

OTHER = "emea"  # no worker has its key: nothing of it is carried out


@pytest.fixture(scope="module")
def ledger(redis_url):
    ledger = Ledger(connect(redis_url))
    ledger.maintain(OTHER, 8)
    return ledger


@pytest.fixture
def in_review(ledger):
    """A deletion that ended in review."""
    return ended(ledger, State.REVIEW)


def ended(ledger, state):
    """A deletion, in an account of its own."""
    id_ = str(uuid.uuid4())
    account = f"a{id_[:8]}"
    ledger.maintain(account, 8)
    accept(ledger, asking(id_, id=id_, account=account))
    assert finish(ledger, claim(ledger, account), state) == "done"
    return id_


def waiting(env):
    (record,) = records(janitor_here(env, "delete", f"ft-{uuid.uuid4().hex[:8]}", "--in", "1h", "--json"))
    return record["id"]


def noted(env, *filters):
    """The acts in the log, as the command shows them."""
    return records(janitor_here(env, "audit", *filters, "--json"))


def test_each_command_that_changes_something_notes_who_and_why(env, ledger, in_review, tmp_path):
    # Given a person,
    file = {**env, "JANITOR_TOKENS_FILE": str(tmp_path / "tokens.toml")}
    policies = tmp_path / "policies.toml"
    policies.write_text("[[policy]]\nname = 'p'\nolder_than = '1d'\n")
    (policy,) = read_policies(policies)
    plan = store(ledger, empty_plan(policy, from_ms(ledger.now_ms()), str(uuid.uuid4()), blocked=None))
    ledger.redis.lpush(ledger.keys.dead_letters, '{"id": "d1", "at": "", "queue": "x", "reason": "", "text": ""}')
    commands = {
        "pause": ["pause", "--account", OTHER], "resume": ["resume", "--account", OTHER],
        "cancel": ["cancel", waiting(env)], "protect": ["protect", "a-finetune"],
        "unprotect": ["unprotect", "a-finetune"], "hold": ["hold", "a-finetune"],
        "release": ["release", "a-finetune"], "retry": ["retry", ended(ledger, State.FAILED)],
        "resolve": ["resolve", in_review, "--as", "deleted", "--note", "gone"],
        "drop": ["dead-letters", "drop", "d1"],
        "token new": ["tokens", "new", "first"], "token revoke": ["tokens", "revoke", "first"],
    }  # fmt: skip
    # when each command is run with a reason,
    reason = f"why {uuid.uuid4()}"
    for command in commands.values():
        done = janitor_here(file, *command, "--reason", reason)
        assert done.returncode == 0, (command, done.stderr)
    # (a plan without deletions asks for nothing)
    assert janitor_here(file, "cleanup", "apply", plan.id, "--file", policies, "--reason", reason).returncode == 0
    # then the log has each of them, in this order, with the login.
    found = [one for one in noted(env, "--who", login()) if one["why"] == reason]
    assert [one["act"] for one in found] == list(commands)
    assert {(one["who"], one["via"]) for one in found} == {(login(), "command")}
    # and a table for people, whose rows can be selected.
    table = janitor_here({**env, "COLUMNS": "200"}, "audit", "--act", "protect", "--since", "1h ago").stdout
    assert "account default; a-finetune" in table
    assert reason in table
    empty = janitor_here(env, "audit", "--who", "nobody")
    assert (empty.stdout, "none fits" in empty.stderr) == ("", True)


def test_a_reason_to_retry_is_in_the_new_record(env, ledger, in_review):
    (record,) = records(janitor_here(env, "retry", in_review, "--reason", "it is there", "--json"))
    assert (record["reason"], record["retry_of"]) == ("it is there", in_review)


def test_over_http_it_is_the_tokens_name(boss, base, env):
    # Given a service with `admin`, when it acts with a reason,
    reason = f"why {uuid.uuid4()}"
    protect = boss.post("/v1/finetunes/its-finetune/protect", params={"reason": reason})
    unprotect = boss.post("/v1/finetunes/its-finetune/unprotect", params={"reason": reason})
    cancel = boss.post(f"/v1/deletions/{waiting(env)}/cancel", params={"reason": reason})
    assert (protect.status_code, unprotect.status_code, cancel.status_code) == (200, 200, 200)
    # then its name is in the log, which comes in pages.
    found, cursor = [], ""
    while True:
        page = boss.get("/v1/audit", params={"who": "boss", "limit": 2, "cursor": cursor})
        assert page.status_code == 200, page.text
        found += page.json()["entries"]
        cursor = page.json()["cursor"]
        if cursor is None:
            break
    acts = [(one["act"], one["who"], one["via"]) for one in found if one["why"] == reason]
    assert acts == [(act, "boss", "http") for act in ("protect", "unprotect", "cancel")]
    assert boss.get("/v1/audit", params={"cursor": "x"}).status_code == 422
    # A token with `admin` for some accounts, or without it, does not see it.
    for name in ("keeper", "reader"):
        with Client(base, name) as client:
            assert client.get("/v1/audit").status_code == 403


@pytest.mark.parametrize("given", [{}, {"requested_by": "billing", "reason": "mistake"}])
def test_a_cancel_by_name_is_its_senders(env, redis_url, running_worker, given):
    # Given a producer, when it cancels, then its log entry has what it says of itself, else where it runs.
    app, id_ = producer(redis_url), waiting(env)
    answer = app.send_task("finetunes.cancel", [id_], given, queue="deletions").get(timeout=60)
    assert answer == "cancelled"
    (entry,) = [one for one in noted(env, "--act", "cancel") if one["ids"] == [id_]]
    assert (entry["via"], entry["why"]) == ("name", given.get("reason"))
    assert given.get("requested_by", "@") in entry["who"]


class TestResolving:
    def test_a_resolved_one_waits_for_nobody(self, env, ledger, in_review):
        # Given a deletion in review, which doctor and the list of open ones show,
        def is_open():
            return in_review in [
                one["id"] for one in records(janitor_here(env, "list", "--open-reviews", "--json"))
            ]

        assert is_open()
        # when a person resolves it,
        done = janitor_here(env, "resolve", in_review, "--as", "kept", "--note", "seen in the dashboard", "--json")
        (record,) = records(done)
        assert (record["resolution"], record["resolved_by"]) == ("kept: seen in the dashboard", login())
        # then it stays in the list by state alone, and `retry --state review` leaves it alone.
        assert not is_open()
        assert in_review in [
            one["id"] for one in records(janitor_here(env, "list", "--state", "review", "--json"))
        ]
        janitor_here(env, "retry", "--state", "review")
        assert get(ledger, in_review).retried_by is None

    def test_it_is_refused_in_one_line_if_there_is_nothing_to_resolve(self, env, in_review):
        again = ("resolve", in_review, "--as", "kept", "--note", "x")
        assert janitor_here(env, *again).returncode == 0
        other = ("resolve", waiting(env), "--as", "kept", "--note", "x")
        for command, words in ((again, f"resolved before, by {login()}"), (other, "is scheduled")):
            done = janitor_here(env, *command)
            assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
            assert words in done.stderr
        assert janitor_here(env, "resolve", in_review, "--as", "kept", "--note", " ").returncode == 2

    def test_it_can_be_resolved_over_http_with_admin(self, base, boss, in_review):
        path, given = f"/v1/deletions/{in_review}/resolve", {"as": "deleted", "note": "asked BFL"}
        assert boss.post(path, params={"as": "deleted"}).status_code == 422
        with Client(base, "billing") as client:
            assert client.post(path, params=given).status_code == 403
        done = boss.post(path, params=given)
        assert (done.status_code, done.json()["resolution"]) == (200, "deleted: asked BFL")
        again = boss.post(path, params=given)
        assert (again.status_code, "resolved before, by boss" in again.json()["detail"]) == (409, True)
        assert boss.post("/v1/deletions/unknown/resolve", params=given).status_code == 404
