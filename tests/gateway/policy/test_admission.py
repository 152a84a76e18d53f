"""Who may begin, who waits, who is sent away, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.gateway.policy.admission import AdmissionCounts, AdmissionLimits, AdmissionRefusal, TokenBucket, admit, take

FEW = AdmissionLimits(running_max=2, waiting_max=1, per_key_max=2)


@pytest.mark.parametrize(
    ("running", "waiting", "of_key", "key_max", "becomes"),
    [
        (0, 0, 0, None, AdmissionCounts.RUN),
        (1, 0, 1, None, AdmissionCounts.RUN),
        (2, 0, 0, None, AdmissionCounts.WAIT),
        (1, 1, 0, None, AdmissionRefusal),  # Nobody overtakes who waits, and there is no room to wait behind them.
        (2, 1, 0, None, AdmissionRefusal),
        (0, 0, 2, None, AdmissionRefusal),
        (0, 0, 2, 3, AdmissionCounts.RUN),
        (0, 0, 0, 0, AdmissionRefusal),
    ],
)
def test_admission(running: int, waiting: int, of_key: int, key_max: int | None, becomes: object) -> None:
    found = admit(running=running, waiting=waiting, of_key=of_key, key_max=key_max, limits=FEW)
    assert (
        (isinstance(found, AdmissionRefusal) and found.retry_after_s > 0)
        if becomes is AdmissionRefusal
        else found is becomes
    )


@given(st.integers(1, 600), st.lists(st.floats(0, 30), min_size=1, max_size=200))
def test_a_key_gets_its_rate_and_a_minutes_burst_and_no_more(per_minute: int, gaps: list[float]) -> None:
    bucket: TokenBucket | None = None
    now = passed = 0.0
    for gap in gaps:
        now += gap
        bucket, wait_s = take(bucket, per_minute=per_minute, now_s=now)
        passed += wait_s == 0
    assert passed <= per_minute * (1 + now / 60) + 1e-6


def test_who_waits_as_told_is_let_in() -> None:
    bucket, _ = take(None, per_minute=1, now_s=0)
    bucket, wait_s = take(bucket, per_minute=1, now_s=15)
    assert wait_s == pytest.approx(45)
    _, wait_s = take(bucket, per_minute=1, now_s=15 + wait_s + 1e-6)
    assert wait_s == 0
