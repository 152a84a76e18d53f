"""From probes to a judgement."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.endpoints import Endpoint
from goblin.gateway.domain.endpoint_health import EndpointHealth, Finding, Pause, Probe, Status, Warmth
from goblin.gateway.policy import health

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
ENDPOINT = Endpoint(name="e", provider="ollama", url="http://x")
OK = Probe(finding=Finding.OK, latency_ms=20, models=("m",))
SLOW = Probe(finding=Finding.OK, latency_ms=2500)
LOADING = Probe(finding=Finding.LOADING, reason="loading")
REFUSED = Probe(finding=Finding.REFUSED, reason="bad key")
FAILED = Probe(finding=Finding.FAILED, reason="no answer")
UNCLEAR = Probe(finding=Finding.UNCLEAR, reason="nonsense")
H, D, U, N = Status.HEALTHY, Status.DEGRADED, Status.UNHEALTHY, Status.UNKNOWN


def judged(*probes: Probe) -> list[EndpointHealth]:
    found: list[EndpointHealth] = []
    for probe in probes:
        found.append(health.judge(ENDPOINT, found[-1] if found else None, probe, now=NOW))
    return found


@pytest.mark.parametrize(
    ("probes", "statuses"),
    [
        ([OK, OK], [H, H]),
        ([OK, FAILED, OK], [H, D, H]),
        ([OK, FAILED, FAILED, FAILED], [H, D, U, U]),
        ([OK, FAILED, FAILED, OK, OK], [H, D, U, D, H]),
        ([FAILED, OK, OK], [U, D, H]),
        ([FAILED, OK, FAILED, FAILED], [U, D, D, U]),
        ([LOADING, LOADING, OK], [U, U, H]),
        ([OK, LOADING, OK], [H, U, H]),
        ([OK, REFUSED, OK, OK], [H, U, D, H]),
        ([SLOW, OK], [D, H]),
        ([OK, UNCLEAR, OK], [H, N, H]),
    ],
)
def test_slow_to_condemn_and_slow_to_trust_again(probes: list[Probe], statuses: list[Status]) -> None:
    assert [found.status for found in judged(*probes)] == statuses


@pytest.mark.parametrize(
    ("probes", "reason"),
    [
        ([OK], ""),
        ([OK, FAILED], "no answer; one failure so far"),
        ([FAILED], "no answer"),
        ([FAILED, OK], "just recovered"),
        ([SLOW], "slow: a probe took 2500 ms"),
        ([REFUSED], "bad key"),
    ],
)
def test_every_judgement_but_health_has_a_reason(probes: list[Probe], reason: str) -> None:
    assert judged(*probes)[-1].reason == reason


def test_models_are_remembered_while_it_is_down() -> None:
    assert judged(OK, FAILED)[-1].models == ("m",)
    assert judged(OK, replace(OK, models=()))[-1].models == ()


def test_an_old_judgement_condemns_nobody() -> None:
    bad = judged(FAILED)[-1]
    assert health.believe(ENDPOINT, bad, now=NOW + health.STALE_AFTER).status is U
    old = health.believe(ENDPOINT, bad, now=NOW + health.STALE_AFTER + timedelta(minutes=2))
    assert (old.status, old.reason) == (N, "last checked 7 minutes ago")
    assert health.believe(ENDPOINT, None, now=NOW).reason == "not checked yet"


def after(probe: Probe, then: Probe, *, later: timedelta = timedelta(minutes=1)) -> bool:
    """Whether a second look must be stored."""
    first = health.judge(ENDPOINT, health.judge(ENDPOINT, None, probe, now=NOW), probe, now=NOW)
    return health.must_store(first, health.judge(ENDPOINT, first, then, now=NOW + later))


@pytest.mark.parametrize(
    "then",
    [
        FAILED,
        SLOW,
        LOADING,
        UNCLEAR,
        replace(OK, models=("m", "n")),
        replace(OK, loaded=("m",)),
        replace(OK, warmth=Warmth.ASLEEP),
    ],
)
def test_what_changed_is_stored_at_once(then: Probe) -> None:
    assert after(OK, then)


def test_another_reason_is_a_change() -> None:
    assert after(FAILED, replace(FAILED, reason="answered 500"))


def test_an_endpoint_whose_provider_changed_is_stored() -> None:
    stored = judged(OK)[-1]
    assert health.must_store(stored, replace(stored, provider="openai"))


@pytest.mark.parametrize("probe", [OK, SLOW, LOADING, REFUSED, FAILED, UNCLEAR])
def test_what_stays_as_it_is_is_not_stored_again_for_a_while(probe: Probe) -> None:
    assert not after(probe, replace(probe, latency_ms=1900 if probe is OK else probe.latency_ms))
    assert after(probe, probe, later=health.STORE_AGAIN_AFTER)
    assert health.must_store(None, judged(probe)[-1])


def test_pauses_of_requests_are_not_a_change() -> None:
    pause = Pause(model="m", kind=None, open_until=NOW, reason="r", openings=1, told_at=NOW)
    stored = replace(judged(OK)[-1], pauses=(pause,))
    assert not health.must_store(stored, health.judge(ENDPOINT, replace(stored, pauses=()), OK, now=NOW))


def test_unchanged_health_is_never_stale_even_if_one_check_is_missed() -> None:
    period, read_late = timedelta(minutes=1), timedelta(seconds=20)
    oldest = health.STORE_AGAIN_AFTER + 2 * period + read_late
    assert oldest <= health.STALE_AFTER


@given(st.lists(st.sampled_from([OK, SLOW, LOADING, REFUSED, FAILED, UNCLEAR]), min_size=1, max_size=12))
def test_judging_by_what_is_stored_is_judging_by_every_look(probes: list[Probe]) -> None:
    stored: EndpointHealth | None = None
    for probe, every in zip(probes, judged(*probes), strict=True):
        found = health.judge(ENDPOINT, stored, probe, now=NOW)
        assert (found.status, found.reason) == (every.status, every.reason)
        if health.must_store(stored, found):
            stored = found


@given(st.lists(st.sampled_from([OK, SLOW, LOADING, REFUSED, FAILED, UNCLEAR]), min_size=1, max_size=12))
def test_whatever_came_before_two_good_looks_heal_and_two_bad_ones_condemn(probes: list[Probe]) -> None:
    assert judged(*probes, OK, OK)[-1].status is H
    assert judged(*probes, FAILED, FAILED)[-1].status is U
    assert all(found.reason for found in judged(*probes) if found.status is not H)
