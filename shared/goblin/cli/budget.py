"""`goblin budget`: set limits, show spending and freezes with their reasons, lift a freeze."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_FLOOR, Decimal, InvalidOperation
from pathlib import Path

import click
import msgspec

from goblin.billing import budgets as service
from goblin.billing.domain.accounts import Limit, Period, WhenUnreachable
from goblin.billing.domain.ledger import Balance, BudgetAction, Freeze, LedgerEntry, lineage, month_of
from goblin.cli import terminal
from goblin.cli.deployment import person, reach, run
from goblin.cli.main import DATA
from goblin.core.money import USD_MICROS, show_usd

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
ACTIONS_SHOWN = 20
DOLLARS_MAX = 10**9
APART = ("total", "key", "job", "model")
"""First parts of account names that are not providers."""
RENTED = ("local",)
"""Providers whose machines run jobs and answer no requests."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def budget() -> None:
    """Set and show spending limits, and lift freezes."""


@budget.command(name="set")
@click.argument("account")
@click.argument("dollars")
@click.option(
    "--per",
    type=click.Choice([p.value for p in Period]),
    default=Period.MONTH.value,
    show_default=True,
    help="Window of the limit, in UTC.",
)
@click.option(
    "--action", type=click.Choice([a.value for a in BudgetAction]), default=BudgetAction.ALERT.value, show_default=True,
    help="What else happens when the budget is used up. Spending that does not fit is refused in any case.",
)  # fmt: skip
@click.option(
    "--when-unreachable", type=click.Choice([u.value for u in WhenUnreachable]), default=WhenUnreachable.REFUSE.value,
    show_default=True,
    help="What may be spent while the ledger does not answer: nothing, or what was allocated to a process before, for "
    "a minute at most. Neither can overspend.",
)  # fmt: skip
@JSON
@DATA
def set_limit(
    account: str, dollars: str, per: str, action: str, when_unreachable: str, as_json: bool, data: Path | None
) -> None:
    """Limit spending under ACCOUNT to DOLLARS; `none` for DOLLARS removes the limit.

    ACCOUNT is `total`, a provider (`openai`), a key (`key/NAME`), a key at a provider (`openai/NAME`) or a job
    (`job/ID`). All limits apply together: a request that exceeds one of them is refused.
    """
    period = Period(per)
    chosen = None
    if dollars != "none":
        chosen = Limit(
            period=period, limit_usd_micros=_micros(dollars), action=BudgetAction(action),
            unreachable=WhenUnreachable(when_unreachable),
        )  # fmt: skip
    reach(data)

    async def work() -> tuple[bool, list[str], list[service.BudgetRow]]:
        from goblin.wiring import billing as billing_wiring
        from goblin.wiring import endpoints

        deps = billing_wiring.budgets()
        await service.limit(account, period, chosen, deps)
        known = account.split("/")[0] in {*APART, *endpoints.provider_names(), *RENTED}
        frozen = {freeze.account for freeze in await deps.ledger.freezes()}
        rows = [row for row in await service.overview(deps) if (row.account, row.period) == (account, period)]
        # A freeze above the account holds for it too.
        return known, [name for name in lineage(account) if name in frozen], rows

    known, frozen, rows = run(work())
    if chosen is not None and not known:
        terminal.echo(f"goblin: Warning: nothing spends under {account} here. Check its spelling.", err=True)
    if as_json:
        said = {"account": account, "period": period, "limit": chosen, "frozen": frozen}
        terminal.echo_json(msgspec.json.encode(said).decode())
        return
    if chosen is not None:
        terminal.echo(f"{account}: {show_usd(chosen.limit_usd_micros)} per {period}, then {chosen.action}")
    elif not rows:
        terminal.echo(f"{account} has no limit per {period} now")
    for row in rows:
        if row.source != "set":
            terminal.echo(f"{account}: {show_usd(row.limit_usd_micros)} per {period} holds, from {row.source}")
    for name in frozen:
        # A freeze ends by a person's word only, whatever the limit is now.
        terminal.echo(f"still frozen: ./goblin budget thaw {name}")


