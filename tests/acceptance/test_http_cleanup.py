"""Use, protection and plans over HTTP: the same inventory and the same plans as the command's."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from tests.acceptance.http import Client, served, token_file
from tests.processes import janitor_here, records

pytestmark = pytest.mark.usefixtures("running_worker")
POLICY = "[[policy]]\nname = '{}'\nmatch = ['{}-*']\nolder_than = '30d'\nmax_percent = 100\ngrace = '{}'\n"


@pytest.fixture
def stale(api):
    """Three finetunes of this test, 45 days old; and a fresh one: a plan that deletes all of them is blocked."""
    prefix = f"ft-{uuid.uuid4().hex[:8]}"
    api.create("fresh", timestamp=datetime.now(UTC).isoformat())
    for letter in "abc":
        made = datetime.now(UTC) - timedelta(days=45)
        api.create(f"{prefix}-{letter}", timestamp=made.isoformat())
    return [f"{prefix}-{letter}" for letter in "abc"]


@pytest.fixture
def plan(env, stale, tmp_path):
    """Makes a plan for them; answers it as the command shows it."""

    def make(grace="0s"):
        prefix = stale[0].removesuffix("-a")
        (tmp_path / "policies.toml").write_text(POLICY.format(prefix, prefix, grace))
        (made,) = records(
            janitor_here(env, "cleanup", "plan", "--file", str(tmp_path / "policies.toml"), "--json")
        )
        return made

    return make


def test_a_plan_is_listed_shown_and_applied_once(boss, env, api, stale, plan):
    made = plan()
    summary = {name: value for name, value in made.items() if name != "items"}
    assert boss.get("/v1/plans", params={"limit": 1}).json() == {"plans": [summary]}
    assert boss.get(f"/v1/plans/{made['id']}").json() == made
    applied = boss.post(f"/v1/plans/{made['id']}/apply")
    items = applied.json()["deletions"]
    assert applied.status_code == 202
    assert [(item["deletion"]["finetune_id"], item["created"], item["kept"]) for item in items] == [
        (name, True, None) for name in stale
    ]
    for item in items:
        ended = boss.get(f"/v1/deletions/{item['deletion']['id']}?wait=20").json()
        assert (ended["state"], ended["requested_by"]) == ("deleted", "boss")
    again = boss.post(f"/v1/plans/{made['id']}/apply")
    assert (again.status_code, [item["created"] for item in again.json()["deletions"]]) == (200, [False] * 3)
    assert boss.get(f"/v1/plans/{made['id']}").json()["applied_at"]


def test_what_is_touched_or_protected_is_kept(boss, billing, env, api, stale, plan):
    # Given a plan that waits for its grace,
    made = plan(grace="1h")
    ids = {
        item["deletion"]["finetune_id"]: item["deletion"]["id"]
        for item in boss.post(f"/v1/plans/{made['id']}/apply").json()["deletions"]
    }
    touched, protected, _ = stale
    # when use is reported of one and another is protected, then their deletions are withdrawn at once,
    used = billing.post(f"/v1/finetunes/{touched}/touch")
    assert (used.status_code, used.json()) == (
        200,
        {"withdrawn": [ids[touched]], "under_way": [], "known": True},
    )
    kept = boss.post(f"/v1/finetunes/{protected}/protect?until=2035-01-01")
    assert (kept.status_code, kept.json()) == (
        200,
        {"withdrawn": [ids[protected]], "under_way": [], "known": True},
    )
    states = [boss.get(f"/v1/deletions/{ids[name]}").json()["state"] for name in stale]
    assert states == ["cancelled", "cancelled", "scheduled"]
    # and the next plan keeps the protected one, until it is no longer.
    reasons = {item["finetune_id"]: item["reason"] for item in plan()["items"]}
    assert reasons[protected].startswith("protected until 2035")
    assert boss.post(f"/v1/finetunes/{protected}/unprotect").json() == {
        "withdrawn": [],
        "under_way": [],
        "known": True,
    }
    assert [item["action"] for item in plan()["items"] if item["finetune_id"] == protected] == ["delete"]


def ask(client, name, **fields):
    answer = client.post("/v1/deletions", json={"deletions": [{"finetune_id": name, **fields}]})
    return answer.json()["deletions"][0]["deletion"]["id"]


def test_what_is_held_is_deleted_by_nobody_until_it_is_released(boss, api):
    # Given a finetune that no survey has seen, with a deletion that waits,
    name = f"ft-{uuid.uuid4().hex[:8]}"
    api.create(name)
    waiting = ask(boss, name, delay_seconds=3600)
    # when it is held, then that is withdrawn, and one that is asked for now ends cancelled.
    held = boss.post(f"/v1/finetunes/{name}/hold", params={"reason": "a lawsuit"})
    assert (held.status_code, held.json()) == (
        200,
        {"withdrawn": [waiting], "under_way": [], "known": False},
    )
    (listed,) = [one for one in boss.get("/v1/holds").json()["holds"] if one["finetune_id"] == name]
    assert (listed["account"], listed["by"], listed["reason"], listed["until"]) == (
        "default",
        "boss",
        "a lawsuit",
        None,
    )
    ended = boss.get(f"/v1/deletions/{ask(boss, name)}?wait=20").json()
    assert (ended["state"], "by boss: a lawsuit; `janitor release" in ended["message"]) == ("cancelled", True)
    assert (name in api.finetunes(), api.deletes(name)) == (True, [])
    # After its release it can be deleted.
    released = [boss.post(f"/v1/finetunes/{name}/release").json() for _ in range(2)]
    assert released == [{"released": True}, {"released": False}]
    assert boss.get(f"/v1/deletions/{ask(boss, name)}?wait=20").json()["state"] == "deleted"


def test_a_blocked_plan_is_a_conflict(boss, env, stale, tmp_path):
    prefix = stale[0].removesuffix("-a")
    text = POLICY.format(prefix, prefix, "0s") + "max_deletions = 1\n"
    (tmp_path / "policies.toml").write_text(text)
    (made,) = records(janitor_here(env, "cleanup", "plan", "--file", str(tmp_path / "policies.toml"), "--json"))
    refused = boss.post(f"/v1/plans/{made['id']}/apply")
    assert (refused.status_code, "is blocked, nothing was written" in refused.json()["detail"]) == (409, True)


REFUSED = [
    ("boss", "GET", "/v1/plans/nope", 404, "no plan has the id 'nope'"),
    ("boss", "POST", "/v1/plans/nope/apply", 404, "no plan has the id 'nope'"),
    ("boss", "GET", "/v1/plans?limit=0", 422, "query.limit is '0'"),
    ("boss", "GET", "/v1/plans?limt=1", 422, "query.limt is '1'"),
    ("boss", "POST", "/v1/plans/nope/apply?reasn=x", 422, "query.reasn is 'x'"),
    ("boss", "POST", "/v1/finetunes/a%20b/touch", 422, "'a b' has a space"),
    ("boss", "POST", "/v1/finetunes/a/touch?acount=b", 422, "query.acount is 'b'"),
    ("boss", "POST", "/v1/finetunes/a/touch?account=nobody", 422, "the account 'nobody' is not known"),
    ("boss", "POST", "/v1/finetunes/a/protect?until=soon", 422, "'soon' is not a time"),
    ("reader", "POST", "/v1/finetunes/a/touch", 403, "lacks the scope 'enqueue'"),
    ("billing", "POST", "/v1/finetunes/a/protect", 403, "lacks the scope 'admin'"),
    ("billing", "POST", "/v1/finetunes/a/unprotect", 403, "lacks the scope 'admin'"),
    ("billing", "POST", "/v1/finetunes/a/hold?reason=x", 403, "lacks the scope 'admin'"),
    ("billing", "POST", "/v1/finetunes/a/release", 403, "lacks the scope 'admin'"),
    ("boss", "POST", "/v1/finetunes/a/hold", 422, "query.reason"),
    ("boss", "POST", "/v1/finetunes/a%20b/hold?reason=x", 422, "'a b' has a space"),
    ("boss", "POST", "/v1/finetunes/a/hold?reason=x&until=2020-01-01T00:00:00Z", 422, "is in the past"),
    ("boss", "POST", "/v1/finetunes/a/protect?until=2020-01-01T00:00:00Z", 422, "is in the past"),
    ("boss", "POST", "/v1/finetunes/caf%E9/hold?reason=x", 422, "is not UTF-8"),
    ("boss", "POST", "/v1/finetunes/a/hold?reason=caf%E9", 422, "is not UTF-8"),
    ("boss", "POST", "/v1/finetunes/a/touch?account=default&account=other", 422, "'account' is given twice"),
    ("boss", "POST", "/v1/finetunes/a/hold?reason=%20", 422, "a hold needs a reason"),
    ("boss", "GET", "/v1/deletions?" + "&".join(["state=deleted"] * 11), 422, "query.state"),
    ("boss", "GET", "/v1/deletions?" + "&".join(["label=a%3Db"] * 9), 422, "query.label"),
    ("billing", "POST", "/v1/finetunes/a/touch?account=other", 403, "may not use the account 'other'"),
    ("billing", "POST", "/v1/plans/x/apply", 403, "lacks the scope 'admin'"),
    ("writer", "GET", "/v1/holds", 403, "lacks the scope 'read'"),
    ("billing", "GET", "/v1/holds?account=other", 403, "may not use the account 'other'"),
    ("boss", "GET", "/v1/holds?account=nobody", 422, "the account 'nobody' is not known"),
    ("writer", "GET", "/v1/plans", 403, "lacks the scope 'read'"),
]


@pytest.mark.parametrize(("name", "method", "path", "status", "words"), REFUSED)
def test_a_mistake_is_told(base, name, method, path, status, words):
    with Client(base, name) as client:
        refused = client.request(method, path)
    assert (refused.status_code, words in refused.json()["detail"]) == (status, True), refused.text


@pytest.mark.parametrize(
    "call", ["finetunes/a/touch", "finetunes/a/protect", "finetunes/a/hold?reason=x", "finetunes/a/release"]
)
def test_what_is_given_in_a_body_is_not_passed_over(boss, call):
    # Else the account that is meant there would be another one.
    refused = boss.post(f"/v1/{call}", json={"account": "emea"})
    assert (refused.status_code, "give all in the query" in refused.json()["detail"]) == (422, True)
    assert boss.post(f"/v1/{call}", json={}).status_code == 200


def test_a_token_sees_the_plans_of_its_accounts_alone(base, plan):
    made = plan()
    with Client(base, "elsewhere") as elsewhere:
        assert elsewhere.get("/v1/plans").json() == {"plans": []}
        assert elsewhere.get(f"/v1/plans/{made['id']}").status_code == 404


def test_a_service_that_has_the_policies_refuses_a_plan_whose_policy_was_changed_since(env, plan, tmp_path):
    made, file = plan(), tmp_path / "policies.toml"
    file.write_text(file.read_text() + "protect = ['ft-*']\n")
    more = {"JANITOR_TOKENS_FILE": str(token_file(tmp_path)), "JANITOR_POLICY_FILE": str(file)}
    with served({**env, **more}, tmp_path / "http.log") as (url, _), Client(url, "boss") as boss:
        refused = boss.post(f"/v1/plans/{made['id']}/apply")
        assert (refused.status_code, "is not in the policies file as it was" in refused.text) == (409, True)
        assert boss.get(f"/v1/plans/{made['id']}").json()["applied_at"] is None
