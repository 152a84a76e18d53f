"""What follows from a bill."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.domain.accounts import Account, Lease, Limit, Period, Tally, windows_of
from goblin.domain.money import EntryKind
from goblin.policy import settling
from goblin.policy.settling import Day, settle_day

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def lost(name: str, amount: int) -> Lease:
    return Lease(
        lease_id=name, account="openai/ann", windows=windows_of(NOW), granted_usd_micros=amount, expires_at=NOW,
        expired=True,
    )  # fmt: skip


def day(billed: int, booked: int, *leases: Lease, final: bool = True, lent: int = 0) -> Day:
    return Day(
        provider="openai", day="2026-11-25", billed_usd_micros=billed, booked_usd_micros=booked, lost=leases,
        final=final, lent_usd_micros=lent,
    )  # fmt: skip


def adjusted(found: Any) -> int:
    return sum(entry.amount_usd_micros for entry in found.corrections)


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.lists(st.integers(0, 10**6), max_size=5), st.booleans())
def test_a_final_bill_is_the_truth_and_is_reached(billed: int, booked: int, amounts: list[int], again: bool) -> None:
    leases = [lost(f"l{n}", amount) for n, amount in enumerate(amounts)]
    found = settle_day(day(billed, booked, *leases))
    spent = sum(amount for _, amount in found.found)
    assert booked + spent + adjusted(found) == billed
    assert all(0 <= amount <= lease.lost_usd_micros for lease, amount in found.found)
    assert [lease for lease, _ in found.found] == leases  # None is left open.
    # A crash between any two writes: the rest comes to the same.
    if again and leases:
        first = found.found[0][1]
        rest = settle_day(day(billed, booked + first, *leases[1:]))
        assert adjusted(rest) == adjusted(found)
        assert [entry.entry_id for entry in rest.corrections] == [entry.entry_id for entry in found.corrections]


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**5), st.integers(0, 10**5))
def test_a_bill_that_may_grow_takes_nothing_back(billed: int, booked: int, gone: int, lent: int) -> None:
    found = settle_day(day(billed, booked, lost("l", gone), final=False, lent=lent))
    assert found.found == ()
    assert adjusted(found) == max(0, billed - booked - gone - lent)


@pytest.mark.parametrize(
    ("billed", "booked", "alarm"),
    [
        (1_000_000, 999_000, ""),
        (1_000_000, 900_000, "drift"),
        (900_000, 1_000_000, "drift"),
        (5_000, 1_000, ""),  # Less than a cent.
        (5_000, 0, "nobody here asked for"),
        (0, 0, ""),
    ],
)
def test_a_person_is_called_for_drift_and_for_orphans(billed: int, booked: int, alarm: str) -> None:
    alarms = [entry.note for entry in settle_day(day(billed, booked)).corrections if entry.kind is EntryKind.ALERT]
    assert (alarm in alarms[0]) if alarm else not alarms


def test_a_day_is_final_so_long_after_its_end() -> None:
    end = datetime(2026, 11, 26, tzinfo=UTC)
    late = timedelta(hours=2)
    assert not settling.is_over("2026-11-25", end + late - timedelta(seconds=1), late)
    assert settling.is_over("2026-11-25", end + late, late)
    assert settling.days_to_read(NOW) == ["2026-11-23", "2026-11-24", "2026-11-25"]


def test_crossings_that_nobody_acted_on_are_told_again() -> None:
    limit = Limit(period=Period.MONTH, limit_usd_micros=100)
    tally = Tally(window="2026-11", spent_usd_micros=96, told_percent=100)
    account = Account(name="key/ann", limits=(limit,), tallies={Period.MONTH: tally})
    (told,) = settling.untold([account], frozenset())
    assert (told.percent, told.spent_usd_micros + told.reserved_usd_micros) == (100, 100)
    assert settling.untold([account], frozenset({settling.action_id("key/ann", "2026-11", 1.0)})) == []


def test_a_month_goes_on_as_it_began() -> None:
    assert settling.forecast(12_000, "2026-11", datetime(2026, 11, 13, tzinfo=UTC)) == 30_000
    assert settling.forecast(12_000, "2026-10", NOW) == 12_000
    assert settling.forecast(10, "2026-11", datetime(2026, 11, 1, 0, 0, 1, tzinfo=UTC)) == 7_200
