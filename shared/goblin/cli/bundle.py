"""`goblin bundle`: write the source that Google builds for the functions. The same checkout gives the same bytes.

functions/*.py at the root, where functions-framework looks for FUNCTION_SOURCE
goblin/           the package beside them, without `cli`; `goblin.toml` is in it, as in the wheel
httpguard/        what reads their requests
requirements.txt  what the functions import: blocks of requirements.lock, each with its hashes
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from goblin.cli import paths, terminal
from goblin.cli.main import fail

MARKER = ".goblin-bundle"
"""File that marks a folder as written by this command, so that the next call may replace what is in it."""
SUFFIXES = frozenset({".html", ".json", ".py", ".typed"})
"""Suffixes of the package's files that are bundled."""
LEFT_OUT = frozenset({"cli", "_bundle", "__pycache__"})
"""Folders of the package that are not bundled."""
HEADER = (
    "# Written by `goblin bundle` from requirements.lock. Everything is hashed, and nothing is built from source.\n"
)

# Google's runtime python313. All names of PEP 508 are set, so that this machine's own values never count.
_TARGET = {
    "implementation_name": "cpython", "implementation_version": "3.13.0", "os_name": "posix",
    "platform_machine": "x86_64", "platform_python_implementation": "CPython", "platform_release": "",
    "platform_system": "Linux", "platform_version": "", "python_full_version": "3.13.0", "python_version": "3.13",
    "sys_platform": "linux",
}  # fmt: skip
_KEY_NAME = re.compile(r"key|token|secret|password", re.IGNORECASE)
_NOT_WRITTEN_OUT = re.compile(r"(?:\$\{[A-Z][A-Z0-9_]*(?::-(?:secret:[^}]*)?)?\}|secret:.*)?")
"""What a key in `goblin.toml` may be: a variable, a name in Secret Manager, or nothing."""


class BundleRefused(Exception):
    """The bundle cannot be made; the message says why and what to do."""


def contents(root: Path) -> dict[str, bytes]:
    """Return the bundle of a checkout: the bytes of each file by its path, sorted.

    Raises:
        BundleRefused: A package is missing or not the one in the lock, or `goblin.toml` holds a key.
    """
    shared = root / "shared"
    found = {file.name: file.read_bytes() for file in (root / "functions").glob("*.py") if file.stem != "__init__"}
    for name in ("goblin", "httpguard"):
        for file in _package_files(shared / name):
            found[file.relative_to(shared).as_posix()] = file.read_bytes()
    configuration = (root / "goblin.toml").read_text(encoding="utf-8")
    _check_no_key(configuration)
    found["goblin/_bundle/goblin.toml"] = configuration.encode()
    found["requirements.txt"] = requirements(
        (root / "pyproject.toml").read_text(encoding="utf-8"), (root / "requirements.lock").read_text(encoding="utf-8")
    ).encode()
    return dict(sorted(found.items()))


def _package_files(package: Path) -> Iterator[Path]:
    for file in package.rglob("*"):
        inside = file.relative_to(package).parts[:-1]
        if file.suffix in SUFFIXES and file.is_file() and not file.is_symlink() and not LEFT_OUT.intersection(inside):
            yield file


