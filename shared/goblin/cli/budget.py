"""`goblin budget`: what was spent, what is frozen and why, and lifting a freeze."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from goblin.cli.main import DATA
from goblin.cli.reach import person, reach, run
from goblin.domain.money import Balance, Entry, Freeze, month_of, show_usd
from goblin.services import budget as service

JSON = click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object.")
ACTIONS_SHOWN = 20


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def budget() -> None:
    """Spending and its limits: show, thaw."""


@budget.command()
@click.option("--month", metavar="YYYY-MM", help="Default: this one, in UTC.")
@JSON
@DATA
def show(month: str | None, as_json: bool, data: Path | None) -> None:
    """What was spent in a month, what is frozen, and what was done about it."""
    reach(data)
    window = month or month_of(datetime.now(UTC))

    async def work() -> tuple[Sequence[Balance], Sequence[Freeze], Sequence[Entry]]:
        from goblin import model_wiring

        ledger = model_wiring.budgets().ledger
        return await ledger.balances(window), await ledger.freezes(), await ledger.actions(limit=ACTIONS_SHOWN)

    balances, freezes, actions = run(work())
    if as_json:
        said = {"window": window, "balances": balances, "freezes": freezes, "actions": actions}
        click.echo(msgspec.json.encode(said).decode())
        return
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