def _micros(dollars: str) -> int:
    """Convert dollars to micro-dollars, rounded down: a limit is never higher than the amount given."""
    try:
        amount = Decimal(dollars.removeprefix("$"))
        if amount.is_finite() and 0 <= amount < DOLLARS_MAX:
            return int((amount * USD_MICROS).to_integral_value(ROUND_FLOOR))
    except InvalidOperation:
        pass
    raise click.BadParameter(
        f"{dollars!r} is not an amount of dollars from 0 to 10^9. Write it as 20 or 0.50", param_hint="DOLLARS"
    )


@budget.command()
@click.option("--month", metavar="YYYY-MM", help="Month to show, in UTC. Default: the current month.")
@JSON
@DATA
def show(month: str | None, as_json: bool, data: Path | None) -> None:
    """Show budgets, the spending of a month, freezes, and the last budget actions."""
    reach(data)
    window = month or month_of(datetime.now(UTC))

    async def work() -> _Shown:
        from goblin.wiring import billing as billing_wiring

        deps = billing_wiring.budgets()
        ledger = deps.ledger
        return _Shown(
            window=window,
            budgets=await service.overview(deps),
            balances=await ledger.balances(window),
            freezes=await ledger.freezes(),
            actions=await ledger.actions(limit=ACTIONS_SHOWN),
        )

    said = run(work())
    if as_json:
        terminal.echo_json(msgspec.json.encode(said).decode())
    else:
        terminal.echo("\n".join(_lines(said)))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    window: str
    budgets: Sequence[service.BudgetRow]
    balances: Sequence[Balance]
    freezes: Sequence[Freeze]
    actions: Sequence[LedgerEntry]


def _lines(said: _Shown) -> Iterator[str]:
    if said.budgets:
        yield _row("budget", "spent", "reserved", "left", "of", "")
    else:
        yield "no budget is set; set one with: goblin budget set total 20"
    for one in said.budgets:
        amounts = (one.spent_usd_micros, one.reserved_usd_micros, one.left_usd_micros, one.limit_usd_micros)
        yield _row(one.account, *map(show_usd, amounts), _rest(one))
    yield f"spent in {said.window}" + ("" if said.balances else ": nothing")
    for balance in said.balances:
        yield _row(f"  {balance.account}", show_usd(balance.spent_usd_micros), f"{balance.entries} entries", "", "", "")
    for freeze in said.freezes:
        yield f"FROZEN {freeze.account} since {freeze.since:%Y-%m-%d %H:%M} UTC: {freeze.reason}"
    if not said.freezes:
        yield "nothing is frozen"
    for action in said.actions:
        yield f"  {action.at:%Y-%m-%d %H:%M} {action.kind:<6} {action.account}: {action.note}"


def _rest(one: service.BudgetRow) -> str:
    said = f"per {one.period}, then {one.action}"
    if one.source == "set" and not one.beside:
        return said
    return f"{said}; {one.source}" + (f", beside {one.beside}" if one.beside else "")


def _row(name: str, *cells: str) -> str:
    *amounts, rest = cells
    return f"{name:<24}{''.join(f'{amount:>14}' for amount in amounts)}  {rest}".rstrip()


@budget.command()
@click.argument("account")
@JSON
@DATA
def thaw(account: str, as_json: bool, data: Path | None) -> None:
    """Lift the freeze of ACCOUNT, which is `total` or a provider, so that money can be spent again."""
    reach(data)

    async def work() -> list[Freeze]:
        from goblin.wiring import billing as billing_wiring

        return await service.thaw(account, actor=person(), wish_id=uuid.uuid4().hex, deps=billing_wiring.budgets())

    lifted = run(work())
    if as_json:
        terminal.echo_json(msgspec.json.encode({"account": account, "lifted": lifted}).decode())
        return
    terminal.echo(f"{account} is thawed. It was frozen because:")
    for freeze in lifted:
        terminal.echo(f"  {terminal.plain(freeze.reason)}")
