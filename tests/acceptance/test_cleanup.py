"""Stale finetunes: plans, what is kept, and the schedule, through the command and real processes."""

import csv
import sys
import uuid
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest
import redis

from tasks.cleanup.policies import parse_policies
from tasks.cleanup.schedule import noted
from tasks.durations import iso
from tests.processes import environment, janitor, janitor_here, producer, records, started, until, worker
from worker.local import embedded
from worker.local.supervise import Spec

pytestmark = pytest.mark.usefixtures("running_worker")


def ago(days):
    return (datetime.now(UTC) - timedelta(days=days)).isoformat()


@pytest.fixture
def policies(tmp_path):
    """Writes a policy file; answers the option that names it."""

    def write(text):
        file = tmp_path / "policies.toml"
        file.write_text(text)
        return ("--file", str(file))

    return write


@pytest.fixture
def stale(api, redis_url):
    """Six finetunes of this test alone; the first three are 45 days old."""
    for name in api.finetunes():
        api.remove(name)
    with redis.Redis.from_url(redis_url) as store:
        store.delete("janitor:2:inventory:default", "janitor:2:account:default")
    prefix = f"ft-{uuid.uuid4().hex[:6]}"
    names = [f"{prefix}-{letter}" for letter in "abcdef"]
    for n, name in enumerate(names):
        api.create(name, timestamp=ago(45 if n < 3 else 5))
    return names


OLD = "[[policy]]\nname = 'old'\nolder_than = '30d'\nmax_percent = 100\ngrace = '0s'\n"


def planned(env, *options):
    done = janitor_here(env, "cleanup", "plan", *options, "--json")
    (plan,) = records(done)
    return done.returncode, plan


def ended(env, ids):
    done = janitor_here(env, "wait", *ids, "--timeout", "20", "--json")
    return {record["finetune_id"]: record["state"] for record in records(done)}


def test_a_plan_is_exact_and_apply_deletes_just_that(env, api, stale, policies):
    code, plan = planned(env, *policies(OLD))
    told = {item["finetune_id"]: (item["action"], item["reason"]) for item in plan["items"]}
    created = f"{datetime.now(UTC) - timedelta(days=45):%Y-%m-%d}"
    assert told == {
        **dict.fromkeys(stale[:3], ("delete", f"older than 30 days (45), created {created}")),
        **dict.fromkeys(stale[3:], ("keep", "not older than 30 days (5)")),
    }
    assert (code, plan["blocked"], plan["deletions"], plan["total"]) == (0, None, 3, 6)
    assert not [call for name in stale for call in api.deletes(name)], "a plan deletes nothing"
    assert records(janitor_here(env, "cleanup", "show", plan["id"], "--json")) == [plan]
    listed = records(janitor_here(env, "cleanup", "list", "--json"))
    assert listed[0] == {name: value for name, value in plan.items() if name != "items"}
    applied = janitor_here(env, "cleanup", "apply", plan["id"], *policies(OLD), "--json")
    ids = [record["id"] for record in records(applied)]
    assert (applied.returncode, "3 of 3 accepted" in applied.stderr) == (0, True)
    assert ended(env, ids) == dict.fromkeys(stale[:3], "deleted")
    assert sorted(api.finetunes()) == stale[3:]
    again = janitor_here(env, "cleanup", "apply", plan["id"], *policies(OLD), "--json")
    assert [(record["id"], record["created"]) for record in records(again)] == [(id_, False) for id_ in ids]


