"""Filters that are checked on the records, and the export of all of them."""

import csv
import json

import pytest

from tasks.durations import iso
from tasks.ledger import queries
from tasks.ledger.queries import Filter, get, list_deletions, pages
from tasks.ledger.types import Act
from tasks.records import State, to_ms
from tests.conftest import NOW, accept, asking, carry_out_one
from tests.processes import janitor_here, records

MANY = 2_500
LABELS = {"customer": "4711", "team": "a b"}


@pytest.fixture
def many(ledger, clocked):
    """Finetunes asked for in parts, a moment apart; every fifth one has labels."""
    for start in range(0, MANY, 500):
        accept(clocked.after(seconds=1), *(
            asking(f"{'test' if n % 2 else 'ft'}-{n}", id=f"r{n:04}", requested_by="ana" if n % 3 else "bob",
                   labels=LABELS if n % 5 == 0 else None)
            for n in range(start, start + 500)
        ))  # fmt: skip
    return ledger


@pytest.fixture
def command(redis_url):
    """Runs the command against the session's Redis."""
    return lambda *given: janitor_here({"REDIS_URL": redis_url}, *given)


def all_of(ledger, limit=1000, **where):
    """The ids of what fits, page by page, and how long each page was."""
    found, lengths, cursor = [], [], None
    while cursor or not lengths:
        page = list_deletions(ledger, Filter(**where), limit=limit, cursor=cursor)
        found += [one.id for one in page.deletions]
        lengths.append(len(page.deletions))
        cursor = page.cursor
    return found, lengths


@pytest.mark.parametrize(("where", "fits"), [
    ({"labels": {"customer": "4711"}}, lambda n: n % 5 == 0), ({"labels": {"customer": "47"}}, lambda _: False),
    ({"labels": LABELS}, lambda n: n % 5 == 0), ({"labels": {**LABELS, "more": "x"}}, lambda _: False),
    ({"requested_by": "bob"}, lambda n: n % 3 == 0), ({"requested_by": "bo"}, lambda _: False),
    ({"name": "test-*"}, lambda n: n % 2 == 1), ({"name": "TEST-*"}, lambda _: False),
    ({"name": "test-1", "finetune_id": "test-1"}, lambda n: n == 1),
    ({"labels": LABELS, "requested_by": "bob", "name": "ft-*"}, lambda n: n % 30 == 0),
])  # fmt: skip
@pytest.mark.parametrize("most", [10_000, 300])
def test_all_filters_must_fit_and_pages_leave_nothing_out(many, monkeypatch, where, fits, most):
    # Given few or many records that are read for a page, when it is listed page by page,
    monkeypatch.setattr(queries, "_MOST_READ", most)
    found, lengths = all_of(many, limit=100, **where)
    # then each that fits is there once,
    assert sorted(found) == [f"r{n:04}" for n in range(MANY) if fits(n)]
    # and no page read more records than that.
    assert "finetune_id" in where or len(lengths) >= MANY / most


def test_a_short_list_says_how_to_go_on(many, command, monkeypatch):
    # Given more records than are read for one list, none of which fits,
    monkeypatch.setattr(queries, "_MOST_READ", 600)
    cursor: list[str] = []
    for _ in range(4):
        done = command("list", "--label", "customer=0", *cursor)
        # then each says how to go on, and only the last one that none matches.
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith("of the records that were read, 0 fit; there are more: --cursor ")
        cursor = done.stderr.split()[-2:]
    assert command("list", "--label", "customer=0", *cursor).stderr == "no deletion matches\n"


def test_a_list_filters_by_options(many, command):
    found = records(
        command("list", "--label", "customer=4711", "--requested-by", "bob", "--name", "ft-2*", "--json")
    )
    assert [one["id"] for one in found] == [
        f"r{n:04}" for n in reversed(range(0, MANY, 30)) if str(n).startswith("2")
    ]
    assert found[0]["labels"] == LABELS


def test_a_retry_takes_the_labels_over(ledger, command):
    accept(ledger, asking("a", id="r1", labels=LABELS))
    carry_out_one(ledger, State.FAILED)
    (again,) = records(command("retry", "r1", "--json"))
    assert (again["retry_of"], again["labels"]) == ("r1", LABELS)


def test_an_export_has_all_of_a_time_once(many, command):
    # Given some that have ended, when what was accepted in the middle is exported, then it is complete.
    many.cancel([f"r{n:04}" for n in range(0, MANY, 7)], Act("ana", "command"))
    since, until = (iso(get(many, id_).created_at) for id_ in ("r0500", "r1999"))
    done = command("export", "--since", since, "--until", until)
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["id"] for one in found] == [f"r{n:04}" for n in reversed(range(500, 2000))]
    assert found[0] == records(command("show", "r1999", "--json"))[0]
    # And with all filters.
    some = command("export", "--state", "cancelled", "--label", "customer=4711", "--account", "default")
    assert len(some.stdout.splitlines()) == len(range(0, MANY, 35))


def test_what_is_accepted_or_moves_on_meanwhile_disturbs_no_export(many, clocked):
    # Given an export under way, when others are accepted at the same moment and later, and some withdrawn,
    found = []
    for n, page in enumerate(pages(many, Filter(), 500)):
        found += [one.id for one in page]
        accept(clocked(), asking(f"same-{n}"))
        accept(clocked.after(seconds=1), *(asking(f"new-{n}-{m}") for m in range(300)))
        many.cancel([f"r{m:04}" for m in range(n, MANY, 11)])
    # then it has each of the old ones once, and nothing else.
    assert found == [f"r{n:04}" for n in reversed(range(MANY))]


def test_as_csv_it_has_attempts_labels_and_no_formula(ledger, clocked, command):
    # Given a deletion with two attempts, and one with values that a spreadsheet would calculate,
    lines = [
        json.dumps({"at": to_ms(NOW), "sent": True, "http_status": 500, "message": "busy"}),
        json.dumps({"at": to_ms(NOW), "sent": False, "error": "ConnectFailed", "message": "no route"}),
    ]
    accept(ledger, asking("a", id="r1", labels=LABELS, reason="over", requested_by="ana"))
    carry_out_one(
        ledger, found={"incarnation": '{"created_at": "2026-01-01"}', "vantage": "host key"}, lines=lines
    )
    accept(clocked.after(seconds=1), asking("=1+1", id="r2", reason="@SUM(A1)"))
    # when they are exported as CSV,
    rows = list(csv.DictReader(command("export", "--format", "csv").stdout.splitlines()))
    # then a row has it all, and no cell is a formula.
    formula, row = rows
    assert (formula["finetune_id"], formula["reason"], formula["attempts"]) == ("'=1+1", "'@SUM(A1)", "0")
    assert (row["attempts"], row["last_answer"]) == ("2", "ConnectFailed (not sent) no route")
    assert json.loads(row["labels"]) == LABELS
    assert json.loads(row["incarnation"]) == {"created_at": "2026-01-01"}
    assert (row["requested_by"], row["reason"], row["vantage"]) == ("ana", "over", "host key")


def test_an_export_of_nothing_is_empty_and_wrong_ones_are_refused(ledger, command):
    assert command("export").stdout == ""
    assert command("export", "--format", "csv").stdout.startswith("id,finetune_id,")
    done = command("export", "--label", "customer")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "give key=value" in done.stderr
