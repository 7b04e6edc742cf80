"""Redis is named once: one URL serves redis-py and Celery alike, and no error repeats its password."""

import pytest

from tasks.errors import LedgerUnavailable
from worker.connections import (
    CONNECT_SECONDS,
    LEDGER_RETRIES,
    LEDGER_SECONDS,
    celery_url,
    checked_url,
    connect,
    redis_url,
    with_password,
)
from worker.settings import Settings, SettingsError

PASSWORD = "5ecret"


@pytest.mark.parametrize(
    ("url", "for_celery"),
    [
        ("redis://host", "redis://host"),
        ("sentinel://one,two:26380/2?service=s", "sentinel://one:26379/2;sentinel://two:26380/2"),
        (f"sentinel://u:{PASSWORD}@one?service=s", f"sentinel://u:{PASSWORD}@one:26379/0"),
        (f"redis://user:{PASSWORD}@host:6380/2", f"redis://user:{PASSWORD}@host:6380/2"),
        ("rediss://host/0?ssl_cert_reqs=none", "rediss://host/0?ssl_cert_reqs=CERT_NONE"),
        ("rediss://host/0", "rediss://host/0?ssl_cert_reqs=CERT_REQUIRED"),
        ("unix:///p?db=2&password=p@w", "redis+socket://:p%40w@/p?virtual_host=2"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix:///run/redis.sock?db=3", "redis+socket:///run/redis.sock?virtual_host=3"),
        (f"unix://:{PASSWORD}@/run/r.sock?db=1", f"redis+socket://:{PASSWORD}@/run/r.sock?virtual_host=1"),
    ],
)
def test_one_url_serves_both(url, for_celery):
    assert checked_url(url) == url
    assert celery_url(url) == for_celery


@pytest.mark.parametrize(
    "url",
    ["", "host:6379", f"http://:{PASSWORD}@host", "redis://", f"redis://:{PASSWORD}@/0", "unix://", "redis:/0",
     f"sentinel://:{PASSWORD}@host", f"sentinel://:{PASSWORD}@host:no?service=s",
     f"sentinel://:{PASSWORD}@/0?service=s", f"sentinel://:{PASSWORD}@host?service=s&ssl=1",
     f"sentinel://:{PASSWORD}@host:99999?service=s", "redis+socket:///run/redis.sock"],
)  # fmt: skip
def test_what_is_no_single_redis_is_refused_without_its_password(url):
    with pytest.raises(SettingsError, match=r"^REDIS_URL is not a URL of a Redis: give redis://") as refused:
        checked_url(url)
    assert PASSWORD not in str(refused.value)


def test_without_a_url_and_without_a_running_house_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("JANITOR_STATE_DIR", str(tmp_path))
    with pytest.raises(LedgerUnavailable, match="REDIS_URL is not set and no `janitor up` runs in"):
        redis_url(Settings())


@pytest.mark.parametrize(
    ("url", "complete"),
    [
        ("redis://host:6380/2", "redis://:p%40ss%2F@host:6380/2"),
        ("redis://user@host/0", "redis://user:p%40ss%2F@host/0"),
        ("unix:///run/r.sock?db=1", "unix://:p%40ss%2F@/run/r.sock?db=1"),
    ],
)
def test_a_password_may_come_from_a_file_that_can_be_read_and_nowhere_else(tmp_path, url, complete):
    (tmp_path / "password").write_text("p@ss/\n", encoding="utf-8")
    assert with_password(url, tmp_path / "password") == complete
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        with_password(url, tmp_path / "absent")
    with pytest.raises(SettingsError, match="both give a password"):
        with_password(complete, tmp_path / "password")


@pytest.mark.parametrize("url", ["redis://host/1", "unix:///run/redis.sock?db=1"])
@pytest.mark.parametrize(
    ("patient", "seconds", "retries"), [(True, LEDGER_SECONDS, LEDGER_RETRIES), (False, CONNECT_SECONDS, 0)]
)
def test_every_connection_is_bounded_in_time(url, patient, seconds, retries):
    options = connect(url, patient=patient).connection_pool.connection_kwargs
    assert (options["socket_timeout"], options["retry"].get_retries(), options["db"]) == (seconds, retries, 1)
    assert options.get("socket_connect_timeout") == (CONNECT_SECONDS if url.startswith("redis") else None)