def test_an_id_of_a_plan_that_was_used_before_is_an_error_and_shows_nobody_elses_record(env, api, stale, policies):
    # Given a plan, and another request under the id that the plan has for its first deletion
    _, plan = planned(env, *policies(OLD))
    taken = str(uuid.uuid5(uuid.UUID(plan["id"]), stale[0]))
    app = producer(env["REDIS_URL"])
    app.send_task("finetunes.delete", ["secret"], {"delay_seconds": 600}, task_id=taken, queue="deletions")
    until(lambda: janitor_here(env, "show", taken).returncode == 0, seconds=60, what="the other request")
    # When the plan is applied
    applied = janitor_here(env, "cleanup", "apply", plan["id"], *policies(OLD), "--json")
    # Then the conflict is told without the other record, and the other two are asked for.
    assert (applied.returncode, f"{stale[0]} was not asked for" in applied.stderr) == (2, True)
    assert "secret" not in applied.stdout + applied.stderr
    assert ended(env, [record["id"] for record in records(applied)]) == dict.fromkeys(stale[1:3], "deleted")
    janitor_here(env, "cancel", taken)
    assert stale[0] in api.finetunes()


def test_for_people_there_are_tables_that_fit(env, stale, policies):
    for columns in ("60", "100"):
        shown = janitor_here({**env, "COLUMNS": columns}, "cleanup", "plan", *policies(OLD))
        assert max(map(len, shown.stdout.splitlines())) <= int(columns)
        assert shown.stdout.splitlines()[1].startswith("delete"), "what goes comes first"
        assert "nothing was deleted; `janitor cleanup apply" in shown.stderr
        listed = janitor_here({**env, "COLUMNS": columns}, "cleanup", "list").stdout
        assert "…" not in shown.stdout + listed, "an id cut short names nothing"
    listed = janitor_here(env, "cleanup", "list").stdout
    assert ("3 of 6" in listed, "not applied" in listed) == (True, True)
    policies(OLD)
    table = janitor_here(env, "finetunes", *policies(OLD)).stdout
    assert "LAST USE" in table
    assert "delete: older than 30 days (45)" in table


def test_what_is_used_protected_or_reborn_in_the_grace_is_kept(env, api, stale, policies):
    used, protected, reborn = stale[:3]
    option = policies(OLD.replace("0s", "4s"))
    _, plan = planned(env, *option)
    applied = records(janitor_here(env, "cleanup", "apply", plan["id"], *option, "--json"))
    assert {record["state"] for record in applied} == {"scheduled"}
    waiting = records(janitor_here(env, "list", "--state", "scheduled", "--json"))
    assert {record["due_at"] for record in waiting} == {record["due_at"] for record in applied}
    producer(env["REDIS_URL"]).send_task("finetunes.touch", [[used]], queue="touches")
    until_then = iso(datetime.now(UTC).replace(microsecond=0) + timedelta(days=300))
    done = janitor_here(env, "protect", protected, "--until", until_then)
    assert (done.returncode, "withdrawn before anything was deleted: " in done.stderr) == (0, True)
    api.create(reborn, timestamp=ago(1))
    ids = [record["id"] for record in applied]
    assert ended(env, ids) == {used: "cancelled", protected: "cancelled", reborn: "superseded"}
    assert sorted(api.finetunes()) == sorted(stale)
    late = janitor_here(env, "cleanup", "apply", plan["id"], *option)
    assert f"{used} is kept: it was used after the plan was made" in late.stderr
    shown = {one["finetune_id"]: one for one in records(janitor_here(env, "finetunes", "--json"))}
    assert shown[used]["last_used"]
    assert (shown[protected]["protected"], shown[protected]["age_days"]) == (until_then, 45)
    # People may delete it all the same, and are told.
    asked = janitor_here(env, "delete", protected, "--in", "1h", "--json")
    assert (asked.returncode, f"{protected} is protected" in asked.stderr) == (0, True)
    assert janitor_here(env, "unprotect", protected).returncode == 0


