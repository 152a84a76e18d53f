"""When schedules tick, as they are declared or as they are told to."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from localcloud import declaration
from localcloud.__main__ import options, parse
from localcloud.scheduler import next_tick

NOON = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
SAID = {
    "schedules": {
        "reconcile": {"function": "reconcile", "schedule": "* * * * *", "attempt_deadline_s": 540},
        "settle-spend": {"function": "settle_spend", "schedule": "7 * * * *", "attempt_deadline_s": 540},
    }
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cloud.json"
    path.write_text(json.dumps(SAID))
    return path


def ticks(file: Path, every_s: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Minute and second of each schedule's first tick after noon."""
    said = declaration.read(file, functions_url="http://f", every_s=every_s)
    found = {schedule.name: next_tick(schedule.cron, NOON) for schedule in said.schedules}
    return {name: (at.minute, at.second) for name, at in found.items()}


def test_a_schedule_ticks_as_it_is_declared(file: Path) -> None:
    assert ticks(file, {}) == {"reconcile": (1, 0), "settle-spend": (7, 0)}


def test_a_schedule_ticks_every_few_seconds_when_told_to_and_the_others_as_declared(file: Path) -> None:
    assert ticks(file, {"reconcile": 5}) == {"reconcile": (0, 5), "settle-spend": (7, 0)}


def test_a_schedule_that_is_not_declared_cannot_be_told_anything(file: Path) -> None:
    with pytest.raises(ValueError, match="there is no schedule nope"):
        declaration.read(file, functions_url="http://f", every_s={"nope": 5})


def test_the_command_line_says_how_often(file: Path) -> None:
    chosen = options(parse([f"--data={file.parent}", "--every=reconcile=5", "--every", "settle-spend=30"]))
    assert chosen.every_s == {"reconcile": 5, "settle-spend": 30}


@pytest.mark.parametrize("word", ["reconcile", "=5", "reconcile=0", "reconcile=60", "reconcile=soon"])
def test_no_other_pace_is_taken(file: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(parse([f"--data={file.parent}", f"--every={word}"]))
    assert "is not SCHEDULE=SECONDS" in capsys.readouterr().err
