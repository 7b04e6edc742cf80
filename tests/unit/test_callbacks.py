"""The URL by which callbacks are published: checked like REDIS_URL, and silent about its password."""

import pytest

from worker.redis_url import callbacks_url
from worker.settings import Settings, SettingsError

SECRET = "s3cret"


def url_of(url, file=None):
    return callbacks_url(Settings(callbacks_url=url, callbacks_password_file=file))


def test_a_password_may_be_in_a_file(tmp_path):
    (tmp_path / "password").write_text(f"{SECRET}\n")
    assert (
        url_of("redis://callbacks@redis:6379/0", tmp_path / "password")
        == f"redis://callbacks:{SECRET}@redis:6379/0"
    )
    assert url_of(None) is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"redis://callbacks:{SECRET}@redis:6379/0",
         "JANITOR_CALLBACKS_URL and JANITOR_CALLBACKS_PASSWORD_FILE both give a password: keep one of them"),
        ("redis://callbacks@redis:6379/0?no_such=1", "JANITOR_CALLBACKS_URL has the option no_such, which is not"),
        ("redis://callbacks@redis:6379/0", "JANITOR_CALLBACKS_PASSWORD_FILE names a file that cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_its_own_name(tmp_path, url, words):
    with pytest.raises(SettingsError) as refused:
        url_of(url, tmp_path / "not there" if "both" not in words else tmp_path)
    assert words in str(refused.value)
    assert SECRET not in f"{refused.value!r}"
