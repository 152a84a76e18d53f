"""`goblin jobs`: submit, list, show, watch, cancel."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from goblin.cli.api import Api, needed
from goblin.cli.main import DATA, fail

JSON = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
ENDED = ("succeeded", "failed", "cancelled", "refused")
WATCH_S = 0.5
COLOURS = {"succeeded": "green", "failed": "red", "refused": "red", "cancelled": "yellow", "running": "cyan"}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def jobs() -> None:
    """Batch jobs: submit, list, show, watch, cancel."""


@jobs.command()
@click.argument("dataset")
@click.option("--output", "output_uri", help="gs:// URI to write; never overwrites. Default: outputs/JOB_ID.jsonl.")
@click.option("--job-id", help="The same id twice is the same job. Default: a new one.")
@click.option("--kind", default="batch", show_default=True)
@click.option("--model", help="For requests that name none.")
@click.option("--priority", type=click.Choice(["high", "default", "low"]), default="default", show_default=True)
@click.option("--checkpoint-every", type=click.IntRange(1), default=50, show_default=True, help="Items.")
@click.option("--parallel", type=click.IntRange(1, 64), default=4, show_default=True, help="Requests at once.")
@click.option("--watch", "watching", is_flag=True, help="Follow it to its end.")
@JSON
@DATA
def submit(
    dataset: str, output_uri: str | None, job_id: str | None, kind: str, model: str | None, priority: str,
    checkpoint_every: int, parallel: int, watching: bool, as_json: bool, data: Path | None,
) -> None:  # fmt: skip
    """Run the requests in DATASET, an OpenAI batch file: a gs:// URI, or a file here that is uploaded first."""
    api = Api(data)
    job_id = job_id or f"batch-{uuid.uuid4().hex[:12]}"
    if not dataset.startswith("gs://"):
        dataset = _upload(Path(dataset), job_id)
    job = api.post(
        "/jobs",
        {
            "job_id": job_id,
            "kind": kind,
            "dataset_uri": dataset,
            # Beside the dataset: a job reads and writes one bucket.
            "output_uri": output_uri
            or f"gs://{dataset.removeprefix('gs://').partition('/')[0]}/outputs/{job_id}.jsonl",
            "model": model,
            "priority": priority,
            "checkpoint_every": checkpoint_every,
            "parameters": {"parallel": parallel},
        },
    )
    if watching:
        _watch(api, job_id, as_json=as_json)
    elif as_json:
        click.echo(json.dumps(job))
    else:
        click.echo(f"{job_id} is {job['state']}: {job['reason']}\nFollow it: goblin jobs watch {job_id}")
    if job["state"] == "refused":
        raise SystemExit(1)


def _upload(file: Path, job_id: str) -> str:
    from google.api_core.exceptions import GoogleAPICallError

    from goblin.cli.buckets import create

    if not file.is_file():
        fail(f"no file {file}; DATASET is a file or a gs:// URI")
    uri = f"gs://{needed('GOBLIN_BUCKET')}/datasets/{job_id}.jsonl"
    try:
        create(uri, file)
    except (GoogleAPICallError, OSError) as error:
        fail(f"{file} could not be uploaded to {uri}: {error}")
    return uri


@jobs.command("list")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@JSON
@DATA
def list_jobs(limit: int, as_json: bool, data: Path | None) -> None:
    """The newest jobs."""
    found = Api(data).get("/jobs", limit=limit)["data"]
    if as_json:
        click.echo(json.dumps(found))
        return
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("job", "kind", "state", "done", "attempt", "requested", "reason"):
        table.add_column(title, no_wrap=title != "reason", overflow="fold")
    for job in found:
        table.add_row(
            job["job_id"], job["kind"], _coloured(job["state"]), _done(job), str(job["attempt"]),
            _when(job["requested_at"]), _escaped(job["reason"]),
        )  # fmt: skip
    _print(table if found else "no jobs yet: goblin jobs submit FILE")


@jobs.command()
@click.argument("job_id")
@JSON
@DATA
def show(job_id: str, as_json: bool, data: Path | None) -> None:
    """One job, and how it came to be where it is."""
    job = _show(Api(data), job_id)
    if as_json:
        click.echo(json.dumps(job))
        return
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    saved = job["checkpoint"]
    rows = [
        ("job", job["job_id"]), ("state", _coloured(job["state"])), ("done", _done(job)),
        ("attempt", f"{job['attempt']} on {job['provider']}" if job["provider"] else "none yet"),
        ("checkpoint", f"{saved['step']} in {saved['manifest_uri']}" if saved else "none yet"),
        ("dataset", job["dataset_uri"]), ("output", job["output_uri"]),
    ]  # fmt: skip
    for name, value in rows:
        table.add_row(name, str(value))
    for line in job["history"]:
        table.add_row(_when(line["at"]), f"{_coloured(line['state'])}: {_escaped(line['reason'])}")
    _print(table)


@jobs.command()
@click.argument("job_id")
@JSON
@DATA
def watch(job_id: str, as_json: bool, data: Path | None) -> None:
    """Follow a job to its end; the exit code says whether it succeeded."""
    _watch(Api(data), job_id, as_json=as_json)


def _watch(api: Api, job_id: str, *, as_json: bool) -> None:
    last: dict[str, Any] = {}
    if as_json:
        for last in _changes(api, job_id):
            click.echo(json.dumps(last))
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            bar = progress.add_task(job_id, total=None)
            for last in _changes(api, job_id):
                what = f"{job_id}  {_coloured(last['state'])}  attempt {last['attempt']}"
                progress.update(bar, description=what, completed=last["step"], total=last["total"])
        click.echo(f"{job_id} {last['state']}: {last['reason']}")
    raise SystemExit(0 if last["state"] == "succeeded" else 1)


def _changes(api: Api, job_id: str) -> Iterator[dict[str, Any]]:
    """The job each time it is another than before, until it has ended."""
    seen = None
    while True:
        job = _show(api, job_id)
        if (job["state"], job["step"], job["attempt"]) != seen:
            seen = (job["state"], job["step"], job["attempt"])
            yield job
        if job["state"] in ENDED:
            return
        time.sleep(WATCH_S)


@jobs.command()
@click.argument("job_id")
@JSON
@DATA
def cancel(job_id: str, as_json: bool, data: Path | None) -> None:
    """End a job; what it had not finished is not written."""
    job = Api(data).post(f"/jobs/{job_id}/cancel")
    click.echo(json.dumps(job) if as_json else f"{job_id} is {job['state']}")


def _show(api: Api, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = api.get(f"/jobs/{job_id}")
    return job


def _done(job: dict[str, Any]) -> str:
    return f"{job['step']} of {job['total']}" if job["total"] is not None else "-"


def _coloured(state: str) -> str:
    return f"[{COLOURS[state]}]{state}[/]" if state in COLOURS else state


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _when(instant: str) -> str:
    return datetime.fromisoformat(instant).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _print(what: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    # A pipe has no width: rich would take 80 columns and cut what does not fit.
    Console(highlight=False, width=None if console.is_terminal else 200).print(what)
