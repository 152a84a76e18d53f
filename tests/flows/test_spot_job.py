"""A training on spot from the command line to its output: outbid, killed part by part, and the same bits in the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import Running
from tests.flows.test_jobs import app, ask, goblin

pytestmark = pytest.mark.xdist_group("flows")

END_S_MAX = 100
STEPS = 400
RECIPE = {"steps": STEPS, "seed": 7, "context": 4, "width": 4, "hidden": 8, "rows": 8}
OUTPUT = """
import hashlib, json, os, sys
from google.cloud import storage
blobs = storage.Client().list_blobs(os.environ["GOBLIN_BUCKET"], prefix=sys.argv[1])
files = {blob.name.rpartition("/")[2]: blob.download_as_bytes() for blob in blobs}
print(json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in files.items()}))
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("the goblin counts its gold and counts it again, for gold that is counted twice is not lost. " * 40)
    return file


def submit(running: Running, job_id: str, text: Path, *words: str, **more: Any) -> None:
    params = [f"--param={name}={value}" for name, value in {**RECIPE, **more}.items()]
    done = goblin(running, "jobs", "submit", str(text), "--type", "training", "--job-id", job_id, *words, *params)
    assert done.returncode == 0, done.stderr


def on_spot(running: Running, job_id: str, text: Path) -> None:
    """Slow enough to be outbid on the way; the pace is no part of the recipe."""
    words = ("--gpu", "RTX_4090", "--hours", "0.1", "--max-cost", "0.80", "--budget", "2")
    submit(running, job_id, text, *words, pace=20, save_every=20)


def until(running: Running, job_id: str, reached: Callable[[Any], bool]) -> Any:
    """Ask until the job is so far; while a part of the cloud is started again nobody answers."""
    deadline = time.monotonic() + END_S_MAX
    job: Any = None
    while True:
        assert time.monotonic() < deadline, f"{job}\n{running.logs()}"
        try:
            job = ask(running, f"/jobs/{job_id}")
        except (OSError, ValueError, RuntimeError) as error:
            job = {"error": str(error)}
        if "state" in job and reached(job):
            return job
        assert job.get("state") not in ("failed", "refused", "cancelled"), f"{job}\n{running.logs()}"
        time.sleep(0.2)


def saved_by(attempt: int) -> Callable[[Any], bool]:
    """Whether the attempt, or a later one, has saved more than it began with."""

    def reached(job: Any) -> bool:
        return job["state"] == "running" and (job["checkpoint"] or {"attempt": 0})["attempt"] >= attempt

    return reached


def succeeded(job: Any) -> bool:
    return bool(job["state"] == "succeeded")


def files(running: Running, job_id: str) -> Any:
    return json.loads(app(running, OUTPUT, f"outputs/{job_id}/"))


def begun(job: Any) -> list[int]:
    """The step that each attempt began at."""
    reasons = [line["reason"] for line in job["history"]]
    return [int(reason.rpartition(" ")[2]) for reason in reasons if " begins at step " in reason]


def story(job: Any) -> str:
    return "\n".join(f"{line['at'][11:23]} {line['state']}: {line['reason']}" for line in job["history"])


def market(running: Running) -> Any:
    return json.loads(goblin(running, "market", "--json").stdout)


def test_a_spot_job_is_outbid_twice_and_ends_with_the_bits_of_one_that_was_not(
    start_up: Callable[..., Running], text: Path
) -> None:
    running = start_up("--fakes")
    submit(running, "whole", text)
    on_spot(running, "spot", text)
    job = until(running, "spot", saved_by(1))
    assert (job["provider"], job["placement"]["spot"]) == ("vastai", True)
    assert goblin(running, "market", "outbid", "spot").returncode == 0
    until(running, "spot", saved_by(2))
    assert goblin(running, "market", "outbid", "spot").returncode == 0
    job = until(running, "spot", succeeded)
    assert len(begun(job)) == 3, story(job)
    first, second, third = begun(job)
    assert 0 == first < second < third
    assert job["preemptions"] == 2
    until(running, "whole", succeeded)
    assert files(running, "spot") == files(running, "whole") != {}
    shown = goblin(running, "jobs", "show", "spot").stdout
    assert "why here" in shown
    assert "twice" in shown or "2 times preempted" in shown
