"""`goblin costs`: spending of a month, split by provider, model, job or key, and its forecast to the end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from goblin.billing.domain.accounts import Allocation
from goblin.billing.domain.ledger import Balance, month_of
from goblin.billing.policy.cost_report import GroupBy
from goblin.billing.policy.cost_report import costs as split
from goblin.cli import terminal
from goblin.cli.deployment import reach, run
from goblin.cli.main import DATA, fail
from goblin.core.money import show_usd


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--month", metavar="YYYY-MM", help="Month to show, in UTC. Default: the current month.")
@click.option("--by", type=click.Choice([b.value for b in GroupBy]), default=GroupBy.PROVIDER.value, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@DATA
def costs(month: str | None, by: str, as_json: bool, data: Path | None) -> None:
    """Show the spending of a month, with a forecast to its end."""
    now = datetime.now(UTC)
    if month is not None and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
        fail(f"{month!r} is not a month. Write it as {month_of(now)}.")
    reach(data)
    window = month or month_of(now)

    async def work() -> tuple[Sequence[Balance], Sequence[Allocation]]:
        from goblin.wiring import ledger as ledger_wiring

        ledger = ledger_wiring.ledger()
        return await ledger.balances(window), await ledger.allocations()

    balances, allocations = run(work())
    found = split(balances, month=window, by=GroupBy(by), now=now, allocations=allocations)
    if as_json:
        terminal.echo_json(msgspec.json.encode(found).decode())
        return
    for line in found.lines:
        runs = (
            f", up to {show_usd(line.running_usd_micros)} reserved for running instances"
            if line.running_usd_micros
            else ""
        )
        terminal.echo(f"{line.name:<32} {show_usd(line.spent_usd_micros):>16}  {line.entries} entries{runs}")
    if found.unattributed_usd_micros:
        terminal.echo(f"{'(without a ' + found.by + ')':<32} {show_usd(found.unattributed_usd_micros):>16}")
    terminal.echo(f"{'total in ' + window:<32} {show_usd(found.total_usd_micros):>16}")
    if found.running_usd_micros:
        terminal.echo(f"{'reserved for running instances':<32} {show_usd(found.running_usd_micros):>16}")
    if found.forecast_usd_micros != found.total_usd_micros:
        terminal.echo(f"{'forecast to the end of month':<32} {show_usd(found.forecast_usd_micros):>16}")
