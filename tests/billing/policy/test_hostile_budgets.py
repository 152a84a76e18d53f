"""Whatever a notification of a budget says, there is a decision: an exception would be a delivery that never ends."""

from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from goblin.billing.domain.accounts import Account, Limit, Period
from goblin.billing.policy import budgets
from goblin.core import events
from goblin.core.errors import MalformedEvent

HELD = Account(name="total", limits=(Limit(period=Period.MONTH, limit_usd_micros=1),))
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
MICROS = st.integers(0, 2**63 - 1)
WINDOWS = st.one_of(
    st.sampled_from(
        ["0000-00", "0001-01", "9999-12", "9999-12-31", "0001-01-01", "2026-13", "2026-02-30", "lifetime", "2026-11"]
    ),
    st.from_regex(r"[0-9]{4}(-[0-9]{2}){1,2}", fullmatch=True),
)
AMOUNTS = st.sampled_from(["NaN", "sNaN", "Infinity", "-Infinity", "-1", "0", "1e29", "-1e29", "1e-9999", 0, -5, 10.5])
INSTANTS = st.sampled_from(
    ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-11-01T00:00:00", "2026-11-01T08:00:00Z"]
)


@given(
    st.fixed_dictionaries(
        {"account": st.sampled_from(["total", "openai", "job/j", "x" * 300, ""]), "window": WINDOWS,
         "spent_usd_micros": MICROS, "limit_usd_micros": MICROS},
        optional={"reserved_usd_micros": MICROS, "threshold": st.floats(5e-324, 1e308), "action": st.text(max_size=9)},
    )
)  # fmt: skip
def test_a_threshold_event_of_any_numbers_is_decided(fields: dict[str, Any]) -> None:
    event = events.decode(events.BudgetExceeded, msgspec.json.encode(fields))
    assert budgets.react(event, HELD, now=NOW) is not None


@given(
    st.fixed_dictionaries(
        {"budgetDisplayName": st.text(max_size=9), "costAmount": AMOUNTS, "costIntervalStart": INSTANTS,
         "budgetAmount": AMOUNTS, "currencyCode": st.sampled_from(["USD", "EUR", ""])},
        optional={"alertThresholdExceeded": st.floats(-1.7e308, 1.7e308), "forecastThresholdExceeded": st.floats(0, 9)},
    )
)  # fmt: skip
def test_a_notification_of_cloud_billing_of_any_numbers_is_decided(fields: dict[str, Any]) -> None:
    try:
        notice = events.decode(events.CloudBudget, msgspec.json.encode(fields))
    except MalformedEvent:
        return
    assert budgets.react_to_billing(notice, budget_id="b-1", now=NOW) is not None