def test_a_hold_keeps_a_finetune_from_people_too(env, api, stale):
    # Given a finetune that is held, under a name that no survey has seen,
    name = stale[0]
    done = janitor_here(env, "hold", name, "--reason", "a lawsuit", "--until", "in 1h")
    assert (done.returncode, f"warning: {name}: not in the last survey" in done.stderr) == (0, True)
    (shown,) = [one for one in records(janitor_here(env, "holds", "--json")) if one["finetune_id"] == name]
    assert (shown["reason"], bool(shown["until"]), bool(shown["by"])) == ("a lawsuit", True, True)
    assert "a lawsuit" in janitor_here(env, "holds").stdout
    # when somebody deletes it all the same, then they are told before and after, and nothing is deleted.
    asked = janitor_here(env, "delete", name, "--wait", "--timeout", "30", "--json")
    (record,) = records(asked)
    assert (asked.returncode, record["state"]) == (1, "cancelled")
    assert f"`janitor release {name}`, then ask again" in record["message"]
    assert f"{name} is held by" in asked.stderr
    assert (name in api.finetunes(), api.deletes(name)) == (True, [])
    # `finetunes` shows it, and after a release the same request is carried out.
    table = {one["finetune_id"]: one for one in records(janitor_here(env, "finetunes", "--json"))}
    assert table[name]["held"].endswith(": a lawsuit")
    assert "released" in janitor_here(env, "release", name).stderr
    assert "was not held" in janitor_here(env, "release", name).stderr
    again = janitor_here(env, "delete", name, "--wait", "--timeout", "30", "--json")
    assert [one["state"] for one in records(again)] == ["deleted"]


def test_a_name_that_no_survey_has_seen_is_warned_of_and_protected(env, stale):
    for command in ("touch", "protect"):
        done = janitor_here(env, command, "mistyped")
        assert (done.returncode, "warning: mistyped: not in the last survey" in done.stderr) == (0, True)
    janitor_here(env, "finetunes")
    done = janitor_here(env, "protect", stale[5])
    assert (done.returncode, "warning" in done.stderr) == (0, False)
    assert janitor_here(env, "unprotect", "mistyped", stale[5]).returncode == 0


def test_a_policy_selects_by_what_details_say_and_a_plan_has_both_sides_as_csv(env, api, stale, policies):
    # Given two finetunes whose comments say that they are tests,
    for name in stale[4:]:
        api.create(name, timestamp=ago(5), finetune_comment="=A Test, for Ms Miller")
    text = "[[policy]]\nname = 'tests'\ncomment = '*a test*'\ntype = ['full', 'lora']\nmax_percent = 100\n"
    wide = {**env, "COLUMNS": "200"}
    made = janitor_here(wide, "cleanup", "plan", *policies(text))
    # then they are proposed, their comments are shown, and the plan that is kept does not have them.
    assert "A Test, for Ms Miller; TOK; full" in made.stdout
    plan_id = records(janitor_here(env, "cleanup", "list", "--json"))[0]["id"]
    shown = janitor_here(env, "cleanup", "show", plan_id, "--csv").stdout
    rows = {row["finetune_id"]: (row["action"], row["reason"]) for row in csv.DictReader(shown.splitlines())}
    assert rows == {
        **dict.fromkeys(stale[:4], ("keep", "its comment does not match")),
        **dict.fromkeys(stale[4:], ("delete", "matches by comment and type")),
    }
    assert "Miller" not in shown + janitor_here(env, "cleanup", "show", plan_id, "--json").stdout
    both = janitor_here(env, "cleanup", "show", plan_id, "--csv", "--json")
    assert (both.returncode, "give one of them" in both.stderr) == (2, True)
    assert janitor_here(wide, "finetunes", "--details").stdout.count("for Ms Miller") == 2
    assert "ABOUT" not in janitor_here(wide, "finetunes").stdout
    said = janitor_here(env, "cleanup", "check", *policies(text)).stdout
    assert "comment *a test*; type full, lora" in said


def test_what_goes_too_far_stops_the_run_whole_and_does_not_look_green(env, api, stale, policies):
    option = policies(OLD + "max_deletions = 2\n")
    code, plan = planned(env, *option)
    assert (code, plan["blocked"]) == (1, "3 would be deleted, and max_deletions is 2")
    for command in (["plan"], ["apply", plan["id"]]):
        done = janitor_here(env, "cleanup", *command, *option)
        assert (done.returncode, "max_deletions is 2" in done.stderr) == (1, True)
    assert sorted(api.finetunes()) == stale
    listed = [janitor_here(env, "list", "--finetune", name, "--json").stdout for name in stale]
    assert listed == [""] * 6, "not one was asked for"
    # Withdrawing it changes nothing, which is said: the next plan that is not blocked ends the alert.
    cancelled = janitor_here(env, "cancel", "--plan", plan["id"], "--reason", "seen")
    assert cancelled.stderr == f"the plan is blocked, nothing of it was asked for: {plan['blocked']}\n"


