"""The selection: a finetune is deleted only if no rule keeps it, and never more than the caps allow."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.cleanup import rules
from tasks.cleanup.about import about
from tasks.cleanup.policies import Policy
from tasks.cleanup.rules import Finetune, blocked, select, unfitting

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
OLD = Policy("old", older_than=30 * DAY)
TESTS = Policy("tests", older_than=30 * DAY, comment=("*Test*",))
UNUSED = Policy("unused", unused_for=30 * DAY)
WHICH = '{"unique_id":"u-1"}'
STALE = Finetune("ft", WHICH, created=NOW - 45 * DAY, observed_at=NOW, vantage="api.bfl.ai 0a1b2c3d")
LONG = NOW - 400 * DAY


def ago(days):
    return NOW - days * DAY


def told(policy, finetune, *others, use_since=LONG):
    item = select(policy, [finetune, *others], use_since=use_since, now=NOW)[0]
    return item.action, item.reason


# Each rule that keeps a finetune, with the case that only this rule keeps: see test_cleanup_rules.py.
KEPT = {
    "_not_matched": (replace(OLD, match=("test-*",)), STALE, "matches none of test-*"),
    "_not_to_be_asked_for": (OLD, replace(STALE, id="a b"), "no deletion of such an id can be asked for"),
    "_protected_by_pattern": (replace(OLD, protect=("f?",)), STALE, "protected by the pattern f?"),
    "_protected_by_request": (OLD, replace(STALE, protected="for good"), "protected for good"),
    "_held": (OLD, replace(STALE, held="held by ana: a lawsuit"), "held by ana: a lawsuit"),
    "_requested_already": (OLD, replace(STALE, is_requested=True), "another deletion of it is unfinished"),
    "_age_unknown": (
        Policy("tmp", match=("f*",)), replace(STALE, unsound="in the future"),
        "its age is not known: its creation time is in the future",
    ),
    "_incarnation_unknown": (OLD, replace(STALE, incarnation=None), "which finetune it is could not be read"),
    "_too_young": (OLD, replace(STALE, created=ago(29)), "not older than 30 days (29)"),
    "_use_not_reported": (UNUSED, STALE, "use is reported only since 2026-10-03"),
    "_used_lately": (UNUSED, replace(STALE, last_used=ago(2)), "used within 30 days, on 2026-10-30"),
    "_newer_than_its_use": (UNUSED, replace(STALE, created=ago(3)), "not there for 30 days yet"),
    "_described_otherwise": (TESTS, replace(STALE, about={"comment": ("fair",)}), "its comment does not match"),
    "_among_the_newest": (replace(OLD, keep_newest=1), STALE, "among the newest 1"),
}  # fmt: skip


@pytest.mark.parametrize("rule", KEPT)
def test_each_rule_keeps_what_no_other_does(rule):
    policy, finetune, reason = KEPT[rule]
    use_since = ago(29) if rule == "_use_not_reported" else LONG
    assert told(policy, finetune, use_since=use_since) == ("keep", reason)


def test_every_rule_has_its_case():
    assert {rule.__name__ for rule in rules.KEEP} == set(KEPT)


@pytest.mark.parametrize(
    ("policy", "finetune", "reason"),
    [
        (OLD, STALE, "older than 30 days (45), created 2026-09-17"),
        (OLD, replace(STALE, created=None, first_seen=ago(31)), "older than 30 days (31), created 2026-10-01"),
        (UNUSED, STALE, "unused for 30 days, never used"),
        (UNUSED, replace(STALE, last_used=ago(40)), "unused for 30 days, last used 2026-09-22"),
        (
            replace(OLD, unused_for=DAY),
            replace(STALE, last_used=ago(2)),
            "older than 30 days (45), created 2026-09-17; unused for 1 day, last used 2026-10-30",
        ),
        (Policy("tmp", match=("f*",)), STALE, "matches f*"),
        (Policy("tmp", type=("full",)), replace(STALE, about={"type": ("Full",)}), "matches by type"),
        (
            replace(TESTS, trigger=("x", "TOK")),
            replace(STALE, about={"comment": ("a TEST run",), "trigger": ("tok", "X"), "type": ("full",)}),
            "older than 30 days (45), created 2026-09-17; matches by comment and trigger word",
        ),
        (OLD, replace(STALE, protected=ago(1)), "older than 30 days (45), created 2026-09-17"),
    ],
)
def test_what_is_stale_is_deleted_and_told_why(policy, finetune, reason):
    assert told(policy, finetune) == ("delete", reason)


@pytest.mark.parametrize(
    ("policy", "finetune", "reason"),
    [
        (OLD, replace(STALE, id="org/name"), "it belongs to another organisation"),
        (Policy("tmp", match=("f*",)), replace(STALE, created=None), "its age is not known"),
        (OLD, replace(STALE, protected=ago(-1)), "protected until 2026-11-02"),
        # Use from before its creation is of another one.
        (UNUSED, replace(STALE, created=ago(3), last_used=ago(40)), "not there for 30 days yet"),
        # Unknown means keep.
        (TESTS, STALE, "its details were not read"),
        (TESTS, replace(STALE, about={}), "its details have no readable comment"),
        (TESTS, replace(STALE, about={"comment": (), "type": ("test",)}), "its details have no readable comment"),
        # Two fields that say different things.
        (TESTS, replace(STALE, about={"comment": ("a test", "for Ms Miller")}), "its comment does not match"),
        (
            replace(TESTS, base_model=("flux-1*",)),
            replace(STALE, about={"comment": ("a test",), "base_model": ("flux-2",)}),
            "its base model does not match",
        ),
    ],
)
def test_what_is_kept_has_its_reason(policy, finetune, reason):
    assert told(policy, finetune) == ("keep", reason)


@pytest.mark.parametrize("pattern", ["PROD-*", "Prod-Main", "prod-[MX]*", "*-MAIN"])
@pytest.mark.parametrize("id_", ["prod-main", "PROD-MAIN"])
def test_protection_ignores_case(pattern, id_):
    assert told(replace(OLD, protect=(pattern,)), replace(STALE, id=id_))[0] == "keep"


@pytest.mark.parametrize(
    ("pattern", "id_"), [("[A-_]*", "Ab"), ("[A-_]*", "ab"), ("[Z-a]x", "_x"), ("[A-z]*", "_x"), ("[A-Z]x", "bX")]
)
def test_a_range_protects_as_it_is_written_and_in_any_case(pattern, id_):
    assert told(replace(OLD, protect=(pattern,)), replace(STALE, id=id_))[0] == "keep"


def test_a_plan_says_what_is_to_be_deleted_and_of_the_others_only_why_not():
    delete, keep = select(OLD, [STALE, replace(STALE, id="new", created=ago(1))], use_since=None, now=NOW)
    assert (delete.incarnation, delete.observed_at) == ({"unique_id": "u-1"}, NOW)
    assert delete.vantage == "api.bfl.ai 0a1b2c3d"
    assert (keep.incarnation, keep.observed_at, keep.vantage) == (None, None, None)


def test_a_protect_pattern_that_fits_nothing_is_warned_of():
    policy = replace(OLD, protect=("prod-*", "PROD-MAIN", "demo"))
    assert unfitting(policy, ["prod-main", "test-1"]) == (
        "the protect pattern 'demo' fits none of the 2 finetunes of account default",
    )


def test_the_newest_are_those_that_were_created_last():
    # Given names and places in another order than ages: only ages may count.
    finetunes = [Finetune(f"ft-{n}", WHICH, created=ago(40 + (n * 7) % 10)) for n in range(10)]
    items = select(replace(OLD, keep_newest=3), finetunes, use_since=None, now=NOW)
    kept = [item.age_days for item in items if item.action == "keep"]
    assert set(kept) == {40, 41, 42}


def test_what_is_to_be_deleted_anyhow_is_none_of_the_newest():
    finetunes = [Finetune(f"ft-{n}", WHICH, created=ago(40 + n), is_requested=n < 3) for n in range(6)]
    items = select(replace(OLD, keep_newest=2), finetunes, use_since=None, now=NOW)
    assert [item.age_days for item in items if item.reason == "among the newest 2"] == [43, 44]
    assert [item.age_days for item in items if item.action == "delete"] == [45]


def test_the_newest_are_counted_among_those_that_match_by_their_details():
    # Given ten, of which the youngest five are no tests,
    finetunes = [
        Finetune(f"ft-{n}", WHICH, created=ago(40 + n), about={"comment": ("a test" if n > 4 else "for a fair",)})
        for n in range(10)
    ]
    # when two tests are to stay, then these are the youngest tests.
    items = select(replace(TESTS, keep_newest=2), finetunes, use_since=None, now=NOW)
    assert [item.age_days for item in items if item.reason == "among the newest 2"] == [45, 46]
    assert [item.age_days for item in items if item.action == "delete"] == [47, 48, 49]


NOTHING = {"comment": (), "trigger": (), "type": (), "base_model": ()}
DETAILS = [
    ({"finetune_comment": " for\nMs Miller ", "trigger_word": "TOK", "finetune_type": "lora", "mode": "style"},
     {"comment": ("for Ms Miller",), "trigger": ("TOK",), "type": ("lora",)}),
    ({"baseModel": "flux-2", "Trigger-Phrase": 7, "finetune comment": None, "comment": " "},
     {"base_model": ("flux-2",), "trigger": ("7",)}),
    ({"comment": "a test", "finetune_comment": "for a fair"}, {"comment": ("a test", "for a fair")}),
    ({}, {}),
    # What is said of something else, such as a dataset, is not said of the finetune.
    ({"dataset": {"comment": "a test", "type": "full"}, "config": {"base_model": "flux-2"}}, {}),
    ({"dataset.comment": "a test", "comment2": "a test", "dataset": [{"comment": "a test"}]}, {}),
    # What is neither text nor number is not understood. Then nothing is known, even if there is a text beside it.
    ({"type": ["full"], "trigger": {"word": "TOK"}, "comment": True}, {}),
    ({"finetune_comment": ["KEEP: customer"], "comment": "a test"}, {}),
    ({"finetune_comment": {"en": "KEEP: customer"}, "comment": "a test", "type": "full"}, {"type": ("full",)}),
]  # fmt: skip


@pytest.mark.parametrize(("details", "found"), DETAILS)
def test_details_tell_what_people_know_in_any_of_the_notations(details, found):
    assert about(details) == NOTHING | found


def test_use_that_is_reported_with_gaps_keeps_all():
    assert told(UNUSED, STALE, use_since=None) == ("keep", "no use is reported")
    (item,) = select(UNUSED, [STALE], use_since=None, use_last=ago(3), now=NOW)
    assert (item.action, item.reason) == ("keep", "no use reported since 2026-10-29")


CAPS = [
    ([], {}, "the list is empty: is this the right account?"),
    (
        [0, 1],
        {"seen_before": 5},
        "the list has shrunk from 5 to 2, and not by our deletions",
    ),
    ([0, 1], {"seen_before": 5, "deleted_by_us": 2}, None),
    ([1, 1, 1], {}, "all 3 finetunes would be deleted, which no plan may: use `janitor delete`"),
    ([1] * 21 + [0] * 200, {}, "21 would be deleted, and max_deletions is 20"),
    ([1] * 20 + [0] * 200, {}, None),
    ([1, 1, 0, 0, 0], {}, "2 of 5 would be deleted, and max_percent is 25 (1)"),
    ([1, 0], {}, None),
    # What waits for its deletion is counted with what would be deleted.
    ([1] * 2 + [0] * 18, {"gone": {"ft-17", "ft-18", "ft-19", "ft-99"}}, None),
    (
        [1] * 3 + [0] * 17,
        {"gone": {"ft-17", "ft-18", "ft-19"}},
        "3 of 20 would be deleted, besides 3 already deleted or waiting for it, and max_percent is 25 (5)",
    ),
    (
        [1, 0, 0],
        {"gone": {"ft-1", "ft-2"}},
        "all 3 finetunes would be deleted, which no plan may: use `janitor delete`",
    ),
    ([0] * 20, {"gone": {f"ft-{n}" for n in range(19)}}, None),
]


@pytest.mark.parametrize(
    ("stale", "why"),
    [
        ([1, 1, 1], "all 3 finetunes would be deleted, which no plan may: use `janitor delete`"),
        ([1, 1, 0, 0, 0], "2 of 5 would be deleted, and max_percent is 25 (1)"),
        ([0], None),
        ([], None),
    ],
)
def test_a_plan_is_measured_against_what_could_be_asked_for(stale, why):
    shared = [Finetune(f"org/{n}", WHICH, created=ago(45)) for n in range(60)]
    own = [Finetune(f"ft-{n}", WHICH, created=ago(45 if old else 1)) for n, old in enumerate(stale)]
    assert blocked(OLD, select(OLD, shared + own, use_since=None, now=NOW)) == why


@pytest.mark.parametrize(("stale", "seen", "why"), CAPS)
def test_a_plan_that_goes_too_far_is_blocked_whole(stale, seen, why):
    finetunes = [Finetune(f"ft-{n}", WHICH, created=ago(45 if old else 1)) for n, old in enumerate(stale)]
    assert blocked(OLD, select(OLD, finetunes, use_since=None, now=NOW), **seen) == why


DAYS = st.integers(0, 400)
MOMENTS = st.none() | DAYS.map(ago)
FINETUNES = st.lists(
    st.builds(
        Finetune,
        id=st.text("abt-/", min_size=1, max_size=4),
        incarnation=st.sampled_from([None, WHICH]),
        created=MOMENTS,
        unsound=st.sampled_from([None, None, "unreadable"]),
        first_seen=MOMENTS,
        last_used=MOMENTS,
        is_requested=st.booleans(),
        protected=st.sampled_from([None, None, "for good", ago(1), ago(-1)]),
    ),
    max_size=30,
    unique_by=lambda one: one.id,
)
POLICIES = st.builds(
    Policy,
    name=st.just("p"),
    match=st.sampled_from([("*",), ("a*",), ("t-*", "b")]),
    older_than=st.none() | st.integers(1, 300).map(lambda days: days * DAY),
    unused_for=st.none() | st.integers(1, 300).map(lambda days: days * DAY),
    keep_newest=st.integers(0, 5),
    protect=st.sampled_from([(), ("b*",)]),
    max_deletions=st.integers(1, 10),
    max_percent=st.integers(1, 100),
)


def deleted(policy, finetunes, use_since):
    items = select(policy, finetunes, use_since=use_since, now=NOW)
    return {item.finetune_id for item in items if item.action == "delete"}


@given(POLICIES, FINETUNES, MOMENTS)
def test_what_is_protected_is_never_selected(policy, finetunes, use_since):
    protected = {one.id for one in finetunes if one.protected == "for good" or one.protected == ago(-1)}
    assert not deleted(policy, finetunes, use_since) & protected


@given(POLICIES, FINETUNES, MOMENTS, st.sampled_from(["*", "a*", "?", "t-*"]))
def test_one_more_protect_pattern_never_adds_a_deletion(policy, finetunes, use_since, pattern):
    more = replace(policy, protect=(*policy.protect, pattern))
    assert deleted(more, finetunes, use_since) <= deleted(policy, finetunes, use_since)


@given(POLICIES, FINETUNES, MOMENTS, st.integers(1, 300))
def test_a_higher_age_never_adds_a_deletion(policy, finetunes, use_since, days):
    for field in ("older_than", "unused_for"):
        age = getattr(policy, field)
        higher = replace(policy, **{field: (age or timedelta(0)) + days * DAY})
        assert deleted(higher, finetunes, use_since) <= deleted(policy, finetunes, use_since)


@given(POLICIES, FINETUNES, MOMENTS)
def test_the_caps_are_never_passed(policy, finetunes, use_since):
    items = select(policy, finetunes, use_since=use_since, now=NOW)
    count = sum(item.action == "delete" for item in items)
    if blocked(policy, items) is None:
        assert count <= policy.max_deletions
        assert count <= max(1, len(items) * policy.max_percent // 100)
        assert count < len(items)


@given(POLICIES, FINETUNES, MOMENTS)
def test_every_finetune_is_listed_once_with_a_reason(policy, finetunes, use_since):
    items = select(policy, finetunes, use_since=use_since, now=NOW)
    assert [item.finetune_id for item in items] == [one.id for one in finetunes]
    assert all(item.reason for item in items)
