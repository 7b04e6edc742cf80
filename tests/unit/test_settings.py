"""Settings: read from the environment, checked against each other, refused in one line, silent about secrets."""

import os
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest

from worker.app import create_app
from worker.settings import (
    DEFAULT_API_URL,
    Account,
    SettingsError,
    load_settings,
    read_accounts,
    terms,
    unused_urls,
)

KEY, OTHER_KEY = "5ecret-key", "0ther-key"


@pytest.fixture
def environ(monkeypatch):
    """Sets variables of an environment that has none of ours."""
    for name in [name for name in os.environ if name.upper().startswith(("JANITOR_", "BFL_", "REDIS_"))]:
        monkeypatch.delenv(name)
    return lambda **variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


def refused(read, *given, **options) -> str:
    with pytest.raises(SettingsError) as error:
        read(*given, **options)
    (line,) = str(error.value).splitlines()
    assert KEY not in f"{line} {error.value!r}"
    return line


def test_without_variables_or_with_empty_ones_there_are_defaults_and_no_accounts(environ):
    environ(JANITOR_LEASE="", REDIS_URL="", BFL_API_KEY=" ")
    settings = load_settings()
    assert (settings.lease, settings.call_deadline) == (timedelta(seconds=30), timedelta(seconds=20))
    assert (settings.redis_url, settings.accounts, settings.ca_bundle) == (None, {}, None)
    assert (settings.observe_within, settings.retry_budget) == (timedelta(hours=1), timedelta(seconds=5))
    assert settings.maintenance_every == timedelta(seconds=1)


def test_variables_are_read_in_the_units_people_write(environ):
    environ(JANITOR_RETENTION="2w", JANITOR_LEASE="1m30s", JANITOR_THREADS="3", JANITOR_ALLOW_ORG_IDS="true")
    environ(JANITOR_STATE_DIR="~/state")  # as in a file of variables: no shell has expanded it
    settings = load_settings()
    assert settings.state_dir == Path.home() / "state"
    assert (settings.retention, settings.lease) == (timedelta(days=14), timedelta(seconds=90))
    assert (settings.threads, settings.allow_org_ids) == (3, True)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("JANITOR_LEASE", "30", "'30' is not a duration: give a duration such as"),
        ("JANITOR_LEASE", "0s", "should be greater than 0 seconds"),
        ("JANITOR_RETENTION", "4000d", "too long"),
        ("JANITOR_MAX_CONCURRENT", "many", "should be a valid integer"),
        ("JANITOR_MAX_CONCURRENT", "0", "should be greater than or equal to 1"),
        ("JANITOR_THREADS", "1000", "should be less than or equal to 256"),
        ("JANITOR_RETENTION", "3M", "m is minutes, and there is no unit for months"),
        ("JANITOR_MAINTENANCE_EVERY", "0s", "should be greater than 0 seconds"),
        ("JANITOR_OBSERVE_WITHIN", "0s", "should be greater than 0 seconds"),
        ("JANITOR_LOG_LEVEL", "LOUD", "should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("JANITOR_CA_BUNDLE", "/nowhere/ca.pem", "cannot be read: No such file"),
        ("JANITOR_CA_BUNDLE", __file__, "a file without certificates"),
        ("JANITOR_ALLOW_ORG_IDS", "perhaps", "should be a valid boolean"),
    ],
)
def test_an_unreadable_value_names_its_variable(environ, name, value, why):
    environ(**{name: value})
    line = refused(load_settings)
    assert line.startswith(name)
    assert why in line


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"CONNECT_TIMEOUT": "20s"}, "JANITOR_CONNECT_TIMEOUT=20s must be shorter than JANITOR_CALL_DEADLINE=20s"),
        ({"CALL_DEADLINE": "1m"}, "JANITOR_CALL_DEADLINE=1m must be shorter than JANITOR_LEASE=30s"),
        ({"LEASE": "2h"}, "JANITOR_LEASE=2h must be shorter than JANITOR_VISIBILITY_TIMEOUT=1h"),
        ({"RETENTION": "1h"}, "JANITOR_VISIBILITY_TIMEOUT=1h must be shorter than JANITOR_RETENTION=1h"),
    ],
)
def test_durations_that_contradict_each_other_are_refused(environ, variables, line):
    environ(**{f"JANITOR_{name}": value for name, value in variables.items()})
    assert refused(load_settings) == line


