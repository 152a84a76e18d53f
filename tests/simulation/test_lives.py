"""Many simulation runs, each from its seed. `GOBLIN_SEED=17` replays one; `GOBLIN_LIVES=5000` is for a nightly run."""

import os

import pytest

from goblin.jobs.domain.job import JobState
from tests.simulation.figures import Figures
from tests.simulation.life import Life
from tests.simulation.market_weather import WEATHERS

LIVES = int(os.environ.get("GOBLIN_LIVES", "16"))
SEEDS = [int(os.environ["GOBLIN_SEED"])] if "GOBLIN_SEED" in os.environ else range(LIVES)
GROUPS = 4


@pytest.mark.timeout(0 if LIVES > 100 else 240)
@pytest.mark.parametrize("group", range(GROUPS))
async def test_every_promise_is_kept_in_every_life(group: int) -> None:
    figures = Figures()
    for seed in SEEDS:
        if seed // len(WEATHERS) % GROUPS != group:
            continue
        life = Life(seed)
        try:
            await life.run()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{life.story}") from error
        figures.add(life.figures)
    print(f"\n{figures}")
    assert figures.late == 0
    if figures.lives >= len(WEATHERS):
        # A storm that nobody survives proves as little as no storm.
        assert figures.ends[JobState.SUCCEEDED] > 0.4 * sum(figures.ends.values()), figures.ends


async def test_a_life_replays_exactly() -> None:
    first, second = Life(5), Life(5)
    await first.run()
    await second.run()
    assert first.story == second.story
