"""The lock: exact, hashed, without addresses; and compared with a stored list of advisories."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from packaging.version import Version

from goblin.cli.audit import Advisory, Affected, AffectedRange, BadAdvisories, find, is_affected, read_advisories
from goblin.cli.lock import BadLock, LockedPackage, lock_file, read_lock
from goblin.cli.main import main

ADVISORIES = os.environ.get("GOBLIN_ADVISORIES", "")
DIGEST = "0" * 64
LOCK = f"jinja2==3.1.2 \\\n    --hash=sha256:{DIGEST}\n" + (
    f"requests==2.30.0 ; python_version < '4' \\\n    --hash=sha256:{DIGEST}\n"
)


def ours() -> list[LockedPackage]:
    return read_lock(lock_file().read_text())


def test_each_package_is_pinned_hashed_and_from_no_address() -> None:
    text = lock_file().read_text()
    assert "://" not in text
    assert "--index-url" not in text
    packages = ours()
    assert len(packages) > 50
    assert len({(one.name, one.version) for one in packages}) == len(packages)
    assert all(str(Version(one.version)) and one.sha256 for one in packages)


@pytest.mark.parametrize(
    "line",
    [
        "jinja2>=3",
        "jinja2==3.*",
        "jinja2",
        "jinja2==3.1.2",
        "jinja2 @ https://a/b.whl",
        "-r other.txt",
        "jinja2==3,==4",
    ],
)
def test_what_is_not_pinned_is_no_lock(line: str) -> None:
    digest = "" if line == "jinja2==3.1.2" else f" \\\n    --hash=sha256:{DIGEST}"
    with pytest.raises(BadLock):
        read_lock(line + digest)


def affected(*events: tuple[str, str], versions: tuple[str, ...] = (), kind: str = "ECOSYSTEM") -> Affected:
    said = [{name: version} for name, version in events]
    return Affected(ranges=[AffectedRange(type=kind, events=said)], versions=list(versions))


@pytest.mark.parametrize(
    ("version", "record", "expected"),
    [
        ("1.0", affected(("introduced", "0"), ("fixed", "1.0")), False),
        ("0.9", affected(("introduced", "0"), ("fixed", "1.0")), True),
        ("1.0rc1", affected(("introduced", "0"), ("fixed", "1.0")), True),
        ("1.0.post1", affected(("introduced", "0"), ("fixed", "1.0")), False),
        ("1.10", affected(("introduced", "1.9"), ("fixed", "1.11")), True),
        ("1.10", affected(("fixed", "1.11"), ("introduced", "1.9")), True),
        ("1.8", affected(("introduced", "1.9"), ("fixed", "1.11")), False),
        ("2.0", affected(("introduced", "1.0"), ("last_affected", "2.0")), True),
        ("2.0.1", affected(("introduced", "1.0"), ("last_affected", "2.0")), False),
        ("1.5", affected(("introduced", "0"), ("fixed", "1.0"), ("introduced", "1.4"), ("fixed", "1.6")), True),
        ("1.2", affected(("introduced", "0"), ("fixed", "1.0"), ("introduced", "1.4"), ("fixed", "1.6")), False),
        ("9", affected(("introduced", "0")), True),
        ("9", affected(), False),
        ("2.0", affected(versions=("1.9", "2")), True),
        ("2.0", affected(versions=("no-version", "1.9")), False),
        ("2.0", affected(("introduced", "0"), kind="GIT"), False),
    ],
)  # fmt: skip
def test_versions_and_ranges(version: str, record: Affected, expected: bool) -> None:
    assert is_affected(version, record, "X-1") is expected


def test_a_bound_that_is_no_version_is_not_passed_over() -> None:
    with pytest.raises(BadAdvisories, match="X-1"):
        is_affected("1.0", affected(("introduced", "0"), ("fixed", "one")), "X-1")


def record(name: str, advisory_id: str = "X-1", **more: Any) -> dict[str, Any]:
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "3.1.3"}]}]
    package = {"ecosystem": more.pop("ecosystem", "PyPI"), "name": name}
    made = {"id": advisory_id, "modified": "2026-11-01T00:00:00Z", "affected": [{"package": package, "ranges": ranges}]}
    return {**made, **more}


def stored(folder: Path, *records: dict[str, Any]) -> Path:
    for number, one in enumerate(records):
        (folder / f"{number}.json").write_text(json.dumps(one))
    return folder


def audit(advisories: Path, folder: Path, *words: str) -> tuple[int, str]:
    lock = folder / "requirements.lock"
    lock.write_text(LOCK)
    result = CliRunner().invoke(main, ["audit", "--advisories", str(advisories), "--lock", str(lock), *words])
    return result.exit_code, result.output


def test_a_package_of_the_lock_is_found_under_any_spelling(tmp_path: Path) -> None:
    code, said = audit(stored(tmp_path, record("Jinja2", aliases=["CVE-2024-1"])), tmp_path)
    assert code == 1
    assert said.splitlines() == [
        "jinja2 3.1.2  X-1, CVE-2024-1  mended in 3.1.3",
        "2 packages, 1 advisories, the newest of 2026-11-01: 1 found.",
    ]


@pytest.mark.parametrize(
    "other",
    [record("flask"), record("jinja2", ecosystem="npm"), record("jinja2", withdrawn="2026-11-02T00:00:00Z")],
)
def test_what_is_not_about_the_lock_is_left_out(tmp_path: Path, other: dict[str, Any]) -> None:
    assert audit(stored(tmp_path, other), tmp_path)[0] == 0


def test_what_was_judged_is_ignored_by_its_id_or_an_alias(tmp_path: Path) -> None:
    stored(tmp_path, record("jinja2", aliases=["CVE-2024-1"]))
    assert audit(tmp_path, tmp_path, "--ignore", "CVE-2024-1")[0] == 0
    assert audit(tmp_path, tmp_path, "--ignore", "X-1")[0] == 0
    assert audit(tmp_path, tmp_path, "--ignore", "X-2")[0] == 1


def test_an_archive_is_read_as_a_folder_is(tmp_path: Path) -> None:
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("PyPI/X-1.json", json.dumps(record("jinja2")))
        made.writestr("README.md", "no record")
    assert audit(archive, tmp_path)[0] == 1


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b'{"id":"x"}',
        b"\xff",
        b'{"id":"x","modified":"2026-11-01T00:00:00Z","affected":' + b"[" * 957 + b"]" * 957 + b"}",
    ],
)
def test_a_record_that_cannot_be_read_is_named_in_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(data)
    code, said = audit(tmp_path, tmp_path)
    assert (code, said.count("\n")) == (1, 1)
    assert "bad.json" in said


def test_an_archive_that_unpacks_to_more_than_a_record_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("bomb.json", b" " * (32 * 2**20))
    with pytest.raises(BadAdvisories, match=r"bomb\.json has more than"):
        list(read_advisories(archive))


@pytest.mark.parametrize("empty", [True, False])
def test_no_list_is_no_audit(tmp_path: Path, empty: bool) -> None:
    where = tmp_path / "list"
    if empty:
        where.mkdir()
    else:
        where.write_text("no archive")
    assert audit(where, tmp_path)[0] == 1


@pytest.mark.skipif(not ADVISORIES, reason="GOBLIN_ADVISORIES names no stored list of advisories")
def test_no_advisory_names_a_package_of_our_lock() -> None:
    found = find(ours(), read_advisories(Path(ADVISORIES)))
    assert [(one.package.name, one.package.version, one.advisory.id) for one in found] == []


def test_the_advisory_of_a_package_is_found_in_our_own_lock() -> None:
    """So that the test above cannot pass because nothing is compared."""
    package = next(one for one in ours() if one.name == "starlette")
    wanted = {"package": {"ecosystem": "PyPI", "name": "Starlette"}, "versions": [package.version]}
    advisory = msgspec.convert({"id": "X-1", "modified": "2026-11-01T00:00:00Z", "affected": [wanted]}, Advisory)
    assert [one.package for one in find(ours(), [advisory])] == [package]
