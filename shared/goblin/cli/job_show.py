"""Jobs as tables: the list, one job, and the reasons of its placement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from goblin.cli import terminal
from goblin.cli.terminal import marked, span, usd

if TYPE_CHECKING:
    from rich.table import Table

Told = Mapping[str, Any]
"""A job, or a part of one, as `GET /jobs` returns it."""

ENDED = ("succeeded", "failed", "cancelled", "refused")
CANDIDATES_SHOWN = 15
WIDE, NARROW = 110, 70
"""Terminal widths in columns: from `WIDE` on the list shows more columns, below `NARROW` fewer."""


def listed(found: Sequence[Told]) -> Table | str:
    """Build the list of jobs; narrow terminals get fewer columns."""
    from rich.table import Table

    if not found:
        return "no jobs yet; see: goblin jobs submit --help"
    console = terminal.console()
    room = console.width if console.is_terminal else WIDE
    columns = {
        "job": lambda job: job["job_id"],
        "kind": (lambda job: job["kind"]) if room >= NARROW else None,
        "state": lambda job: terminal.state(job["state"]),
        "done": done,
        "spent": lambda job: usd(job["spent_usd_micros"]),
        "attempt": (lambda job: str(job["attempt"])) if room >= NARROW else None,
        "requested": (lambda job: terminal.when(job["requested_at"])) if room >= WIDE else None,
        "reason": (lambda job: marked(why(job))) if room >= NARROW else None,
    }
    shown = {title: cell for title, cell in columns.items() if cell is not None}
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in shown:
        table.add_column(title, no_wrap=title not in ("job", "reason"), overflow="fold")
    for job in found:
        table.add_row(*(cell(job) for cell in shown.values()))
    return table


def job(told: Told) -> Iterator[Any]:
    """Yield the parts of one job's page: facts, placement with its candidates, history."""
    yield _pairs(list(_facts(told)))
    weighed = told["placement"] or told["no_placement"]
    if weighed:
        yield ""
        yield from _why(weighed)
    yield ""
    yield _pairs([(terminal.when(one["at"]), _happened(one)) for one in told["history"]])


def _pairs(rows: Sequence[tuple[str, str]]) -> Table:
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _happened(line: Told) -> str:
    return f"{terminal.state(line['state'])}: {marked(line['reason'])}"


def _facts(told: Told) -> Iterator[tuple[str, str]]:
    saved, needs = told["checkpoint"], told["needs"]
    yield "job", f"{told['job_id']} ({told['kind']}{', ' + marked(told['task']) if told['task'] else ''})"
    if told["asked_by"]:
        yield "asked by", marked(told["asked_by"]) + (f", tenant {marked(told['tenant'])}" if told["tenant"] else "")
    elif told["tenant"]:
        yield "tenant", marked(told["tenant"])
    yield "state", f"{terminal.state(told['state'])}: {marked(told['reason'])}"
    yield "done", f"{done(told)}{pace(told)}"
    yield "attempt", _attempt(told)
    if told["stop"]:
        yield "asked to stop", f"{marked(told['stop']['reason'])}; instance ends {terminal.ahead(told['stop']['by'])}"
    if told["lies"]:
        yield "invalid reports", f"{told['lies']}: its hosts reported or uploaded something untrue"
    yield "money", money(told)
    if told["price_usd_micros_per_hour_max"] is not None:
        yield "price cap", f"{usd(told['price_usd_micros_per_hour_max'])}/h"
    if told["deadline"]:
        yield "deadline", f"{terminal.when(told['deadline'])}, {terminal.ahead(told['deadline'])}"
    if needs["gpu_types"] or needs["gpu_count"]:
        yield "needs", _needs(needs)
    yield "checkpoint", f"step {saved['step']} in {marked(saved['manifest_uri'])}" if saved else "none yet"
    for name in ("dataset", "output"):
        if told[f"{name}_uri"]:
            yield name, marked(told[f"{name}_uri"])


def _attempt(told: Told) -> str:
    if not told["attempt"]:
        return "none yet"
    where = told["placement"]
    said = f"{told['attempt']} on {told['provider'] or (where and where['provider'])}"
    if where and where["gpu"]:
        said += f", {where['gpu_count']} x {where['gpu']}{' on spot' if where['spot'] else ''}"
    if where and where["place"]:
        said += f" in {marked(where['place'])}"
    return said + (f"; {_times(told['preemptions'])} preempted" if told["preemptions"] else "")


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _needs(needs: Told) -> str:
    said = f"{needs['gpu_count'] or 1} x {' or '.join(needs['gpu_types']) or 'any GPU'}"
    if needs["gpu_memory_mib_min"]:
        said += f" of at least {needs['gpu_memory_mib_min']:,} MiB"
    return said


