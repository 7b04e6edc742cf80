"""How many processes and threads a worker has: as given, else as the cores and the permits ask for."""

import pytest

from worker.cli.processes import _fitted
from worker.settings import load_settings


@pytest.mark.parametrize(
    ("permits", "given", "environ", "fitted"),
    [
        (8, (None, None), {}, (1, 8)),
        (24, (None, None), {}, (3, 8)),
        (24, (2, None), {}, (2, 12)),
        (25, (2, None), {}, (2, 13)),
        (24, (2, 5), {}, (2, 5)),
        (100, (None, None), {}, (4, 25)),
        (100, (None, None), {"JANITOR_THREADS": "50"}, (2, 50)),
        (1, (None, None), {}, (1, 1)),
        (1000, (1, None), {}, (1, 256)),
    ],
)
def test_what_is_not_given_follows_from_four_cores_and_the_permits(monkeypatch, permits, given, environ, fitted):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    for name, value in {"BFL_API_KEY": "k", "JANITOR_MAX_CONCURRENT": str(permits), **environ}.items():
        monkeypatch.setenv(name, value)
    assert _fitted(load_settings(), *given) == fitted