def _check_no_key(configuration: str) -> None:
    """Refuse a key that is written into `goblin.toml`: whoever can read the bundle could read the key."""

    def check(where: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                check(name, inner)
        elif isinstance(value, list):
            for inner in value:
                check(where, inner)
        elif isinstance(value, str) and _KEY_NAME.search(where) and not _NOT_WRITTEN_OUT.fullmatch(value):
            raise BundleRefused(
                f"goblin.toml holds the value of a key ({where}). Put it into a variable or into Secret Manager, "
                f'and write {where} = "${{VARIABLE}}" or "secret:NAME".'
            )

    check("", tomllib.loads(configuration))


def requirements(project: str, lock: str) -> str:
    """Return the text of `requirements.txt`: the dependencies in `pyproject.toml` and theirs, as the lock pins them.

    Which packages depend on which is read from the installed packages, evaluated for Linux and Python 3.13.

    Args:
        project: The text of `pyproject.toml`.
        lock: The text of `requirements.lock`.

    Raises:
        BundleRefused: A needed package is not in the lock, or not installed in the version that the lock pins.
    """
    locked = _blocks(lock)
    needed: dict[str, set[str]] = {}
    todo = [Requirement(text) for text in tomllib.loads(project)["project"]["dependencies"]]
    while todo:
        wanted = todo.pop()
        name = str(canonicalize_name(wanted.name))
        if not _holds(wanted) or (name in needed and wanted.extras <= needed[name]):
            continue
        needed.setdefault(name, set()).update(wanted.extras)
        if name not in locked:
            raise BundleRefused(
                f"requirements.lock has no {name} for Python 3.13. Make the lock again; CONTRIBUTING.md says how."
            )
        todo += [one for one in _requires(name, locked[name][0]) if _holds(one, wanted.extras)]
    blocks = "\n".join(locked[name][1] for name in sorted(needed))
    return f"{HEADER}--only-binary :all:\n{blocks}\n"


def _blocks(lock: str) -> dict[str, tuple[str, str]]:
    """Split the lock: version and text of each package that Linux and Python 3.13 would install, by name."""
    found = {}
    for block in re.split(r"\n(?=\S)", lock.strip()):
        pinned = Requirement(block.partition("\n")[0].rstrip(" \\"))
        if _holds(pinned):
            found[str(canonicalize_name(pinned.name))] = (str(pinned.specifier).removeprefix("=="), block)
    return found


def _requires(name: str, version: str) -> list[Requirement]:
    """Return what an installed package requires."""
    try:
        installed = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise BundleRefused(f"{name} is not installed. Delete .venv and run ./goblin again.") from None
    if installed.version != version:
        raise BundleRefused(
            f"{name} {installed.version} is installed, but requirements.lock pins {version}. "
            "Delete .venv and run ./goblin again."
        )
    return [Requirement(text) for text in installed.requires or ()]


def _holds(wanted: Requirement, extras: set[str] | frozenset[str] = frozenset()) -> bool:
    """Whether a requirement's marker is true on Linux and Python 3.13, with any of the extras or with none."""
    marker = wanted.marker
    return marker is None or any(marker.evaluate({**_TARGET, "extra": extra}) for extra in ("", *sorted(extras)))


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files into a folder and remove everything else from it.

    Raises:
        BundleRefused: The folder holds something that no earlier bundle wrote.
        OSError: It cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise BundleRefused(f"{folder} is not a folder. Choose another one.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise BundleRefused(f"{folder} is not empty and was not written by an earlier bundle. Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    # The marker comes first and stays, so that an interrupted run can be repeated.
    (folder / MARKER).write_text("Written by `goblin bundle`, which replaces everything in this folder.\n")
    for old in folder.iterdir():
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        elif old.name != MARKER:
            old.unlink()
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def archive_of(files: Mapping[str, bytes]) -> bytes:
    """Return the files as a zip archive; equal files give equal bytes."""
    written = io.BytesIO()
    # Stored, not compressed: compressed bytes depend on the version of zlib.
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)  # Its time is 1980-01-01.
            entry.create_system = 3  # Unix, on every system.
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content)
    return written.getvalue()


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--zip", "archive", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
    help="Zip file to write the bundle into as well. Its SHA-256 is printed.",
)  # fmt: skip
def bundle(folder: Path, archive: Path | None) -> None:
    """Write the source of the functions, as Google builds it, into DIR.

    DIR must be new, empty, or written by an earlier bundle; then everything in it is replaced.
    """
    root = paths.checkout()
    if root is None:
        fail("A bundle is made from a checkout. Clone the repository and run ./goblin there.")
    try:
        files = contents(root)
        write_folder(folder, files)
        terminal.echo(f"{folder}: {len(files)} files, {sum(map(len, files.values())) / 1e6:.2f} MB", err=True)
        if archive is not None:
            data = archive_of(files)
            archive.parent.mkdir(parents=True, exist_ok=True)
            archive.write_bytes(data)
            terminal.echo(f"{hashlib.sha256(data).hexdigest()}  {archive}")
    except BundleRefused as reason:
        fail(str(reason))
    except OSError as error:
        fail(f"Could not write {error.filename or folder}: {error.strerror or error}.")
