from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.billing.domain.accounts import Account, BudgetUsage, Limit, Period, window_of
from goblin.billing.domain.ledger import BudgetAction, EntryKind, Freeze, LedgerEntry, is_over, lineage, month_of
from goblin.billing.policy.budgets import IgnoredNotification, NoAction, react, react_to_billing, why_frozen
from goblin.core.endpoints import Endpoint, Price
from goblin.core.events import BudgetExceeded, CloudBudget
from goblin.core.money import show_usd, to_micros

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def told(**changes: Any) -> BudgetExceeded:
    """An event, of which account and window are believed."""
    fields: dict[str, Any] = {"account": "vastai", "window": "2026-11", "spent_usd_micros": 0, "limit_usd_micros": 0}
    return BudgetExceeded(**{**fields, **changes})


def account(
    spent: int, *, name: str = "vastai", period: Period = Period.MONTH, limit: int = 10_000_000,
    action: BudgetAction = BudgetAction.FREEZE, told_percent: int = 0, window: str | None = None, allocated: int = 0,
) -> Account:  # fmt: skip
    """An account as the ledger has it."""
    usage = BudgetUsage(
        window=window or window_of(period, NOW), spent_usd_micros=spent, told_percent=told_percent,
        allocated_usd_micros=allocated,
    )  # fmt: skip
    limits = (Limit(period=period, limit_usd_micros=limit, action=action),)
    return Account(name=name, limits=limits, usages={period: usage})


ALL = 10_000_000


@pytest.mark.parametrize(
    ("event", "has", "kind", "entry_id"),
    [
        (told(), account(ALL), EntryKind.FREEZE, "budget:vastai:2026-11:1"),
        (told(account="total"), account(ALL, name="total"), EntryKind.FREEZE, "budget:total:2026-11:1"),
        (told(account="vastai/job-7"), account(ALL), EntryKind.FREEZE, "budget:vastai~job-7:2026-11:1"),
        (told(window="2026-11-25"), account(ALL, period=Period.DAY), EntryKind.FREEZE, "budget:vastai:2026-11-25:1"),
        (told(window="lifetime"), account(ALL, period=Period.LIFETIME), EntryKind.FREEZE, "budget:vastai:lifetime:1"),
        (told(), account(9_500_000, told_percent=100), EntryKind.FREEZE, "budget:vastai:2026-11:1"),
        (told(), account(9_500_000), EntryKind.ALERT, "budget:vastai:2026-11:0.95"),
        (told(), account(8_000_000), EntryKind.ALERT, "budget:vastai:2026-11:0.8"),
        (told(), account(ALL, action=BudgetAction.ALERT), EntryKind.ALERT, "budget:vastai:2026-11:1"),
        # Announced when the limit was lower.
        (told(), account(6_000_000, told_percent=100), EntryKind.ALERT, "budget:vastai:2026-11:0.5"),
    ],
)
def test_what_a_crossing_leads_to(event: BudgetExceeded, has: Account, kind: EntryKind, entry_id: str) -> None:
    entry = react(event, has, now=NOW)
    assert isinstance(entry, LedgerEntry)
    assert (entry.kind, entry.account, entry.amount_usd_micros) == (kind, event.account, 0)
    assert entry.entry_id == entry_id


@pytest.mark.parametrize(
    "has",
    [
        Account(name="total"),
        account(0), account(4_999_999), account(4_999_999, allocated=5_000_001),
        account(ALL, window="2026-10"),  # Not spent from since the month began.
        account(ALL, period=Period.DAY),  # Another window than the event names.
    ],
)  # fmt: skip
@given(
    st.integers(0, 2**53),
    st.integers(0, 2**53),
    st.integers(0, 2**53),
    st.floats(0.01, 9),
    st.sampled_from(BudgetAction),
)
def test_an_invented_event_freezes_nothing(
    has: Account, spent: int, limit: int, reserved: int, threshold: float, action: BudgetAction
) -> None:
    event = told(
        account="total", spent_usd_micros=spent, limit_usd_micros=limit, reserved_usd_micros=reserved,
        threshold=threshold, action=action,
    )  # fmt: skip
    assert isinstance(react(event, has, now=NOW), NoAction)


@pytest.mark.parametrize("action", list(BudgetAction))
def test_the_action_is_the_budgets_own(action: BudgetAction) -> None:
    for said in BudgetAction:
        entry = react(told(action=said), account(ALL, action=action), now=NOW)
        assert isinstance(entry, LedgerEntry)
        assert entry.reaction is (None if action is BudgetAction.ALERT else action)