def test_a_policy_that_was_changed_after_its_plan_is_not_applied(env, api, stale, policies):
    # Given a plan, and a policy that protects some of it since, that is removed, or whose file nobody names,
    _, plan = planned(env, *policies(OLD))
    changed = [(policies, OLD + "protect = ['ft-*']\n"), (policies, ""), (lambda _: (), "")]
    said = [
        "/policies.toml as it was when",
        "or give the file that made it with --file",
        "set JANITOR_POLICY_FILE",
    ]
    # when the plan is applied, then it is refused in one line, and nothing was asked for.
    for (write, text), words in zip(changed, said, strict=True):
        refused = janitor_here(env, "cleanup", "apply", plan["id"], *write(text))
        assert (refused.returncode, refused.stderr.count("\n")) == (1 if write is policies else 2, 1)
        assert words in refused.stderr
    assert janitor_here(env, "list", "--finetune", stale[0], "--json").stdout == ""


def test_who_cancels_a_cleanups_deletion_is_told_how_to_keep_the_finetune(env, stale, policies):
    option = policies(OLD.replace("0s", "1h"))
    _, plan = planned(env, *option)
    janitor_here(env, "cleanup", "apply", plan["id"], *option)
    cancelled = janitor_here(env, "cancel", "--plan", plan["id"])
    assert "the next plan may ask for them again; `janitor protect` keeps a finetune" in cancelled.stderr
    janitor_here(env, "delete", stale[5], "--in", "1h")
    (other,) = records(janitor_here(env, "list", "--finetune", stale[5], "--json"))
    assert "protect" not in janitor_here(env, "cancel", other["id"]).stderr