@pytest.mark.parametrize(
    ("variable", "ends"),
    [
        ("JANITOR_MAX_CONCURENT", "did you mean JANITOR_MAX_CONCURRENT?"),
        ("janitor_lease_", "did you mean JANITOR_LEASE?"),
        ("JANITOR_REDIS_URL", "did you mean REDIS_URL?"),
        ("JANITOR_PORT", "accepted are "),
        ("JANITOR_LOOK_FIRST", "accepted are JANITOR_ALLOW_API_URL, JANITOR_ALLOW_ORG_IDS, "),
    ],
)
def test_a_variable_that_is_not_a_setting_is_refused_with_the_nearest_one(environ, variable, ends):
    environ(**{variable: "3"})
    line = refused(load_settings)
    assert line.startswith(f"{variable} is not a setting: ")
    assert ends in line


def test_variables_of_the_tests_and_of_kubernetes_are_not_taken_for_settings(environ):
    environ(
        JANITOR_PORT="tcp://10.0.0.1:8080", JANITOR_SERVICE_HOST="10.0.0.1",
        JANITOR_HTTP_SERVICE_PORT_WEB="80", JANITOR_HTTP_PORT_8080_TCP_ADDR="10.0.0.1", janitor_lease="40s",
    )  # fmt: skip
    assert load_settings().lease == timedelta(seconds=40)


def test_the_ledgers_durations_are_those_of_the_settings(environ):
    environ(JANITOR_LEASE="40s", JANITOR_CALL_DEADLINE="21s", JANITOR_GIVE_UP_AFTER="2d", JANITOR_RETENTION="5d")
    told = terms(load_settings())
    assert (told.lease, told.call_deadline) == (timedelta(seconds=40), timedelta(seconds=21))
    assert (told.give_up_after, told.retention) == (timedelta(days=2), timedelta(days=5))


def test_accounts_come_from_the_environment(tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text(f"\n{OTHER_KEY}\n", encoding="utf-8")
    accounts = read_accounts({
        "BFL_API_KEY": f" {KEY} ",
        "BFL_API_KEY_FILE_EU_2": str(key_file),
        "BFL_API_URL_EU_2": "https://api.eu.bfl.ai/",
        "BFL_API_KEYRING": "not a key",
    })  # fmt: skip
    shown = {name: (one.key.get_secret_value(), one.url, one.url_variable) for name, one in accounts.items()}
    assert shown == {
        "default": (KEY, DEFAULT_API_URL, "BFL_API_URL"),
        "eu_2": (OTHER_KEY, "https://api.eu.bfl.ai", "BFL_API_URL_EU_2"),
    }


@pytest.mark.parametrize("key", [f"{KEY} {KEY}", f"{KEY}\nx", f"{KEY}é", f"{KEY}\x7f", f"{KEY}\x00"])
def test_a_key_that_is_no_header_value_is_refused_and_not_repeated(key, tmp_path):
    (tmp_path / "key").write_text(key, encoding="utf-8")
    for name, value in {"BFL_API_KEY_EU": key, "BFL_API_KEY_FILE": str(tmp_path / "key")}.items():
        assert refused(read_accounts, {name: value}).startswith(f"{name} must hold one key")


def test_a_key_file_that_holds_no_key_is_refused(tmp_path):
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    reasons = {"empty": "must hold one key", "binary": "cannot be read: it is not text", "none": "No such file"}
    for name, why in reasons.items():
        assert why in refused(read_accounts, {"BFL_API_KEY_FILE": str(tmp_path / name)})


@pytest.mark.parametrize("both", [("BFL_API_KEY", "BFL_API_KEY_FILE"), ("BFL_API_KEY_EU", "BFL_API_KEY_eu")])
def test_two_variables_for_one_account_are_refused(both, tmp_path):
    (tmp_path / "key").write_text(KEY, encoding="utf-8")
    variables = {name: str(tmp_path / "key") if name.endswith("FILE") else KEY for name in both}
    assert "another variable both give the key of account" in refused(read_accounts, variables)


@pytest.mark.parametrize("variable", ["BFL_API_KEY_File", "BFL_API_KEY_FILE_FILE", f"BFL_API_KEY_{'A' * 41}"])
def test_names_that_no_account_can_have_are_refused(variable, tmp_path):
    (tmp_path / "key").write_text(KEY, encoding="utf-8")
    assert variable in refused(read_accounts, {variable: str(tmp_path / "key")})


def test_an_account_finds_its_url_however_either_is_written():
    variables = {"BFL_API_KEY_eu": KEY, "BFL_API_URL_EU": "https://api.eu.bfl.ai"}
    assert read_accounts(variables)["eu"].url == "https://api.eu.bfl.ai"


def test_a_file_name_that_no_system_takes_is_refused():
    assert "cannot be read" in refused(read_accounts, {"BFL_API_KEY_FILE": "\0"})


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("https://api.bfl.ai", True), ("https://bfl.ai/base/", True), ("http://127.0.0.1:8000", True),
        ("http://[::1]:8000", True), ("http://localhost:8000", True), ("http://api.bfl.ai", False),
        ("https://api.example.com", False), ("https://notbfl.ai", False), ("https://bfl.ai.example.com", False),
        ("http://127.0.0.1.example.com", False), ("http://10.0.0.1", False),
    ],
)  # fmt: skip
def test_the_key_goes_only_to_bfl_or_this_machine_unless_that_is_meant(url, taken):
    variables = {"BFL_API_KEY": KEY, "BFL_API_URL": url}
    assert read_accounts(variables, allow_api_url=True)["default"].url == url.rstrip("/")
    if taken:
        assert read_accounts(variables)["default"].url == url.rstrip("/")
    else:
        assert refused(read_accounts, variables).startswith("BFL_API_URL=")