def test_of_two_limits_of_one_window_the_one_that_is_used_up_decides() -> None:
    usages = {Period.MONTH: BudgetUsage(window="2026-11", spent_usd_micros=10)}
    month = [(10, BudgetAction.STOP_JOBS), (1000, BudgetAction.FREEZE), (10, BudgetAction.FREEZE)]
    limits = tuple(Limit(period=Period.MONTH, limit_usd_micros=most, action=action) for most, action in month)
    entry = react(told(), Account(name="vastai", limits=limits, usages=usages), now=NOW)
    assert isinstance(entry, LedgerEntry)
    assert entry.reaction is BudgetAction.STOP_JOBS


@pytest.mark.parametrize("window", ["2026-10", "2026-11-24"])
def test_a_window_that_is_over_has_no_budget_left_to_protect(window: str) -> None:
    period = Period.DAY if len(window) > 7 else Period.MONTH
    assert isinstance(react(told(window=window), account(ALL, period=period, window=window), now=NOW), NoAction)


@pytest.mark.parametrize(
    "event",
    [
        told(account="../x"), told(account=""), told(account="Total"), told(window="soon"), told(window="2026"),
        told(action="explode"),
    ],
)  # fmt: skip
def test_an_event_that_makes_no_sense_is_for_a_person(event: BudgetExceeded) -> None:
    assert isinstance(react(event, account(ALL), now=NOW), IgnoredNotification)


def test_the_same_crossing_has_the_same_id_whatever_was_spent_since() -> None:
    later = react(told(), account(10_500_000), now=NOW.replace(hour=18))
    first = react(told(), account(ALL), now=NOW)
    assert isinstance(first, LedgerEntry)
    assert isinstance(later, LedgerEntry)
    assert later.entry_id == first.entry_id


def notice(**changes: Any) -> CloudBudget:
    fields: dict[str, Any] = {
        "budget_display_name": "all of it", "cost_amount": Decimal("100.01"), "budget_amount": Decimal(100),
        "cost_interval_start": datetime(2026, 11, 1, 8, tzinfo=UTC), "currency_code": "USD", **changes,
    }  # fmt: skip
    return CloudBudget(**fields)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (notice(alert_threshold_exceeded=1.0), EntryKind.FREEZE),
        (notice(alert_threshold_exceeded=1.5), EntryKind.FREEZE),
        (notice(alert_threshold_exceeded=0.9), EntryKind.ALERT),
        (notice(forecast_threshold_exceeded=1.0), EntryKind.ALERT),
        (notice(alert_threshold_exceeded=0.5, forecast_threshold_exceeded=1.0), EntryKind.ALERT),
        (notice(alert_threshold_exceeded=1.0, currency_code="EUR"), EntryKind.FREEZE),
    ],
)
def test_what_cloud_billing_leads_to(event: CloudBudget, kind: EntryKind) -> None:
    entry = react_to_billing(event, budget_id="b-1", now=NOW)
    assert isinstance(entry, LedgerEntry)
    assert (entry.kind, entry.account) == (kind, "total")


def test_a_threshold_below_the_limit_is_named() -> None:
    entry = react(told(), account(8_000_000), now=NOW)
    assert isinstance(entry, LedgerEntry)
    assert entry.note == "vastai spent $8.00 of $10.00 in 2026-11, past 80%"


@pytest.mark.parametrize(
    ("actions", "reaction"),
    [
        ([], BudgetAction.FREEZE),
        ([BudgetAction.ALERT], BudgetAction.FREEZE),
        ([BudgetAction.STOP_JOBS, BudgetAction.ALERT], BudgetAction.STOP_JOBS),
        ([BudgetAction.STOP_JOBS, BudgetAction.SCALE_TO_ZERO], BudgetAction.SCALE_TO_ZERO),
    ],
)
def test_what_follows_from_cloud_billing_is_what_the_total_budget_says(
    actions: list[BudgetAction], reaction: BudgetAction
) -> None:
    limits = [Limit(period=Period.MONTH, limit_usd_micros=1, action=action) for action in actions]
    entry = react_to_billing(notice(alert_threshold_exceeded=1.0), budget_id="b-1", limits=limits, now=NOW)
    assert isinstance(entry, LedgerEntry)
    assert entry.reaction is reaction
    half = react_to_billing(notice(alert_threshold_exceeded=0.5), budget_id="b-1", limits=limits, now=NOW)
    assert isinstance(half, LedgerEntry)
    assert half.reaction is None


