"""The invariants of the core, in every scenario: random ones by seed, each event at each step, and named ones."""

import itertools
import os

import pytest

from tests.explorer.explorer import play
from tests.explorer.named import NAMED
from tests.explorer.scenarios import holds, pairs_of_events, random_scenario, single_events
from tests.explorer.world import KINDS

LONG = os.environ.get("CHAOS") == "long"
SEEDS = 6000 if LONG else 100
BLOCKS = 12 if LONG else 2
SHARE = 1 if LONG else 320  # of the single events: one in this many
PAIRS = 211 if LONG else 80_021  # one of this many pairs; a prime, so that all kinds come
pytestmark = pytest.mark.timeout(1800 if LONG else 120)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_the_invariants_hold_in_random_scenarios(explored_redis, block):
    for seed in range(block, SEEDS, BLOCKS):
        play(explored_redis, random_scenario(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_the_invariants_hold_whatever_happens_at_any_step(explored_redis, kind):
    for scenario in itertools.islice(single_events(kind), KINDS.index(kind), None, SHARE):
        play(explored_redis, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_the_invariants_hold_whatever_two_things_happen(explored_redis, kind):
    for scenario in itertools.islice(pairs_of_events(kind), KINDS.index(kind), None, PAIRS):
        play(explored_redis, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_the_invariants_hold_if_a_person_holds_the_finetune_at_any_step(explored_redis, kind):
    for scenario in itertools.islice(holds(kind), KINDS.index(kind), None, 1 if LONG else 11):
        play(explored_redis, scenario)


@pytest.mark.parametrize("name", NAMED)
def test_a_named_scenario(explored_redis, name):
    play(explored_redis, NAMED[name])
