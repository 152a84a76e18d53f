"""Who is asked again, when, and how often."""

from __future__ import annotations

import pytest

from goblin.core.errors import Fault
from goblin.gateway.policy import retries


def wait(fault: Fault, **facts: object) -> float | None:
    told = {"silent": False, "retry_after_s": None, "retries": 0, "rng": 0.5, **facts}
    return retries.wait_before_retry(fault, **told)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", [Fault.TRANSIENT, Fault.RATE, Fault.CAPACITY, Fault.LOADING])
def test_what_mends_by_itself_is_worth_another_try_each_after_a_longer_wait(fault: Fault) -> None:
    first, second = wait(fault), wait(fault, retries=1)
    assert first is not None
    assert second is None or second == 2 * first


@pytest.mark.parametrize("fault", [Fault.MONEY, Fault.AUTH, Fault.MISSING, Fault.UNSUPPORTED])
def test_what_does_not_mend_is_not_tried_again_whatever_it_says(fault: Fault) -> None:
    assert wait(fault) is None
    assert wait(fault, retry_after_s=0.1) is None


def test_the_endpoints_own_word_counts_up_to_a_limit() -> None:
    assert wait(Fault.RATE, retry_after_s=1.5) == 1.5
    assert wait(Fault.TRANSIENT, retry_after_s=0) == 0
    assert wait(Fault.RATE, retry_after_s=retries.WAIT_S_MAX + 0.1) is None


def test_silence_is_not_asked_again() -> None:
    assert wait(Fault.TRANSIENT, silent=True) is None


def test_those_who_failed_together_do_not_come_back_together() -> None:
    assert wait(Fault.TRANSIENT, rng=0.0) != wait(Fault.TRANSIENT, rng=0.9)


def test_extra_requests_are_a_share_of_the_ordinary_ones() -> None:
    allowance, extra = retries.RetryAllowance(share=0.2), 0
    for _ in range(1000):
        allowance = retries.earn(allowance)
        if (left := retries.spend(allowance)) is not None:
            allowance, extra = left, extra + 1
    assert 200 <= extra <= 210


def test_what_was_not_needed_is_not_saved_without_end() -> None:
    allowance = retries.RetryAllowance(share=1.0)
    for _ in range(1000):
        allowance = retries.earn(allowance)
    assert allowance.saved == allowance.most
