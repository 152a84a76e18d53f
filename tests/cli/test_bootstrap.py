"""What makes `.venv`: it must read the real lock, and say what is missing before anything is half done."""

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
    assert bootstrap.BUILT_FROM_SOURCE in entries
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
        bootstrap.build_wheel(tmp_path / "python", "x==1", tmp_path / "cache", tmp_path)
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
