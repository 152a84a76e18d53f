"""What one process remembers of its endpoints, and what it hears from the others."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from goblin.core.endpoints import Capability, Endpoint
from goblin.core.errors import Fault, ProviderUnavailable
from goblin.gateway.domain.endpoint_health import EndpointHealth, Pause, Status, Warmth
from goblin.gateway.endpoint_stats import EndpointStats
from goblin.gateway.policy.route import Demand, LatencyForecast
from goblin.gateway.upstream_attempt import UpstreamAttempt
from tests.fakes.inference import FakeClock, ScriptedProvider, world

CHAT, EMBEDDINGS = (Demand(model="m", kind=kind) for kind in (Capability.CHAT, Capability.EMBEDDINGS))


def endpoint(**more: Any) -> Endpoint:
    return Endpoint(
        name="a", provider="openai", url="http://x", **{"parallel": 4, "cold_start_prior_ms": 20_000, **more}
    )


class Here:
    def __init__(self, **more: Any) -> None:
        self.clock = FakeClock()
        self.told: list[tuple[str, Pause]] = []
        self.stats = EndpointStats(self.clock, tell=lambda name, pause: self.told.append((name, pause)))
        self.endpoint = endpoint(**more)

    def start(self, demand: Demand = CHAT, model: str = "m") -> UpstreamAttempt:
        forecast = self.stats.outlook(self.endpoint, model, demand).forecast
        attempt = UpstreamAttempt.start(self.stats, self.endpoint, model, reason="why", force=True, forecast=forecast)
        assert attempt is not None
        return attempt

    def answer(self, after_s: float = 0.2, demand: Demand = CHAT) -> UpstreamAttempt:
        attempt = self.start(demand)
        self.clock.forward(after_s)
        attempt.first_token()
        attempt.succeed(output_tokens=20)
        return attempt

    def fail(self, fault: Fault, demand: Demand = CHAT, model: str = "m", **more: Any) -> None:
        self.start(demand, model).fail(ProviderUnavailable(f"it is {fault}", fault=fault, **more))

    def is_open(self, demand: Demand = CHAT, model: str = "m") -> bool:
        return self.stats.outlook(self.endpoint, model, demand).open_until is not None

    def expected(self, demand: Demand = CHAT, health: EndpointHealth | None = None) -> LatencyForecast:
        return self.stats.outlook(self.endpoint, "m", demand, health).forecast

    def seen(self, **more: Any) -> EndpointHealth:
        return EndpointHealth(
            endpoint="a", provider="openai", status=Status.HEALTHY, checked_at=self.clock.now(), **more
        )


# Breakers: one per endpoint, model and class; one per account.


def test_a_missing_model_shuts_neither_other_models_nor_other_classes() -> None:
    here = Here()
    here.fail(Fault.MISSING)
    assert here.is_open()
    assert not here.is_open(EMBEDDINGS)
    assert not here.is_open(model="other")


@pytest.mark.parametrize("fault", [Fault.AUTH, Fault.MONEY])
def test_a_refused_key_shuts_all_that_it_opens_until_an_answer_comes(fault: Fault) -> None:
    here = Here()
    here.fail(fault)
    assert here.is_open()
    assert here.is_open(EMBEDDINGS, "other")
    assert UpstreamAttempt.start(here.stats, here.endpoint, "other", reason="", force=False) is None
    here.answer()
    assert not here.is_open(EMBEDDINGS, "other")


def test_half_open_lets_one_through_for_an_account_too() -> None:
    here = Here()
    here.fail(Fault.AUTH)
    here.clock.forward(301)
    assert UpstreamAttempt.start(here.stats, here.endpoint, "m", reason="", force=False) is not None
    assert UpstreamAttempt.start(here.stats, here.endpoint, "other", reason="", force=False) is None


def test_openings_and_closings_are_told_and_nothing_else_is() -> None:
    here = Here()
    here.answer()
    here.fail(Fault.TRANSIENT)
    here.fail(Fault.TRANSIENT)
    assert here.told == []
    here.fail(Fault.RATE, retry_after_s=30)
    ((name, pause),) = here.told
    assert (name, pause.model, pause.kind) == ("a", "m", Capability.CHAT)
    assert pause.open_until == here.clock.now() + timedelta(seconds=30)
    here.answer()
    assert here.told[-1][1].open_until <= here.clock.now()
    here.answer()
    assert len(here.told) == 2


def test_a_fresh_process_believes_what_others_found_out() -> None:
    old, new = Here(), Here()
    old.fail(Fault.RATE, retry_after_s=30)
    old.fail(Fault.AUTH, model="n")
    new.stats.believe(new.endpoint, tuple(pause for _, pause in old.told))
    outlook = new.stats.outlook(new.endpoint, "m", CHAT)
    assert (outlook.open_until, outlook.open_reason) == (new.clock.now() + timedelta(seconds=30), "it is rate")
    assert new.is_open(model="n")
    new.clock.forward(31)
    assert not Here().is_open()


def test_what_was_seen_since_is_newer_and_what_is_over_is_over() -> None:
    here = Here()
    pause = Pause(
        model="m",
        kind=Capability.CHAT,
        open_until=here.clock.now() + timedelta(seconds=60),
        reason="told",
        openings=1,
        told_at=here.clock.now(),
    )
    here.answer()
    here.stats.believe(here.endpoint, (pause,))
    assert not here.is_open()
    here.stats.believe(here.endpoint, (replace(pause, told_at=here.clock.now() + timedelta(seconds=1)),))
    assert here.is_open()
    fresh = Here()
    fresh.stats.believe(fresh.endpoint, (replace(pause, open_until=fresh.clock.now()),))
    assert not fresh.is_open()


async def test_a_pause_reaches_another_process_through_the_store() -> None:
    here, there = world(a=ScriptedProvider()), world(a=ScriptedProvider())
    there.health_deps.store = here.health
    endpoint = here.deps.router.catalog.endpoints[0]
    health, other = here.deps.router.health, there.deps.router.health
    stats = EndpointStats(here.clock, tell=health.tell)
    other.believe = there.deps.router.stats.believe
    await here.health.put(EndpointHealth(endpoint="a", provider="openai", status=Status.HEALTHY))
    attempt = UpstreamAttempt.start(stats, endpoint, "m", reason="", force=True)
    assert attempt is not None
    attempt.fail(ProviderUnavailable("full", fault=Fault.RATE, retry_after_s=20))
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))
    await other.current()
    assert there.deps.router.stats.outlook(endpoint, "m").open_reason == "full"


# Speed.


def test_what_is_sent_counts_at_once_and_no_more_when_it_ended() -> None:
    here = Here(parallel=1)
    here.answer()
    sent = here.start()
    assert here.expected().queue_ms > 0
    sent.abandon()
    assert here.expected().queue_ms == 0


def test_silence_is_noticed_while_it_lasts_unless_others_are_answered() -> None:
    here = Here()
    for _ in range(10):
        here.answer()
    here.start()
    here.clock.forward(5)
    assert here.expected().first_token_ms == pytest.approx(5000)
    here.answer()
    assert here.expected().first_token_ms < 1000


def test_a_lost_hedge_and_a_timeout_are_observations() -> None:
    for end in (lambda attempt: attempt.abandon("lost"), lambda attempt: attempt.timed_out()):
        here = Here()
        for _ in range(10):
            here.answer()
        before = here.expected().awake_ms
        attempt = here.start()
        here.clock.forward(10)
        end(attempt)
        attempt.abandon()
        assert here.expected().awake_ms > 2 * before


def test_failures_are_remembered_but_not_what_it_does_not_have() -> None:
    here = Here()
    here.fail(Fault.UNSUPPORTED)
    before = here.expected().failed_share
    here.fail(Fault.TRANSIENT)
    assert here.expected().failed_share > before


def test_the_receipt_has_what_was_expected() -> None:
    record = Here().answer().record()
    assert (record.predicted_first_token_ms, record.first_token_ms) == (1000, 200)


# Sleep.


def test_an_idle_sleeper_is_expected_asleep_and_the_request_that_wakes_it_is_no_slowness() -> None:
    here = Here(sleeps_after_s=60)
    here.answer()
    assert here.expected().asleep == 0
    here.clock.forward(300)
    assert here.expected().asleep > 0.9
    waking = here.start()
    here.clock.forward(5)
    then = here.expected()
    assert then.waking
    assert then.first_token_ms < 17_000
    here.clock.forward(5)
    waking.first_token()
    awake = here.expected()
    assert (awake.asleep, awake.waking) == (0, False)
    assert awake.awake_ms < 1000
    here.clock.forward(300)
    assert here.stats.outlook(here.endpoint, "m").cold_ms == pytest.approx(14_700, rel=0.05)  # 20 s said, 9.4 s seen.


def test_a_start_without_a_request_is_waited_for_until_it_ends_or_is_lost() -> None:
    here = Here(sleeps_after_s=60)
    here.stats.wake_begun(here.endpoint, "m")
    assert here.expected().waking
    here.stats.wake_ended(here.endpoint, "m", awake=True)
    assert (here.expected().waking, here.expected().asleep) == (False, 0)
    here.clock.forward(300)
    here.stats.wake_begun(here.endpoint, "m")
    here.clock.forward(61)
    assert not here.expected().waking
    assert here.expected().asleep > 0.9


@pytest.mark.parametrize(
    ("said", "asleep", "waking"),
    [
        ({"warmth": Warmth.WARM}, 0.0, False),
        ({"warmth": Warmth.ASLEEP}, 0.95, False),
        ({"warmth": Warmth.FULL}, 0.95, False),
        ({"warmth": Warmth.STARTING}, 0.5, True),
        ({"warmth": Warmth.UNKNOWN}, 0.5, False),
        ({"loaded": ("m",)}, 0.0, False),
        ({"loaded": ()}, 0.95, False),
        ({"warmth": Warmth.WARM, "loaded": ("n",)}, 0.95, False),
    ],
)
def test_the_last_look_says_who_sleeps_until_an_answer_says_otherwise(
    said: dict[str, Any], asleep: float, waking: bool
) -> None:
    here = Here(sleeps_after_s=600)
    health = here.seen(**said)
    found = here.expected(health=health)
    assert (found.asleep, found.waking) == (asleep, waking)
    here.clock.forward(5)
    here.answer()
    after = here.expected(health=health)
    assert (after.asleep, after.waking) == (0, False)
