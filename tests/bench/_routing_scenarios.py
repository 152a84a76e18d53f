"""The worlds that routers are compared in."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.bench._routing_world import Asked, Truth, draw

Build = Callable[[int], tuple[list[Truth], list[Asked]]]


@dataclass(frozen=True)
class Scenario:
    """A world and what counts in it as a bad choice."""

    about: str
    build: Build
    bad: Callable[[Asked, Any, Any], bool | None]
    """Of one request: whether its first attempt was a bad one; None: it does not count."""


def arrivals(
    rng: random.Random, *, per_s: float, from_s: float, until_s: float, count: int | None = None
) -> list[float]:
    """Instants of a Poisson stream."""
    found: list[float] = []
    at_s = from_s
    while len(found) < (count or 1 << 30):
        at_s += rng.expovariate(per_s)
        if count is None and at_s >= until_s:
            break
        found.append(at_s)
    return found


def requests(instants: list[float], rng: random.Random, *, counted_from_s: float = 0.0, **size: int) -> list[Asked]:
    return [draw(n, at_s, rng, counted=at_s >= counted_from_s, **size) for n, at_s in enumerate(sorted(instants))]


def cold_newcomer(seed: int) -> tuple[list[Truth], list[Asked]]:
    """Three known endpoints; at 95 s a fourth joins, asleep, that would be the quickest if it were awake."""
    rng = random.Random(seed)
    old = [Truth(name=name, base_ms=250.0, parallel=8) for name in ("a", "b", "c")]
    joins_s = 95.0
    new = Truth(
        name="newcomer",
        base_ms=120.0,
        decode_ms=8.0,
        cold_s=20.0,
        sleeps_after_s=120.0,
        usd_per_hour=2.0,
        joins_s=joins_s,
        asleep_at_first=True,
    )
    warm_up = arrivals(rng, per_s=5.0, from_s=30.0, until_s=joins_s)
    forty = arrivals(rng, per_s=5.0, from_s=joins_s, until_s=0.0, count=40)
    return [*old, new], requests(warm_up + forty, rng, counted_from_s=joins_s)


def slow_one(seed: int) -> tuple[list[Truth], list[Asked]]:
    rng = random.Random(seed)
    truths = [Truth(name=name) for name in ("a", "b", "c")]
    truths.insert(seed % 4, Truth(name="slow", slow=(60.0, 120.0, 10.0)))
    return truths, requests(arrivals(rng, per_s=10.0, from_s=0.0, until_s=150.0), rng, counted_from_s=30.0)


def erring_one(seed: int) -> tuple[list[Truth], list[Asked]]:
    rng = random.Random(seed)
    truths = [Truth(name=name) for name in ("a", "b", "c")]
    truths.insert(seed % 4, Truth(name="erring", errs=0.2, errs_after_ms=250.0))
    return truths, requests(arrivals(rng, per_s=10.0, from_s=0.0, until_s=120.0), rng, counted_from_s=20.0)


def burst(seed: int) -> tuple[list[Truth], list[Asked]]:
    """Unequal machines; every 20 s forty requests come at once."""
    rng = random.Random(seed)
    truths = [
        Truth(name="a", parallel=4),
        Truth(name="b", parallel=8),
        Truth(name="c", parallel=8, base_ms=300.0, decode_ms=25.0),
        Truth(name="d", parallel=4, base_ms=500.0, decode_ms=40.0),
    ]
    instants = arrivals(rng, per_s=3.0, from_s=0.0, until_s=150.0)
    for start_s in range(30, 150, 20):
        instants += [start_s + rng.random() * 0.5 for _ in range(40)]
    return truths, requests(instants, rng, counted_from_s=20.0)


def scale_to_zero(seed: int) -> tuple[list[Truth], list[Asked]]:
    """One small machine that is always on, two quick ones that sleep after a minute; busy and quiet times in turn."""
    rng = random.Random(seed)
    truths = [
        Truth(name="always_on", parallel=4, base_ms=900.0, prefill_ms=1.0, decode_ms=40.0),
        *(
            Truth(
                name=name,
                base_ms=150.0,
                decode_ms=12.0,
                cold_s=25.0,
                sleeps_after_s=60.0,
                usd_per_hour=1.2,
                asleep_at_first=True,
            )
            for name in ("gpu_a", "gpu_b")
        ),
    ]
    instants: list[float] = []
    for start_s in (0.0, 300.0, 600.0):
        instants += arrivals(rng, per_s=1.0, from_s=start_s, until_s=start_s + 120.0)
        instants += arrivals(rng, per_s=0.01, from_s=start_s + 120.0, until_s=start_s + 300.0)
    return truths, requests(instants, rng)


def mixed_prices(seed: int) -> tuple[list[Truth], list[Asked]]:
    """Three are about as quick as each other at very different prices, one is cheap and slow."""
    rng = random.Random(seed)
    truths = [
        Truth(name="dearest", parallel=64, base_ms=300.0, usd_per_mtok_in=10.0, usd_per_mtok_out=30.0),
        Truth(name="dear", parallel=64, base_ms=310.0, usd_per_mtok_in=2.5, usd_per_mtok_out=10.0),
        Truth(name="fair", parallel=64, base_ms=305.0, usd_per_mtok_in=0.5, usd_per_mtok_out=1.5),
        Truth(name="cheap", parallel=16, base_ms=900.0, decode_ms=40.0, usd_per_mtok_in=0.1, usd_per_mtok_out=0.2),
    ]
    return truths, requests(arrivals(rng, per_s=8.0, from_s=0.0, until_s=120.0), rng, counted_from_s=20.0)


def _named(name: str, *, from_s: float = 0.0, until_s: float = 1e9) -> Callable[[Asked, Any, Any], bool | None]:
    def bad(asked: Asked, world: Any, call: Any) -> bool | None:
        if not from_s <= asked.at_s < until_s:
            return None
        return call.first is not None and world.endpoints[call.first].truth.name == name

    return bad


SCENARIOS = {
    "cold_newcomer": Scenario(
        "bad: the first attempt went to the sleeping newcomer", cold_newcomer, _named("newcomer")
    ),
    "slow_one": Scenario(
        "bad: went to the slow one while it was slow", slow_one, _named("slow", from_s=60.0, until_s=120.0)
    ),
    "erring_one": Scenario("bad: went to the one that errs", erring_one, _named("erring")),
    "burst": Scenario(
        "bad: had to wait though somebody had a free place", burst, lambda asked, world, call: call.needless_wait
    ),
    "scale_to_zero": Scenario("bad: had to wait for a start", scale_to_zero, lambda asked, world, call: call.hit_cold),
    "mixed_prices": Scenario("bad: went to the dearest", mixed_prices, _named("dearest")),
}
