"""Many lives, each from its seed. `GOBLIN_SEED=17` replays one exactly; `GOBLIN_LIVES=5000` is for the night."""

import os
from collections import Counter

import pytest

from goblin.domain.jobs import State
from tests.simulation.job_life import Life

LIVES = int(os.environ.get("GOBLIN_LIVES", "120"))
SEEDS = [int(os.environ["GOBLIN_SEED"])] if "GOBLIN_SEED" in os.environ else range(LIVES)
GROUPS = 6


@pytest.mark.parametrize("group", range(GROUPS))
async def test_every_life_ends_well(group: int) -> None:
    ends: Counter[State] = Counter()
    for seed in SEEDS[group::GROUPS]:
        life = Life(seed)
        try:
            await life.run()
        except Exception as error:
            tail = "\n".join(life.log[-40:])
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{tail}") from error
        ends.update(life.world.job(name).state for name in life.specs)
    if len(SEEDS[group::GROUPS]) >= 10:
        # A storm that nobody survives proves as little as no storm.
        assert ends[State.SUCCEEDED] > sum(ends.values()) / 2, ends


async def test_a_seed_replays_exactly() -> None:
    first, second = Life(7), Life(7)
    await first.run()
    await second.run()
    assert first.log == second.log
