"""`docs/SECURITY.md` names every door and every right, so that a new one cannot be left out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from goblin.cli import paths
from goblin.gateway.ports import Scope

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "SECURITY.md").read_text()
TABLE = "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))
DECLARED = json.loads(paths.declaration().read_text())
CONSUMED = sorted(topic for topic, said in DECLARED["topics"].items() if "function" in said)


@pytest.mark.parametrize("function", sorted(file.stem for file in (ROOT / "functions").glob("[a-z]*.py")))
def test_each_function_is_a_door(function: str) -> None:
    assert f"`{function}`" in TABLE


@pytest.mark.parametrize("named", [*(f"`{scope}`" for scope in Scope), *(f"`{topic}`" for topic in CONSUMED)])
def test_each_scope_and_each_topic_that_is_read_is_in_the_table(named: str) -> None:
    assert named in TABLE


@pytest.mark.parametrize(
    "path", sorted(path for said in DECLARED["http"].values() for path in said["paths"] if path != "/")
)
def test_each_public_path_is_in_the_table(path: str) -> None:
    assert path in TABLE


def test_readers_find_the_page_and_how_to_report() -> None:
    assert "](docs/SECURITY.md)" in (ROOT / "README.md").read_text()
    assert "Report a vulnerability" in PAGE
    assert not re.search(r"[\w.]+@[\w.]+\.\w+", PAGE), "no address that nobody reads"


def test_each_file_that_the_page_names_is_there() -> None:
    for name in re.findall(r"`((?:tests|shared|terraform|docs)/[\w./-]+)`", PAGE):
        assert (ROOT / name).exists(), name
