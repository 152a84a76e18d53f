"""The map in ARCHITECTURE.md leads to every module of the rooms, and the table of programs to every version."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ["core", "billing", "gateway", "jobs", "registry", "providers", "gcp", "web"]
# `ports.py` is said once for all rooms.
EXEMPT = {"__init__", "__main__", "ports"}


@pytest.mark.parametrize("room", ROOMS)
def test_each_module_of_a_room_is_on_the_map(room: str) -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows = [line.split("|")[1] for line in text[text.index("### Where to look") :].splitlines() if line.startswith("|")]
    named = {name.rpartition("/")[2] for row in rows for name in re.findall(r"`([^`]+)`", row)}
    modules = {path.stem for path in (ROOT / "shared" / "goblin" / room).rglob("*.py")} - EXEMPT
    assert modules - named == set()


def test_the_table_of_programs_has_the_versions_that_are_run() -> None:
    rows = tomllib.loads((ROOT / "tests" / "clients" / "versions.toml").read_text())
    table = (ROOT / "docs" / "CLIENTS.md").read_text()
    for row in rows.values():
        named = (
            [row["npm"][0], *(one for one in row["npm"] if one.startswith("@ai-sdk/"))] if "npm" in row else row["pip"]
        )
        for one in named:
            assert re.split(r"==|@", one)[-1] in table, one