MISTAKES = [
    (("cleanup", "show", "nothing"), 1, "no plan has the id 'nothing'"),
    (("cleanup", "apply", "nothing"), 1, "no plan has the id 'nothing'"),
    (("cleanup", "plan"), 2, "no policies: set JANITOR_POLICY_FILE"),
    (("cleanup", "plan", "--file", "nowhere.toml"), 2, "nowhere.toml cannot be read"),
    (("protect", "a b"), 2, "has a space"),
    (("protect", "a", "--until", "2020-01-01"), 2, "is in the past"),
    (("protect", "a", "--until", "soon"), 2, "'soon' is not a time"),
    (("hold", "a"), 2, "a hold needs a reason"),
    (("hold", "a", "--reason", "x", "--until", "2020-01-01"), 2, "is in the past"),
    (("touch", "a", "--account", "nobody"), 2, "'nobody' is not known: give one of default"),
    (("finetunes", "--account", "nobody"), 2, "'nobody' is not known: give one of default"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES)
def test_every_mistake_is_told_in_one_line(env, arguments, code, words):
    done = janitor_here(env, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_a_policy_that_is_not_there_is_told_with_those_that_are(env, policies):
    done = janitor_here(env, "cleanup", "plan", "--policy", "new", *policies(OLD))
    assert (done.returncode, "no policy is called 'new': there are old" in done.stderr) == (2, True)


def test_an_api_that_cannot_be_asked_makes_no_plan(env, api, stale, policies):
    dead = env | {"BFL_API_URL": "http://127.0.0.1:9", "JANITOR_RETRY_BUDGET": "100ms"}
    done = janitor_here(dead, "cleanup", "plan", *policies(OLD))
    assert (done.returncode, done.stdout, "refused" in done.stderr) == (3, "", True)
    keyless = {name: value for name, value in env.items() if name != "BFL_API_KEY"}
    assert "no API key: set BFL_API_KEY" in janitor_here(keyless, "finetunes").stderr


def test_a_worker_with_a_policy_file_that_is_wrong_does_not_start(env, policies):
    _, file = policies("[[policy]]\nname = 'a'\n")
    done = janitor(env | {"JANITOR_POLICY_FILE": file, "PYTHONWARNINGS": "ignore"}, "worker")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "line 1: 'a' matches all and names no age" in done.stderr


class TestSchedule:
    """A clock of seconds, on a Redis of its own; a run that was missed is due at once."""

    def missed(self, text):
        """The note of a policy whose last run was due in 1970."""
        return noted(*parse_policies(text), datetime.fromtimestamp(0, UTC))

    @pytest.mark.parametrize("mode", ["plan", "apply"])
    def test_two_beats_run_what_is_due_once(self, api, stale, tmp_path, policies, mode):
        schedule = f"schedule = '0 0 1 1 *'\nmode = '{mode}'\n"
        _, file = policies(OLD + schedule)
        with embedded.running(tmp_path / "redis") as url, ExitStack() as stack:
            env = environment(
                url, api.url, JANITOR_STATE_DIR=tmp_path, JANITOR_POLICY_FILE=file, JANITOR_TICK_EVERY="500ms"
            )
            store = redis.Redis.from_url(url, decode_responses=True)
            store.hset("janitor:2:policy-runs", "old", self.missed(OLD + schedule))
            argv = [sys.executable, "-m", "worker.cli"]
            for name in ("worker", "beat", "beat"):
                log = tmp_path / f"{name}.log"
                stack.enter_context(started(Spec(name, [*argv, name], env, stop_seconds=25, log=log)))
            until(lambda: store.zcard("janitor:2:plans") == 1, seconds=60, what="the plan")
            if mode == "apply":
                until(lambda: len(api.finetunes()) == 3, seconds=60, what="the deletions")
            ticked = int(store.get("janitor:2:tick") or 0)
            until(lambda: int(store.get("janitor:2:tick") or 0) > ticked + 1500, seconds=60, what="more ticks")
            (plan,) = records(janitor_here(env, "cleanup", "list", "--json"))
        assert (plan["deletions"], plan["blocked"], plan["applied_at"] is not None) == (3, None, mode == "apply")
        gone = [call["finetune_id"] for name in stale for call in api.deletes(name) if call["effective"]]
        assert gone == (stale[:3] if mode == "apply" else [])
        assert "cleanup.planned" in (tmp_path / "worker.log").read_text()

    def test_a_file_that_is_wrong_by_now_stops_the_cleanups_and_nothing_else(self, api, stale, tmp_path, policies):
        text = OLD + "schedule = '0 0 1 1 *'\n"
        missed, (_, file) = self.missed(text), policies(text)
        with embedded.running(tmp_path / "redis") as url:
            env = environment(url, api.url, JANITOR_STATE_DIR=tmp_path, JANITOR_POLICY_FILE=file)
            store = redis.Redis.from_url(url, decode_responses=True)
            with worker(env, tmp_path / "worker.log"):
                policies("[[policy]]\nname = 'a'\n")
                store.hset("janitor:2:policy-runs", "old", missed)
                producer(url).send_task("finetunes.tick", queue="wakeups")
                said = "policies.toml: line 1: 'a' matches all"
                until(lambda: said in (tmp_path / "worker.log").read_text(), seconds=60, what="the refusal")
                done = janitor_here(env, "delete", stale[0], "--wait", "--timeout", "20", "--json")
                # Corrected, the policy is a new one: the run that was missed is not made up for.
                until(lambda: not store.exists("janitor:2:policy-runs"), seconds=60, what="the end of the tick")
                policies(text)
                producer(url).send_task("finetunes.tick", queue="wakeups")
                known = lambda: store.hget("janitor:2:policy-runs", "old") not in (None, missed)  # noqa: E731 -- short
                until(known, seconds=60, what="the corrected policy")
            assert records(done)[0]["state"] == "deleted"
            assert "Traceback" not in (tmp_path / "worker.log").read_text()
            assert records(janitor_here(env, "cleanup", "list", "--json")) == []