def test_cloud_billing_is_keyed_on_budget_interval_and_threshold() -> None:
    def key(budget_id: str = "b-1", **changes: Any) -> str:
        entry = react_to_billing(notice(**{"alert_threshold_exceeded": 1.0, **changes}), budget_id=budget_id, now=NOW)
        assert isinstance(entry, LedgerEntry)
        return entry.entry_id

    december = datetime(2026, 12, 1, 8, tzinfo=UTC)
    assert key() == key(cost_amount=Decimal(120)) == "billing:b-1:2026-11-01T08:00:00Z:1"
    assert len({key(), key("b-2"), key(cost_interval_start=december), key(alert_threshold_exceeded=1.1)}) == 4
    forecast = key(alert_threshold_exceeded=None, forecast_threshold_exceeded=1.0)
    assert forecast != key()


def test_without_a_threshold_nothing_was_crossed_and_without_a_budget_nothing_is_known() -> None:
    assert isinstance(react_to_billing(notice(), budget_id="b-1", now=NOW), NoAction)
    for budget_id in ("", "b/1", "b\n"):
        crossed = notice(alert_threshold_exceeded=1.0)
        assert isinstance(react_to_billing(crossed, budget_id=budget_id, now=NOW), IgnoredNotification)


PAID = Price(input_usd_micros_per_mtok=1, output_usd_micros_per_mtok=0)
FREE = Price(input_usd_micros_per_mtok=0, output_usd_micros_per_mtok=0)


def freeze(account: str) -> Freeze:
    return Freeze(entry_id=f"f:{account}", account=account, reason=f"{account} is over", since=NOW)


@pytest.mark.parametrize(
    ("price", "frozen", "reason"),
    [
        (PAID, [], ""),
        (PAID, ["other"], ""),
        (PAID, ["openai"], "openai is over"),
        (PAID, ["mine"], "mine is over"),
        (PAID, ["total"], "total is over"),
        (PAID, ["total", "openai"], "total is over"),
        (None, ["total"], "total is over"),  # An unknown price is not zero.
        (FREE, ["total", "openai", "mine"], ""),
    ],
)
def test_a_freeze_concerns_what_costs_money(price: Price | None, frozen: list[str], reason: str) -> None:
    endpoint = Endpoint(name="mine", provider="openai", url="http://x", price=price)
    assert why_frozen(endpoint, [freeze(account) for account in frozen]) == reason


def entry(**changes: Any) -> LedgerEntry:
    fields: dict[str, Any] = {
        "entry_id": "e", "kind": EntryKind.SETTLE, "account": "vastai", "amount_usd_micros": 5, "at": NOW, **changes,
    }  # fmt: skip
    return LedgerEntry(**fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"entry_id": ""}, {"entry_id": "a/b"}, {"account": "a b"}, {"account": "/x"}, {"amount_usd_micros": -1},
        {"amount_usd_micros": 1.5}, {"amount_usd_micros": True}, {"kind": EntryKind.CREDIT, "amount_usd_micros": -1},
        {"kind": EntryKind.FREEZE}, {"kind": EntryKind.THAW, "amount_usd_micros": 0}, {"lifts": ("x",)},
    ],
)  # fmt: skip
def test_an_entry_that_is_no_fact_cannot_be_made(changes: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        entry(**changes)


def test_what_entries_add_to_spending() -> None:
    assert entry().spent_usd_micros == 5
    assert entry(kind=EntryKind.CREDIT).spent_usd_micros == -5
    assert entry(kind=EntryKind.ADJUST, amount_usd_micros=-3).spent_usd_micros == -3


def test_accounts_form_a_tree() -> None:
    assert lineage("total") == ("total",)
    assert lineage("vastai") == ("total", "vastai")
    assert lineage("vastai/job-7") == ("total", "vastai", "vastai/job-7")


def test_windows_are_in_utc() -> None:
    assert month_of(datetime.fromisoformat("2026-12-01T00:30:00+02:00")) == "2026-11"
    assert is_over("2026-10", NOW)
    assert is_over("2026-11-24", NOW)
    assert not any(is_over(window, NOW) for window in ("2026-11", "2026-11-25", "2026-12", "2027-01"))


@given(st.integers(-(10**15), 10**15))
def test_money_is_shown_exactly(micros: int) -> None:
    shown = show_usd(micros).replace("$", "").replace(",", "")
    assert Decimal(shown) * 1_000_000 == micros


def test_money_is_rounded_up() -> None:
    assert to_micros(Decimal("0.0000001")) == 1
    assert show_usd(12_500_000) == "$12.50"
    assert show_usd(-1) == "-$0.000001"
