"""The task that comes with the agent, as a process: what it learns, and that an interruption leaves no trace."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goblin_agent.task import Folders

TEXT = b"the goblin counts its coins, and the coins count on the goblin. " * 20
SMALL = {"steps": 60, "seed": 7, "context": 4, "width": 4, "hidden": 8, "rows": 8}
DEADLINE_S = 30.0


def start(top: Path, parameters: dict[str, Any], *, resume: Path | None = None, data: bytes = TEXT) -> Any:
    """The task as the agent starts it, with folders of its own."""
    folders = Folders(top=top)
    folders.make()
    if data:
        (folders.inputs / "text.txt").write_bytes(data)
    if resume:
        for file in resume.iterdir():
            (folders.resume / file.name).write_bytes(file.read_bytes())
    folders.parameters.write_text(json.dumps(parameters))
    folders.say_checkpoint_s(3600)
    environment = folders.environment(resuming=resume is not None, given=os.environ)
    command = [sys.executable, "-m", "goblin_agent.tasks.char_lm"]
    return folders, subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def run(top: Path, parameters: dict[str, Any], **others: Any) -> tuple[Folders, int, str]:
    folders, process = start(top, parameters, **others)
    _, said = process.communicate(timeout=DEADLINE_S)
    return folders, process.returncode, said


def lines(folders: Folders) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folders.progress.read_text().splitlines()]


def checkpoint(folders: Folders, step: int) -> Path:
    return folders.checkpoints / f"step-{step}"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_it_learns_and_saves_where_it_was_told_to(tmp_path: Path) -> None:
    folders, code, said = run(tmp_path / "a", {**SMALL, "steps": 400, "rate": 0.1, "save_every": 200})
    assert code == 0, said
    assert sorted(entry.name for entry in folders.checkpoints.iterdir()) == ["step-200", "step-400"]
    saved = {line["step"]: line for line in lines(folders) if line.get("saved")}
    assert saved[400]["loss"] < 2.0 < np.log(len(set(TEXT))), "guessing costs the logarithm of the alphabet"
    assert all(0 < line["save_s"] < 10 for line in saved.values())
    assert lines(folders)[-1] | {"steps_per_s": 0} == {"step": 400, "total": 400, "steps_per_s": 0}


def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, code, _ = run(tmp_path / "whole", {**SMALL, "save_every": 20})
    assert code == 0
    resumed, code, _ = run(tmp_path / "resumed", SMALL, resume=checkpoint(whole, 20))
    assert code == 0
    assert contents(checkpoint(resumed, 60)) == contents(checkpoint(whole, 60))
    other, _, _ = run(tmp_path / "other", {**SMALL, "seed": 8})
    assert contents(checkpoint(other, 60)) != contents(checkpoint(whole, 60))


def test_asked_to_stop_it_saves_after_the_step_and_exits_0(tmp_path: Path) -> None:
    folders, process = start(tmp_path, {**SMALL, "steps": 100_000, "pace": 50})
    deadline = time.monotonic() + DEADLINE_S
    while not any(line["step"] > 2 for line in lines(folders)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    [saved] = [entry.name for entry in folders.checkpoints.iterdir()]
    step = int(saved.removeprefix("step-"))
    assert 2 < step < 100_000
    assert json.loads((checkpoint(folders, step) / "facts.json").read_text())["step"] == step


def test_a_finished_training_that_is_resumed_has_nothing_to_do(tmp_path: Path) -> None:
    whole, _, _ = run(tmp_path / "whole", SMALL)
    again, code, _ = run(tmp_path / "again", SMALL, resume=checkpoint(whole, 60))
    assert (code, list(again.checkpoints.iterdir())) == (0, [])


def test_without_a_dataset_it_trains_on_a_text_of_its_own(tmp_path: Path) -> None:
    folders, code, said = run(tmp_path / "a", {**SMALL, "steps": 400, "rate": 0.1}, data=b"")
    assert code == 0, said
    assert lines(folders)[-2]["loss"] < 2.5, "it began at the logarithm of some thirty characters, 3.4"


@pytest.mark.parametrize(
    ("parameters", "data", "words"),
    [
        ({"steps": "many"}, TEXT, "parameter steps must be a whole number"),
        ({"steps": 0}, TEXT, "parameter steps"),
        ({"rate": -1}, TEXT, "parameter rate"),
        ({"hidden": True}, TEXT, "parameter hidden"),
        ({"context": 100}, b"short", "one row needs 101"),
        ({"rate": 1e9}, TEXT, "parameter rate"),
    ],
)
def test_what_no_other_attempt_can_mend_is_exit_code_65(
    tmp_path: Path, parameters: dict[str, Any], data: bytes, words: str
) -> None:
    _, code, said = run(tmp_path, {**SMALL, **parameters}, data=data)
    assert code == 65
    assert words in said


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    whole, _, _ = run(tmp_path / "whole", SMALL)
    _, code, said = run(tmp_path / "other", {**SMALL, "hidden": 9}, resume=checkpoint(whole, 60))
    assert code == 65
    assert "the checkpoint was made with recipe" in said
