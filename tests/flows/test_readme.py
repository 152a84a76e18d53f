"""Every program in the README runs as it stands, by somebody who did what the README says."""

import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from goblin.cli import paths
from tests.flows.conftest import Running

pytestmark = pytest.mark.xdist_group("flows")


def programs(name: str) -> list[str]:
    root = paths.checkout()
    assert root is not None
    return re.findall(r"```python\n(.*?)```", (root / name).read_text(), re.DOTALL)


def run(program: str, up: Running, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=up.env(), cwd=folder, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_openai_program_prints_an_answer_and_a_stream(up: Running, tmp_path: Path) -> None:
    answer, stream = run(programs("README.md")[0], up, tmp_path).strip().split("\n", 1)
    assert "Goblin" in answer
    assert "9" in stream


def test_the_pubsub_program_gets_its_job_done(up: Running, tmp_path: Path) -> None:
    run(programs("README.md")[1], up, tmp_path)
    headers = {"authorization": f"Bearer {up.variables['GOBLIN_API_KEY']}"}
    deadline = time.monotonic() + 90
    while (job := httpx.get(f"{up.url}/jobs/sums-1", headers=headers).json()).get("state") != "succeeded":
        assert time.monotonic() < deadline, job
        time.sleep(0.2)  # A person would look again, too.
    assert job["step"] == 20


def test_there_are_no_other_programs_that_nobody_runs() -> None:
    assert len(programs("README.md")) == 2
    for name in ("ARCHITECTURE.md", "CONTRIBUTING.md"):
        assert programs(name) == []
