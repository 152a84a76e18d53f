"""What makes `.venv`: it must read the real lock, and say what is missing before anything is half done."""

import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest

from goblin.cli import bootstrap, paths

LOCK = """\
click==8.5.1 \\
    --hash=sha256:aaaa
llama-cpp-python==0.3.36 \\
    --hash=sha256:bbbb
numpy==2.4.6 ; python_full_version < '3.12' \\
    --hash=sha256:cccc
numpy==2.5.5 ; python_full_version >= '3.12' \\
    --hash=sha256:dddd \\
    --hash=sha256:eeee
"""


def test_splits_the_lock_into_packages_with_all_their_hashes() -> None:
    entries = bootstrap.requirements(LOCK)
    assert list(entries) == ["click", "llama-cpp-python", "numpy"]
    assert entries["numpy"].count("numpy==") == 2
    assert entries["numpy"].endswith("--hash=sha256:eeee")


@pytest.mark.skipif(paths.checkout() is None, reason="the lock lives in the checkout")
def test_the_lock_holds_a_hash_for_every_package_and_no_address() -> None:
    root = paths.checkout()
    assert root is not None
    lock = (root / "requirements.lock").read_text()
    entries = bootstrap.requirements(lock)
    assert {bootstrap.BUILT_FROM_SOURCE, bootstrap.INSTALLER} <= entries.keys()
    assert all("--hash=sha256:" in entry for entry in entries.values())
    assert "://" not in lock


def test_the_wheel_cache_changes_with_what_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one = bootstrap.wheel_cache("llama-cpp-python==0.3.36 --hash=sha256:a")
    assert one.is_relative_to(tmp_path)
    assert one != bootstrap.wheel_cache("llama-cpp-python==0.3.37 --hash=sha256:a")
    monkeypatch.setattr(bootstrap, "CMAKE_ARGS", ("-DGGML_CUDA=ON",))
    assert one != bootstrap.wheel_cache("llama-cpp-python==0.3.36 --hash=sha256:a")


def test_a_missing_compiler_is_one_line_that_mends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(bootstrap.Stop, match="apt-get install g\\+\\+") as stop:
        bootstrap.build_wheel(tmp_path / "python", "x==1", tmp_path)
    assert "\n" not in str(stop.value)


def test_progress_keeps_the_end_of_a_failed_build(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"[{n}/8] cc file{n}.c\n" for n in range(1, 9)] + ["error: no luck\n"]
    assert bootstrap.progress("compiling", lines, 0.0)[-1] == "error: no luck"
    assert "compiling 8/8" in capsys.readouterr().err


def test_progress_counts_the_packages_that_pip_collects(capsys: pytest.CaptureFixture[str]) -> None:
    bootstrap.progress("installing", [f"Collecting p{n}==1 (from -r x)\n" for n in range(4)], 0.0, packages=4)
    assert "installing 4/4" in capsys.readouterr().err


