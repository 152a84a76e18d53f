"""Make `.venv` from `requirements.lock`. Run by the `goblin` script with whatever Python there is.

Standard library only: nothing is installed yet. Every download is checked against the lock's hashes.
llama-cpp-python comes as source only, so it is built once, with the shortest portable set of flags, into a
wheel kept in the user's cache; the next `.venv` on this machine takes it from there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

BUILT_FROM_SOURCE = "llama-cpp-python"

# Portable x86-64 (AVX2, no AVX-512) or plain ARM; no multimodal library; `common` is not needed by the binding
# and can only be left out by a file included after the project starts.
CMAKE_ARGS = ("-DGGML_NATIVE=OFF", "-DLLAVA_BUILD=OFF", "-DCMAKE_BUILD_TYPE=Release")
WITHOUT_COMMON = "set(LLAMA_BUILD_COMMON OFF)\n"

_STEP = re.compile(r"\[(\d+)/(\d+)\]")


class Stop(Exception):
    """A reason to give up, in words that say what mends it."""


def say(text: str) -> None:
    """Tell the person what is going on; standard output stays free for the command itself."""
    print(f"goblin: {text}", file=sys.stderr, flush=True)


def requirements(lock: str) -> dict[str, str]:
    """Split the lock into its entries: name to the entry's whole text, hashes included."""
    entries: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        name = re.match(r"[A-Za-z0-9._-]+", entry)
        if name is None or "==" not in entry:
            continue
        # A package can stand in the lock once per Python version, each with its marker.
        entries[name[0]] = f"{entries[name[0]]}\n{entry}" if name[0] in entries else entry
    return entries


def progress(label: str, lines: Iterable[str], started: float, packages: int = 0) -> list[str]:
    """Show how far a step is as one moving line; return the last lines it said for an error report.

    A build counts `[done/total]` itself; of `packages` to install, pip names each that it collects.
    """
    tail: list[str] = []
    moving = sys.stderr.isatty()
    shown = -1
    collected = 0
    for line in lines:
        tail = [*tail[-60:], line.rstrip()]
        if packages and line.startswith("Collecting "):
            collected += 1
            done, total = min(collected, packages), packages
        elif step := _STEP.search(line):
            done, total = int(step[1]), int(step[2])
        else:
            continue
        if moving:
            bar = "#" * (24 * done // total)
            print(f"\rgoblin: {label} [{bar:<24}] {done}/{total}", end="", file=sys.stderr, flush=True)
        elif done * 4 // total > shown:
            shown = done * 4 // total
            say(f"{label} {done}/{total}, {time.monotonic() - started:.0f} s")
    if moving:
        print(file=sys.stderr)
    return tail


def run(label: str, command: list[str], *, env: Mapping[str, str] | None = None, packages: int = 0) -> None:
    """Run a step quietly with its progress; on failure print the end of what it said.

    Raises:
        Stop: The step failed.
    """
    started = time.monotonic()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=dict(env) if env is not None else None,
    ) as process:
        tail = progress(label, process.stdout or (), started, packages)
    if process.returncode:
        print("\n".join(tail), file=sys.stderr)
        raise Stop(f"{label} failed (above). Mend it and run the same command again; what is done is kept.")


