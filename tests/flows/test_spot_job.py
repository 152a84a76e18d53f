"""A training on spot from the command line to its output: outbid, killed part by part, and the same bits in the end."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.flows.conftest import Running
from tests.flows.test_jobs import app, ask, command_line, goblin

# Several machines boot and several processes start again, one after the other.
pytestmark = [pytest.mark.xdist_group("flows"), pytest.mark.timeout(240)]

END_S_MAX = 100
RECIPE = {"steps": 600, "seed": 7, "context": 4, "width": 4, "hidden": 8, "rows": 8}
OUTPUT = """
import hashlib, json, os, sys
from google.cloud import storage
blobs = storage.Client().list_blobs(os.environ["GOBLIN_BUCKET"], prefix=sys.argv[1])
files = {blob.name.rpartition("/")[2]: blob.download_as_bytes() for blob in blobs}
print(json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in files.items()}))
"""


SETTLE = """
import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from goblin.wiring import billing as billing_wiring
from goblin.billing import settlement as settling
class Later:
    def now(self):
        return datetime.now(UTC) + timedelta(days=1, hours=3)
async def main():
    print(await settling.settle(replace(billing_wiring.settlement(), clock=Later())))
asyncio.run(main())
"""


def text(folder: Path) -> Path:
    file = folder / "text.txt"
    file.write_text("the goblin counts its gold and counts it again, for gold that is counted twice is not lost. " * 40)
    return file


def submit(running: Running, job_id: str, file: Path, *words: str, **more: Any) -> None:
    params = [f"--param={name}={value}" for name, value in {**RECIPE, **more}.items()]
    done = goblin(running, "jobs", "submit", str(file), "--type", "training", "--job-id", job_id, *words, *params)
    assert done.returncode == 0, done.stderr


def on_spot(running: Running, job_id: str, file: Path, *, pace: int) -> None:
    """Slow enough to be outbid on the way; the pace is no part of the recipe."""
    words = ("--gpu", "RTX_4090", "--hours", "0.1", "--max-cost", "0.80", "--budget", "2")
    submit(running, job_id, file, *words, pace=pace, save_every=20)


def until(running: Running, job_id: str, reached: Callable[[Any], bool]) -> Any:
    """Ask until the job is so far; while a part of the cloud is started again nobody answers."""
    deadline = time.monotonic() + END_S_MAX
    job: Any = None
    while True:
        assert time.monotonic() < deadline, f"{job}\n{running.logs()}"
        try:
            job = ask(running, f"/jobs/{job_id}")
        except (httpx.HTTPError, ValueError) as error:
            job = {"error": str(error)}
        if "state" in job and reached(job):
            return job
        assert job.get("state") not in ("failed", "refused", "cancelled"), f"{job}\n{running.logs()}"
        time.sleep(0.2)


def saved_by(attempt: int, *, beyond: int = 0) -> Callable[[Any], bool]:
    """Whether the attempt runs and has saved more than it began with."""

    def reached(job: Any) -> bool:
        saved = job["checkpoint"] or {"attempt": 0, "step": 0}
        return job["state"] == "running" and saved["attempt"] >= attempt and saved["step"] > beyond

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


def rented(running: Running, job_id: str) -> list[Any]:
    return [one for one in market(running)["vastai"]["instances"] if one["label"].startswith(f"goblin-{job_id}-a")]


def billed_usd_micros(running: Running, job_id: str) -> int:
    bills = market(running)["vastai"]["bills"]
    usd = sum(Decimal(str(bill["usd"])) for bill in bills if bill["label"].startswith(f"goblin-{job_id}-a"))
    return math.ceil(usd * 1_000_000)


def booked_usd_micros(running: Running, job_id: str) -> int:
    lines = json.loads(goblin(running, "costs", "--by", "job", "--json").stdout)["lines"]
    return sum(line["spent_usd_micros"] for line in lines if line["name"] == job_id)


def process_of(running: Running, module: str) -> psutil.Process:
    """The one child that runs the module."""
    tree = [(one, command_line(one)) for one in running.tree()]
    # The market is told what an instance runs: the first such word is the process's own.
    named = [(one, words[words.index("goblin.cli.child") + 1]) for one, words in tree if "goblin.cli.child" in words]
    [found] = [one for one, name in named if name == module]
    return found


def settle_as_if_the_day_were_over(running: Running) -> str:
    """What the hourly schedule does, once the bills will not change any more; with the functions' own variables."""
    env = process_of(running, "goblin.cli.host").environ()
    done = subprocess.run([sys.executable, "-c", SETTLE], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def market_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One `goblin up --fakes`, and in it the output of a training that nobody disturbed."""
    running = Running(tmp_path_factory.mktemp("market") / "data", "--fakes", "--pace=4")
    try:
        running.start()
        submit(running, "whole", text(tmp_path_factory.mktemp("text")))
        until(running, "whole", succeeded)
        yield running
    finally:
        running.close()


def test_a_spot_job_is_outbid_twice_and_its_money_is_what_the_market_billed(market_up: Running, tmp_path: Path) -> None:
    on_spot(market_up, "spot", text(tmp_path), pace=30)
    job = until(market_up, "spot", saved_by(1))
    assert (job["provider"], job["placement"]["spot"]) == ("vastai", True)
    for attempt in (1, 2):
        assert goblin(market_up, "market", "outbid", "spot").returncode == 0
        until(market_up, "spot", saved_by(attempt + 1) if attempt == 1 else succeeded)
    job = ask(market_up, "/jobs/spot")
    starts = begun(job)
    assert (len(starts), starts[0], job["preemptions"]) == (3, 0, 2), story(job)
    assert starts == sorted(set(starts)), "each went on where the one before had saved"
    assert files(market_up, "spot") == files(market_up, "whole") != {}
    shown = goblin(market_up, "jobs", "show", "spot").stdout
    assert "why here" in shown
    assert "twice preempted" in shown
    until(market_up, "spot", lambda job: not job["rents"] and not rented(market_up, "spot"))
    report = settle_as_if_the_day_were_over(market_up)
    assert booked_usd_micros(market_up, "spot") == billed_usd_micros(market_up, "spot") > 0, report


def test_a_spot_job_ends_with_the_same_bits_though_each_part_is_killed_once(market_up: Running, tmp_path: Path) -> None:
    on_spot(market_up, "killed", text(tmp_path), pace=20)
    job = until(market_up, "killed", saved_by(1))
    for part, attempt in (("goblin_agent", 2), ("goblin.cli.host", 2), ("localcloud", 2), ("localgpus", 3)):
        process_of(market_up, part).kill()
        step = job["checkpoint"]["step"]
        job = until(market_up, "killed", lambda job, a=attempt, s=step: succeeded(job) or saved_by(a, beyond=s)(job))
    job = until(market_up, "killed", succeeded)
    starts = begun(job)
    assert starts == sorted(set(starts)), story(job)
    assert len(starts) == 3, f"an attempt outlives the functions and the cloud, not its host\n{story(job)}"
    assert files(market_up, "killed") == files(market_up, "whole") != {}
    until(market_up, "killed", lambda job: not job["rents"] and not rented(market_up, "killed"))