def test_a_failing_step_shows_why(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(bootstrap.Stop, match="a step failed"):
        bootstrap.run("a step", ["sh", "-c", "echo because; exit 3"])
    assert "because" in capsys.readouterr().err


def test_two_first_commands_at_once_make_the_environment_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[str] = []
    (tmp_path / "requirements.lock").write_text(LOCK)

    def make_from(_root: Path, venv: Path, lock: str) -> None:
        made.append(lock)
        venv.mkdir()

    monkeypatch.setattr(bootstrap, "make_from", make_from)
    threads = [threading.Thread(target=bootstrap.make, args=(tmp_path,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert made == [LOCK]


WHEEL = "llama_cpp_python-1-py3-none-any.whl"


class Steps:
    """What the bootstrap runs, recorded instead of run; a build makes a wheel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[list[str]] = []
        self.installed: list[str] = []
        self.builds = 0
        monkeypatch.setattr(bootstrap, "run", self._run)
        monkeypatch.setattr(bootstrap, "compiler_missing", lambda: None)

    def _run(self, label: str, command: list[str], **_: object) -> None:
        self.commands.append(command)
        if "wheel" in command:
            self.builds += 1
            built = Path(command[command.index("--wheel-dir") + 1])
            built.mkdir()
            (built / WHEEL).write_bytes(b"build %d" % self.builds)
        elif "-r" in command:
            self.installed.append(Path(command[command.index("-r") + 1]).read_text())


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Steps:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Steps(monkeypatch)


def install_built(folder: Path) -> bytes:
    """Install as a new `.venv` does; return the bytes that were installed."""
    folder.mkdir()
    bootstrap.install_built(folder / "python", "llama-cpp-python==1 --hash=sha256:aa", folder)
    where, _, digest = (folder / "built.txt").read_text().strip().partition(" --hash=sha256:")
    data = Path(where).read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
    return data


def cache() -> Path:
    return bootstrap.wheel_cache("llama-cpp-python==1 --hash=sha256:aa")


def test_a_cached_wheel_has_its_digest_beside_it_and_is_for_its_owner_alone(steps: Steps, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        assert install_built(tmp_path / "one") == b"build 1"
    finally:
        os.umask(old)
    assert {file.name for file in cache().iterdir()} == {WHEEL, f"{WHEEL}.sha256"}
    assert (cache() / f"{WHEEL}.sha256").read_text().strip() == hashlib.sha256(b"build 1").hexdigest()
    assert stat.S_IMODE(cache().stat().st_mode) == 0o700
    assert install_built(tmp_path / "two") == b"build 1"
    assert steps.builds == 1
    assert all("--require-hashes" in command for command in steps.commands)


@pytest.mark.parametrize("harm", ["other bytes", "other digest", "no digest", "open to all", "a second wheel"])
def test_a_wheel_that_is_not_what_was_built_is_built_again_and_said(
    steps: Steps, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    install_built(tmp_path / "one")
    match harm:
        case "other bytes":
            (cache() / WHEEL).write_bytes(b"evil")
        case "other digest":
            (cache() / f"{WHEEL}.sha256").write_text(hashlib.sha256(b"evil").hexdigest())
        case "no digest":
            (cache() / f"{WHEEL}.sha256").unlink()
        case "open to all":
            cache().chmod(0o777)
        case "a second wheel":
            (cache() / "evil.whl").write_bytes(b"evil")
    data = install_built(tmp_path / "two")
    assert data == (b"build 1" if harm == "a second wheel" else b"build 2")
    said = capsys.readouterr().err
    assert ("built again" in said) or ("writable by others" in said)
    assert install_built(tmp_path / "three") == data
    assert stat.S_IMODE(cache().stat().st_mode) == 0o700


def test_a_cache_that_is_a_link_is_not_used(steps: Steps, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere").mkdir()
    cache().parent.mkdir(parents=True)
    cache().symlink_to(tmp_path / "elsewhere")
    assert install_built(tmp_path / "one") == b"build 1"
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert "is not a folder of this user" in capsys.readouterr().err


@pytest.mark.parametrize("uv", [None, "/bin/uv"])
def test_nothing_is_installed_without_its_hash(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uv: str | None
) -> None:
    lock = LOCK + "pip==26.3 \\\n    --hash=sha256:ffff\n"
    monkeypatch.setattr(bootstrap.shutil, "which", lambda _: uv)
    if uv is None:
        monkeypatch.setattr(bootstrap, "make_venv", lambda venv, _: venv / "bin" / "python")
    monkeypatch.setattr(
        bootstrap.subprocess, "run", lambda *_, **__: bootstrap.subprocess.CompletedProcess((), 0, f"{tmp_path}\n")
    )
    bootstrap.make_from(tmp_path, tmp_path / ".venv", lock)
    for command in steps.commands:
        if "install" in command or "wheel" in command:
            assert "--require-hashes" in command
            assert "--no-deps" in command
        assert "--seed" not in command
    assert all("--hash=sha256:" in line for text in steps.installed for line in bootstrap.requirements(text).values())
    first = bootstrap.requirements(steps.installed[0])
    assert "pip" in first
    if uv is None:
        # The pip that comes with Python installs no other package.
        assert list(first) == ["pip"]
    builds = [command for command in steps.commands if "wheel" in command]
    assert all("--no-build-isolation" in command for command in builds)
    assert len(builds) == 1
