"""`goblin budget`: setting limits, what was spent, what is frozen and why, and lifting a freeze."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import ROUND_FLOOR, Decimal, InvalidOperation
from pathlib import Path

import click
import msgspec

from goblin.cli.main import DATA
from goblin.cli.reach import person, reach, run
from goblin.domain.accounts import Limit, Period, Unreachable
from goblin.domain.money import USD_MICROS, Action, Balance, Entry, Freeze, month_of, show_usd
from goblin.services import budget as service

JSON = click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object.")
ACTIONS_SHOWN = 20
DOLLARS_MAX = 10**9


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def budget() -> None:
    """Spending and its limits: set, show, thaw."""


@budget.command(name="set")
@click.argument("account")
@click.argument("dollars")
@click.option(
    "--per", type=click.Choice([p.value for p in Period]), default=Period.MONTH.value, show_default=True, help="In UTC."
)
@click.option(
    "--action", type=click.Choice([a.value for a in Action]), default=Action.ALERT.value, show_default=True,
    help="What follows when it is used up. The budget itself always refuses what does not fit.",
)  # fmt: skip
@click.option(
    "--when-unreachable", type=click.Choice([u.value for u in Unreachable]), default=Unreachable.REFUSE.value,
    show_default=True,
    help="What may be spent while the ledger does not answer: nothing, or what an instance was lent before, for a "
    "minute at most. Neither can overspend.",
)  # fmt: skip
@JSON
@DATA
def set_limit(
    account: str, dollars: str, per: str, action: str, when_unreachable: str, as_json: bool, data: Path | None
) -> None:
    """Let at most DOLLARS be spent under ACCOUNT; `none` for DOLLARS takes the limit away.

    ACCOUNT is `total`, a provider (`openai`), a key (`key/NAME`), a key at a provider (`openai/NAME`) or a job
    (`job/ID`). Limits hold together: what one of them does not cover is refused.
    """
    period = Period(per)
    chosen = None
    if dollars != "none":
        chosen = Limit(
            period=period, limit_usd_micros=_micros(dollars), action=Action(action),
            unreachable=Unreachable(when_unreachable),
        )  # fmt: skip
    reach(data)

    async def work() -> None:
        from goblin import model_wiring

        await service.limit(account, period, chosen, model_wiring.budgets())

    run(work())
    if as_json:
        click.echo(msgspec.json.encode({"account": account, "period": period, "limit": chosen}).decode())
    elif chosen is None:
        click.echo(f"{account} has no limit per {period} any more")
    else:
        click.echo(f"{account}: {show_usd(chosen.limit_usd_micros)} per {period}, then {chosen.action}")


def _micros(dollars: str) -> int:
    """Rounded down: a limit is never more than was said."""
    try:
        amount = Decimal(dollars.removeprefix("$"))
        if amount.is_finite() and 0 <= amount < DOLLARS_MAX:
            return int((amount * USD_MICROS).to_integral_value(ROUND_FLOOR))
    except InvalidOperation:
        pass
    raise click.BadParameter(f"{dollars!r} is no amount of dollars", param_hint="DOLLARS")


@budget.command()
@click.option("--month", metavar="YYYY-MM", help="Default: this one, in UTC.")
@JSON
@DATA
def show(month: str | None, as_json: bool, data: Path | None) -> None:
    """What may be spent, what was spent in a month, what is frozen, and what was done about it."""
    reach(data)
    window = month or month_of(datetime.now(UTC))

    async def work() -> tuple[Sequence[service.Budget], Sequence[Balance], Sequence[Freeze], Sequence[Entry]]:
        from goblin import model_wiring

        deps = model_wiring.budgets()
        ledger = deps.ledger
        return (
            await service.overview(deps),
            await ledger.balances(window),
            await ledger.freezes(),
            await ledger.actions(limit=ACTIONS_SHOWN),
        )

    budgets, balances, freezes, actions = run(work())
    if as_json:
        said = {"window": window, "budgets": budgets, "balances": balances, "freezes": freezes, "actions": actions}
        click.echo(msgspec.json.encode(said).decode())
        return
    for one in budgets:
        click.echo(
            f"{one.account:<24} {show_usd(one.spent_usd_micros):>14} spent and {show_usd(one.reserved_usd_micros)} "
            f"reserved of {show_usd(one.limit_usd_micros)} per {one.period}"
        )
    click.echo(f"spent in {window}" + ("" if balances else ": nothing"))
    for balance in balances:
        click.echo(f"  {balance.account:<24} {show_usd(balance.spent_usd_micros):>16}  {balance.entries} entries")
    for freeze in freezes:
        click.echo(f"FROZEN {freeze.account} since {freeze.since:%Y-%m-%d %H:%M} UTC: {freeze.reason}")
    if not freezes:
        click.echo("nothing is frozen")
    for action in actions:
        click.echo(f"  {action.at:%Y-%m-%d %H:%M} {action.kind:<6} {action.account}: {action.note}")


@budget.command()
@click.argument("account")
@JSON
@DATA
def thaw(account: str, as_json: bool, data: Path | None) -> None:
    """Let money be spent under ACCOUNT again: `total`, or a provider's name."""
    reach(data)

    async def work() -> list[Freeze]:
        from goblin import model_wiring

        return await service.thaw(account, actor=person(), wish_id=uuid.uuid4().hex, deps=model_wiring.budgets())

    lifted = run(work())
    if as_json:
        click.echo(msgspec.json.encode({"account": account, "lifted": lifted}).decode())
        return
    click.echo(f"{account} is thawed. It was frozen because:")
    for freeze in lifted:
        click.echo(f"  {freeze.reason}")
