"""`requirements.lock` read as data: every package that any platform installs, with its digests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from goblin.cli import paths

_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class BadLock(Exception):
    """The lock cannot be read; the message says where."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedPackage:
    """One package in one version."""

    name: str
    version: str
    marker: str
    """Where it is installed, as PEP 508 says it; empty: everywhere."""
    sha256: tuple[str, ...]
    """One digest a file of it, sorted."""

    @property
    def purl(self) -> str:
        """Return the package URL."""
        return f"pkg:pypi/{self.name}@{self.version}"


def lock_file() -> Path:
    """Return the lock of this checkout. Raises `BadLock` when the command runs from a wheel."""
    root = paths.checkout()
    if root is None:
        raise BadLock("The lock is in the checkout, and this is an installed wheel. Name the lock with --lock.")
    return root / "requirements.lock"


def read_lock(text: str) -> list[LockedPackage]:
    """Parse a lock; the packages are sorted by name and version.

    Raises:
        BadLock: A line pins no exact version, or has no digest.
    """
    return sorted(_packages(text), key=lambda package: (package.name, package.version))


def _packages(text: str) -> Iterator[LockedPackage]:
    for block in re.split(r"\n(?=\S)", text.strip()):
        line = block.partition("\n")[0].rstrip(" \\")
        try:
            pinned = Requirement(line)
        except InvalidRequirement as error:
            raise BadLock(f"{line[:100]!r} is no line of a lock.") from error
        versions = [one.version for one in pinned.specifier if one.operator == "==" and "*" not in one.version]
        digests = sorted(set(_HASH.findall(block)))
        if len(versions) != 1 or len(pinned.specifier) != 1 or pinned.url:
            raise BadLock(f"{pinned.name} is not pinned to one version.")
        if not digests:
            raise BadLock(f"{pinned.name} has no digest.")
        marker = str(pinned.marker) if pinned.marker else ""
        name = str(canonicalize_name(pinned.name))
        yield LockedPackage(name=name, version=versions[0], marker=marker, sha256=tuple(digests))
