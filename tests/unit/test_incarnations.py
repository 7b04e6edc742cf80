"""A name can live more than once: the fingerprint tells lives apart, and gives nothing else away."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from tasks.incarnations import FIELDS, api_timestamp, differing_fields, fingerprint, is_weak
from tests.unit.fakes import NOW

DETAILS = {
    "timestamp": "2026-02-01T10:00:00Z",
    "finetune_type": "lora",
    "trigger_word": "TOK",
    "mode": "style",
    "iterations": 300,
    "learning_rate": 0.0001,
    "lora_rank": 32,
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_counts(field):
    other = fingerprint({**DETAILS, field: "changed"})
    absent = fingerprint({name: value for name, value in DETAILS.items() if name != field})
    assert differing_fields(fingerprint(DETAILS), other) == [field]
    assert differing_fields(fingerprint(DETAILS), absent) == [field]


@pytest.mark.parametrize(
    "same",
    [
        dict(reversed(DETAILS.items())),
        {**DETAILS, "finetune_comment": "for Ms Miller", "priority": "speed"},
        {**DETAILS, "unheard_of": [1, 2]},
    ],
)
def test_order_comments_and_unknown_fields_do_not_count(same):
    assert fingerprint(same) == fingerprint(DETAILS)


def test_only_hashes_are_kept():
    kept = fingerprint({**DETAILS, "trigger_word": "miller_family"})
    assert kept.startswith("v1:timestamp=")
    assert "miller" not in kept
    assert len(kept) < 250


@pytest.mark.parametrize("value", [{"b": 1, "a": [None]}, ["\ud800"], 10**400, float("inf"), ""])
def test_any_value_of_free_form_details_has_a_stable_hash(value):
    assert fingerprint({"mode": value}) == fingerprint({"mode": value}) != fingerprint({"mode": "style"})


def test_without_a_timestamp_it_is_weak_and_ageless():
    assert api_timestamp({}, NOW) is None
    assert fingerprint({"mode": None}) == fingerprint({}) == "v1:"
    assert is_weak(fingerprint({"mode": "style"}))
    assert not is_weak(fingerprint(DETAILS))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-02-01T10:00:00Z", datetime(2026, 2, 1, 10, tzinfo=UTC)),
        ("2026-02-01T12:00:00+02:00", datetime(2026, 2, 1, 10, tzinfo=UTC)),
        ((NOW + timedelta(seconds=60)).isoformat(), NOW + timedelta(seconds=60)),
        ((NOW + timedelta(seconds=61)).isoformat(), None),
        ((NOW + timedelta(seconds=61)).astimezone(timezone(timedelta(hours=-9))).isoformat(), None),
        ("2026-02-01T10:00:00", None), ("2026-02-01", None), ("1970-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00Z", None), ("yesterday", None), ("", None),
        (1769940000, None), (None, None),
    ],
)  # fmt: skip
def test_an_age_is_believed_only_where_it_is_sound(text, moment):
    assert api_timestamp({"timestamp": text}, NOW) == moment
