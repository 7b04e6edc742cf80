"""One simulated API and one worker process for a module; every test uses finetunes of its own."""

import pytest

from tests.acceptance.http import Client, served, token_file
from tests.processes import KEY, environment, worker
from worker.local.embedded import running
from worker.sandbox.api import Sandbox


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    """A Redis of the module's own: what one module leaves behind is nothing to the next."""
    with running(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="module")
def api():
    with Sandbox(keys={KEY}, latency_seconds=0.01) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def settings():
    """More settings for the module's worker."""
    return {}


@pytest.fixture(scope="module")
def env(redis_url, api, settings, tmp_path_factory):
    state_dir = tmp_path_factory.mktemp("state")
    return environment(redis_url, api.url, JANITOR_STATE_DIR=state_dir, **settings)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("logs") / "worker.log"


@pytest.fixture(scope="module")
def running_worker(env, log):
    with worker(env, log) as child:
        yield child


@pytest.fixture(scope="module")
def log_of_http(tmp_path_factory):
    return tmp_path_factory.mktemp("http") / "http.log"


@pytest.fixture(scope="module")
def base(env, log_of_http, tmp_path_factory, running_worker):
    file = token_file(tmp_path_factory.mktemp("tokens"))
    with served({**env, "JANITOR_TOKENS_FILE": str(file)}, log_of_http) as (url, _):
        yield url


@pytest.fixture
def billing(base):
    with Client(base, "billing") as client:
        yield client


@pytest.fixture
def boss(base):
    with Client(base, "boss") as client:
        yield client
