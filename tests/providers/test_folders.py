"""Each provider is one folder, named wherever providers are listed."""

from __future__ import annotations

import tomllib
from pathlib import Path

from goblin import providers
from tests.fakes import every

ROOT = Path(__file__).parents[2]
FOLDERS = {file.parent.name for part in ("inference", "compute", "billing") for file in (
    ROOT / "shared/goblin/providers"
).glob(f"*/{part}.py")}  # fmt: skip


def test_the_import_contract_names_every_provider() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (strangers,) = [one["modules"] for one in contracts if one["name"].startswith("Providers are strangers")]
    assert {name.removeprefix("goblin.providers.") for name in strangers} == FOLDERS


def test_every_folder_is_a_package() -> None:
    assert {name for name in FOLDERS if (ROOT / f"shared/goblin/providers/{name}/__init__.py").exists()} == FOLDERS


def test_every_provider_is_asked_through_the_whole_gateway() -> None:
    endpoints = tomllib.loads((ROOT / "goblin.toml").read_text())["endpoints"]
    configured = {endpoint["name"]: endpoint["provider"] for endpoint in endpoints}
    assert set(configured.values()) == set(providers.having("inference")), "goblin.toml has an endpoint of each"
    asked = {configured[name] for name in every.FAKES}
    assert asked == set(configured.values()) - {"llamacpp"}, "a real llama.cpp is asked elsewhere"
