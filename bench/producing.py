"""The way in: how many a second one producer can ask for, one by one and by the candidate's own bulk call."""

from __future__ import annotations

import time

from bench.lives import Candidate, Place


def produced(candidate: Candidate, place: Place, jobs: int) -> dict[str, float]:
    """Requests a second, with no worker to take them."""
    found = {}
    for name in ("one_by_one", "many"):
        place.emptied()
        producer = candidate.producer(place.redis_url)
        producer.many(["first"])  # connections open
        count = jobs if name == "many" else jobs // 5
        ids = [f"{name}-{n}" for n in range(count)]
        began = time.perf_counter()
        getattr(producer, name)(ids)
        found[f"{name}_per_second"] = count / (time.perf_counter() - began)
    return found
