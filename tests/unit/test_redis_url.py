"""Redis is named once: one URL serves redis-py and Celery alike, and no error repeats its password."""

from unittest import mock

import pytest
import redis
from celery import Celery
from kombu.transport.redis import Channel

from tasks.errors import LedgerUnavailable
from tests.processes import free_ports
from worker.redis_url import (
    CONNECT_SECONDS,
    LEDGER_RETRIES,
    LEDGER_SECONDS,
    backend_tls,
    celery_options,
    celery_url,
    connect,
    following,
    parse,
    redis_url,
    with_password,
)
from worker.settings import Settings, SettingsError

PASSWORD = "5ecret"
EVERYWHERE = "accepted are db, username, password"


@pytest.mark.parametrize(
    ("url", "for_celery"),
    [
        ("redis://host", "redis://host:6379/0"),
        ("redis://host?db=3", "redis://host:6379/3"),
        ("redis://host/1?db=3&username=u&password=p%26", "redis://u:p%26@host:6379/3"),
        ("redis://[::1]:6380/2", "redis://[::1]:6380/2"),
        ("sentinel://one,two:26380/2?service=s", "sentinel://one:26379/2;sentinel://two:26380/2"),
        (f"sentinel://u:{PASSWORD}@one?service=s", f"sentinel://u:{PASSWORD}@one:26379/0"),
        (
            "sentinels://one,two/2?service=s",
            "sentinel://one:26379/2?ssl_cert_reqs=CERT_REQUIRED;sentinel://two:26379/2?ssl_cert_reqs=CERT_REQUIRED",
        ),
        (f"redis://user:{PASSWORD}@host:6380/2", f"redis://user:{PASSWORD}@host:6380/2"),
        ("redis://:a;b@host", "redis://:a%3Bb@host:6379/0"),  # kombu takes a bare ; for a second URL
        ("redis://user@host/0", "redis://user@host:6379/0"),
        ("rediss://host/0?ssl_cert_reqs=none", "rediss://host:6379/0?ssl_cert_reqs=CERT_NONE"),
        ("rediss://host/0", "rediss://host:6379/0?ssl_cert_reqs=CERT_REQUIRED"),
        (
            "rediss://host/0?ssl_check_hostname=False",
            "rediss://host:6379/0?ssl_cert_reqs=CERT_REQUIRED&ssl_check_hostname=False",
        ),
        ("unix:///p?db=2&password=p%40w", "redis+socket://:p%40w@/p?virtual_host=2"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix:///run/redis.sock?db=3", "redis+socket:///run/redis.sock?virtual_host=3"),
        (f"unix://:{PASSWORD}@/run/r.sock?db=1", f"redis+socket://:{PASSWORD}@/run/r.sock?virtual_host=1"),
    ],
)
def test_one_url_serves_both(url, for_celery):
    assert with_password(url, None) == url
    assert celery_url(url) == for_celery


@pytest.mark.parametrize(
    "url",
    ["", "host:6379", f"http://:{PASSWORD}@host", "redis://", f"redis://:{PASSWORD}@/0", "unix://", "redis:/0",
     "unix://run/redis.sock", f"sentinel://:{PASSWORD}@host:no?service=s", f"sentinel://:{PASSWORD}@/0?service=s",
     f"sentinel://:{PASSWORD}@host:99999?service=s", "redis+socket:///run/redis.sock", "redis://one,two",
     "redis://one;redis://two", "redis://host:0", "redis://host/zero", "redis://[::1", "redis://host?db",
     "redis://host/0 ", f"redis://:p#{PASSWORD}@host", f"redis://:p/{PASSWORD}@host", f"redis://:p?{PASSWORD}@host",
     f"redis://:p@h?{PASSWORD}=1@host:6379"],
)  # fmt: skip
def test_what_is_no_single_redis_is_refused_without_its_password(url):
    with pytest.raises(SettingsError, match=r"^REDIS_URL is not a URL of a Redis: give redis://") as refused:
        parse(url)
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("redis://h?max_connections=3", f"has the option max_connections, which is not accepted: {EVERYWHERE}"),
        ("redis://h?ssl_cert_reqs=none", f"has the option ssl_cert_reqs, which is not accepted: {EVERYWHERE}"),
        ("redis://h?db=1&db=2", "has the option db twice: keep one of them"),
        ("redis://h?db=x", ": db must be the number of a database"),
        ("redis://h?socket_timeout=5", f"has the option socket_timeout, which is not accepted: {EVERYWHERE}"),
        ("sentinel://h?service=s&ssl_cert_reqs=none", "has the option ssl_cert_reqs, which is not accepted: "),
        ("sentinel://h?service=", ": service must be at least one character"),
        ("sentinel://h", "has no option service: give sentinel://host:26379/db?service=NAME"),
        ("sentinels://h", "has no option service: give sentinels://host:26379/db?service=NAME"),
        ("sentinels://h?service=s&ssl_ca_certs=/nowhere", ": ssl_ca_certs names a file that cannot be read"),
        ("rediss://h?ssl_cert_reqs=x", ": ssl_cert_reqs must be required, optional or none"),
        ("rediss://h?ssl_check_hostname=x", ": ssl_check_hostname must be true or false"),
        ("rediss://h?ssl_ca_certs=/nowhere", ": ssl_ca_certs names a file that cannot be read: No such file"),
    ],
)
def test_an_option_that_one_of_the_three_cannot_use_is_refused_by_name(url, line):
    with pytest.raises(SettingsError) as refused:
        parse(url)
    assert str(refused.value).removeprefix("REDIS_URL").lstrip(" ").startswith(line)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://h?ssl_cert_reqs=none", "TLS options need rediss://"),
        ("sentinel://h?service=s&ssl_ca_certs=/ca.crt", "TLS options need sentinels://"),
        ("unix:///p?ssl_cert_reqs=none", "username, password"),
        ("sentinel://h?service=s&socket_timeout=5", "sentinel_username, sentinel_password"),
    ],
)
def test_a_tls_option_without_tls_names_the_scheme_that_has_it(url, named):
    with pytest.raises(SettingsError, match=f"{named}$"):
        parse(url)


