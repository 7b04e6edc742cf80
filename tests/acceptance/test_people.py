"""People at terminals: times, questions before what cannot be undone, ids, suggestions, text that misleads."""

import csv
import io
import os
import re
import subprocess
import time
import uuid
from datetime import UTC, datetime, timedelta
from unittest import mock

import pytest

from tasks.ledger import Ledger
from tasks.ledger.holds import hold
from tasks.ledger.types import Act
from tests.conftest import asking, claim, mark
from tests.processes import ROOT, janitor_here, records
from worker.redis_url import connect


@pytest.fixture(scope="module", autouse=True)
def accounts(redis_url):
    """No worker is needed: two accounts are known, and nothing is carried out."""
    ledger = Ledger(connect(redis_url))
    for account in ("default", "emea"):
        ledger.maintain(account, 8)


@pytest.fixture
def finetune():
    return f"ft-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def auckland(env, monkeypatch):
    """The environment of somebody in Auckland, in this process too."""
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    yield {**env, "TZ": "Pacific/Auckland"}
    monkeypatch.undo()
    time.tzset()


def asked_for(env, *arguments):
    """The record of one new deletion, which waits for an hour."""
    (record,) = records(janitor_here(env, "delete", *arguments, "--in", "1h", "--json"))
    return record


def at_a_terminal(env, *arguments, types):
    """Run the command with a terminal as its standard input, on which a person types."""
    ours, theirs = os.openpty()
    os.write(ours, types.encode())
    try:
        with open(theirs, encoding="utf-8") as stdin, mock.patch("sys.stdin", stdin):
            return janitor_here(env, *arguments)
    finally:
        os.close(ours)


NOON = "2030-07-01 12:00:00 NZST"
TIMES = [
    # what is given, what it means, whether it is told that this is local time
    ("2030-07-01T12:00", NOON, True),
    ("2030-07-01", "2030-07-01 00:00:00 NZST", True),
    ("2030-07-01T00:00Z", NOON, False),
    ("2030-07-01T02:00+02:00", NOON, False),
    ("2030-07-01 02:00 +02:00", NOON, False),
    ("2030-07-01 02:00 Europe/Berlin", NOON, False),
    ("2030-07-01 00:00 UTC", NOON, False),
    # As tables show it, also in the hour that comes twice.
    (NOON, NOON, False),
    ("2030-04-07 02:30:00 NZDT", "2030-04-07 02:30:00 NZDT", False),
    ("2030-04-07 02:30:00 NZST", "2030-04-07 02:30:00 NZST", False),
]


@pytest.mark.parametrize(("given", "meant", "is_told"), TIMES)
def test_a_time_may_name_a_zone_and_is_local_if_it_does_not(auckland, given, meant, is_told):
    done = janitor_here(auckland, "delete", "ft", "--at", given, "--dry-run")
    assert (done.returncode, done.stdout) == (
        0,
        f"would ask for ft of account default, to be deleted at {meant}\n",
    )
    assert (f"{given} has no zone, so it is local time: {meant}" in done.stderr) is is_told


