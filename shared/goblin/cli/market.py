"""`goblin market`: show and control the GPU markets of `goblin up --fakes`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import httpx

from goblin.cli import terminal
from goblin.cli.deployment import reach
from goblin.cli.fakes import URL
from goblin.cli.main import DATA, fail

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
INSTANCE = click.argument("instance")
CALL_S = 10.0


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@JSON
@DATA
@click.pass_context
def market(context: click.Context, as_json: bool, data: Path | None) -> None:
    """Show the GPU markets of `goblin up --fakes`; outbid or kill their instances.

    INSTANCE is the id of a job, which means its newest instance, or the label of an instance.
    """
    if context.invoked_subcommand is None:
        seen = _look(data)
        if as_json:
            terminal.echo_json(json.dumps(seen))
            return

        terminal.write(*_shown(seen))


@market.command()
@INSTANCE
@click.option(
    "--for",
    "for_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long the other bid lasts. Default: for ever.",
)
@click.option("--in-full", is_flag=True, help="Outbid at the full on-demand price, which no bid beats.")
@DATA
def outbid(instance: str, for_s: float | None, in_full: bool, data: Path | None) -> None:
    """Outbid an instance: another customer takes its machine and the instance stops."""
    _pull(data, "outbid", instance, for_s=for_s, in_full=in_full)


@market.command()
@INSTANCE
@DATA
def relent(instance: str, data: Path | None) -> None:
    """End an outbid: the other customer leaves the machine of INSTANCE."""
    _pull(data, "relent", instance)


@market.command()
@INSTANCE
@DATA
def kill(instance: str, data: Path | None) -> None:
    """Kill the program on an instance without a warning."""
    _pull(data, "kill", instance)


@market.command()
@INSTANCE
@DATA
def die(instance: str, data: Path | None) -> None:
    """Take the host of an instance offline."""
    _pull(data, "die", instance)


@market.command()
@click.argument("machine", type=int)
@click.option("--floor", type=click.FloatRange(min=0), metavar="DOLLARS", help="Least bid per GPU and hour.")
@click.option("--price", type=click.FloatRange(min=0), metavar="DOLLARS", help="On-demand price per GPU and hour.")
@DATA
def price(machine: int, floor: float | None, price: float | None, data: Path | None) -> None:
    """Change the prices of MACHINE from now on."""
    if floor is None and price is None:
        raise click.UsageError("Give --floor or --price, in dollars per GPU and hour")
    prices = {"floor": floor, "price": price}
    _ask(data, "POST", "/price", {"machine_id": machine} | {k: v for k, v in prices.items() if v is not None})
    terminal.echo(f"machine {machine} has a new price")


def _look(data: Path | None) -> dict[str, Any]:
    seen: dict[str, Any] = _ask(data, "GET", "")
    return seen


def _pull(data: Path | None, lever: str, instance: str, **said: Any) -> None:
    label = instance if instance.startswith("goblin-") else _newest(_look(data), instance)
    _ask(data, "POST", f"/{lever}", {"label": label, **said})
    terminal.echo(f"{lever}: {label}")


def _newest(seen: Mapping[str, Any], job_id: str) -> str:
    """Return the label of a job's newest instance; end the command when it has none."""
    pattern = re.compile(rf"(goblin-{re.escape(job_id)}-a(\d+))(@.*)?")
    found = [match for label in _labels(seen) if (match := pattern.fullmatch(label))]
    if not found:
        fail(f"Job {job_id} has no instance. List the instances with: goblin market")
    return max(found, key=lambda match: int(match[2]))[1]


def _labels(seen: Mapping[str, Any]) -> Iterator[str]:
    for instance in seen["vastai"]["instances"]:
        yield instance["label"] or ""
    for pod in seen["runpod"]["pods"]:
        yield pod["name"]


def _ask(data: Path | None, method: str, path: str, said: Any = None) -> Any:
    reach(data)
    if not os.environ.get(URL):
        fail("No market is running. Start one with: goblin up --fakes")
    url = f"{os.environ[URL]}/market{path}"
    try:
        answer = httpx.request(method, url, json=said, timeout=CALL_S, trust_env=False)
    except httpx.HTTPError as error:
        fail(f"The market at {url} does not answer: {error or type(error).__name__}")
    if not answer.is_success:
        fail(f"The market refused: {answer.text[:300]}")
    return answer.json()


def _shown(seen: Mapping[str, Any]) -> Iterator[Any]:
    vast, runpod = seen["vastai"], seen["runpod"]
    machines = [
        (
            str(one["id"]), f"{one['gpus']} x {one['gpu']}", one["geolocation"], f"${one['usd_per_gpu_hour']:.3f}",
            f"${one['floor_usd_per_gpu_hour']:.3f}", str(one["free_on_demand"]), "" if one["up"] else "down",
        )
        for one in vast["machines"]
    ]  # fmt: skip
    yield _table(("machine", "GPUs", "where", "on demand", "least bid", "free", ""), machines)
    instances = [
        (
            one["label"], "vastai", str(one["machine_id"]), one["actual_status"] or "-",
            f"${one['usd_per_hour']:.3f}/h", "on demand" if one["bid_usd"] is None else "spot", f"${one['usd']:.6f}",
        )
        for one in vast["instances"]
    ]  # fmt: skip
    instances += [
        (pod["name"], "runpod", pod["gpu_id"], pod["status"], f"${pod['usd_micros_per_hour'] / 1e6:.3f}/h", "", "")
        for pod in runpod["pods"]
    ]
    yield ""
    if instances:
        yield _table(("instance", "at", "on", "is", "price", "how", "billed"), instances)
    else:
        yield "nothing is rented"
    billed = sum(bill["usd"] for bill in vast["bills"])
    yield f"\nVast.ai has billed ${billed:.6f} in all; the RunPod balance is ${runpod['balance_usd']:.6f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*map(terminal.marked, row))
    return table
