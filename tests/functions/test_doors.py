"""Every doorway is declared, and exactly the private ones check who calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FUNCTIONS = Path(__file__).parents[2] / "functions"
DECLARED = json.loads((FUNCTIONS.parent / "shared/goblin/cloud.json").read_text())
DOORS = sorted(file.stem for file in FUNCTIONS.glob("[a-z]*.py"))
PRIVATE = {
    details["function"]
    for trigger in ("topics", "schedules")
    for details in DECLARED[trigger].values()
    if "function" in details
}


def test_every_doorway_is_declared_once() -> None:
    assert sorted([*DECLARED["http"], *PRIVATE]) == DOORS


@pytest.mark.parametrize("door", DOORS)
def test_exactly_the_private_doorways_check_their_caller(door: str) -> None:
    """`GOBLIN_VERIFY_CALLER=iam` accepts tokens without a signature; to a public function anybody could send one."""
    source = (FUNCTIONS / f"{door}.py").read_text()
    assert ("verify_caller(" in source) is (door in PRIVATE)


def test_a_public_function_is_behind_keys_or_iap() -> None:
    assert {name: said["access"] for name, said in DECLARED["http"].items()} == {
        "gateway": "keys", "jobs": "keys", "console": "iap",
    }  # fmt: skip
