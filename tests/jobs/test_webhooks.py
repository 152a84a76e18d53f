"""What a provider tells unasked: looked at once, confirmed by a read, never taken at its word."""

from __future__ import annotations

import pytest

from goblin.core.errors import StoreUnavailable
from goblin.jobs import webhooks, worker_api
from goblin.jobs.domain.instances import Instance, InstanceState
from goblin.jobs.domain.job import JobState
from goblin.jobs.ports import WebhookEvent
from goblin.jobs.reconcile import reconcile
from tests.fakes.jobs import START, MemoryWebhookEvents, World
from tests.jobs.test_placement import market, requested

OUTBID = WebhookEvent(provider="vastai", event_id="e1", kind="outbid")


class Waiting:
    def __init__(self, world: World) -> None:
        self.world = world
        self.waited: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.world.clock.advance(seconds)


def stop(world: World, state: InstanceState) -> None:
    label = "goblin-j-a1"
    world.compute.states[label] = Instance(provider="fake", instance_id=f"i-{label}", label=label, state=state)


async def test_an_outbid_instance_is_replaced_before_the_minutes_tick() -> None:
    world, store = market(), MemoryWebhookEvents()
    await requested(world)
    wait = Waiting(world)
    stop(world, InstanceState.STOPPED)
    assert await webhooks.follow(OUTBID, world.deps, store, sleep=wait)
    # Its list knows a moment after its word.
    assert wait.waited == [webhooks.OUTBID_SEEN_S]
    assert world.job().attempt == 2
    assert store.taken[OUTBID] - START >= webhooks.KEPT


async def test_an_attempt_that_still_works_on_an_outbid_instance_saves_before_it_is_replaced() -> None:
    world, store = market(), MemoryWebhookEvents()
    await requested(world)
    await worker_api.claim("j", world.token(), world.deps)
    stop(world, InstanceState.LEAVING)
    assert await webhooks.follow(OUTBID, world.deps, store, sleep=Waiting(world))
    assert (world.job().attempt, world.job().state) == (1, JobState.RUNNING)
    told = await worker_api.heartbeat("j", world.token(), 1, world.deps)
    assert told.stop is not None
    assert "outbid or taken back" in told.stop
    assert world.market.history.pools["fake/RTX_4090"].rates.losses > 0.9, "it counts from when it is known"
    losses = world.market.history.pools["fake/RTX_4090"].rates.losses
    await worker_api.withdraw("j", world.token(), told.stop, world.deps)
    await reconcile(world.deps)
    assert (world.job().attempt, world.job().preemptions) == (2, 1)
    assert world.market.history.pools["fake/RTX_4090"].rates.losses <= losses, "and counts once"


async def test_one_that_cannot_save_any_more_is_replaced_when_its_instance_has_stopped() -> None:
    world = market()
    await requested(world)
    await worker_api.claim("j", world.token(), world.deps)
    for state in (InstanceState.LEAVING, InstanceState.STOPPED):
        stop(world, state)
        await reconcile(world.deps)
    assert (world.job().attempt, world.job().preemptions) == (2, 1)
    assert world.market.history.pools["fake/RTX_4090"].rates.losses < 1.1, "one loss"


async def test_a_word_that_the_list_does_not_bear_out_changes_nothing() -> None:
    world = market()
    await requested(world)
    before = world.job()
    assert await webhooks.follow(OUTBID, world.deps, MemoryWebhookEvents(), sleep=Waiting(world))
    assert (world.job().state, world.job().attempt) == (before.state, 1)
    assert world.job().state is JobState.STARTING


async def test_the_same_event_is_followed_once() -> None:
    world, store = market(), MemoryWebhookEvents()
    assert await webhooks.follow(OUTBID, world.deps, store, sleep=Waiting(world))
    assert not await webhooks.follow(OUTBID, world.deps, store, sleep=Waiting(world))


async def test_one_that_could_not_be_followed_may_come_again() -> None:
    world, store = market(), MemoryWebhookEvents()
    world.jobs.down = True
    with pytest.raises(StoreUnavailable):
        await webhooks.follow(OUTBID, world.deps, store, sleep=Waiting(world))
    world.jobs.down = False
    assert await webhooks.follow(OUTBID, world.deps, store, sleep=Waiting(world))


@pytest.mark.parametrize("kind", ["webhook_test", "instance_created", "instance_started", "something new"])
async def test_what_takes_nothing_away_can_wait(kind: str) -> None:
    world, store = market(), MemoryWebhookEvents()
    world.jobs.down = True
    assert not await webhooks.follow(WebhookEvent(provider="vastai", event_id="e", kind=kind), world.deps, store)
    assert not store.taken