def test_behind_sentinel_one_set_of_tls_options_counts_for_all_of_them(tmp_path):
    # Given TLS with an authority of our own
    authority = tmp_path / "ca.crt"
    authority.touch()
    url = f"sentinels://u:{PASSWORD}@one,two/2?service=s&sentinel_password=other&ssl_ca_certs={authority}"
    tls = {"ssl_cert_reqs": "required", "ssl_ca_certs": str(authority)}
    # When redis-py and Celery are told
    pool = connect(url).connection_pool
    sentinels = [one.connection_pool for one in pool.sentinel_manager.sentinels]
    # Then each connects with it to Redis and to the sentinels, with the login of each,
    assert [issubclass(one.connection_class, redis.SSLConnection) for one in (pool, *sentinels)] == [True] * 3
    assert pool.connection_kwargs.items() >= {**tls, "password": PASSWORD}.items()
    assert backend_tls(url) == tls
    others = celery_options(url)["sentinel_kwargs"]
    assert others["ssl"]
    for options in (others, *(one.connection_kwargs for one in sentinels)):
        assert options.items() >= {**tls, "password": "other"}.items()
        # and leaves a sentinel that does not answer for the next one.
        assert (options["socket_connect_timeout"], options["socket_timeout"]) == (CONNECT_SECONDS,) * 2
        assert options["retry"].get_retries() == 0


@pytest.mark.parametrize("url", ["redis://u:p%40w@h:7/2", "unix://u:p%40w@/r%20s.sock?db=2"])
def test_redis_py_kombu_and_the_result_backend_understand_one_url_alike(url):
    # When each of the three makes its connection options of it
    app = Celery(broker=celery_url(url), backend=celery_url(url), set_as_current=False)
    with app.connection() as broker:
        transport = mock.Mock(client=broker, default_port=6379)
        channel = mock.Mock(spec=Channel, connection=transport, connection_class=redis.Connection)
        for name in ("_process_credential_provider", "_filter_tcp_connparams", "_prepare_virtual_host"):
            setattr(channel, name, getattr(Channel, name).__get__(channel))
        seen = [
            connect(url).connection_pool.connection_kwargs,
            Channel._connparams(channel),
            app.backend.connparams,
        ]
    # Then they agree
    names = ["db", "username", "password"] + (["path"] if url.startswith("unix") else ["host", "port"])
    first, *others = [{name: options.get(name) for name in names} for options in seen]
    assert others == [first, first]
    assert (first["password"], first["db"]) == ("p@w", 2)


@pytest.mark.parametrize("scheme", ["sentinel", "sentinels"])
def test_sentinels_that_cannot_be_asked_say_why(scheme):
    (port,) = free_ports(1)
    url = f"{scheme}://u:{PASSWORD}@127.0.0.1:{port}?service=s&sentinel_password={PASSWORD}"
    with pytest.raises(redis.ConnectionError, match=f"^Error [0-9]+ connecting to 127.0.0.1:{port}") as refused:
        connect(url, patient=False).ping()
    assert PASSWORD not in str(refused.value)


def test_no_secret_is_in_the_repr():
    url = f"sentinel://u:{PASSWORD}@one?service=s&sentinel_password={PASSWORD}"
    assert PASSWORD not in repr(parse(url))
    assert parse(url).sentinel_login == {"password": PASSWORD}


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


class Answers:
    """A connection that answers with one error."""

    def __init__(self, error):
        self.error, self.closed = error, False

    def read_response(self):
        raise self.error

    def disconnect(self):
        self.closed = True


@pytest.mark.parametrize(
    ("error", "leaves"),
    [
        (redis.ReadOnlyError("You can't write against a read only replica."), True),
        (redis.ResponseError("Error running script: @user_script: 1: -READONLY You can't write against a"), True),
        (redis.ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed"), True),
        (redis.ResponseError("OOM command not allowed when used memory > 'maxmemory'."), False),
    ],
)
def test_a_connection_leaves_a_server_that_became_a_replica(error, leaves):
    dropped = []
    connection = following(Answers, lambda: dropped.append(True))(error)
    with pytest.raises(redis.RedisError) as raised:
        connection.read_response()
    assert isinstance(raised.value, redis.ConnectionError) is leaves
    assert (connection.closed, bool(dropped)) == (leaves, leaves)
