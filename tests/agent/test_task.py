"""What a task says of itself: the agent repeats only what can be, so that nobody takes it for a liar."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.jobs.domain.worker import WorkerReport
from goblin.jobs.policy.worker_reports import why_impossible
from goblin_agent import gpu, task
from goblin_agent.task import Progress, Said
from tests.jobs.policy.test_worker_reports import job

NUMBERS = st.one_of(st.integers(), st.floats(), st.none(), st.booleans(), st.text(max_size=3), st.just([1]))
NAMES = ("step", "total", "loss", "steps_per_s", "save_s")
LINES = st.lists(st.dictionaries(st.sampled_from(NAMES), NUMBERS), max_size=5)


@given(LINES, st.integers(50, 99_999_999))
def test_nothing_that_a_task_says_makes_its_host_a_liar(lines: list[dict[str, object]], saved: int) -> None:
    said = Said()
    for line in lines:
        said.hear(json.dumps(line).encode())
    told = WorkerReport(
        total=said.total_from(saved), loss=said.loss, steps_per_s=said.steps_per_s, save_s=said.save_s, gpu_share=None
    )
    assert why_impossible(job(), max(said.step, saved), told) is None


@given(st.binary(max_size=50))
def test_what_is_no_progress_is_passed_over(line: bytes) -> None:
    said = Said(step=3)
    said.hear(line)
    assert said.step >= 3


def test_what_was_said_stays_until_something_else_is_said() -> None:
    said = Said()
    said.hear(b'{"step": 5, "total": 9, "loss": 2.5}')
    said.hear(b'{"step": 4, "loss": NaN}')
    assert (said.step, said.total, said.loss, said.total_from(0), said.total_from(10)) == (5, 9, 2.5, 9, None)


def test_progress_is_read_line_by_line_as_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_bytes(b"")
    progress = Progress(path)
    assert progress.read() == []
    for written, read in (
        (b"one\ntw", [b"one"]),
        (b"o\n", [b"two"]),
        (b"three", []),
        (b"\n\nfour\n", [b"three", b"", b"four"]),
    ):
        with path.open("ab") as file:
            file.write(written)
        assert progress.read() == read


def test_a_file_of_progress_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "PROGRESS_BYTES_MAX", 1000)
    monkeypatch.setattr(task, "PROGRESS_LINE_BYTES_MAX", 100)
    path = tmp_path / "p"
    path.write_bytes(b"")
    progress, heard = Progress(path), 0
    for number in range(300):
        with path.open("ab") as file:
            file.write(b"%09d\n" % number)
        heard += len(progress.read())
        assert path.stat().st_size <= 1010
    assert heard == 300
    with path.open("ab") as file:
        file.write(b"x" * 5000)
    for _ in range(10):
        assert progress.read() == []
    with path.open("ab") as file:
        file.write(b"\nback\n")
    assert progress.read()[-1] == b"back"


@pytest.mark.parametrize(
    ("text", "share", "errors"),
    [
        ("50, 0\n", 0.5, 0), ("100, 1\n0, 2\n", 0.5, 3), ("[N/A], [N/A]\n", None, None),
        ("[N/A], 4\n30, [N/A]\n", 0.3, 4), ("", None, None), ("9999, x\n", None, None), ("20", 0.2, None),
    ],
)  # fmt: skip
def test_what_gpus_say_is_added_up_over_those_that_can_tell(text: str, share: float | None, errors: int | None) -> None:
    assert gpu.parse(text) == gpu.Gpus(share=share, errors=errors)


async def test_nvidia_smi_is_asked_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await gpu.look() == gpu.Gpus()
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '40, 0'\necho '60, 2'\n")
    program.chmod(0o755)
    assert await gpu.look() == gpu.Gpus(share=0.5, errors=2)
