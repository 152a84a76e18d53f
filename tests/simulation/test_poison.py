"""Runs in which data, documents, events, hosts and providers hold what nobody expects: it harms only its own."""

from goblin.jobs.domain.job import JobState
from tests.simulation.figures import Figures
from tests.simulation.life import Life
from tests.simulation.market_weather import POISON

SEEDS = range(4)


async def test_poison_harms_only_its_own() -> None:
    figures, jobs, events, documents = Figures(), 0, 0, 0
    for seed in SEEDS:
        life = Life(seed, POISON)
        try:
            await life.run()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{life.story}") from error
        figures.add(life.figures)
        jobs += len(life.poison.refused)
        events += len(life.poison.sent)
        documents += life.poison.hidden
    print(f"\npoison: {jobs} jobs, {events} events, {documents} documents\n{figures}")
    assert min(jobs, events, documents) > 0
    assert figures.ends[JobState.SUCCEEDED] > 0.4 * (sum(figures.ends.values()) - jobs), figures.ends
