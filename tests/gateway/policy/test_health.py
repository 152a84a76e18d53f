"""From probes to a judgement."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.endpoints import Endpoint
from goblin.gateway.domain.endpoint_health import EndpointHealth, Finding, Probe, Status
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


@given(st.lists(st.sampled_from([OK, SLOW, LOADING, REFUSED, FAILED, UNCLEAR]), min_size=1, max_size=12))
def test_whatever_came_before_two_good_looks_heal_and_two_bad_ones_condemn(probes: list[Probe]) -> None:
    assert judged(*probes, OK, OK)[-1].status is H
    assert judged(*probes, FAILED, FAILED)[-1].status is U
    assert all(found.reason for found in judged(*probes) if found.status is not H)
