"""What follows from a bill."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.billing.domain.accounts import Account, Allocation, BudgetUsage, Limit, Period, windows_of
from goblin.billing.domain.ledger import Balance, Bill, Charge, EntryKind, LedgerEntry
from goblin.billing.policy import settlement
from goblin.billing.policy.settlement import ProviderDay, settle_day

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def lost(name: str, amount: int) -> Allocation:
    return Allocation(
        allocation_id=name, account="openai/ann", windows=windows_of(NOW), granted_usd_micros=amount, expires_at=NOW,
        expired=True,
    )  # fmt: skip


def day(
    billed: int, booked: int, *allocations: Allocation, final: bool = True, lent: int = 0, entries: int = 0
) -> ProviderDay:
    return ProviderDay(
        account="openai", day="2026-11-25", billed_usd_micros=billed, booked_usd_micros=booked, lost=allocations,
        final=final, lent_usd_micros=lent, entries=entries,
    )  # fmt: skip


def adjusted(found: Any) -> int:
    return sum(entry.amount_usd_micros for entry in found.corrections)


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.lists(st.integers(0, 10**6), max_size=5), st.booleans())
def test_a_final_bill_is_the_truth_and_is_reached(billed: int, booked: int, amounts: list[int], again: bool) -> None:
    allocations = [lost(f"l{n}", amount) for n, amount in enumerate(amounts)]
    found = settle_day(day(billed, booked, *allocations))
    spent = sum(amount for _, amount in found.found)
    assert booked + spent + adjusted(found) == billed
    assert all(0 <= amount <= allocation.lost_usd_micros for allocation, amount in found.found)
    assert [allocation for allocation, _ in found.found] == allocations  # None is left open.
    # A crash between any two writes: the rest comes to the same.
    if again and allocations:
        first = found.found[0][1]
        rest = settle_day(day(billed, booked + first, *allocations[1:], entries=int(first > 0)))
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
        (1_000_000, 900_000, "differ too much"),
        (900_000, 1_000_000, "differ too much"),
        (5_000, 1_000, ""),  # Less than a cent.
        (5_000, 0, "unknown to the ledger"),
        (0, 0, ""),
    ],
)
def test_a_person_is_called_for_drift_and_for_orphans(billed: int, booked: int, alarm: str) -> None:
    alarms = [entry.note for entry in settle_day(day(billed, booked)).corrections if entry.kind is EntryKind.ALERT]
    assert (alarm in alarms[0]) if alarm else not alarms


def test_a_day_is_final_so_long_after_its_end() -> None:
    end = datetime(2026, 11, 26, tzinfo=UTC)
    late = timedelta(hours=2)
    assert not settlement.is_over("2026-11-25", end + late - timedelta(seconds=1), late)
    assert settlement.is_over("2026-11-25", end + late, late)
    assert settlement.days_to_read(NOW) == ["2026-11-23", "2026-11-24", "2026-11-25"]


def test_crossings_that_nobody_acted_on_are_told_again() -> None:
    limit = Limit(period=Period.MONTH, limit_usd_micros=100)
    usage = BudgetUsage(window="2026-11", spent_usd_micros=96, told_percent=100)
    account = Account(name="key/ann", limits=(limit,), usages={Period.MONTH: usage})
    (told,) = settlement.untold([account], frozenset())
    assert (told.percent, told.spent_usd_micros + told.reserved_usd_micros) == (100, 100)
    assert settlement.untold([account], frozenset({settlement.action_id("key/ann", "2026-11", 1.0)})) == []


def test_a_month_goes_on_as_it_began() -> None:
    assert settlement.forecast(12_000, "2026-11", datetime(2026, 11, 13, tzinfo=UTC)) == 30_000
    assert settlement.forecast(12_000, "2026-10", NOW) == 12_000
    assert settlement.forecast(10, "2026-11", datetime(2026, 11, 1, 0, 0, 1, tzinfo=UTC)) == 7_200


def charge(label: str = "", *, instance: str = "", micros: int) -> Charge:
    return Charge(instance_id=instance, label=label, usd_micros=micros)


def rent_of(job: str, micros: int, *, instance: str = "", provider: str = "vastai") -> LedgerEntry:
    return LedgerEntry(
        entry_id=f"rent:goblin-{job}-a1:1:settled", kind=EntryKind.SETTLE, account=f"{provider}/{job}",
        also=(f"job/{job}",), amount_usd_micros=micros, at=NOW, instance_id=instance,
    )  # fmt: skip


def rent_lease(job: str, granted: int, *, settled: int = 0, expired: bool = False) -> Allocation:
    return Allocation(
        allocation_id=f"rent:goblin-{job}-a1:1", account=f"vastai/{job}", also=(f"job/{job}",), windows=windows_of(NOW),
        granted_usd_micros=granted, settled_usd_micros=settled, expires_at=NOW, expired=expired,
    )  # fmt: skip


def parts(
    bill: Bill,
    *,
    rented: list[LedgerEntry],
    allocations: list[Allocation] | None = None,
    others: int = 0,
    final: bool = True,
) -> dict[str, ProviderDay]:
    """A day on which the entries were written, and `others` for nothing that was rented."""
    sums: dict[str, list[int]] = {"vastai": [others] if others else []}
    for entry in rented:
        for account in entry.accounts:
            sums.setdefault(account, []).append(entry.amount_usd_micros)
    balances = {
        name: Balance(account=name, window="2026-11-25", spent_usd_micros=sum(found), entries=len(found))
        for name, found in sums.items()
    }
    found = settlement.split(
        "vastai", "2026-11-25", bill, balances=balances, allocations=allocations or [], rented=rented, final=final
    )
    return {part.account: part for part in found}


def figures(part: ProviderDay) -> tuple[int, int]:
    return part.billed_usd_micros, part.booked_usd_micros


def test_a_bill_that_tells_labels_is_compared_job_by_job() -> None:
    bill = Bill(
        usd_micros=1_060,
        charges=(charge("goblin-a-a1", micros=500), charge("goblin-a-a2", micros=50), charge("goblin-b-a1", micros=10)),
    )
    found = parts(bill, rented=[rent_of("a", 600), rent_of("b", 10)], others=480)
    assert {name: figures(part) for name, part in found.items()} == {
        "vastai/a": (550, 600), "vastai/b": (10, 10), "vastai": (500, 480),
    }  # fmt: skip
    assert found["vastai/a"].also == ("job/a",)
    assert found["vastai/a"].bounded
    assert not found["vastai"].bounded


def test_a_correction_counts_for_everyone_who_pays_for_the_job() -> None:
    bill = Bill(
        usd_micros=60, charges=(charge("goblin-a-a1", micros=50), charge("goblin-b-a1", micros=10)),
    )  # fmt: skip
    paid = replace(rent_of("a", 600), also=("job/a", "key/ann"))
    died = replace(rent_lease("b", 300, expired=True), also=("job/b", "key/bob"))
    found = parts(bill, rented=[paid], allocations=[died])
    assert found["vastai/a"].also == ("job/a", "key/ann")
    assert found["vastai/b"].also == ("job/b", "key/bob")
    assert settle_day(found["vastai/a"]).corrections[0].also == ("job/a", "key/ann")


def test_a_bill_that_tells_only_ids_is_matched_by_what_was_settled() -> None:
    bill = Bill(usd_micros=700, charges=(charge(instance="p1", micros=500), charge(instance="p2", micros=200)))
    found = parts(bill, rented=[rent_of("a", 600, instance="p1"), rent_of("b", 300, instance="p2")])
    assert (figures(found["vastai/a"]), figures(found["vastai/b"])) == ((500, 600), (200, 300))


def test_while_a_charge_is_of_nobody_known_it_may_be_of_any_that_has_none() -> None:
    bill = Bill(usd_micros=700, charges=(charge(instance="p1", micros=500), charge(instance="p2", micros=200)))
    dead = rent_lease("b", 300, expired=True)
    found = parts(bill, rented=[rent_of("a", 600, instance="p1")], allocations=[dead])
    assert set(found) == {"vastai/a", "vastai"}
    assert figures(found["vastai"]) == (200, 0)
    assert settle_day(found["vastai"]).found == ((dead, 200),)


def test_a_job_with_an_instance_of_unknown_name_is_compared_with_all_the_rest() -> None:
    bill = Bill(usd_micros=700, charges=(charge(instance="p1", micros=500), charge(instance="p2", micros=200)))
    found = parts(bill, rented=[rent_of("a", 600, instance="p1"), replace(rent_of("a", 250), entry_id="rent:x")])
    assert {name: figures(part) for name, part in found.items()} == {"vastai": (700, 850)}


def test_who_was_charged_nothing_is_corrected_to_nothing() -> None:
    bill = Bill(usd_micros=5, charges=(charge("goblin-a-a1", micros=5),))
    found = parts(bill, rented=[rent_of("a", 5), rent_of("b", 300)], allocations=[rent_lease("c", 40, expired=True)])
    assert figures(found["vastai/b"]) == (0, 300)
    assert adjusted(settle_day(found["vastai/b"])) == -300
    assert settle_day(found["vastai/c"]).found == ((rent_lease("c", 40, expired=True), 0),)
    assert figures(found["vastai"]) == (0, 0)


def test_a_bill_of_sums_alone_is_compared_as_a_whole() -> None:
    found = parts(Bill(usd_micros=500), rented=[rent_of("a", 600)])
    assert {name: figures(part) for name, part in found.items()} == {"vastai": (500, 600)}


def test_an_instance_that_no_entry_knows_is_an_orphan_of_its_job() -> None:
    bill = Bill(usd_micros=505, charges=(charge("goblin-a-a1", micros=5), charge("goblin-ghost-a1", micros=500)))
    found = parts(bill, rented=[rent_of("a", 5)])
    adjust, alarm = settle_day(found["vastai/ghost"]).corrections
    assert (adjust.amount_usd_micros, adjust.accounts) == (500, ("total", "vastai", "vastai/ghost", "job/ghost"))
    assert "unknown to the ledger" in alarm.note
    assert settle_day(found["vastai"]).corrections == ()


@pytest.mark.parametrize(("billed", "alarms"), [(600_000, 0), (1_000_000, 0), (1_020_000, 0), (1_200_000, 1)])
def test_that_an_instance_cost_less_than_it_was_bounded_by_is_no_news(billed: int, alarms: int) -> None:
    bill = Bill(usd_micros=billed, charges=(charge("goblin-a-a1", micros=billed),))
    found = settle_day(parts(bill, rented=[rent_of("a", 1_000_000)])["vastai/a"])
    assert adjusted(found) == billed - 1_000_000
    assert [entry.kind for entry in found.corrections].count(EntryKind.ALERT) == alarms


def test_nothing_is_final_while_a_rent_of_that_day_is_not_settled() -> None:
    bill = Bill(usd_micros=700, charges=(charge("goblin-a-a1", micros=700),))
    running = rent_lease("a", 900, settled=100)
    found = parts(bill, rented=[rent_of("a", 100)], allocations=[running])
    assert settle_day(found["vastai/a"]).corrections == ()
    beyond = Bill(usd_micros=950, charges=(charge("goblin-a-a1", micros=950),))
    found = parts(beyond, rented=[rent_of("a", 100)], allocations=[running])
    assert adjusted(settle_day(found["vastai/a"])) == 50


def test_a_rent_of_the_day_before_may_run_into_this_one() -> None:
    bill = Bill(usd_micros=300, charges=(charge("goblin-a-a1", micros=300),))
    for expired in (False, True):
        yesterday = rent_lease("a", 900, expired=expired)
        found = {
            one.account: one
            for one in settlement.split(
                "vastai", "2026-11-25", bill, balances={}, allocations=[], earlier=[yesterday], rented=[], final=True
            )
        }
        assert settle_day(found["vastai/a"]) == settlement.Settlement()


def test_a_day_in_the_same_state_for_the_second_time_is_corrected_again() -> None:
    one, other = (settle_day(day(100, 150, entries=entries)).corrections[0] for entries in (1, 3))
    assert one.entry_id != other.entry_id


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 1000), st.booleans()), max_size=6),
    st.lists(st.tuples(st.sampled_from(["a", "b", "d"]), st.integers(0, 1000)), max_size=4, unique_by=lambda e: e[0]),
    st.lists(st.tuples(st.sampled_from(["a", "c", "e"]), st.integers(0, 900)), max_size=3, unique_by=lambda e: e[0]),
    st.integers(0, 500), st.integers(0, 500),
)  # fmt: skip
def test_whatever_a_final_bill_tells_all_of_it_is_reached(
    charges: list[tuple[str, int, bool]], settled: list[tuple[str, int]], gone: list[tuple[str, int]],
    more: int, others: int,
) -> None:  # fmt: skip
    told = tuple(
        charge(f"goblin-{job}-a1" if labelled else "", instance=f"i{n}", micros=micros)
        for n, (job, micros, labelled) in enumerate(charges)
    )
    bill = Bill(usd_micros=sum(one.usd_micros for one in told) + more, charges=told)
    rented = [rent_of(job, micros) for job, micros in settled]
    allocations = [rent_lease(job, micros, expired=True) for job, micros in gone]
    found = [settle_day(part) for part in parts(bill, rented=rented, allocations=allocations, others=others).values()]
    booked = sum(micros for _, micros in settled) + others
    assert booked + sum(adjusted(one) + sum(spent for _, spent in one.found) for one in found) == bill.usd_micros
    assert sorted(allocation.allocation_id for one in found for allocation, _ in one.found) == sorted(
        x.allocation_id for x in allocations
    )
