"""Play scenarios by name: `python -m tests.explorer.replay REDIS_URL seed:12 named:... single:created:7`.

The schedule of the first that fails is printed, and the exit status is 1.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Iterator

import redis
import structlog

from tests.explorer.explorer import Failed, Scenario, play
from tests.explorer.named import NAMED
from tests.explorer.scenarios import pairs_of_events, random_scenario, single_events


def found(name: str) -> Iterator[Scenario]:
    """The scenarios of one argument; `seed:5-9` are five."""
    kind, _, rest = name.partition(":")
    if kind == "seed":
        first, _, last = rest.partition("-")
        yield from map(random_scenario, range(int(first), int(last or first) + 1))
    elif kind == "named":
        yield NAMED[rest]
    else:
        world, _, number = rest.partition(":")
        every = single_events(world) if kind == "single" else pairs_of_events(world)
        yield from itertools.islice(every, int(number), int(number) + 1)


def main(url: str, *names: str) -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with redis.Redis.from_url(url, decode_responses=True) as client:
        for name in names:
            for scenario in found(name):
                try:
                    play(client, scenario)
                except Failed as failed:
                    seed = f"seed:{scenario.seed}" if name.startswith("seed:") else name
                    print(f"{seed} {failed}")
                    return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
