"""The door: who is counted in is counted out, whatever happens in between."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from goblin.core.errors import RateLimited
from goblin.gateway.admission import AdmissionControl
from goblin.gateway.policy.admission import AdmissionLimits
from goblin.gateway.ports import ApiKey
from tests.fakes.inference import FakeClock


def key(name: str, *, rate: int | None = None, parallel: int | None = None) -> ApiKey:
    made = FakeClock().now()
    return ApiKey(digest=name, name=name, created_at=made, rate_per_minute=rate, parallel_max=parallel)


A, B = key("a"), key("b")


def admission(**limits: float) -> AdmissionControl:
    return AdmissionControl(
        AdmissionLimits(**{"running_max": 2, "waiting_max": 2, "per_key_max": 9, **limits}), FakeClock()
    )  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_waits_comes_in_when_somebody_leaves_in_order() -> None:
    at, came = admission(), []

    async def visit(one: ApiKey) -> None:
        await at.enter(one)
        came.append(one.name)

    await visit(A)
    await visit(A)
    waiting = [asyncio.create_task(visit(key(name))) for name in "xy"]
    await settle()
    assert came == ["a", "a"]
    at.leave(A)
    await settle()
    assert came == ["a", "a", "x"]
    at_once = [asyncio.create_task(visit(key(name))) for name in "zw"]
    with pytest.raises(RateLimited):
        await asyncio.gather(*at_once)
    at.leave(A)
    await settle()
    assert came[3] == "y"
    for task in [*waiting, *at_once]:
        task.cancel()


async def test_a_key_has_its_own_bound_and_the_others_are_not_concerned() -> None:
    at = admission(running_max=9)
    one = key("one", parallel=1)
    await at.enter(one)
    with pytest.raises(RateLimited) as caught:
        await at.enter(one)
    assert caught.value.status == 429
    assert caught.value.retry_after_s
    await at.enter(B)
    at.leave(one)
    await at.enter(one)


async def test_a_rate_is_kept_and_told() -> None:
    at, slow = admission(), key("slow", rate=1)
    await at.enter(slow)
    at.leave(slow)
    with pytest.raises(RateLimited) as caught:
        await at.enter(slow)
    assert caught.value.retry_after_s == pytest.approx(60)


async def test_who_waits_too_long_or_leaves_the_queue_is_not_counted_any_more() -> None:
    at = admission(running_max=1, wait_s_max=0.01)
    await at.enter(A)
    with pytest.raises(RateLimited):
        await at.enter(B)
    left = asyncio.create_task(at.enter(B))
    await settle()
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    assert at._of_key == {"a": 1}
    at.leave(A)
    await at.enter(B)
    assert (at._running, at._of_key) == (1, {"b": 1})


async def test_a_turn_that_came_as_its_owner_left_goes_to_the_next() -> None:
    at = admission(running_max=1)
    await at.enter(A)
    first, second = asyncio.create_task(at.enter(B)), asyncio.create_task(at.enter(A))
    await settle()
    at.leave(A)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    async with asyncio.timeout(1):
        await second
    assert (at._running, at._of_key) == (1, {"a": 1})


async def test_a_key_and_the_attempts_of_its_jobs_count_together() -> None:
    control = admission(running_max=9)
    ann = key("ann", parallel=2)
    attempts = [replace(key(f"attempt{n}", parallel=2), asker="ann") for n in range(3)]
    await control.enter(ann)
    await control.enter(attempts[0])
    for one in (ann, *attempts):
        with pytest.raises(RateLimited, match="limit of 2"):
            await control.enter(one)
    control.leave(attempts[0])
    await control.enter(attempts[1])
