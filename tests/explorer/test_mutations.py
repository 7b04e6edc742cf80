"""Each rule of the core, when it is switched off, makes the explorer fail (invariant 20)."""

import os

import pytest

from tests.explorer.mutants import changed, mutated, play_mutant
from tests.explorer.mutations import MUTATIONS, SHORT

LONG = os.environ.get("CHAOS") == "long"
PLAYED = [mutation for mutation in MUTATIONS if LONG or mutation.name in SHORT]


@pytest.fixture(scope="session")
def redis_socket(explored_redis):
    return f"unix://{explored_redis.connection_pool.connection_kwargs['path']}"


def test_each_mutation_still_fits_the_code():
    for mutation in MUTATIONS:
        changed(mutation)


def test_the_short_form_plays_mutations_that_there_are():
    assert {mutation.name for mutation in MUTATIONS} > SHORT


@pytest.mark.parametrize("mutation", PLAYED, ids=lambda mutation: mutation.name)
def test_the_explorer_catches(redis_socket, tmp_path, mutation):
    done = play_mutant(mutated(mutation, tmp_path), redis_socket, mutation.caught_by)
    assert done.returncode == 1, done.stderr
    assert "invariant" in done.stdout, done.stdout
