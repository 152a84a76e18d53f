"""Which prices are old."""

from __future__ import annotations

from datetime import UTC, date, datetime

from goblin.billing.policy import prices


def test_prices_grow_old() -> None:
    now = datetime(2026, 11, 25, tzinfo=UTC)
    assert [prices.is_stale(on, now) for on in (None, date(2026, 8, 27), date(2026, 8, 26))] == [False, False, True]