def make_venv(venv: Path, uv: str | None) -> Path:
    """Create `venv` with a pip in it and return its Python.

    Raises:
        Stop: This Python cannot make one.
    """
    python = venv / "bin" / "python"
    shutil.rmtree(venv, ignore_errors=True)
    if uv:
        run("making .venv", [uv, "venv", "--quiet", "--seed", "--python", sys.executable, str(venv)])
        return python
    done = subprocess.run([sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(venv, ignore_errors=True)
        if "ensurepip is not available" in done.stdout + done.stderr:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise Stop(f"this Python has no venv. On Debian or Ubuntu: sudo apt-get install python{version}-venv")
        raise Stop(f"could not make .venv: {(done.stderr or done.stdout).strip()}")
    return python


def install(python: Path, uv: str | None, entries: list[str], work: Path, label: str) -> None:
    """Install exactly `entries` with their hashes."""
    wanted = work / "wanted.txt"
    wanted.write_text("\n".join(entries) + "\n")
    if uv:
        command = [uv, "pip", "install", "--quiet", "--python", str(python), "--no-deps"]
    else:
        command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
    say(label)
    run(label, [*command, "--require-hashes", "--only-binary", ":all:", "-r", str(wanted)], packages=len(entries))


def wheel_cache(entry: str) -> Path:
    """Name the cache folder of a build: what it is built from, for what, and with which flags."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = "\n".join([entry, *CMAKE_ARGS, WITHOUT_COMMON, sysconfig.get_platform(), *platform.libc_ver()])
    return base / "goblin" / "wheels" / hashlib.sha256(key.encode()).hexdigest()[:16]


def compiler_missing() -> str | None:
    """Say what to install when no C++ compiler is there."""
    if any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name):
        return None
    return (
        "llama.cpp is compiled once and needs a C++ compiler. Debian, Ubuntu: sudo apt-get install g++   "
        "Fedora: sudo dnf install gcc-c++   macOS: xcode-select --install"
    )


def build_wheel(python: Path, entry: str, cache: Path, work: Path) -> Path:
    """Build llama-cpp-python from its hash-checked source into `cache` and return the wheel.

    Raises:
        Stop: No compiler, or the build failed.
    """
    if missing := compiler_missing():
        raise Stop(missing)
    say("compiling llama.cpp, once on this machine: two to six minutes on two cores")
    include = work / "without_common.cmake"
    include.write_text(WITHOUT_COMMON)
    source = work / "source.txt"
    source.write_text(entry + "\n")
    # With SOURCE_DATE_EPOCH set, ggml turns the fast kernels off.
    env = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"}
    env["PATH"] = f"{python.parent}{os.pathsep}{env.get('PATH', '')}"
    env["CMAKE_ARGS"] = " ".join([*CMAKE_ARGS, f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={include}"])
    env["CMAKE_GENERATOR"] = "Ninja"
    env.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 2))
    built = work / "built"
    command = [
        str(python), "-m", "pip", "wheel", "--verbose", "--disable-pip-version-check", "--no-cache-dir",
        "--no-deps", "--no-build-isolation", "--no-binary", BUILT_FROM_SOURCE, "--require-hashes",
        "--wheel-dir", str(built), "-r", str(source),
    ]  # fmt: skip
    run("compiling llama.cpp", command, env=env)
    wheel = next(built.glob("*.whl"))
    cache.mkdir(parents=True, exist_ok=True)
    # A rename inside the folder: a build that is killed leaves no half wheel behind.
    shutil.copy(wheel, cache / f".{wheel.name}.{os.getpid()}")
    return (cache / f".{wheel.name}.{os.getpid()}").rename(cache / wheel.name)


def install_built(python: Path, entry: str, work: Path) -> None:
    """Install llama-cpp-python from the cache, building it first when it is not there."""
    cache = wheel_cache(entry)
    wheel = next(iter(cache.glob("*.whl")), None) or build_wheel(python, entry, cache, work)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run("installing llama.cpp", [*command, "--no-index", str(wheel)])


def make(root: Path) -> None:
    """Make `root/.venv` and stamp it with what it was made from; a second caller waits for the first.

    Raises:
        Stop: Something is missing; the message says what mends it.
    """
    lock = (root / "requirements.lock").read_text()
    venv = root / ".venv"
    with (root / ".venv.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        # What is made depends on the lock and on this file.
        wanted, stamp = lock + Path(__file__).read_text(), venv / "goblin.stamp"
        if not stamp.is_file() or stamp.read_text() != wanted:
            make_from(root, venv, lock)
            # The stamp comes last: an interrupted run starts over.
            stamp.write_text(wanted)


def make_from(root: Path, venv: Path, lock: str) -> None:
    """Make `venv` anew from the text of the lock."""
    entries = requirements(lock)
    uv = shutil.which("uv")
    say(
        f"making .venv with Python {platform.python_version()} and {'uv' if uv else 'pip'}, once per change of the lock"
    )
    python = make_venv(venv, uv)
    with tempfile.TemporaryDirectory(prefix="goblin-") as name:
        work = Path(name)
        wheels = [text for package, text in entries.items() if package != BUILT_FROM_SOURCE]
        install(python, uv, wheels, work, f"installing {len(wheels)} packages, each checked by its hash")
        install_built(python, entries[BUILT_FROM_SOURCE], work)
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    homes = (root / "shared", *(root / "containers" / name for name in ("llamacpp", "worker", "trainer")))
    Path(site, "goblin.pth").write_text("".join(f"{home}\n" for home in homes))
    say("ready")


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1]))
    except Stop as reason:
        say(str(reason))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
