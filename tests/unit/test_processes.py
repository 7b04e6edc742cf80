"""`janitor up`: which processes it runs, and which of them have the API keys."""

import pytest

from worker.cli.processes import _tree
from worker.local.supervise import without_keys
from worker.settings import load_settings

KEYS = {"BFL_API_KEY": "k3y", "BFL_API_KEY_FILE_EMEA": "/run/key", "BFL_API_KEY_OTHER": "oth3r"}


@pytest.fixture
def tree(monkeypatch, tmp_path):
    for name, value in {**KEYS, "BFL_API_URL": "http://127.0.0.1:1", "JANITOR_STATE_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    return {spec.name: spec for spec in _tree(load_settings(), "unix:///here?db=0", 8080)}


def test_only_workers_have_the_api_keys_in_their_environment(tree):
    with_keys = {
        name for name, spec in tree.items() if any(key in (spec.env or KEYS).values() for key in KEYS.values())
    }
    assert (list(tree), with_keys) == (["redis", "worker", "beat", "http"], {"worker"})


def test_every_process_but_redis_is_told_which_redis(tree):
    told = {name for name, spec in tree.items() if spec.env.get("REDIS_URL") == "unix:///here?db=0"}
    assert told == {"worker", "beat", "http"}


def test_what_names_a_key_is_left_out_and_nothing_else():
    kept = {"BFL_API_URL": "https://api.bfl.ai", "PATH": "/bin"}
    assert without_keys({**KEYS, **kept}) == kept
