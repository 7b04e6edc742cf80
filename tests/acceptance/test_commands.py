"""The `janitor` command: what it prints, what it exits with, and what every mistake is told."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from tasks.ledger import Ledger
from tests.processes import ROOT, environment, janitor, janitor_here, producer, records
from worker.cli import _COMMANDS
from worker.redis_url import connect

pytestmark = pytest.mark.usefixtures("running_worker")


@pytest.fixture
def finetune(api):
    name = f"ft-{uuid.uuid4().hex[:12]}"
    api.create(name)
    return name


def ids(done):
    return [record["id"] for record in records(done)]


def test_delete_and_wait_shows_the_record_and_every_other_command_finds_it(env, finetune):
    done = janitor_here(env, "delete", finetune, "--reason", "trial over", "--wait", "--json")
    (record,) = records(done)
    assert (done.returncode, record["state"], record["evidence"]) == (0, "deleted", "response")
    assert (record["status"], record["message"]) == ("Success", f"Finetune {finetune} deleted")
    assert record["timestamp"]
    assert (record["source"], record["reason"]) == ("command", "trial over")
    # It says which finetune was deleted, and from where it was seen.
    assert record["incarnation"]["created_at"]
    assert record["vantage"].startswith("127.0.0.1:")
    found = [
        janitor_here(env, "show", record["id"], "--json"),
        janitor_here(env, "list", "--finetune", finetune, "--json"),
        janitor_here(env, "wait", record["id"], "--json"),
    ]
    # It may have been verified in between.
    shown = [{**one, "verified_at": None} for done in found for one in records(done)]
    assert shown == [{**record, "verified_at": None}] * 3


def test_for_people_there_are_tables_with_whole_ids_in_any_width(env, finetune):
    (record,) = records(janitor_here(env, "delete", finetune, "--wait", "--json"))
    for columns in ("40", "80", "200"):
        for command in (("list", "--finetune", finetune), ("show", record["id"])):
            shown = janitor_here({**env, "COLUMNS": columns}, *command).stdout
            assert "deleted" in shown
            assert record["id"] in shown or columns == "40"
            assert max(map(len, shown.splitlines())) <= int(columns)


def test_a_record_is_shown_with_every_field_that_is_filled(env, finetune):
    (record,) = records(janitor_here(env, "delete", finetune, "--wait", "--json"))
    shown = janitor_here(env, "show", record["id"]).stdout
    filled = {name for name, value in record.items() if value}
    labels = {"finetune_id": "finetune", "created_at": "accepted at", "attempts": "attempt"}
    missing = [
        name for name in filled if not re.search(rf"^{labels.get(name, name.replace('_', ' '))} ", shown, re.M)
    ]
    assert missing == []
    assert "HTTP 200" in shown


def test_times_for_people_are_local_and_say_so(env, finetune, monkeypatch):
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    try:
        here = {**env, "TZ": "Pacific/Auckland"}
        (record,) = records(janitor_here(here, "delete", finetune, "--at", "2030-07-01T12:00", "--json"))
        assert record["due_at"] == "2030-07-01T00:00:00.000Z", "a time without an offset is local"
        assert "2030-07-01 12:00:00 NZST" in janitor_here(here, "show", record["id"]).stdout
        assert "2030-07-01 12:00:00 NZST" in janitor_here(here, "list", "--finetune", finetune).stdout
        janitor_here(here, "cancel", record["id"])
    finally:
        monkeypatch.undo()
        time.tzset()


def test_many_from_a_file_and_as_csv(env, api, finetune, tmp_path):
    names = [f"{finetune}-{n}" for n in range(5)]
    for name in names:
        api.create(name)
    (tmp_path / "ids").write_text("# left us\n" + "\n".join(names) + "\n\n")
    done = janitor_here(env, "delete", "--file", str(tmp_path / "ids"), "--wait", "--json")
    assert (done.returncode, [record["state"] for record in records(done)]) == (0, ["deleted"] * 5)
    listed = janitor_here(env, "list", "--csv", "--limit", "5").stdout
    rows = list(csv.DictReader(io.StringIO(listed)))
    assert {row["finetune_id"] for row in rows} == set(names)
    piped = janitor(env, "delete", "--file", "-", "--missing-ok", "--wait", "--json", input="\n".join(names))
    assert (piped.returncode, [record["state"] for record in records(piped)]) == (0, ["not_found"] * 5)


def test_lists_are_filtered_and_paged(env, api):
    start = janitor_here(env, "delete", "page-0", "--json")
    since = records(start)[0]["created_at"]
    names = [f"page-{n}" for n in range(1, 7)]
    waited = janitor_here(env, "delete", *names, "--wait", "--json")
    assert waited.returncode == 1, "not found is not what was asked for"
    first = janitor_here(env, "list", "--since", since, "--limit", "4", "--json")
    cursor = re.search(r"--cursor (\S+)", first.stderr)
    assert cursor
    rest = janitor_here(env, "list", "--since", since, "--limit", "4", "--cursor", cursor[1], "--json")
    seen = [record["finetune_id"] for record in records(first) + records(rest)]
    assert sorted(seen) == ["page-0", *names]
    none = janitor_here(env, "list", "--state", "superseded", "--since", since, "--json")
    assert (none.returncode, none.stdout) == (0, "")


def test_a_delay_keeps_it_scheduled_and_cancel_withdraws_it(env, api, finetune):
    (waiting,) = records(janitor_here(env, "delete", finetune, "--in", "1h", "--json"))
    assert waiting["state"] == "scheduled"
    cancelled = janitor_here(env, "cancel", waiting["id"], "--reason", "wrong customer", "--json")
    (record,) = records(cancelled)
    assert (cancelled.returncode, record["state"], record["cancel_reason"]) == (0, "cancelled", "wrong customer")
    assert record["cancelled_by"] == record["requested_by"]
    again = janitor_here(env, "cancel", waiting["id"])
    assert (again.returncode, "it had ended already" in again.stderr) == (1, True)
    assert api.deletes(finetune) == []


def test_each_request_is_a_record_of_its_own_and_a_cancel_withdraws_one(env, api, finetune):
    # Given two requests for one finetune
    (first,) = records(janitor_here(env, "delete", finetune, "--in", "1h", "--reason", "trial over", "--json"))
    (second,) = records(janitor_here(env, "delete", finetune, "--in", "2h", "--json"))
    assert first["id"] != second["id"]
    assert (first["reason"], second["reason"]) == ("trial over", None)
    # When one is cancelled, then the other one goes on.
    assert janitor_here(env, "cancel", second["id"]).returncode == 0
    states = {
        one["id"]: one["state"] for one in records(janitor_here(env, "list", "--finetune", finetune, "--json"))
    }
    assert states == {first["id"]: "scheduled", second["id"]: "cancelled"}
    janitor_here(env, "cancel", first["id"])
    assert api.deletes(finetune) == []


def test_retry_asks_again_for_what_failed(env, api, finetune):
    api.fault("status", finetune_id=finetune, status=400, body={"detail": "not now"})
    failed = janitor_here(env, "delete", finetune, "--wait", "--json")
    assert (failed.returncode, records(failed)[0]["state"]) == (1, "failed")
    done = janitor_here(env, "retry", ids(failed)[0], "--wait", "--json")
    (record,) = records(done)
    assert (done.returncode, record["state"], record["retry_of"]) == (0, "deleted", ids(failed)[0])
    assert record["asked_at"] == records(failed)[0]["asked_at"], "it means the finetune that was meant then"
    old = janitor_here(env, "show", ids(failed)[0], "--json")
    assert (records(old)[0]["retried_by"], records(old)[0]["state"]) == (record["id"], "failed")
    twice = janitor_here(env, "retry", ids(failed)[0])
    assert (twice.returncode, f"was retried already: {record['id']}" in twice.stderr) == (2, True)
    refused = janitor_here(env, "retry", record["id"])
    assert (refused.returncode, refused.stderr) == (
        2, f"Error: {record['id']} is deleted: only what ended otherwise can be retried\n"
    )  # fmt: skip


def test_a_retry_says_the_new_id_and_does_not_delete_a_finetune_created_since(env, api, finetune):
    # Given a deletion asked for half an hour ago that failed before its finetune was seen,
    api.fault("status", call="finetune_details", finetune_id=finetune, status=403)
    long_ago = {"requested_at": (datetime.now(UTC) - timedelta(minutes=30)).isoformat()}
    failed = producer(env["REDIS_URL"]).send_task("finetunes.delete", [finetune], long_ago, queue="deletions")
    with pytest.raises(Exception, match="failed"):
        failed.get(timeout=60)
    # and a new finetune of this name
    api.create(finetune, timestamp=datetime.now(UTC).isoformat())
    # When the old deletion is retried
    asked = janitor_here(env, "retry", failed.id, "--wait")
    # Then the new one is left alone.
    assert asked.returncode == 1
    (new_id,) = re.findall(r"^accepted: (\S+)$", asked.stderr, re.MULTILINE)
    (record,) = records(janitor_here(env, "show", new_id, "--json"))
    assert (record["state"], record["retry_of"]) == ("superseded", failed.id)
    assert f"{new_id} is superseded: only" in janitor_here(env, "retry", new_id).stderr
    assert api.deletes(finetune) == []


def test_all_of_a_state_are_retried_at_once_and_only_once(env, api, finetune):
    api.fault("status", finetune_id=finetune, status=400, body={"detail": "not now"})
    (failed,) = records(janitor_here(env, "delete", finetune, "--wait", "--json"))
    done = janitor_here(env, "retry", "--state", "failed", "--json")
    assert failed["id"] in {record["retry_of"] for record in records(done)}
    janitor_here(env, "wait", *ids(done), "--missing-ok", "--timeout", "20")
    assert "nothing to retry" in janitor_here(env, "retry", "--state", "failed").stderr


def test_a_dry_run_writes_nothing(env, finetune):
    done = janitor_here(env, "delete", finetune, "--dry-run")
    assert (done.returncode, f"would ask for {finetune}" in done.stdout) == (0, True)
    assert janitor_here(env, "list", "--finetune", finetune, "--json").stdout == ""


def test_what_is_not_done_in_time_exits_4(env, finetune):
    done = janitor_here(env, "delete", finetune, "--in", "1h", "--wait", "--timeout", "300ms", "--json")
    assert (done.returncode, records(done)[0]["state"]) == (4, "scheduled")
    janitor_here(env, "cancel", ids(done)[0])


def test_who_has_no_name_is_known_by_number(env, finetune):
    nameless = (
        "import pwd, sys\npwd.getpwuid = lambda uid: {}[uid]\nfrom worker.cli import main\nmain(sys.argv[1:])"
    )
    argv = [sys.executable, "-c", nameless, "delete", finetune, "--in", "1h", "--json"]
    plain = {name: value for name, value in env.items() if name not in ("USER", "LOGNAME", "LNAME", "USERNAME")}
    done = subprocess.run(argv, env=plain, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert records(done)[0]["requested_by"].startswith(f"{os.getuid()}@")


MISTAKES = [
    (["delete"], "no finetune id is given: name at least one"),
    (["delete", ""], "the finetune id is empty: give 1 to 255"),
    (["delete", "x" * 256], "has 256 characters: give 1 to 255"),
    (["delete", "a\tb"], "has a space or a control character"),
    (["delete", "org/name"], "JANITOR_ALLOW_ORG_IDS=true"),
    (["delete", "good", "bad bad"], "'bad bad' has a space"),
    (["delete", "a", "--in", "-1h"], "'-1h' is not a duration: give a duration such as"),
    (["delete", "a", "--in", "soon"], "'soon' is not a duration"),
    (["delete", "a", "--wait", "--timeout", "soon"], "'soon' is not a duration"),
    (["delete", "a", "--at", "soon"], "'soon' is not a time: give one such as 2026-12-24T18:00 (local)"),
    (["delete", "a", "--at", "2020-01-01T12:00"], ") is in the past: give a later time, or leave it out"),
    (["delete", "a", "--in", "1h", "--at", "2030-01-01"], "a time and a delay are both given"),
    (["delete", "a", "--account", "nobody"], "the account 'nobody' is not known: give one of default"),
    (["delete", "a", "--reason", "two\nlines"], "reason is 'two\\nlines': give one line"),
    (["delete", "a", "--reason", "x" * 501], "give one line of at most 500"),
    (["delete", "--file", "/nowhere"], "No such file"),
    (["list", "--state", "done"], "'done' is not a state: give one of scheduled, queued"),
    (["list", "--cursor", "7"], "the cursor '7' is not one that a list answered"),
    (["list", "--csv", "--json"], "give one of them"),
    (["list", "--limit", "0"], "0 is not in the range"),
    (["retry"], "give either the ids of deletions, or --state"),
    (["retry", "an-id", "--account", "default"], "--account needs --state"),
    (["retry", "--state", "deleted"], "only failed and review can be retried by state"),
    (["delte", "a"], "No such command"),
    (["cleanup", "check"], "no policies: set JANITOR_POLICY_FILE to a TOML file, or give --file"),
    (["cleanup", "check", "--file", "/nowhere"], "/nowhere cannot be read: No such file"),
    (["cleanup", "check", "--file", "README.md"], "README.md: not TOML: "),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_a_mistake_exits_2_with_one_clear_line_and_writes_nothing(env, arguments, words):
    written = Ledger(connect(env["REDIS_URL"])).redis
    before = set(written.keys("janitor:2:d:*"))
    done = janitor_here(env, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert set(written.keys("janitor:2:d:*")) == before


@pytest.mark.parametrize("command", ["show", "wait", "retry"])
def test_an_unknown_id_exits_1(env, command):
    done = janitor_here(env, command, "no-such-id")
    assert (done.returncode, done.stderr) == (1, "Error: no deletion has the id 'no-such-id'\n")


@pytest.mark.parametrize("command", ["", *_COMMANDS])
def test_help_is_quick_to_read_and_has_an_example(env, command):
    done = janitor_here(env, *filter(None, [command]), "--help")
    assert done.returncode == 0
    assert re.search(rf"^ +(\w+=\S+ )*janitor {command}", done.stdout, re.MULTILINE)
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_help_imports_nothing_heavy(env):
    code = "import sys, worker.cli; worker.cli.main(['--help'])"
    loud = [sys.executable, "-X", "importtime", "-c", code]
    done = subprocess.run(loud, env=env, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert (done.returncode, "click" in imported) == (0, True)
    assert not imported & {"celery", "redis", "requests", "pydantic", "rich", "tenacity", "structlog"}


@pytest.mark.parametrize("arguments", [["list"], ["show", "x"], ["delete", "x"], ["wait", "x"], ["cancel", "x"]])
@pytest.mark.parametrize("url", ["unix:///nowhere/redis.sock?db=0", "redis://127.0.0.1:1/0"])
def test_without_redis_commands_say_so_within_5_seconds_and_exit_3(tmp_path, arguments, url):
    began = time.monotonic()
    done = janitor_here(environment(url, JANITOR_STATE_DIR=tmp_path), *arguments)
    assert time.monotonic() - began < 5
    assert done.returncode == 3
    assert re.fullmatch(
        r"Error: Redis cannot be reached \([^\n]+\): is it running, and is REDIS_URL right\?\n", done.stderr
    )


def test_without_any_redis_named_it_says_what_to_do(tmp_path):
    done = janitor_here(environment(JANITOR_STATE_DIR=tmp_path), "list")
    assert done.returncode == 3
    assert "REDIS_URL is not set and no `janitor up` runs" in done.stderr


BAD_SETTINGS = [
    ({"JANITOR_LEASE": "10s"}, "JANITOR_CALL_DEADLINE=20s must be shorter than JANITOR_LEASE=10s"),
    ({"JANITOR_LEASE": "soon"}, "JANITOR_LEASE: 'soon' is not a duration"),
    ({"JANITOR_MAX_CONCURENT": "3"}, "did you mean JANITOR_MAX_CONCURRENT?"),
    ({"JANITOR_MAX_CONCURRENT": "0"}, "JANITOR_MAX_CONCURRENT: should be greater than or equal to 1"),
    ({"BFL_API_URL": "https://bfl.ai.evil.example"}, "BFL_API_URL=https://bfl.ai.evil.example is neither"),
    ({"BFL_API_KEY": "two words"}, "BFL_API_KEY must hold one key"),
    ({"REDIS_URL": "memcached://:hidden@x"}, "REDIS_URL is not a URL of a Redis"),
]


@pytest.mark.parametrize(("setting", "words"), BAD_SETTINGS)
def test_a_bad_setting_stops_the_start_with_one_line_that_names_it(env, setting, words):
    done = janitor_here(env | setting, "worker")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert words in done.stderr
    assert "two words" not in done.stderr
    assert "hidden" not in done.stderr


def test_a_bad_setting_stops_celerys_own_command_with_one_line_too(env):
    argv = [sys.executable, "-m", "celery", "-A", "worker", "worker", "-P", "threads"]
    # Celery warns of running as root, as a container in CI may.
    here = env | {"JANITOR_LEASE": "soon", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(argv, env=here, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "JANITOR_LEASE: 'soon' is not a duration" in done.stderr


def test_cleanup_check_says_what_each_policy_would_do(env):
    done = janitor_here(env, "cleanup", "check", "--file", str(ROOT / "docs/how-to/policies.example.toml"))
    tests, unused = done.stdout.splitlines()
    assert done.returncode == 0
    assert tests.startswith("tests (default): match test-*, ci-*; older than 7d; keep the newest 3; at most 20")
    assert unused.endswith("never prod-*, demo; at most 10 and 10 % at once, after 7d; when asked")


def test_cleanup_check_warns_of_an_account_that_nobody_has_a_key_of_if_the_ledger_can_tell(env, tmp_path):
    # Given a policy of a mistyped account, and one whose key is here
    file = tmp_path / "policies.toml"
    file.write_text(
        "".join(f"[[policy]]\nname='{n}'\naccount='{n}'\nolder_than='30d'\n" for n in ("emae", "emea"))
    )
    here = {**env, "BFL_API_KEY_EMEA": "a-key"}
    # When the file is checked, then only the first is warned of, and the file is fine;
    done = janitor_here(here, "cleanup", "check", "--file", str(file))
    (line,) = done.stderr.splitlines()
    assert (done.returncode, "account emae" in line, "BFL_API_KEY_EMAE" in line) == (0, True, True)
    # without Redis nobody can tell.
    done = janitor_here({**here, "REDIS_URL": "redis://127.0.0.1:1/0"}, "cleanup", "check", "--file", str(file))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_pipe_and_ctrl_c_end_without_a_traceback(env, finetune):
    argv = [sys.executable, "-m", "worker.cli", "delete", finetune, "--in", "1h", "--wait"]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr
        told = waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(10) == 130
        left = waiting.stderr.read()
        assert "Traceback" not in left
        assert "the deletion goes on" in left
    (accepted,) = records(janitor_here(env, "list", "--finetune", finetune, "--json"))
    assert told == f"accepted: {accepted['id']}\n"
    assert f"`janitor wait {accepted['id']}`" in left
    full = subprocess.run(
        ["sh", "-c", '"$0" -m worker.cli list > /dev/full', sys.executable],
        env=env, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (full.returncode, full.stderr) == (1, "Error: No space left on device\n")


@pytest.mark.parametrize("command", ["list", "list 2>&1", "export", "list --help"])
def test_a_pipe_that_nobody_reads_any_more_ends_quietly_as_with_other_tools(env, finetune, command):
    janitor_here(env, "delete", finetune, "--in", "1h")
    # Given a pipe whose reader is gone
    ours, theirs = os.pipe()
    os.close(ours)
    # When a command writes to it
    argv = ["sh", "-c", f'"$0" -m worker.cli {command}', sys.executable]
    try:
        done = subprocess.run(argv, env=env, stdout=theirs, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(theirs)
    # Then its exit code is that of SIGPIPE.
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("command", "code"),
    [("list <&-", 0), ("list >&-", 0), ("list 2>&-", 0), ("list <&- >&- 2>&-", 0), ("show no-such-id 2>&-", 1)],
)
def test_a_stream_that_is_closed_changes_no_outcome(env, command, code):
    argv = ["sh", "-c", f'"$0" -m worker.cli {command}', sys.executable]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)


NOT_UTF_8 = [
    "show", "wait", "cancel", "retry", "resolve --as kept --note x", "cancel --plan", "cleanup show",
    "cleanup apply", "list --cursor", "list --requested-by", "list --name", "list --finetune", "delete",
    "hold --reason x", "release", "protect", "touch", "audit --who", "dead-letters show",
]  # fmt: skip


@pytest.mark.parametrize("command", NOT_UTF_8)
def test_an_argument_that_is_not_utf_8_is_no_traceback(env, command):
    done = janitor_here(env, *command.split(), os.fsdecode(b"\xff"))
    assert done.returncode in (0, 1, 2)
    assert done.stderr.isascii()
    if done.returncode == 2:
        assert "\\udcff" in done.stderr


@pytest.mark.parametrize(("encoding", "read_as"), [("ascii", "utf-8"), ("latin-1", "latin-1")])
def test_what_was_accepted_is_told_in_any_encoding(env, finetune, encoding, read_as):
    # Given an output that cannot have the characters of a name,
    name = f"{finetune}-caf\u00e9-\u4e2d-\U0001f600"
    argv = [sys.executable, "-m", "worker.cli", "delete", name, "--in", "1h"]
    # when a deletion of it is accepted, then that is told, and JSON is still JSON (click writes UTF-8 for ASCII).
    table, lines = (
        subprocess.run(
            [*argv, *more], env={**env, "PYTHONIOENCODING": encoding}, capture_output=True, timeout=60, check=False
        )
        for more in ([], ["--json"])
    )
    assert (table.returncode, table.stderr, lines.returncode) == (0, b"1 accepted\n", 0)
    assert rb"\u4e2d" in table.stdout
    (record,) = map(json.loads, lines.stdout.decode(read_as).splitlines())
    assert record["finetune_id"] == name
    # CSV has no escapes, so it is UTF-8.
    exported = subprocess.run(
        [sys.executable, "-m", "worker.cli", "export", "--format", "csv"],
        env={**env, "PYTHONIOENCODING": encoding}, capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert name in exported.stdout.decode()


@pytest.mark.parametrize("columns", ["0", "3"])
def test_a_terminal_without_a_usable_width_shows_whole_records(env, finetune, columns):
    janitor_here(env, "delete", finetune, "--in", "1h")
    shown = janitor_here({**env, "COLUMNS": columns}, "list", "--finetune", finetune).stdout
    assert "scheduled" in shown
    assert finetune in shown.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize("command", [["up"], ["demo", "--keep", "/proc/nowhere"]])
def test_a_folder_that_cannot_be_used_is_named(env, command):
    here = {name: value for name, value in env.items() if name != "REDIS_URL"}
    done = janitor_here(here | {"JANITOR_STATE_DIR": "/proc/nowhere"}, *command)
    assert (done.returncode, "the folder /proc/nowhere cannot be used" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_doctor_says_what_is_well_and_what_is_not(env):
    well = janitor_here(env, "doctor", "--json")
    levels = {finding["check"]: finding["level"] for finding in records(well)}
    assert levels.pop("beat") == "warning"  # none runs here
    assert levels.pop("redis") in ("ok", "warning")  # the version of this machine's may have a known hole
    assert (well.returncode, set(levels.values())) == (0, {"ok"})
    assert {"settings", "persistence", "workers", "queue", "api default"} <= set(levels)
    odd = janitor_here(env | {"BFL_API_URL": "foo"}, "doctor", "--json")
    first = records(odd)[0]
    assert (odd.returncode, first["level"], "BFL_API_URL" in first["message"]) == (1, "error", True)
    wrong_key = janitor_here(env | {"BFL_API_KEY": "wrong"}, "doctor")
    assert (wrong_key.returncode, "BFL_API_KEY" in wrong_key.stdout) == (1, True)
    away = janitor_here(env | {"REDIS_URL": "redis://127.0.0.1:1/0"}, "doctor")
    assert away.returncode == 3


def test_doctor_lists_every_setting_with_its_meaning_and_no_secret(env):
    told = janitor_here(env, "doctor", "--settings")
    assert told.returncode == 0
    assert "JANITOR_LEASE=30s  (default)" in told.stdout
    assert env["BFL_API_KEY"] not in told.stdout + told.stderr
