"""`goblin jobs`: submit, list, show and watch jobs, print their logs, cancel them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import click

from goblin.cli import terminal
from goblin.cli.api import Api, needed
from goblin.cli.job_options import HOURS_MAX, Deadline, Dollars, Gpu, Parameter, memory_mib
from goblin.cli.main import DATA, fail

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
F = TypeVar("F", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def jobs() -> None:
    """Submit, list, show, watch and cancel training and batch jobs, and print their logs."""


_WHAT = (
    click.option("--kind", "--type", type=click.Choice(["batch", "training"]), default="batch", show_default=True),
    click.option("--task", help="Training: name of a task in the image. Default: its first task."),
    click.option("--image", help="Container image that holds the agent and the task. Default: Goblin's own."),
    click.option("--model", help="Batch: model for requests that name none. Training: passed to the task."),
    click.option(
        "--param", "parameters", type=Parameter(), multiple=True,
        help="Parameter of the task, for example lr=0.001. Repeatable.",
    ),
    click.option("--output", "output_uri", help="gs:// URI to write; never overwrites. Default: outputs/JOB_ID."),
    click.option("--job-id", help="Id of the job; submitting an id twice gives one job. Default: a new id."),
)  # fmt: skip
_MACHINE = (
    click.option(
        "--gpu", "gpus", type=Gpu(), multiple=True,
        help="GPU model, for example RTX_4090. Repeatable: any of them will do.",
    ),
    click.option("--gpus", "gpu_count", type=click.IntRange(0, 16), help="Number of GPUs. Default: 1 with --gpu."),
    click.option("--min-vram", type=click.FloatRange(1, 1024), metavar="GB", help="Least memory of each GPU, in GB."),
)  # fmt: skip
_LIMITS = (
    click.option(
        "--hours", type=click.FloatRange(0, HOURS_MAX, min_open=True),
        help="Hours that the work takes without interruptions. Required with --deadline.",
    ),
    click.option(
        "--deadline", type=Deadline(), help="Latest end: +10h, or an ISO time. Refused at once if it cannot be met."
    ),
    click.option("--budget", type=Dollars(), help="Most dollars that the job may cost, over all its attempts."),
    click.option(
        "--max-cost", type=Dollars(), envvar="VASTAI_MAX_COST_PER_HOUR", show_envvar=True,
        help="Most dollars that an instance may cost per hour.",
    ),
    click.option("--priority", type=click.Choice(["high", "default", "low"]), default="default", show_default=True),
    click.option("--retries", type=click.IntRange(0, 100), help="Retries after failures in a row. Default: 4."),
)  # fmt: skip
_SAVING = (
    click.option(
        "--checkpoint-minutes", type=click.FloatRange(0.5, 1440),
        help="Training: most minutes between checkpoints. Default: 15.",
    ),
    click.option("--checkpoint-every", type=click.IntRange(1), help="Batch: items between checkpoints. Default: 50."),
    click.option("--parallel", type=click.IntRange(1, 64), help="Batch: requests in flight. Default: 4."),
    click.option("--callback-topic", help="Topic that also gets the job's status changes, beside job-status-changed."),
)  # fmt: skip


def _with(*options: Callable[[F], F]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@jobs.command()
@click.argument("dataset", required=False)
@_with(*_WHAT, *_MACHINE, *_LIMITS, *_SAVING)
@click.option("--watch", "watching", is_flag=True, help="Follow the job to its end.")
@JSON
@DATA
def submit(
    *, dataset: str | None, kind: str, job_id: str | None, output_uri: str | None, watching: bool, as_json: bool,
    data: Path | None, **said: Any,
) -> None:  # fmt: skip
    """Submit a job.

    A batch (the default) answers the requests in DATASET, an OpenAI batch file. Training runs a task of its image on
    a rented GPU, on DATASET where it needs one:

    \b
    goblin jobs submit requests.jsonl
    goblin jobs submit --type training --gpu RTX_4090 --hours 8 --max-cost 0.80

    DATASET is a gs:// URI, or a local file, which is uploaded first.
    """
    if kind == "batch" and dataset is None:
        raise click.UsageError(
            "A batch needs DATASET, a file of requests or its gs:// URI. For training, add --type training"
        )
    if said["deadline"] and not said["hours"]:
        raise click.UsageError("--deadline needs --hours: how long the work takes without interruptions")
    api = Api(data)
    job_id = job_id or f"{kind}-{uuid.uuid4().hex[:12]}"
    if dataset is not None and not dataset.startswith("gs://"):
        dataset = _upload(Path(dataset), job_id)
    spec = {"job_id": job_id, "kind": kind, "dataset_uri": dataset, **_spec(kind, **said)}
    spec["output_uri"] = output_uri or _output(kind, job_id, dataset)
    job = api.post("/jobs", {name: value for name, value in spec.items() if value is not None})
    if watching:
        from goblin.cli import job_watch

        job_watch.watch(api, job_id, as_json=as_json)
    if as_json:
        terminal.echo_json(json.dumps(job))
    else:
        from goblin.cli import job_show

        terminal.echo(f"{job_id} is {job['state']}: {terminal.plain(job_show.why(job))}")
        if job["state"] != "refused":
            terminal.echo(f"Follow it with: goblin jobs watch {job_id}")
    if job["state"] == "refused":
        raise SystemExit(1)


def _spec(
    kind: str, *, task: str | None, image: str | None, model: str | None, parameters: Sequence[tuple[str, Any]],
    gpus: Sequence[str], gpu_count: int | None, min_vram: float | None, hours: float | None,
    deadline: datetime | None, budget: Decimal | None, max_cost: Decimal | None, priority: str, retries: int | None,
    checkpoint_minutes: float | None, checkpoint_every: int | None, parallel: int | None, callback_topic: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Map the options to fields of the `job-requested` event; None leaves a field at its default."""
    return {
        "task": task,
        "image": image,
        "model": model,
        "parameters": {**({"parallel": parallel or 4} if kind == "batch" else {}), **dict(parameters)},
        "gpu_types": list(gpus) or None,
        "gpu_count": gpu_count,
        "gpu_memory_mib_min": None if min_vram is None else memory_mib(min_vram),
        "est_hours": hours,
        "deadline": None if deadline is None else deadline.isoformat(),
        "budget_usd": None if budget is None else str(budget),
        "max_price_per_hour": None if max_cost is None else str(max_cost),
        "priority": priority,
        "retries": retries,
        "checkpoint_minutes": checkpoint_minutes,
        "checkpoint_every": checkpoint_every,
        "callback_topic": callback_topic,
    }


