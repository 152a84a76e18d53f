"""The bill of materials: what CycloneDX 1.6 asks for, whole, and the same bytes each time."""

from __future__ import annotations

import json
import re
import uuid
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from goblin.cli.lock import LockedPackage, lock_file, read_lock
from goblin.cli.main import main
from goblin.cli.sbom import bill_of_materials, licence_of

PURL = re.compile(r"pkg:pypi/[a-z0-9][a-z0-9.-]*@[0-9a-z.+!-]+")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    target = tmp_path_factory.mktemp("sbom") / "bom.json"
    result = CliRunner().invoke(main, ["sbom", str(target)])
    assert result.exit_code == 0, result.output
    return target.read_bytes()


@pytest.fixture(scope="module")
def document(written: bytes) -> Any:
    return json.loads(written)


def test_each_package_of_the_lock_is_in_it_with_all_its_digests(document: Any) -> None:
    packages = read_lock(lock_file().read_text())
    assert [(one["name"], one["version"]) for one in document["components"]] == [(p.name, p.version) for p in packages]
    for component, package in zip(document["components"], packages, strict=True):
        assert [one["content"] for one in component["hashes"]] == list(package.sha256)
        assert component["purl"] == component["bom-ref"] == package.purl
        assert PURL.fullmatch(component["purl"])


def test_it_has_the_shape_of_cyclonedx(document: Any) -> None:
    """The parts of the schema that we write; the whole of it was applied once by hand on 2026-12-01."""
    assert (document["bomFormat"], document["specVersion"], document["version"]) == ("CycloneDX", "1.6", 1)
    assert uuid.UUID(document["serialNumber"].removeprefix("urn:uuid:"))
    known = {"type", "bom-ref", "name", "version", "hashes", "licenses", "purl", "properties"}
    refs = [document["metadata"]["component"]["bom-ref"]]
    for component in document["components"]:
        assert component.keys() <= known
        assert component["type"] == "library"
        refs.append(component["bom-ref"])
        for one in component["hashes"]:
            assert one.keys() == {"alg", "content"}
            assert one["alg"] == "SHA-256"
            assert re.fullmatch(r"[0-9a-f]{64}", one["content"])
        for licence in component.get("licenses", ()):
            assert licence.keys() in ({"expression"}, {"license"})
            assert "license" not in licence or licence["license"].keys() == {"name"}
    assert len(refs) == len(set(refs))
    assert document["dependencies"] == [{"ref": refs[0], "dependsOn": refs[1:]}]


def test_the_same_lock_gives_the_same_bytes(written: bytes) -> None:
    result = CliRunner().invoke(main, ["sbom"])
    assert result.exit_code == 0
    assert result.output.encode() == written
    assert b"timestamp" not in written


def test_another_lock_has_another_serial_number() -> None:
    def serial(version: str) -> str:
        package = LockedPackage(name="a", version=version, marker="", sha256=("0" * 64,))
        return str(bill_of_materials([package], {})["serialNumber"])

    assert serial("1") == serial("1")
    assert serial("1") != serial("2")


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "MIT OR Apache-2.0"), ("License", "x")], {"expression": "MIT OR Apache-2.0"}),
        ([("Classifier", "License :: OSI Approved :: MIT License"), ("License", "x")], {"name": "MIT License"}),
        ([("Classifier", "Topic :: x"), ("License", "BSD")], {"name": "BSD"}),
        ([("License", "Copyright\n  all of it")], None),
        ([("License", "x" * 101)], None),
        ([("License", "")], None),
        ([], None),
    ],
)
def test_licences_are_what_the_metadata_says(fields: list[tuple[str, str]], licence: dict[str, str] | None) -> None:
    said = Message()
    for name, value in fields:
        said[name] = value
    assert licence_of(said) == licence


def test_a_lock_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("a>=1\n")
    result = CliRunner().invoke(main, ["sbom", "--lock", str(lock)])
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
