"""What tokens cost: those of a provider's cache have prices of their own."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.endpoints import Price

PLAIN: dict[str, Any] = {"input_usd_micros_per_mtok": 1_000_000, "output_usd_micros_per_mtok": 5_000_000}
CACHED = Price(
    **PLAIN,
    cache_read_usd_micros_per_mtok=100_000,
    cache_write_usd_micros_per_mtok=1_250_000,
    cache_write_1h_usd_micros_per_mtok=2_000_000,
    server_tools={"web_search": 10_000},
)


@pytest.mark.parametrize(
    ("price", "more", "cost"),
    [
        (CACHED, {}, 1000 + 500),
        (CACHED, {"cache_read_tokens": 800}, 200 + 80 + 500),
        (CACHED, {"cache_write_tokens": 800}, 200 + 1000 + 500),
        (CACHED, {"cache_write_tokens": 800, "cache_write_1h_tokens": 800}, 200 + 1600 + 500),
        (CACHED, {"cache_read_tokens": 500, "cache_write_tokens": 400, "cache_write_1h_tokens": 200}, 1300),
        (CACHED, {"uses": {"web_search": 2, "web_fetch": 9}}, 1000 + 500 + 20_000),
        (Price(**PLAIN), {"cache_read_tokens": 800}, 1000 + 500),
        (Price(**PLAIN), {"cache_write_tokens": 800}, 200 + 1600 + 500),
    ],
)
def test_input_of_the_cache_has_its_own_price(price: Price, more: dict[str, Any], cost: int) -> None:
    assert price.cost_usd_micros(input_tokens=1000, output_tokens=100, **more) == cost


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from([CACHED, Price(**PLAIN)]))
def test_no_input_costs_more_than_the_dearest(plain: int, read: int, written: int, price: Price) -> None:
    total = plain + read + written
    for longer in (0, written):
        cost = price.cost_usd_micros(
            input_tokens=total,
            output_tokens=0,
            cache_read_tokens=read,
            cache_write_tokens=written,
            cache_write_1h_tokens=longer,
        )
        assert cost * 1_000_000 <= total * price.dearest_input + 1_000_000
