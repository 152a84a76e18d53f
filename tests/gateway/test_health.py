"""The scheduled look at every endpoint, and what the router makes of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from goblin.core.errors import StoreUnavailable
from goblin.gateway import health
from goblin.gateway.domain.endpoint_health import Finding, Probe, Status
from tests.fakes.inference import ScriptedProvider, world


def found(finding: Finding, reason: str = "") -> ScriptedProvider:
    return ScriptedProvider(found=Probe(finding=finding, reason=reason))


@dataclass
class Broken(ScriptedProvider):
    async def probe(self) -> Probe:
        raise KeyError("a bug")


@dataclass
class Hanging(ScriptedProvider):
    async def probe(self) -> Probe:
        await asyncio.Event().wait()
        raise AssertionError


async def test_each_endpoint_is_judged_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_DEADLINE_S", 0.05)
    here = world(
        well=ScriptedProvider(),
        gone=found(Finding.FAILED, "cannot be reached"),
        starting=found(Finding.LOADING, "loading"),
        broken=Broken(),
        hanging=Hanging(),
    )
    await health.check_all(here.health_deps)
    judged = {name: (h.status, h.reason) for name, h in here.health.judged.items()}
    assert judged == {
        "well": (Status.HEALTHY, ""),
        "gone": (Status.UNHEALTHY, "cannot be reached"),
        "starting": (Status.UNHEALTHY, "loading"),
        "broken": (Status.UNKNOWN, "the probe failed: KeyError"),
        "hanging": (Status.UNHEALTHY, "no answer in 0 s"),
    }
    assert here.health.judged["well"].checked_at == here.clock.now()


async def test_probes_run_at_the_same_time() -> None:
    """Each waits until all have begun."""
    together = asyncio.Barrier(3)

    class Meeting(ScriptedProvider):
        async def probe(self) -> Probe:
            await together.wait()
            return Probe(finding=Finding.OK)

    here = world(a=Meeting(), b=Meeting(), c=Meeting())
    await asyncio.wait_for(health.check_all(here.health_deps), 5)
    assert {h.status for h in here.health.judged.values()} == {Status.HEALTHY}


async def test_one_failure_is_not_enough_the_second_is() -> None:
    here = world(a=ScriptedProvider())
    statuses = []
    for finding in (Finding.OK, Finding.FAILED, Finding.FAILED, Finding.OK, Finding.OK):
        here.providers["a"].found = Probe(finding=finding, reason="x")
        await health.check_all(here.health_deps)
        statuses.append(here.health.judged["a"].status.value)
    assert statuses == ["healthy", "degraded", "unhealthy", "degraded", "healthy"]


async def test_what_does_not_change_is_stored_every_third_minute_and_always_believed() -> None:
    here = world(a=ScriptedProvider(), b=ScriptedProvider())
    view = health.HealthView(here.health_deps)
    await health.check_all(here.health_deps)
    stored = []
    for minute in range(1, 61):
        here.clock.forward(60)
        before = dict(here.health.judged)
        assert (await view.fresh())["a"].status is Status.HEALTHY
        if minute == 30:
            here.providers["b"].found = Probe(finding=Finding.LOADING, reason="loading")
        judged = await health.check_all(here.health_deps)
        assert judged[0].checked_at == here.clock.now()
        stored += [(minute, name) for name, found in here.health.judged.items() if found != before[name]]
    assert [minute for minute, name in stored if name == "a"] == list(range(3, 61, 3))
    assert (30, "b") in stored
    assert len(stored) == 40


async def test_nothing_is_decided_without_the_store() -> None:
    here = world(a=ScriptedProvider())
    here.health.down = True
    with pytest.raises(StoreUnavailable):
        await health.check_all(here.health_deps)


async def test_the_view_reads_seldom_and_never_raises() -> None:
    here = world(a=ScriptedProvider(), b=ScriptedProvider())
    here.health.down = True
    view = health.HealthView(here.health_deps)
    assert [h.reason for h in (await view.current()).values()] == ["not checked yet"] * 2
    here.health.down = False
    await health.check_all(here.health_deps)
    assert (await view.current())["a"].status is Status.UNKNOWN
    here.clock.forward(health.REFRESH_S + 1)
    await view.current()  # Starts a refresh, and does not wait for it.
    refreshing = view._refreshing
    assert refreshing is not None
    await refreshing
    assert list(await view.current()) == ["a", "b"]
    assert (await view.current())["a"].status is Status.HEALTHY


async def test_the_page_reads_now() -> None:
    here = world(a=ScriptedProvider())
    view = health.HealthView(here.health_deps)
    await view.current()
    await health.check_all(here.health_deps)
    assert (await view.fresh())["a"].status is Status.HEALTHY