def done(told: Told) -> str:
    """Format the progress: `120 of 400 (30 %), 3 failed`, or `120` without a known total."""
    step, total = told["step"], told["total"]
    if total is None:
        return str(step) if step else "-"
    failed = (told["items"] or {}).get("failed")
    said = f"{step} of {total}" + (f" ({100 * step // total} %)" if 0 < step < total else "")
    return said + (f", {failed} failed" if failed else "")


def pace(told: Told) -> str:
    """Format speed, loss and time left, each where it is known; speed and time only while the job runs."""
    said, progress, left_s = [], told["progress"] or {}, told["forecast"]["left_s"]
    if told["state"] == "running" and progress.get("steps_per_s"):
        said.append(speed(progress["steps_per_s"]))
    if progress.get("loss") is not None:
        said.append(f"loss {progress['loss']:.4g}")
    if told["state"] == "running" and left_s is not None:
        said.append(f"{span(left_s)} left")
    return "".join(f", {one}" for one in said)


def why(told: Told) -> str:
    """Return the reason of the job's state; for a queued job, why no offer was chosen."""
    if told["state"] == "queued" and told["no_placement"]:
        return str(told["no_placement"]["reason"])
    return str(told["reason"])


def speed(steps_per_s: float) -> str:
    """Format a speed per second, minute or hour: the first unit in which it is at least 1."""
    for seconds, unit in ((1, "s"), (60, "min")):
        if steps_per_s * seconds >= 1:
            return f"{steps_per_s * seconds:.3g}/{unit}"
    return f"{steps_per_s * 3600:.3g}/h"


def money(told: Told) -> str:
    """Format the money of a job: spent so far, price per hour, forecast, budget."""
    spent, at_end, price = told["spent_usd_micros"], told["forecast"]["at_end_usd_micros"], _price(told)
    said = f"{usd(spent)} spent"
    if price:
        said += f" at {usd(price)}/h"
    if at_end is not None and at_end > spent:
        said += f", about {usd(at_end)} at the end"
    if told["budget_usd_micros"] is not None:
        said += f", of a budget of {usd(told['budget_usd_micros'])}"
    return said


def _price(told: Told) -> int:
    return 0 if told["state"] in ENDED else int(told["forecast"]["price_usd_micros_per_hour"])


def _why(weighed: Told) -> Iterator[Any]:
    """Yield the reason of a placement and its candidates, cheapest first, each with why it was rejected."""
    from rich.table import Table

    # One machine can be offered as spot and on demand under the same id.
    chosen = (weighed["offer_id"], weighed["spot"]) if "offer_id" in weighed else None
    yield f"[bold]{'why here' if chosen else 'why nowhere'}[/]  {marked(weighed['reason'])}"
    if (least := weighed.get("price_usd_micros_per_hour_min")) is not None:
        yield f"it could run for {usd(least)} an hour: raise --max-cost"
    candidates = weighed["candidates"]
    if not candidates:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for title in ("offer", "how", "all in", "to the end", "in", "losses", "rejected"):
        number = title in ("all in", "to the end", "in", "losses")
        table.add_column(title, justify="right" if number else "left", no_wrap=title != "rejected", overflow="fold")
    for one in candidates[:CANDIDATES_SHOWN]:
        table.add_row(
            "[green]>[/]" if (one["offer_id"], one["spot"]) == chosen else "",
            f"{one['provider']} {marked(one['offer_id'])}",
            "spot" if one["spot"] else "on demand",
            _or_dash(one["all_in_usd_micros_per_hour"], lambda price: f"{usd(price)}/h"),
            _or_dash(one["cost_usd_micros"], usd),
            _or_dash(one["duration_s"], span),
            _or_dash(one["losses"], lambda losses: f"{losses:.2f}"),
            marked(one["rejected"] or ""),
        )
    yield table
    if len(candidates) > CANDIDATES_SHOWN:
        yield f"and {len(candidates) - CANDIDATES_SHOWN} more; --json shows all"


def _or_dash(value: Any, say: Any) -> str:
    return "-" if value is None else str(say(value))
