"""A name can live more than once: two observations show the same incarnation, another one, or do not tell."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.api.incarnations import MOST_FIELDS, Incarnation, Verdict, compare, incarnation_of
from tasks.api.moments import read_created

SAME, OTHER, UNKNOWN = Verdict
HOUR = timedelta(hours=1)
TEN = "2026-02-01T10:00:00Z"
NAME = "my-finetune"
UUID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
# Two generations of finetunes, as public reports show them.
TRAINED = {
    "finetune_comment": "for Ms Miller", "trigger_word": "TOK", "mode": "style", "iterations": 300,
    "learning_rate": 0.00001, "lora_rank": 32, "finetune_type": "lora", "timestamp": "2026-02-01T10:00:00.123456Z",
}  # fmt: skip
LORA = {
    "id": NAME, "name": NAME, "base_model": "flux-2", "precision": "fp8", "trigger_phrase": "TOK",
    "created_at": "2026-02-01T10:00:00Z",
}  # fmt: skip
AGELESS = {name: value for name, value in TRAINED.items() if name != "timestamp"}


def kept(fields) -> Incarnation:
    read = Incarnation.from_text(incarnation_of(fields, NAME).to_text())
    assert read == incarnation_of(fields, NAME)
    assert read is not None
    return read


def compared(one, other, gap=timedelta(minutes=1)):
    verdict, why = compare(kept(one), kept(other), gap=gap, within=HOUR)
    assert compare(kept(other), kept(one), gap=gap, within=HOUR)[0] == verdict, "symmetric"
    assert why
    return verdict


# What broke: a dashboard LoRA without the fields of a trained finetune was deleted under a reused name.


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"created_at": "2026-02-02T10:00:00Z"}, OTHER),
        ({"created_at": "2026-02-02T10:00:00Z", "trigger_phrase": "NEW"}, OTHER),
        ({"trigger_phrase": "NEW", "precision": "bf16"}, SAME),
        ({"created_at": None, "trigger_phrase": "NEW"}, OTHER),
        ({"created_at": None}, SAME),
    ],
)
def test_a_lora_of_the_dashboard_is_told_apart_by_what_its_details_have(changed, verdict):
    assert compared(LORA, {**LORA, **changed}) == verdict


# What broke: another notation, a number as text or a new field made another finetune of it.


@pytest.mark.parametrize("digits", [30, 1_000_000])
def test_long_numbers_that_differ_in_their_last_digit_are_told_apart(digits):
    one, other = ({**AGELESS, "iterations": "9" * (digits - 1) + last} for last in "89")
    assert compared(one, other) == OTHER
    assert compared(one, one) == SAME


@pytest.mark.parametrize("details", [TRAINED, AGELESS])
@pytest.mark.parametrize(
    "same",
    [
        {"iterations": "300"}, {"iterations": 300.0}, {"iterations": "3e2"}, {"learning_rate": "0.00001"},
        {"learning_rate": "1e-05"}, {"new_field": "new"}, {"created_at": "2026-02-05T10:00:00Z"}, {"uuid": UUID},
        {"finetune_comment": "for Mr Smith"}, {"config": {"mode": "other"}}, {"list": [1, 2]}, {"mode": None},
        {"trigger_phrase": "NEW"},
    ],
)  # fmt: skip
def test_other_notations_new_fields_and_comments_make_no_other_finetune(details, same):
    assert compared(details, {**details, **same}) == SAME


@pytest.mark.parametrize(
    "same",
    [
        "2026-02-01T10:00:00.123456Z", "2026-02-01T12:00:00.123456+02:00", "2026-02-01 10:00:00.123456Z",
        "2026-02-01T10:00:00.123Z", "2026-02-01T10:00:00Z", "2026-02-01 10:00:00 UTC",
        "2026-02-01 10:00:00.1234 +00:00",
        "20260201T100000Z", "2026-02-01t10:00:00z", "2026-02-01T10:00:00.123456789Z", "2026-02-01T10:00:00",
        "2026-02-01T10:00:00,123Z", 1769940000, "1769940000", 1769940000123, "1769940000.123456",
        1769940000.123456, 1769940000123.0, 1769940000123456, "Sun, 01 Feb 2026 10:00:00 GMT",
        "Sun, 01 Feb 2026 12:00:00 +0200",
    ],
)  # fmt: skip
def test_one_moment_in_any_notation_is_the_same_incarnation(same):
    assert compared(TRAINED, {**TRAINED, "timestamp": same, "mode": "changed"}, gap=30 * 24 * HOUR) == SAME


@pytest.mark.parametrize(
    "other",
    [
        "2026-02-01T10:00:00.123457Z", "2026-02-01T10:00:00.125Z", "2026-02-01T10:00:01.2Z", 1769940002,
        "2026-02-01T10:00:00.123456+02:00", "2026-02-04", "Sun, 01 Feb 2026 10:00:02 GMT",
    ],
)  # fmt: skip
def test_another_moment_is_another_incarnation(other):
    assert compared(TRAINED, {**TRAINED, "timestamp": other}) == OTHER


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ("2026-02-01", "2026-02-01", UNKNOWN), ("2026-02-01", "20260201", UNKNOWN),
        ("2026-02-01", "2026-02-02", OTHER), ("2026-02-01", "2026-02-01T10:00:00Z", UNKNOWN),
        ("2026-02-01", "2026-02-02T01:00:00Z", UNKNOWN), ("2026-02-01", "2026-02-04T01:00:00Z", OTHER),
        # So can a time without seconds.
        ("2026-02-01T10:00Z", "2026-02-01T10:00Z", UNKNOWN),
        ("2026-02-01T10:00Z", "2026-02-01T10:00:37Z", UNKNOWN),
        ("2026-02-01T10Z", "2026-02-01T10:20Z", UNKNOWN), ("2026-02-01T10:00Z", "2026-02-04T10:00Z", OTHER),
        ("20260201T1000Z", "20260201T100000Z", UNKNOWN), ("20260201T100000Z", "2026-02-01T10:00:00Z", SAME),
        # So can two times of which only one tells its zone.
        (TEN, "2026-02-01T12:00:00", UNKNOWN), (TEN, "2026-02-02T01:00:00", OTHER),
    ],
)  # fmt: skip
def test_a_date_alone_can_only_tell_a_difference(one, other, verdict):
    assert compared({"created_at": one}, {"created_at": other}) == verdict


@pytest.mark.parametrize(
    "value",
    ["1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "2023-12-31T23:59:59Z", "2100-01-01T00:00:00Z", 0, -1, 1,
     True, 1e300, float("nan"), float("inf"), 10**400, "yesterday", "", "2026", "10:00:00", None, [], {},
     9999999999999, "9999-12-31T23:59:59-12:00", "2026-02-30T10:00:00Z", "02/01/2026 10:00", "\ud800",
     "2026-02-01T10:00:00Z" + " " * 64 + "x"],
)  # fmt: skip
def test_an_unsound_time_counts_as_none(value):
    assert read_created(value) is None
    assert incarnation_of({"timestamp": value}, NAME).created is None


@pytest.mark.parametrize("vague", ["2026-02-01", "2026-02-01T10:00Z"])
def test_the_most_exact_of_several_times_counts(vague):
    one, other = ({"created_at": vague, "timestamp": f"2026-02-01T10:00:{second}Z"} for second in ("00", "59"))
    assert str(kept(one).created) == "2026-02-01T10:00:00Z"
    assert compared(one, other) == OTHER


def test_a_long_text_is_no_time_and_costs_nothing():
    # Its blanks once cost hours, and no lease was renewed meanwhile.
    assert read_created(f"a{' ' * 1_000_000}b") is None


@given(
    st.datetimes(datetime(2024, 1, 2), datetime(2099, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 -- bounds of hypothesis are naive
    st.integers(-12 * 60, 14 * 60),
    st.sampled_from("T "),
)
def test_the_same_details_in_other_notations_are_the_same(moment, offset_minutes, separator):
    local = moment.astimezone(timezone(timedelta(minutes=offset_minutes)))
    whole = moment.replace(microsecond=0)
    milliseconds = int(whole.timestamp()) * 1000 + moment.microsecond // 1000
    texts = [
        moment.isoformat(), local.isoformat(sep=separator), moment.isoformat(timespec="milliseconds"),
        f"{moment:%Y-%m-%dT%H:%M:%S}Z", int(whole.timestamp()), str(milliseconds), milliseconds,
        f"{whole:%a, %d %b %Y %H:%M:%S} GMT",
    ]  # fmt: skip
    for text in texts:
        assert compared({"created_at": texts[0]}, {"created_at": text}, gap=100 * HOUR) == SAME


_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())
_NAMES = st.sampled_from(["id", "uuid", "created_at", "timestamp", "mode", "base_model", "x", "y"]) | st.text()
_DETAILS = st.dictionaries(_NAMES, _VALUES | st.dictionaries(st.text(), _VALUES, max_size=3), max_size=8)


@given(_DETAILS)
def test_any_details_can_be_kept_and_are_never_another_than_themselves(details):
    verdict = compared(details, dict(reversed(details.items())))
    has_anything = kept(details) not in (Incarnation(), kept({}))
    assert verdict == SAME or (verdict == UNKNOWN and (not has_anything or kept(details).created))
    assert "\n" not in kept(details).to_text()


@given(_DETAILS, _DETAILS)
def test_a_verdict_is_symmetric(one, other):
    compared(one, other)


# The three rules.


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        # 1. Identity, over the fields that both have.
        ({"uuid": "a"}, {"uuid": "b"}, OTHER),
        ({"uuid": "a", "mode": "x"}, {"uuid": "a", "mode": "y"}, SAME),
        ({"uuid": UUID}, {"uuid": UUID.upper()}, SAME),
        ({"id": 7}, {"id": "7"}, SAME),
        ({"id": 7}, {"id": 8}, OTHER),
        ({"uuid": "a"}, {"id": "b", "uuid": "a"}, SAME),
        ({"uuid": "a", "timestamp": TEN}, {"uuid": "a", "timestamp": "2026-02-01T10:00:09Z"}, UNKNOWN),
        ({"uuid": "a", "timestamp": TEN}, {"uuid": "b", "timestamp": TEN}, UNKNOWN),
        ({"uuid": "a", "timestamp": TEN}, {"uuid": "b", "timestamp": "2026-02-01T10:00:09Z"}, OTHER),
        ({"uuid": "a", "created": "2026-02-01"}, {"uuid": "b", "created": "2026-02-01"}, OTHER),
        ({"created_at": TEN, "timestamp": 1769940000}, {"created_at": TEN, "timestamp": 1769990000}, SAME),
        # An id that contains the name is the same in every incarnation, so it tells nothing.
        ({"id": NAME}, {"id": NAME}, UNKNOWN),
        ({"id": f"lora/{NAME.upper()}"}, {"id": f"lora/{NAME.upper()}", "mode": "x"}, SAME),
        # Only exactly these names, at the top level.
        ({"job_id": "a"}, {"job_id": "b"}, UNKNOWN),
        ({"meta": {"id": "a"}}, {"meta": {"id": "b"}}, UNKNOWN),
        # 2. Settings, then any other scalar.
        ({"mode": "x"}, {"mode": "y"}, OTHER),
        ({"config": {"baseModel": "x"}}, {"config": {"baseModel": "y"}}, OTHER),
        ({"mode": "x", "seed": 1}, {"mode": "x", "seed": 2}, UNKNOWN),
        ({"mode": "x", "seed": 1}, {"mode": "y", "seed": 2}, OTHER),
        ({"seed": "2026-02-01T10:00:00Z"}, {"seed": "2026-02-01 12:00:00+02:00"}, SAME),
        ({"public": True}, {"public": False}, UNKNOWN),
        ({"mode": "x" * 500 + "1"}, {"mode": "x" * 500 + "2"}, OTHER),
        ({"mode": "a\x1bb"}, {"mode": "a b"}, OTHER),
        # 3. Nothing to compare.
        ({}, {}, UNKNOWN),
        ({"mode": "x"}, {"precision": "y"}, UNKNOWN),
        ({"finetune_comment": "x"}, {"finetune_comment": "x"}, UNKNOWN),
        ({"name": NAME}, {"name": NAME}, UNKNOWN),
    ],
)  # fmt: skip
def test_each_rule(one, other, verdict):
    assert compared(one, other) == verdict


@pytest.mark.parametrize(("gap", "verdict"), [(HOUR, SAME), (HOUR + timedelta(seconds=1), UNKNOWN)])
def test_equal_settings_are_believed_for_a_limited_time(gap, verdict):
    assert compared(AGELESS, AGELESS, gap=gap) == verdict
    assert compared(TRAINED, TRAINED, gap=gap) == SAME


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        (TRAINED, TRAINED, "the creation time is the same"),
        ({**TRAINED, "uid": 5}, {**TRAINED, "uid": 5}, "the unique id and the creation time are the same"),
        ({"uid": 5}, {"uid": 6}, "the unique id changed from 5 to 6"),
        (TRAINED, {**TRAINED, "timestamp": "2026-02-02T10:00:00+02:00"},
         "the creation time changed from 2026-02-01T10:00:00.123456Z to 2026-02-02T08:00:00Z"),
        ({"mode": "a", "rank": 1}, {"mode": "b", "rank": 2}, "mode changed from a to b; rank changed from 1 to 2"),
        ({"x": 1}, {"x": 2}, "x changed, which does not tell incarnations apart"),
        ({}, {}, "the API's details have nothing that can be compared"),
    ],
)  # fmt: skip
def test_the_reason_is_told_in_words(one, other, why):
    assert compare(kept(one), kept(other), gap=HOUR, within=HOUR)[1] == why


# What is kept.


def test_the_record_has_the_creation_time_and_settings_in_clear_and_no_comment():
    told = json.loads(kept({**TRAINED, "uuid": UUID, "owner": "miller"}).to_text())
    assert (told["created_at"], told["unique_id"]) == ("2026-02-01T10:00:00.123456Z", UUID)
    assert told["settings"]["trigger_word"] == "TOK"
    assert told["settings"]["iterations"] == "300"
    assert list(told["others"]) == ["owner"]
    assert "iller" not in kept({**TRAINED, "owner": "miller", "description": "Miller"}).to_text()


def test_what_is_kept_is_bounded_and_printable_and_settings_go_first():
    many = {f"a{n:03}": n for n in range(200)} | {"mode": "\x1b[2J" + "x" * 10_000, "\u202ename" * 100: "x"}
    incarnation = kept({**many, "id": "x" * 1000, "uuid": "a\x1bb"})
    assert len(incarnation.settings) + len(incarnation.others) == MOST_FIELDS
    assert incarnation.settings["mode"].startswith("[2Jxxx")
    assert incarnation.unique_id is None
    assert len(incarnation.to_text()) < 3000
    assert incarnation.to_text().isprintable()


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("", None),
        ("{}", Incarnation()),
        ('{"settings":{"mode":"x"},"new":1,"others":null}', Incarnation(settings={"mode": "x"})),
        ('{"identity":{"uid":5,"other":"x"}}', Incarnation({"uid": "5", "other": "x"})),
    ],
)
def test_what_another_version_wrote_is_read(text, read):
    assert Incarnation.from_text(text) == read
