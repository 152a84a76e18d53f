"""`goblin costs`: what was spent, by what, and what it comes to by the end of the month."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from goblin.cli.main import DATA, fail
from goblin.cli.reach import reach, run
from goblin.domain.money import Balance, month_of, show_usd
from goblin.policy.costs import By
from goblin.policy.costs import costs as split


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--month", metavar="YYYY-MM", help="Default: this one, in UTC.")
@click.option("--by", type=click.Choice([b.value for b in By]), default=By.PROVIDER.value, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object.")
@DATA
def costs(month: str | None, by: str, as_json: bool, data: Path | None) -> None:
    """What was spent in a month, with a forecast to its end."""
    now = datetime.now(UTC)
    if month is not None and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
        fail(f"{month!r} is no month; write it as {month_of(now)}")
    reach(data)
    window = month or month_of(now)

    async def work() -> Sequence[Balance]:
        from goblin import model_wiring

        return await model_wiring.budgets().ledger.balances(window)

    found = split(run(work()), month=window, by=By(by), now=now)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for line in found.lines:
        click.echo(f"{line.name:<32} {show_usd(line.spent_usd_micros):>16}  {line.entries} entries")
    if found.unattributed_usd_micros:
        click.echo(f"{'(of no ' + found.by + ')':<32} {show_usd(found.unattributed_usd_micros):>16}")
    click.echo(f"{'total in ' + window:<32} {show_usd(found.total_usd_micros):>16}")
    if found.forecast_usd_micros != found.total_usd_micros:
        click.echo(f"{'forecast to the end of it':<32} {show_usd(found.forecast_usd_micros):>16}")
