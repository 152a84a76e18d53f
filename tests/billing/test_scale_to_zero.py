"""Cloud Run services turned off by freezes and on by thaws, whatever comes between the writes."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from goblin.billing import budgets, settlement
from goblin.billing import scale_to_zero as scale_to_zero
from goblin.billing.domain.accounts import Limit, Period
from goblin.billing.domain.ledger import BudgetAction, EntryKind
from goblin.billing.domain.run_service import ZERO, RunService, ServiceScaling
from goblin.core.endpoints import Endpoint
from goblin.core.errors import Conflict, NotFound, ProviderUnavailable, StoreUnavailable
from goblin.core.events import Event
from tests.fakes.ledger import MemoryLedger
from tests.fakes.registry import FixedClock

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
NAME = "projects/p/locations/us-east4/services/llamacpp"
OTHER = "projects/p/locations/us-east4/services/other"
HAD = ServiceScaling(instances_min=1, instances_max=3)
GPU = Endpoint(name="cloudrun_llamacpp", provider="llamacpp", url="http://x")


@dataclass
class MemoryScaler:
    """The port in memory; what the real one does is in its own tests."""

    services: dict[str, RunService] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    die_before_writing: bool = False
    lose_answer: bool = False
    writes: int = 0
    versions: Any = field(default_factory=itertools.count)
    meanwhile: Any = None

    def set(self, name: str, **fields: Any) -> None:
        there = self.services.get(name, RunService(name=name, scaling=HAD))
        self.services[name] = replace(there, **fields, version=str(next(self.versions)))

    async def read(self, name: str) -> RunService:
        if name in self.down:
            raise ProviderUnavailable("Cloud Run is away")
        return self.services[name]

    async def write(self, service: RunService) -> None:
        if self.die_before_writing:
            self.die_before_writing = False
            raise KeyboardInterrupt
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        if service.version != self.services[service.name].version:
            raise Conflict("changed")
        self.writes += 1
        self.set(service.name, scaling=service.scaling, kept=service.kept, frozen_by=service.frozen_by)
        if self.lose_answer:
            self.lose_answer = False
            raise ProviderUnavailable("the answer was lost")


class House:
    def __init__(self) -> None:
        self.ledger, self.scaler, self.clock = MemoryLedger(), MemoryScaler(), FixedClock(NOW)
        for name in (NAME, OTHER):
            self.scaler.set(name)
        services = {NAME: [GPU], OTHER: [replace(GPU, name="other", provider="vllm")]}
        self.scaling = scale_to_zero.ScaleToZeroDeps(
            ledger=self.ledger, scaler=self.scaler, services=services, clock=self.clock
        )
        self.deps = budgets.BudgetDeps(ledger=self.ledger, clock=self.clock, scaling=self.scaling)

    async def cross(self, account: str = "total") -> None:
        self.ledger.used(account, spent=10, action=BudgetAction.SCALE_TO_ZERO, at=self.clock.now())
        body = {
            "account": account, "window": "2026-11", "spent_usd_micros": 10, "limit_usd_micros": 10,
            "action": "scale_to_zero",
        }  # fmt: skip
        await budgets.follow(Event(event_id="m", data=json.dumps(body).encode()), self.deps)

    async def thaw(self, account: str = "total") -> None:
        await budgets.thaw(account, actor="ann", wish_id=f"w{next(self.scaler.versions)}", deps=self.deps)

    def off(self) -> list[bool]:
        return [self.scaler.services[name].scaling.is_zero for name in (NAME, OTHER)]

    def notes(self) -> list[str]:
        return [entry.note for entry in self.ledger.written.values() if entry.kind is EntryKind.SCALE]


@pytest.fixture
def house() -> House:
    return House()


async def test_a_crossing_turns_services_off_and_a_thaw_turns_them_on_as_they_were(house: House) -> None:
    house.scaler.set(OTHER, scaling=ServiceScaling(instances_exactly=2))
    await house.cross()
    assert house.off() == [True, True]
    await house.cross()  # Delivered once more.
    assert house.scaler.writes == 2
    await house.thaw()
    assert [house.scaler.services[name].scaling for name in (NAME, OTHER)] == [HAD, ServiceScaling(instances_exactly=2)]
    assert house.notes() == [
        "Cloud Run service llamacpp is scaled to zero; it had 1 to 3 instances",
        "Cloud Run service other is scaled to zero; it had exactly 2 instances",
        "Cloud Run service llamacpp may run again, with 1 to 3 instances",
        "Cloud Run service other may run again, with exactly 2 instances",
    ]
    await house.cross()  # An old message does not undo the thaw.
    assert house.off() == [False, False]


async def test_a_providers_budget_concerns_its_own_services_and_the_last_freeze_counts(house: House) -> None:
    await house.cross("llamacpp")
    assert house.off() == [True, False]
    await house.cross("total")
    assert house.off() == [True, True]
    await house.thaw("total")
    assert house.off() == [True, False]
    await house.thaw("llamacpp")
    assert house.off() == [False, False]
    assert house.scaler.services[NAME].scaling == HAD


async def test_whoever_dies_half_way_is_finished_by_the_next_delivery(house: House) -> None:
    house.scaler.die_before_writing = True
    with pytest.raises(KeyboardInterrupt):
        await house.cross()
    assert house.off() == [False, False]
    await house.cross()
    assert house.off() == [True, True]
    assert len(house.notes()) == 2
    house.scaler.die_before_writing = True
    with pytest.raises(KeyboardInterrupt):
        await house.thaw()
    with pytest.raises(NotFound):
        await house.thaw()  # It is lifted; the hour's settlement finishes it.
    assert house.off() == [True, True]
    report = await settlement.settle(settled(house))
    assert report.scaled == [note for note in house.notes() if "may run again" in note]
    assert house.off() == [False, False]
    assert len(house.notes()) == 4


async def test_an_answer_that_was_lost_is_no_second_change(house: House) -> None:
    house.scaler.lose_answer = True
    with pytest.raises(ProviderUnavailable):
        await house.cross()
    await house.cross()
    assert house.scaler.writes == 2
    assert house.scaler.services[NAME].kept == HAD


async def test_one_that_is_away_holds_up_no_other_and_the_message_comes_again(house: House) -> None:
    house.scaler.down = {NAME}
    with pytest.raises(ProviderUnavailable):
        await house.cross()
    assert house.off() == [False, True]
    assert (await settlement.settle(settled(house))).unknown == {"cloudrun": "Cloud Run is away"}
    house.scaler.down.clear()
    await house.cross()
    assert house.off() == [True, True]


async def test_a_deployment_in_between_is_seen(house: House) -> None:
    async def deploy() -> None:
        house.scaler.set(NAME, scaling=ServiceScaling(instances_max=7))

    house.scaler.meanwhile = deploy
    await house.cross()
    assert (house.scaler.services[NAME].scaling, house.scaler.services[NAME].kept) == (
        ZERO,
        ServiceScaling(instances_max=7),
    )


async def test_a_freeze_that_comes_during_a_thaw_is_not_undone_by_it(house: House) -> None:
    async def another() -> None:
        await house.cross("llamacpp")

    await house.cross("total")
    house.scaler.meanwhile = another
    await house.thaw("total")
    assert house.off() == [True, False]


async def test_cloud_billings_word_turns_off_what_the_total_budget_says(house: House) -> None:
    limit = Limit(period=Period.MONTH, limit_usd_micros=10**9, action=BudgetAction.SCALE_TO_ZERO)
    await house.ledger.limit("total", Period.MONTH, limit)
    notice = {
        "budgetDisplayName": "b", "costAmount": 10.01, "costIntervalStart": "2026-11-01T08:00:00Z",
        "budgetAmount": 10.0, "currencyCode": "USD", "alertThresholdExceeded": 1.0,
    }  # fmt: skip
    attributes = {"billingAccountId": "01-23", "budgetId": "b-1"}
    await budgets.follow(Event(event_id="m", data=json.dumps(notice).encode(), attributes=attributes), house.deps)
    assert house.off() == [True, True]
    await house.thaw()
    assert house.off() == [False, False]


async def test_nothing_is_turned_on_while_nobody_knows_what_is_frozen(house: House) -> None:
    await house.cross()
    house.ledger.down = True
    with pytest.raises(StoreUnavailable):
        await scale_to_zero.bring_in_line(house.scaling)
    assert house.off() == [True, True]


def settled(house: House) -> settlement.SettlementDeps:
    async def nobody(threshold_event: Any) -> None:
        return

    return settlement.SettlementDeps(
        ledger=house.ledger, allocation_store=house.ledger, bills=[], announce=nobody, prices={}, clock=house.clock,
        scaling=house.scaling,
    )  # fmt: skip
