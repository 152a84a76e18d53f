"""`goblin audit`: compare the lock with a stored list of advisories. It asks nobody: the list is a file of yours.

The list is what OSV exports for Python packages: records of its schema as JSON, in a folder or in one zip archive.
Source: ossf.github.io/osv-schema 1.6, and its algorithm for evaluating versions, read 2026-12-01.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click
import msgspec
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from goblin.cli import terminal
from goblin.cli.lock import BadLock, LockedPackage, lock_file, read_lock
from goblin.cli.main import fail
from httpguard import Refusal, check_json

RECORD_BYTES_MAX = 4 * 1024 * 1024
RECORDS_MAX = 500_000


class BadAdvisories(Exception):
    """The list cannot be read; the message says which file of it."""


class AffectedRange(msgspec.Struct, frozen=True):
    """Events that begin and end what is affected. Each has one of `introduced`, `fixed`, `last_affected`."""

    type: str
    events: list[dict[str, str]] = []


class AffectedName(msgspec.Struct, frozen=True):
    """A package."""

    ecosystem: str = ""
    name: str = ""


class Affected(msgspec.Struct, frozen=True):
    """Versions of one package."""

    package: AffectedName = AffectedName()
    ranges: list[AffectedRange] = []
    versions: list[str] = []


class Advisory(msgspec.Struct, frozen=True):
    """One record, of which only these fields are read."""

    id: str
    modified: datetime
    aliases: list[str] = []
    withdrawn: datetime | None = None
    affected: list[Affected] = []


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A package of the lock that an advisory names."""

    package: LockedPackage
    advisory: Advisory
    fixed: tuple[str, ...]
    """Versions that mend it, as the advisory says."""


def read_advisories(path: Path) -> Iterator[Advisory]:
    """Read the records of a folder, of a zip archive, or of one file.

    Raises:
        BadAdvisories: A record is too large, nested too deeply, or not of OSV's schema.
    """
    for number, (name, data) in enumerate(_records(path)):
        if number >= RECORDS_MAX:
            raise BadAdvisories(f"{path} has more than {RECORDS_MAX} records.")
        try:
            check_json(data)
            yield msgspec.json.decode(data, type=Advisory)
        except (Refusal, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadAdvisories(f"{name} is no record of OSV's schema: {error}") from error


def _records(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.rglob("*.json")):
            if file.stat().st_size > RECORD_BYTES_MAX:
                raise BadAdvisories(f"{file} has more than {RECORD_BYTES_MAX} bytes.")
            yield str(file), file.read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.filename.endswith(".json"):
                    continue
                with archive.open(entry) as opened:
                    # What the archive says of the size is not believed.
                    data = opened.read(RECORD_BYTES_MAX + 1)
                if len(data) > RECORD_BYTES_MAX:
                    raise BadAdvisories(f"{entry.filename} has more than {RECORD_BYTES_MAX} bytes.")
                yield entry.filename, data
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise BadAdvisories(f"{path} is neither a folder nor a zip archive of advisories: {error}") from error


def find(packages: Iterable[LockedPackage], advisories: Iterable[Advisory]) -> list[Finding]:
    """Return which packages which advisories name, without withdrawn ones; sorted by package and id.

    Raises:
        BadAdvisories: A version in an advisory on one of the packages cannot be compared.
    """
    by_name: dict[str, list[LockedPackage]] = {}
    for package in packages:
        by_name.setdefault(package.name, []).append(package)
    found = [
        Finding(package=package, advisory=advisory, fixed=_fixed(affected))
        for advisory in advisories
        if advisory.withdrawn is None
        for affected in advisory.affected
        if affected.package.ecosystem == "PyPI"
        for package in by_name.get(str(canonicalize_name(affected.package.name)), ())
        if is_affected(package.version, affected, advisory.id)
    ]
    return sorted(found, key=lambda one: (one.package.name, one.package.version, one.advisory.id))


def is_affected(version: str, affected: Affected, advisory_id: str) -> bool:
    """Return whether a version is listed, or is in a range.

    Raises:
        BadAdvisories: A bound is no version of Python's.
    """
    try:
        at = Version(version)
        if any(_same(at, listed) for listed in affected.versions):
            return True
        return any(_is_in(at, one.events) for one in affected.ranges if one.type in ("ECOSYSTEM", "SEMVER"))
    except InvalidVersion as error:
        raise BadAdvisories(
            f"{advisory_id} cannot be compared with {affected.package.name} {version}: {error}"
        ) from error


def _same(at: Version, listed: str) -> bool:
    try:
        return at == Version(listed)
    except InvalidVersion:
        return False  # Versions of long ago that no lock can name.


def _is_in(at: Version, events: Sequence[dict[str, str]]) -> bool:
    def bound(event: dict[str, str]) -> tuple[Version, bool]:
        kind, said = next(iter(event.items()))
        # "0" is before every version. What ends after a version sorts behind what begins or ends at it.
        return Version("0.dev0" if said == "0" else said), kind == "last_affected"

    inside = False
    for event in sorted(
        (one for one in events if one.keys() <= {"introduced", "fixed", "last_affected"} and one), key=bound
    ):
        (kind, _), (version, _) = next(iter(event.items())), bound(event)
        if kind == "introduced" and at >= version:
            inside = True
        elif (kind == "fixed" and at >= version) or (kind == "last_affected" and at > version):
            inside = False
    return inside


def _fixed(affected: Affected) -> tuple[str, ...]:
    return tuple(
        event["fixed"] for one in affected.ranges if one.type != "GIT" for event in one.events if "fixed" in event
    )


@click.command("audit")
@click.option(
    "--advisories", "path", required=True, type=click.Path(exists=True, path_type=Path), envvar="GOBLIN_ADVISORIES",
    help="Folder or zip archive of OSV records for Python packages. Also $GOBLIN_ADVISORIES.",
)  # fmt: skip
@click.option(
    "--lock", "lock", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Lock to check. Default: requirements.lock of the checkout.",
)  # fmt: skip
@click.option("--ignore", multiple=True, metavar="ID", help="Advisory, or an alias of it, that was judged. Repeatable.")
def audit(path: Path, lock: Path | None, ignore: tuple[str, ...]) -> None:
    """Compare the lock with a stored list of advisories; exit with 1 if one names a package of it."""
    try:
        packages = read_lock((lock or lock_file()).read_text(encoding="utf-8"))
        advisories = list(read_advisories(path))
        if not advisories:
            fail(f"{path} holds no advisory. Name the folder or the archive of OSV's records.")
        found = [
            one for one in find(packages, advisories) if not {one.advisory.id, *one.advisory.aliases} & set(ignore)
        ]
    except (BadLock, BadAdvisories, OSError, UnicodeDecodeError) as error:
        fail(str(error))
    for one in found:
        mended = f"mended in {', '.join(one.fixed)}" if one.fixed else "not mended"
        names = ", ".join([one.advisory.id, *one.advisory.aliases])
        terminal.echo(f"{one.package.name} {one.package.version}  {terminal.plain(names)}  {terminal.plain(mended)}")
    newest = max(advisory.modified for advisory in advisories)
    terminal.echo(
        f"{len(packages)} packages, {len(advisories)} advisories, the newest of {newest:%Y-%m-%d}: {len(found)} found."
    )
    if found:
        raise SystemExit(1)