@pytest.mark.parametrize(
    "url",
    ["api.bfl.ai", "ftp://api.bfl.ai", "https://", "https://a@api.bfl.ai", f"https://a:{KEY}@api.bfl.ai",
     f"https://api.bfl.ai?key={KEY}", "https://api.bfl.ai/#top", "https://[api.bfl.ai", "https://api.bfl.ai:port",
     "https://:pw@api.bfl.ai", "https://api.bfl.ai?", "https://api.bfl.ai#", "https://exa mple.bfl.ai"],
)  # fmt: skip
def test_what_is_no_base_url_is_refused_even_where_any_is_allowed(url):
    variables = {"BFL_API_KEY_EU": KEY, "BFL_API_URL_EU": url}
    line = refused(read_accounts, variables, allow_api_url=True)
    assert line == f"BFL_API_URL_EU must be a base URL such as {DEFAULT_API_URL}"


def test_settings_and_accounts_show_no_secret(environ):
    environ(BFL_API_KEY=KEY, REDIS_URL=f"redis://:{KEY}@redis/0")
    settings = load_settings()
    account = settings.accounts["default"]
    assert isinstance(account, Account)
    shown = f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()} {account} {account!r}"
    assert KEY not in shown
    assert "**********" in shown


@pytest.mark.parametrize(("every", "counts_for"), [("1s", 5), ("10s", 30)])
def test_a_moment_without_reports_of_use_counts_until_the_look_after_the_next(every, counts_for, monkeypatch):
    monkeypatch.setenv("JANITOR_MAINTENANCE_EVERY", every)
    found = terms(load_settings())
    assert found.reports_clear_for == timedelta(seconds=counts_for)


def test_the_url_of_the_default_account_has_two_spellings():
    for key in ("BFL_API_KEY", "BFL_API_KEY_DEFAULT"):
        for url in ("BFL_API_URL", "BFL_API_URL_DEFAULT"):
            accounts = read_accounts({key: KEY, url: "https://api.eu.bfl.ai"})
            assert (accounts["default"].url, accounts["default"].url_variable) == ("https://api.eu.bfl.ai", url)
    both = {
        "BFL_API_KEY": KEY,
        "BFL_API_URL": "https://api.eu.bfl.ai",
        "BFL_API_URL_DEFAULT": "https://api.bfl.ai",
    }
    assert "both give the URL of account 'default': keep one" in refused(read_accounts, both)


def test_a_url_that_no_account_uses_is_found_where_there_are_keys():
    urls = {
        "BFL_API_URL_EMEE": "https://api.eu.bfl.ai",
        "BFL_API_URL": "http://127.0.0.1:8899",
        "BFL_API_URL_X": "",
    }
    environ = {"BFL_API_KEY_EMEA": KEY, **urls}
    assert unused_urls(environ, read_accounts(environ)) == ["BFL_API_URL", "BFL_API_URL_EMEE"]
    assert unused_urls(urls, read_accounts(urls)) == []


def test_the_name_of_an_account_comes_after_file():
    assert "did you mean BFL_API_KEY_FILE_EU?" in refused(read_accounts, {"BFL_API_KEY_EU_FILE": "/run/key"})


@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CELERY_CONFIG_MODULE"])
def test_a_variable_that_celery_would_prefer_is_refused(environ, monkeypatch, name):
    environ(REDIS_URL="redis://localhost:1")
    monkeypatch.setenv(name, "redis://elsewhere:1")
    assert f"{name} is set, and Celery would prefer it to REDIS_URL" in refused(create_app, load_settings())
    # An empty one is none: it goes on to what comes next.
    monkeypatch.setenv(name, "")
    monkeypatch.setattr("worker.app.install", Mock(side_effect=StopIteration))
    with pytest.raises(StopIteration):
        create_app(load_settings())
