"""Jobs as holders of allocations, over the real services: no reservation is ever too small, and at the end the ledger
equals the providers' bills.

`GOBLIN_SIMULATION_SEED` is the first seed and `GOBLIN_SIMULATION_EXAMPLES` their number. A failure shows its seed.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from datetime import timedelta

import pytest

from goblin.billing.domain.accounts import Period
from tests.simulation.renting_world import JOBS, PROVIDERS, START, World, adjusted_upwards

EXAMPLES = int(os.environ.get("GOBLIN_SIMULATION_EXAMPLES", "150")) // 4
FIRST = int(os.environ.get("GOBLIN_SIMULATION_SEED", "0"))
DEEDS = 250
EXACT = ("total", *PROVIDERS, "vastai/a", "vastai/b", "job/a", "job/b")
"""What the dead left at a provider whose bill tells no labels is exact for the provider, and a guess for its jobs."""
BLOCKS = 4


def check(world: World) -> None:
    """What must hold at every instant."""
    late_facts, real, tails = adjusted_upwards(world.ledger), world.really_spent(), world.tails_of_the_dead()
    for account in world.ledger._accounts(sorted({*world.ledger.kept, *world.ledger.declared})):
        for limit in account.limits:
            if (usage := account.usages.get(limit.period)) is None:
                continue
            held = usage.spent_usd_micros + usage.allocated_usd_micros
            assert usage.allocated_usd_micros >= 0, account
            assert held <= limit.limit_usd_micros + late_facts, (account, limit)
        ever = account.usages.get(Period.LIFETIME)
        if ever is not None and account.name in EXACT:
            held = ever.spent_usd_micros + ever.allocated_usd_micros
            assert real[account.name, ""] - tails[account.name] <= held, (account.name, real[account.name, ""], held)


def deeds(world: World) -> Iterator[None]:
    """A random life, one deed after another."""
    rng = world.rng
    for _ in range(DEEDS):
        job_id = rng.choice(sorted(JOBS))
        deed = rng.choices(
            ["place", "tick", "end", "leave", "time", "settle", "lost", "down", "again"],
            [8, 14, 10, 4, 14, 2, 2, 1, 3],
        )[0]
        match deed:
            case "place":
                world.start(world.place(job_id))
            case "tick":
                for one in sorted(JOBS):
                    world.start(world.tick(one))
            case "end":
                world.start(world.end(job_id))
            case "leave":
                world.start(world.leave(job_id))
            case "time":
                world.pass_time(rng.choice([1, 10, 60, 60, 60, 60, 60, 60, 300, 900, 2400]))
            case "settle":
                world.start(world.settle())
            case "lost":
                world.ledger.lose_answers = rng.randint(1, 2)
            case "down":
                world.ledger.down = rng.random() < 0.5
            case "again" if world.tasks:
                # The same event, delivered twice: both at once.
                world.start(world.tick(job_id))
                world.start(world.end(job_id))
        yield
        for _ in range(rng.randint(0, 40)):
            world.turn()
            yield


def come_to_rest(world: World) -> None:
    """Everything ends, is settled, and is compared with bills that are final."""
    world.at_rest = True
    world.ledger.down, world.ledger.lose_answers = False, 0
    world.finish()
    for job_id in sorted(JOBS):
        world.start(world.leave(job_id))
    world.finish()
    for _ in range(8):
        world.pass_time(60)
        for job_id in sorted(JOBS):
            world.start(world.end(job_id))
        world.finish()
        check(world)
    assert all(not job.reservations for job in world.jobs.values())
    for _ in range(10):
        world.pass_time(6 * 3600)
        world.start(world.settle())
        world.finish()
        check(world)


def is_the_bill(world: World) -> None:
    """Day by day and for each account."""
    assert world.ledger.lent == {}
    real = world.really_spent()
    for day in [f"{START + timedelta(days=n):%Y-%m-%d}" for n in range(5)]:
        booked = {balance.account: balance.spent_usd_micros for balance in world.now_of(world.ledger.balances(day))}
        for name in EXACT:
            assert booked.get(name, 0) == real[name, day], (day, name)
    for name, account in world.ledger.kept.items():
        usage = account.usages[Period.LIFETIME]
        assert usage.allocated_usd_micros == 0, account
        if name in EXACT:
            assert usage.spent_usd_micros == real[name, ""], account


def live(seed: int) -> World:
    world = World(random.Random(seed))
    try:
        check(world)
        seen = None
        for _ in deeds(world):
            # Nothing else changes what is checked.
            if seen != (seen := (world.now, world.ledger.writes)):
                check(world)
        come_to_rest(world)
        is_the_bill(world)
    except BaseException as error:
        for task in world.tasks:
            task.work.close()
        raise AssertionError(f"seed {seed}: {error!r}") from error
    return world


@pytest.mark.parametrize("block", range(BLOCKS))
def test_jobs_never_spend_what_is_not_put_aside_and_the_ledger_becomes_the_bill(
    block: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    share = max(1, EXAMPLES // BLOCKS)
    lives = [live(FIRST + block * share + n) for n in range(share)]
    # They did something, each of what is hard.
    assert sum(len(world.machines) for world in lives) > 2 * share
    for figure in ("renewals", "turns", "refusals"):
        assert sum(getattr(world, figure) for world in lives) > 0, figure
