"""`goblin sbom`: the software bill of materials of the lock, as CycloneDX 1.6 JSON.

The same lock and the same installed packages give the same bytes: there is no time in it, and its serial number is made
from the rest. Source: cyclonedx.org/docs/1.6/json, read 2026-12-01.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from packaging.utils import canonicalize_name

from goblin import __version__
from goblin.cli import terminal
from goblin.cli.lock import BadLock, LockedPackage, lock_file, read_lock
from goblin.cli.main import fail

LICENCE_LENGTH_MAX = 100
"""A longer text in the old field `License` is a whole licence, not a name."""
_LICENCE = "License :: "


def bill_of_materials(packages: Iterable[LockedPackage], licences: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Build the document.

    Args:
        packages: What the lock pins, in order.
        licences: As `licences_of_installed` finds them, by package URL.
    """
    components = [_component(package, licences.get(package.purl)) for package in packages]
    ours = f"pkg:pypi/gpu-goblin@{__version__}"
    root = {
        "type": "application", "bom-ref": ours, "name": "gpu-goblin", "version": __version__,
        "licenses": [{"license": {"id": "Apache-2.0"}}], "purl": ours,
    }  # fmt: skip
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": components,
        "dependencies": [{"ref": ours, "dependsOn": [component["bom-ref"] for component in components]}],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(document, sort_keys=True))
    return {**document, "serialNumber": f"urn:uuid:{serial}"}


def _component(package: LockedPackage, licence: Mapping[str, str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "library", "bom-ref": package.purl, "name": package.name, "version": package.version,
        "hashes": [{"alg": "SHA-256", "content": digest} for digest in package.sha256],
    }  # fmt: skip
    if licence:
        found["licenses"] = [dict(licence)] if "expression" in licence else [{"license": dict(licence)}]
    found["purl"] = package.purl
    if package.marker:
        found["properties"] = [{"name": "python:marker", "value": package.marker}]
    return found


def licences_of_installed(packages: Iterable[LockedPackage]) -> dict[str, Mapping[str, str]]:
    """Return the licences that installed packages name of themselves, by package URL; others are left out."""
    installed = {str(canonicalize_name(one.metadata["Name"])): one for one in metadata.distributions()}
    found = {}
    for package in packages:
        one = installed.get(package.name)
        if one is not None and one.version == package.version and (licence := licence_of(one.metadata)):
            found[package.purl] = licence
    return found


def licence_of(said: Any) -> Mapping[str, str] | None:
    """Return a package's licence: an SPDX expression where its metadata has one, else a name.

    Args:
        said: The package's metadata, a `metadata.PackageMetadata`.
    """
    if expression := said.get("License-Expression"):
        return {"expression": str(expression)}
    classifiers = said.get_all("Classifier") or ()
    names = [str(one).rpartition(" :: ")[2] for one in classifiers if str(one).startswith(_LICENCE)]
    name = ", ".join(sorted(names)) or str(said.get("License") or "").strip()
    return {"name": name} if name and "\n" not in name and len(name) <= LICENCE_LENGTH_MAX else None


@click.command("sbom")
@click.argument("target", metavar="[FILE]", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--lock", "lock", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Lock to read. Default: requirements.lock of the checkout.",
)  # fmt: skip
def sbom(target: Path | None, lock: Path | None) -> None:
    """Write the software bill of materials of the lock to FILE, or print it. CycloneDX 1.6, JSON."""
    try:
        packages = read_lock((lock or lock_file()).read_text(encoding="utf-8"))
    except (BadLock, OSError, UnicodeDecodeError) as error:
        fail(str(error))
    text = json.dumps(bill_of_materials(packages, licences_of_installed(packages)), indent=2, ensure_ascii=True)
    if target is None:
        terminal.echo(text)
        return
    target.write_text(text + "\n", encoding="utf-8")
    terminal.echo(f"Wrote {target}: {len(packages)} packages.")
