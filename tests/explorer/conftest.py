"""A Redis of the explorer's own: it copies and swaps whole databases."""

import pytest
import redis

from worker.local import embedded


@pytest.fixture(scope="session")
def explored_redis(tmp_path_factory):
    with (
        embedded.running(tmp_path_factory.mktemp("explorer")) as url,
        redis.Redis.from_url(url, decode_responses=True) as client,
    ):
        client.config_set("appendonly", "no")  # nothing has to outlive the session
        yield client