def _output(kind: str, job_id: str, dataset: str | None) -> str:
    """Return the default output URI, in the dataset's bucket: a job reads and writes one bucket."""
    bucket = dataset.removeprefix("gs://").partition("/")[0] if dataset else needed("GOBLIN_BUCKET")
    return f"gs://{bucket}/outputs/{job_id}" + (".jsonl" if kind == "batch" else "")


def _upload(file: Path, job_id: str) -> str:
    from google.api_core.exceptions import GoogleAPICallError

    if not file.is_file():
        fail(f"There is no file {file}. DATASET is a file or a gs:// URI.")
    uri = f"gs://{needed('GOBLIN_BUCKET')}/datasets/{job_id}{file.suffix or '.jsonl'}"
    try:
        create(uri, file)
    except (GoogleAPICallError, OSError) as error:
        fail(f"Could not upload {file} to {uri}: {error}")
    return uri


@jobs.command("list")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@JSON
@DATA
def list_jobs(limit: int, as_json: bool, data: Path | None) -> None:
    """List the newest jobs."""
    found = Api(data).get("/jobs", limit=limit)["data"]
    if as_json:
        terminal.echo_json(json.dumps(found))
        return
    from goblin.cli import job_show

    terminal.write(job_show.listed(found))


@jobs.command()
@click.argument("job_id")
@JSON
@DATA
def show(job_id: str, as_json: bool, data: Path | None) -> None:
    """Show one job: progress, cost, placement with its reasons, history."""
    job = Api(data).get(f"/jobs/{job_id}")
    if as_json:
        terminal.echo_json(json.dumps(job))
        return
    from goblin.cli import job_show

    terminal.write(*job_show.job(job))


@jobs.command()
@click.argument("job_id")
@JSON
@DATA
def watch(job_id: str, as_json: bool, data: Path | None) -> None:
    """Follow a job to its end; exit with 0 if it succeeded, else with 1."""
    from goblin.cli import job_watch

    job_watch.watch(Api(data), job_id, as_json=as_json)


@jobs.command()
@click.argument("job_id")
@click.option("--attempt", type=click.IntRange(1, 10**8), help="Number of the attempt. Default: the last one.")
@click.option("--follow", "-f", "following", is_flag=True, help="Print new lines until the job has ended.")
@JSON
@DATA
def logs(job_id: str, attempt: int | None, following: bool, as_json: bool, data: Path | None) -> None:
    """Print the end of the log of a training job."""
    if following and as_json:
        raise click.UsageError("--json and --follow cannot be combined: --json prints one answer, --follow many")
    from goblin.cli import job_logs

    api = Api(data)
    if as_json:
        terminal.echo_json(json.dumps(api.get(f"/jobs/{job_id}/logs", **({"attempt": attempt} if attempt else {}))))
    elif following:
        job_logs.follow(api, job_id, attempt)
    else:
        job_logs.show(api, job_id, attempt)


@jobs.command()
@click.argument("job_id")
@JSON
@DATA
def cancel(job_id: str, as_json: bool, data: Path | None) -> None:
    """Cancel a job; unfinished work is not written to its output."""
    job = Api(data).post(f"/jobs/{job_id}/cancel")
    terminal.echo_json(json.dumps(job) if as_json else f"{job_id} is {job['state']}")


def create(uri: str, file: Path) -> None:
    """Upload a file to a URI at which no object exists.

    Raises:
        PreconditionFailed: An object exists there. Google's other errors pass through.
    """
    from google.cloud import storage

    bucket, _, name = uri.removeprefix("gs://").partition("/")
    client = storage.Client()
    try:
        client.bucket(bucket).blob(name).upload_from_filename(str(file), if_generation_match=0)
    finally:
        client.close()