def test_a_zone_without_letters_is_read_as_it_is_shown(auckland, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Dubai")
    time.tzset()
    shown = "2030-07-01 12:00:00 +04"
    done = janitor_here({**auckland, "TZ": "Asia/Dubai"}, "delete", "ft", "--at", shown, "--dry-run")
    assert done.stdout.endswith(f"at {shown}\n")


WRONG_TIMES = [
    (["delete", "ft", "--at", "2020-01-01T12:00"], "(2020-01-01 12:00:00 NZDT) is in the past: give a later time"),
    (["delete", "ft", "--at", "2h ago"], "it is in the past"),
    (["protect", "ft", "--until", "2h ago"], "it is in the past"),
    (["delete", "ft", "--at", "in soon"], "'soon' is not a duration"),
    (["delete", "ft", "--at", "2030-07-01 02:00 Europe/Berlim"], "did you mean 'Europe/Berlin'?"),
    (["delete", "ft", "--at", "2030-10-27 02:30 Europe/Berlin"], "it comes twice: add an offset"),
    (["delete", "ft", "--at", "2030-03-31 02:30 Europe/Berlin"], "clocks skip it: add an offset"),
    (["delete", "ft", "--at", "2030-04-07 02:30"], "it comes twice: add an offset"),
    (["delete", "ft", "--at", "2030-09-29 02:30 NZST"], "clocks skip it: add an offset"),
    (["delete", "ft", "--at", "2030-09-29 02:30 NZDT"], "clocks skip it: add an offset"),
    (["delete", "ft", "--at", "2030-07-01 02:00 Europe"], "the zone 'Europe' is not known"),
    (["delete", "ft", "--at", "2030-07-01 02:00 ../etc/passwd"], "is not a time: give one such as"),
    (["delete", "ft", "--at", "2030-07-01T02:00Z Europe/Berlin"], "an offset and a zone are both given"),
    (["list", "--since", "in 2h"], "it is in the future: give one such as"),
    (["list", "--until", "2h"], "'2h' is not a time: give one such as"),
    (["list", "--since", "9999d ago"], "is too long"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG_TIMES)
def test_a_time_that_cannot_be_meant_is_refused(auckland, arguments, words):
    done = janitor_here(auckland, *arguments)
    assert (done.returncode, done.stdout, words in done.stderr) == (2, "", True), done.stderr


@pytest.mark.parametrize("command", ["list", "export", "audit"])
def test_a_time_without_length_is_refused(auckland, command):
    for arguments in (
        ["--since", "2027-01-01", "--until", "2026-01-01"],
        ["--until", "2d ago", "--since", "1d ago"],
    ):
        done = janitor_here(auckland, command, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "is after --until" in done.stderr
    assert (
        "--since 2027-01-01 00:00:00 NZDT is after --until 2026-01-01 00:00:00 NZDT"
        in janitor_here(auckland, command, "--since", "2027-01-01", "--until", "2026-01-01").stderr
    )


@pytest.mark.parametrize(
    ("zone", "words"),
    [
        ("Europe/Berln", "did you mean 'Europe/Berlin'?"), (":Mars/Base", "the zone 'Mars/Base'"),
        ("Berlin", "the zone 'Berlin'"), ("Europe", "the zone 'Europe'"), ("../zoneinfo", "the zone"),
        *((zone, "") for zone in ("", "UTC", "UTC0", "GMT", "EST5EDT", "CET-1CEST,M3.5.0,M10.5.0/3", "<+03>-3",
                                  ":Europe/Berlin", "Etc/GMT+3", "/usr/share/zoneinfo/Europe/Berlin")),
    ],
)  # fmt: skip
def test_a_zone_of_this_machine_that_does_not_exist_is_told(env, zone, words):
    done = janitor_here({**env, "TZ": zone}, "holds", "--json")
    assert done.returncode == 0
    assert ("warning: TZ" in done.stderr, words in done.stderr) == (bool(words), True), done.stderr


def test_a_time_may_be_relative_to_now(env, finetune):
    (record,) = records(janitor_here(env, "delete", finetune, "--at", "in 2h", "--json"))
    away = datetime.fromisoformat(record["due_at"]) - datetime.now(UTC)
    assert timedelta(hours=1, minutes=58) < away <= timedelta(hours=2)
    for option, count in (("--since", 1), ("--until", 0)):
        listed = janitor_here(env, "list", "--finetune", finetune, option, "1h ago", "--json")
        assert len(records(listed)) == count
    assert janitor_here(env, "protect", finetune, "--until", "in 30d").returncode == 0


def test_what_is_shown_of_finetunes_is_local_time_with_its_zone(auckland, api, finetune):
    api.create(finetune)
    janitor_here(auckland, "protect", finetune, "--until", "2030-07-01T12:00")
    janitor_here(auckland, "touch", finetune)
    shown = janitor_here({**auckland, "COLUMNS": "300"}, "finetunes").stdout
    (row,) = [line for line in shown.splitlines() if finetune in line]
    assert f"until {NOON}" in row
    assert re.search(r"\d\d:\d\d:\d\d NZ[SD]T +until", row), row


AT = r"at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+"
QUESTIONS = [
    # options, how many, what is shown before; if they are few, one is protected
    (["--in", "1h"], 101, rf"^this deletes 101 of account default {AT}, permanently: \S+-0, .+ and 96 more$"),
    (["--in", "1h"], 1, r"^\S+-0 is protected from cleanups, and not from this request$"),
    ([], 2, r"^this deletes 2 of account default now, permanently: \S+-0, \S+-1$"),
]


@pytest.mark.parametrize(("options", "count", "shown"), QUESTIONS)
def test_many_and_protected_finetunes_are_deleted_once_a_person_at_the_terminal_agrees(
    env, finetune, tmp_path, options, count, shown
):
    names = [f"{finetune}-{n}" for n in range(count)]
    if count <= 100:
        janitor_here(env, "protect", names[0])
    (tmp_path / "ids").write_text("\n".join(names))
    command = ["delete", "--file", str(tmp_path / "ids"), *options, "--json"]
    # Given a person who does not agree, then nothing is written,
    refused = at_a_terminal(env, *command, types="n\n")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.search(shown, refused.stderr, re.MULTILINE), refused.stderr
    assert refused.stderr.endswith("nothing was written\n")
    assert janitor_here(env, "list", "--finetune", names[0], "--json").stdout == ""
    # given one who does, then it is asked for.
    agreed = at_a_terminal(env, *command, types="y\n")
    assert (agreed.returncode, f"{count} accepted" in agreed.stderr) == (0, True)
    assert len(records(janitor_here(env, "list", "--finetune", names[0], "--json"))) == 1
    # Scripts, with --yes or without a terminal, are not asked.
    for script in (at_a_terminal(env, *command, "--yes", types=""), janitor_here(env, *command)):
        assert (script.returncode, "Is that right?" in script.stderr) == (0, False)
        assert re.search(shown, script.stderr, re.MULTILINE)


def test_a_retry_looks_again_once_its_question_is_answered(env, finetune):
    # Given a deletion that was cancelled, and a person who is asked whether to retry it,
    old = asked_for(env, finetune)
    janitor_here(env, "cancel", old["id"])
    janitor_here(env, "protect", finetune)

    def agree_late(*_, **__):
        assert janitor_here(env, "retry", old["id"], "--yes").returncode == 0
        return True

    # when somebody else retries it meanwhile, then it is refused.
    with mock.patch("worker.cli.asking.click.confirm", agree_late):
        done = at_a_terminal(env, "retry", old["id"], types="")
    assert (done.returncode, "was retried already" in done.stderr) == (2, True)


def test_few_that_nobody_protects_are_deleted_without_a_question(env, finetune):
    done = at_a_terminal(env, "delete", finetune, "--in", "1h", types="")
    assert (done.returncode, "Is that right?" in done.stderr) == (0, False)


@pytest.fixture
def plan(env, api, tmp_path):
    """A plan for two old finetunes of three."""
    for name in api.finetunes():
        api.remove(name)
    long_ago = (datetime.now(UTC) - timedelta(days=45)).isoformat()
    for n in range(2):
        api.create(f"old-{uuid.uuid4().hex[:8]}-{n}", timestamp=long_ago)
    api.create(f"new-{uuid.uuid4().hex[:8]}", timestamp=datetime.now(UTC).isoformat())
    file = tmp_path / "policies.toml"
    file.write_text("[[policy]]\nname = 'old'\nolder_than = '30d'\nmax_percent = 100\ngrace = '1h'\n")
    (made,) = records(janitor_here(env, "cleanup", "plan", "--file", str(file), "--json"))
    assert (made["deletions"], made["blocked"]) == (2, None)
    return made


def test_a_plan_is_applied_once_a_person_agrees_and_withdrawn_whole(env, plan, tmp_path):
    file = ("--file", str(tmp_path / "policies.toml"))
    # Given a person who does not agree
    refused = at_a_terminal(env, "cleanup", "apply", plan["id"], *file, types="n\n")
    assert (refused.returncode, refused.stdout) == (1, "")
    at = datetime.now().astimezone() + timedelta(hours=1)
    assert f"this deletes 2 of 3 finetunes of account default at {at:%Y-%m-%d}" in refused.stderr
    assert refused.stderr.endswith("nothing was written\n")
    # When a script applies it
    applied = janitor_here(env, "cleanup", "apply", plan["id"], *file, "--json")
    assert {record["state"] for record in records(applied)} == {"scheduled"}
    # and it is applied again, which asks for nothing, then there is no question.
    again = at_a_terminal(env, "cleanup", "apply", plan["id"], *file, types="")
    assert (again.returncode, "Is that right?" in again.stderr) == (0, False)
    # A cancel of the plan withdraws its deletions, and no other one.
    other = asked_for(env, plan["items"][0]["finetune_id"])
    cancelled = janitor_here(env, "cancel", "--plan", plan["id"], "--reason", "a mistake", "--json")
    assert cancelled.returncode == 0
    assert {one["id"]: one["state"] for one in records(cancelled)} == dict.fromkeys(
        (record["id"] for record in records(applied)), "cancelled"
    )
    assert records(janitor_here(env, "show", other["id"], "--json"))[0]["state"] == "scheduled"
    twice = janitor_here(env, "cancel", "--plan", plan["id"], "--json")
    assert (twice.returncode, twice.stdout) == (0, "")
    assert twice.stderr == "the plan is withdrawn; 0 of its 2 deletions have not ended\n"
    # It is still told that it was applied, and when that began: an apply may have died midway.
    listed = janitor_here({**env, "COLUMNS": "200"}, "cleanup", "list").stdout.splitlines()
    (line,) = [line for line in listed if plan["id"] in line]
    assert "apply began 2" in line
    assert "blocked: withdrawn by" in line
    assert "apply began 2" in janitor_here(env, "cleanup", "show", plan["id"]).stderr


def test_a_hold_tells_of_a_call_under_way_that_it_may_come_too_late(env, redis_url, finetune):
    # Given two deletions of a finetune, of which one is calling the API,
    ledger = Ledger(connect(redis_url))
    ledger.maintain("calling", 8)
    for id_ in (f"{finetune}-calls", f"{finetune}-waits"):
        ledger.accept([asking(finetune, id=id_, account="calling")])
    assert mark(ledger, claim(ledger, "calling")) == "go"
    # when the finetune is held, then each is told as it is.
    done = janitor_here(env, "hold", finetune, "--account", "calling", "--reason", "a lawsuit")
    assert done.returncode == 0
    assert f"withdrawn before anything was deleted: {finetune}-waits\n" in done.stderr
    assert f"withdrawn, perhaps too late: {finetune}-calls: a call may be under way" in done.stderr


def test_of_many_that_are_held_five_are_named_and_the_rest_is_counted(env, redis_url, finetune):
    # Given seven finetunes that are held for an hour, when they are to be deleted later,
    ledger, names = Ledger(connect(redis_url)), [f"{finetune}-{n}" for n in range(7)]
    for name in names:
        hold(ledger, "default", name, datetime.now(UTC) + timedelta(hours=1), Act("legal", "command", "a lawsuit"))
    done = janitor_here(env, "delete", *names, "--in", "2h")
    # then a person is told of all.
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ends cancelled\n") == 5
    assert "2 more of them are held: `janitor holds`" in done.stderr


def test_deletions_are_cancelled_by_a_file_of_ids(env, finetune, tmp_path):
    waiting = [asked_for(env, f"{finetune}-{n}")["id"] for n in range(2)]
    (tmp_path / "ids").write_text("# wrong customer\n" + "\n".join(waiting))
    done = janitor_here(env, "cancel", "--file", str(tmp_path / "ids"), "--json")
    assert (done.returncode, [one["state"] for one in records(done)]) == (0, ["cancelled"] * 2)
    for nothing in ([], ["--file", os.devnull], ["an-id", "--plan", "a-plan"]):
        assert janitor_here(env, "cancel", *nothing).returncode == 2


def test_the_start_of_an_id_is_enough_if_one_recent_deletion_has_it(env, finetune):
    record = asked_for(env, finetune)
    short = record["id"][:13]
    shown = janitor_here(env, "show", short, "--json")
    assert [one["id"] for one in records(shown)] == [record["id"]]
    assert janitor_here(env, "show", record["id"][:3]).returncode == 1, "three characters are too few"
    waited = janitor_here(env, "wait", short, "--timeout", "0", "--json")
    assert (waited.returncode, records(waited)[0]["id"]) == (4, record["id"])
    both = janitor_here(env, "cancel", short, record["id"], "unknown", "--json")
    assert [one["id"] for one in records(both)] == [record["id"]], "the same one is cancelled once"
    assert (both.returncode, both.stderr) == (1, "unknown: no deletion has the id 'unknown'\n")
    again = janitor_here(env, "retry", short, "--json")
    assert records(again)[0]["retry_of"] == record["id"]


def test_the_start_of_several_ids_is_not_guessed(env):
    ledger, start = Ledger(connect(env["REDIS_URL"])), uuid.uuid4().hex[:8]
    ledger.accept([asking(id=f"{start}-{end}") for end in "ab"])
    done = janitor_here(env, "cancel", start)
    assert (done.returncode, done.stderr) == (
        1, f"{start}: no deletion has the id '{start}', and 2 begin with it: give more of it\n"
    )  # fmt: skip


@pytest.mark.parametrize("command", ["show", "wait", "cancel", "retry"])
def test_the_name_of_a_finetune_given_as_an_id_is_told_how_to_list_it(env, finetune, command):
    # Given a finetune whose name is the start of an id that somebody chose for another one
    asked_for(env, finetune)
    Ledger(connect(env["REDIS_URL"])).accept([asking(id=f"{finetune}-billing")])
    done = janitor_here(env, command, finetune)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"it is the name of a finetune: `janitor list --finetune {finetune}` lists its deletions" in done.stderr


@pytest.mark.parametrize("name", ["x;echo$IFS'y'", "$(echo)", "-x", "--help", "a`b`"])
def test_a_name_in_a_command_to_copy_is_one_argument_for_a_shell(env, name):
    # Given a finetune whose name somebody else chose
    Ledger(connect(env["REDIS_URL"])).accept([asking(name, id=uuid.uuid4().hex)])
    # When the command that a message gives is copied into a shell
    told = janitor_here(env, "show", "--", name).stderr
    command = told.split(": `")[1].rsplit("` lists")[0]
    printed = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    arguments = printed.stdout.splitlines()
    # Then it is the command that is meant.
    assert arguments[:2] == ["janitor", "list"]
    listed = janitor_here(env, *arguments[1:], "--json")
    assert {one["finetune_id"] for one in records(listed)} == {name}


def test_an_empty_id_is_not_known(env, finetune):
    asked_for(env, finetune)
    done = janitor_here(env, "show", "")
    assert (done.returncode, done.stderr) == (1, "Error: no deletion has the id ''\n")


EXAMPLE = str(ROOT / "docs/how-to/policies.example.toml")
SUGGESTIONS = [
    (["delte", "ft"], "Did you mean 'delete'"),
    (["cleanup", "aply", "x"], "Did you mean 'apply'"),
    (["delete", "ft", "--reson", "x"], "--reason"),
    (["list", "--state", "delted"], "did you mean 'deleted'?"),
    (["list", "--state", "FAILED"], "did you mean 'failed'?"),
    (["retry", "--state", "faild"], "did you mean 'failed'?"),
    (["delete", "ft", "--account", "emeaa"], "did you mean 'emea'?"),
    (["protect", "ft", "--account", "emeaa"], "did you mean 'emea'?"),
    (["touch", "ft", "--account", "emeaa"], "did you mean 'emea'?"),
    (["pause", "--account", "emeaa"], "did you mean 'emea'?"),
    (["resume", "--account", "emeaa"], "did you mean 'emea'?"),
    (["retry", "--state", "failed", "--account", "emeaa"], "did you mean 'emea'?"),
    (["finetunes", "--account", "defualt"], "did you mean 'default'?"),
    (
        ["cleanup", "plan", "--file", "docs/how-to/policies.example.toml", "--policy", "test"],
        "did you mean 'tests'?",
    ),
]


@pytest.mark.parametrize(("arguments", "words"), SUGGESTIONS)
def test_a_word_that_is_nearly_right_is_told_the_right_one(env, arguments, words):
    done = janitor_here(env, *arguments)
    assert (done.returncode, done.stdout, words in done.stderr) == (2, "", True), done.stderr


def test_a_setting_that_is_nearly_right_is_told_the_right_one(env):
    done = janitor_here(env | {"JANITOR_LAESE": "30s"}, "list")
    assert (done.returncode, "did you mean JANITOR_LEASE?" in done.stderr) == (2, True)


def test_an_account_that_no_worker_has_can_be_listed_and_is_told(env):
    done = janitor_here(env, "list", "--account", "emeaa")
    assert done.returncode == 0
    assert done.stderr == "no worker has the account 'emeaa'; did you mean 'emea'?\nno deletion matches\n"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\uff1d"])
def test_csv_holds_no_formula(env, start, finetune):
    name = f"{start}cmd|'calc'!{finetune}"
    janitor_here(env, "delete", "--in", "1h", "--reason", f"{start}1", "--json", "--", name)
    listed = janitor_here(env, "list", "--csv", "--finetune", name)
    (row,) = csv.DictReader(io.StringIO(listed.stdout))
    assert (row["finetune_id"], row["reason"]) == (f"'{name}", f"'{start}1")


HOSTILE = "old-\nforged: \x1b]0;title\x07-\x9b2J-\u202egnp-\u200b"


def test_what_the_api_lists_cannot_drive_a_terminal(env, api, plan, tmp_path):
    # Given a finetune whose name sets the title, clears the screen and turns the direction of writing
    api.create(HOSTILE, timestamp=(datetime.now(UTC) - timedelta(days=50)).isoformat())
    file = str(tmp_path / "policies.toml")
    try:
        # When it is shown, then its characters are escapes, with which it can still be told from another one.
        for command in (["cleanup", "plan", "--file", file], ["finetunes", "--file", file], ["doctor"]):
            for wide in ([], ["--json"]):
                done = janitor_here({**env, "COLUMNS": "400"}, *command, *wide)
                told = done.stdout + done.stderr
                assert not [char for char in told if not char.isprintable() and char != "\n"], told
                assert not [line for line in told.splitlines() if line.startswith("forged")], told
                if command != ["doctor"]:
                    assert "202egnp" in told
        listed = janitor_here(env, "finetunes", "--json")
        assert HOSTILE in {one["finetune_id"] for one in records(listed)}, "JSON means the same name"
        assert "has invisible characters: see that it is the one you mean" in listed.stderr
    finally:
        api.remove(HOSTILE)


CONFUSING = [
    ("pr\u043ed-main", "mixes Cyrillic and Latin letters"),
    ("\u03bfmega-1\u0430", "mixes Cyrillic and Greek and Latin letters"),
    ("prod\ufe0f", "has invisible characters"),
    ("prod\u3164", "has invisible characters"),
    ("\uff50\uff52\uff4f\uff44", "has characters in an unusual form"),
    ("cafe\u0301", "has characters in an unusual form"),
    ("prod\u2013main", "has a character that looks like a hyphen"),
    ("cust-*", "has a *, which stands for itself here"),
    ("prod-main_2.1", None),
    ("caf\u00e9-gr\u00fcn", None),
    ("\u043c\u043e\u0434\u0435\u043b\u044c-1", None),
    ("\u6a21\u578b-lora-\u30ab\u30bf\u30ab\u30ca\u30fc-\u3072\u3089", None),
    ("\ubaa8\ub378-a", None),
    ("0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10", None),
]


def test_only_the_first_names_that_look_like_others_are_told_one_by_one(env):
    done = janitor_here(env, "delete", *[f"cafe\u0301-{n}" for n in range(7)], "--dry-run")
    assert done.stderr.count("in an unusual form") == 5
    assert "warning: 2 more names are like that\n" in done.stderr


@pytest.mark.parametrize(("name", "why"), CONFUSING)
def test_a_name_that_looks_like_another_one_is_taken_as_it_is_with_a_warning(env, name, why):
    done = janitor_here(env, "delete", name, "--dry-run", "--json")
    assert (done.returncode, records(done)[0]["finetune_id"]) == (0, name)
    warned = f"warning: {name} ({name!a}) {why}: see that it is the one you mean\n" if why else ""
    assert done.stderr == f"{warned}dry run: nothing was written\n"
