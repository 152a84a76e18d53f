"""Every provider's bill, read over its own wire: the same charges come out of each, to the millionth."""

from __future__ import annotations

import importlib
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest

from goblin.adapters import bills
from goblin.adapters.bills import flyio
from goblin.errors import ProviderUnavailable
from goblin.money_ports import BillSource
from tests.fakes.bills import Charges

DAY = "2026-11-25"
AT = datetime(2026, 11, 25, 23, 59, 59, tzinfo=UTC)
NAMES = ["openai", "anthropic", "runpod", "vastai"]


def connect(name: str, transport: httpx.AsyncBaseTransport, key: str = "admin-key") -> BillSource:
    module: Any = importlib.import_module(f"{bills.__name__}.{name}")
    source: BillSource = module.connect(key, httpx.AsyncClient(transport=transport), url="http://bill")
    return source


@pytest.mark.parametrize("name", NAMES)
async def test_a_day_is_the_sum_of_its_charges_and_of_no_other_day(name: str) -> None:
    charges = Charges()
    for micros in (1, 20_000_001, 333_333, 7, 1_000_000):
        charges.charge(name, AT, micros)
    charges.charge(name, AT.replace(day=26, hour=0, minute=0, second=0), 5_000_000)
    source = connect(name, charges.transport)
    assert source.provider == name
    assert await source.billed_usd_micros(DAY) == 21_333_342
    assert await source.billed_usd_micros("2026-11-24") == 0


@pytest.mark.parametrize("name", NAMES)
async def test_a_bill_that_cannot_be_read_is_never_zero(name: str) -> None:
    charges = Charges(down={name})
    with pytest.raises(ProviderUnavailable):
        await connect(name, charges.transport).billed_usd_micros(DAY)
    with pytest.raises(ProviderUnavailable) as refused:
        await connect(name, Charges().transport, key="secret").billed_usd_micros(DAY)
    assert "secret" not in refused.value.message
    for text in ("", "<html>", "[]", "{}", '{"success": false}', '{"data": [{}]}', '{"records": [{"startTime": 5}]}'):
        strange = httpx.MockTransport(lambda _, text=text: httpx.Response(200, text=text))
        with pytest.raises(ProviderUnavailable):
            await connect(name, strange).billed_usd_micros(DAY)


async def test_flys_machines_cost_while_they_are_started() -> None:
    def ms(hour: int) -> int:
        return int(datetime(2026, 11, 25, hour, tzinfo=UTC).timestamp() * 1000)

    rows = [
        {"id": "always", "state": "started", "created_at": "2026-11-01T00:00:00Z", "events": []},
        {
            "id": "some", "state": "stopped", "created_at": "2026-11-01T00:00:00Z",
            "events": [
                {"type": "exit", "timestamp": ms(9)}, {"type": "start", "timestamp": ms(3)},
                {"type": "launch", "timestamp": ms(2)}, {"type": "stop", "timestamp": ms(0)},
            ],
        },
    ]  # fmt: skip
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=rows))
    rate = flyio.Rate(app="chat", started_usd_per_month=Decimal(30))
    source = flyio.connect(
        "t", httpx.AsyncClient(transport=transport), rate=rate, now=lambda: datetime(2026, 11, 25, 12, tzinfo=UTC)
    )
    # 12 hours and 6 hours of a dollar a day, and two disks for half a day.
    assert await source.billed_usd_micros(DAY) == 750_000 + 5_000
