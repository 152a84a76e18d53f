"""Make `.venv` from `requirements.lock`. Run by the `goblin` script with the Python that it found.

Standard library only: nothing is installed yet. Every download is checked against the lock's hashes, pip's own too:
without uv, the pip that comes inside Python (ensurepip, which downloads nothing) installs the one in the lock first.
llama-cpp-python is published as source only, so it is built once, with the fewest portable flags, into a wheel in the
user's cache, with its digest beside it; the next `.venv` on this machine uses that wheel.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

BUILT_FROM_SOURCE = "llama-cpp-python"
INSTALLER = "pip"

# Portable x86-64 (AVX2, no AVX-512) or plain ARM; no multimodal library. The binding does not need `common`, which only
# a file that is included after the project starts can leave out.
CMAKE_ARGS = ("-DGGML_NATIVE=OFF", "-DLLAVA_BUILD=OFF", "-DCMAKE_BUILD_TYPE=Release")
WITHOUT_COMMON = "set(LLAMA_BUILD_COMMON OFF)\n"

_STEP = re.compile(r"\[(\d+)/(\d+)\]")


class Stop(Exception):
    """`.venv` cannot be made; the message says why and how to fix it."""


def say(text: str) -> None:
    """Print a status line to standard error; standard output is for the command itself."""
    print(f"goblin: {text}", file=sys.stderr, flush=True)


def requirements(lock: str) -> dict[str, str]:
    """Split the lock into its entries: whole text with hashes, by package name."""
    entries: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        name = re.match(r"[A-Za-z0-9._-]+", entry)
        if name is None or "==" not in entry:
            continue
        # The lock can have a package once per Python version, each with its marker.
        entries[name[0]] = f"{entries[name[0]]}\n{entry}" if name[0] in entries else entry
    return entries


def progress(label: str, lines: Iterable[str], started: float, packages: int = 0) -> list[str]:
    """Show the progress of a step as one moving line; return its last lines of output, for an error report.

    A build prints `[done/total]` itself. When `packages` are installed, pip prints a line for each that it collects.
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
    """Run a step with its output hidden and its progress shown; print the end of the output if it fails.

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
        raise Stop(f"{label} failed; its output is above. Fix the cause and run the same command again.")


def make_venv(venv: Path, uv: str | None) -> Path:
    """Create `venv` and return its Python. Nothing is downloaded: uv leaves it empty, and Python brings its own pip.

    Raises:
        Stop: This Python cannot make a virtual environment.
    """
    python = venv / "bin" / "python"
    shutil.rmtree(venv, ignore_errors=True)
    if uv:
        run("making .venv", [uv, "venv", "--quiet", "--no-project", "--python", sys.executable, str(venv)])
        return python
    done = subprocess.run([sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(venv, ignore_errors=True)
        if "ensurepip is not available" in done.stdout + done.stderr:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise Stop(f"This Python has no venv. On Debian or Ubuntu: sudo apt-get install python{version}-venv")
        raise Stop(f"Could not make .venv: {(done.stderr or done.stdout).strip()}")
    return python


def install(python: Path, uv: str | None, entries: list[str], work: Path, label: str) -> None:
    """Install exactly `entries`, each checked by its hashes."""
    wanted = work / "wanted.txt"
    wanted.write_text("\n".join(entries) + "\n")
    if uv:
        command = [uv, "pip", "install", "--quiet", "--python", str(python), "--no-deps"]
    else:
        command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
    say(label)
    run(label, [*command, "--require-hashes", "--only-binary", ":all:", "-r", str(wanted)], packages=len(entries))


def wheel_cache(entry: str) -> Path:
    """Return the cache folder of a build; it depends on the source, the platform and the flags."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = "\n".join([entry, *CMAKE_ARGS, WITHOUT_COMMON, sysconfig.get_platform(), *platform.libc_ver()])
    return base / "goblin" / "wheels" / hashlib.sha256(key.encode()).hexdigest()[:16]


def compiler_missing() -> str | None:
    """Return what to install if there is no C++ compiler, else None."""
    if any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name):
        return None
    return (
        "Found no C++ compiler, which llama.cpp needs once. Debian, Ubuntu: sudo apt-get install g++   "
        "Fedora: sudo dnf install gcc-c++   macOS: xcode-select --install"
    )


def build_wheel(python: Path, entry: str, work: Path) -> Path:
    """Build llama-cpp-python from its hash-checked source, with the tools that are installed, and return the wheel.

    Raises:
        Stop: There is no compiler, or the build failed.
    """
    if missing := compiler_missing():
        raise Stop(missing)
    say("compiling llama.cpp, once per machine: two to six minutes on two cores")
    include = work / "without_common.cmake"
    include.write_text(WITHOUT_COMMON)
    source = work / "source.txt"
    source.write_text(entry + "\n")
    # If SOURCE_DATE_EPOCH is set, ggml turns its fast kernels off.
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
    return next(built.glob("*.whl"))


@contextmanager
def own_folder(cache: Path) -> Iterator[Path | None]:
    """Lock the cache folder, which only this user can read or write; None if it cannot be made so."""
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = cache.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        say(f"{cache} is not a folder of this user, so it is not used. Delete it to have a cache again.")
        yield None
        return
    if status.st_mode & 0o022:
        say(f"{cache} was writable by others, so what is in it is not used")
        empty(cache)
    cache.chmod(0o700)
    descriptor = os.open(cache, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # Another checkout may be building the same wheel.
        yield cache
    finally:
        os.close(descriptor)


def empty(folder: Path) -> None:
    """Delete what is in a folder."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def digest_file(wheel: Path) -> Path:
    """Return the file that holds a cached wheel's SHA-256."""
    return wheel.with_name(f"{wheel.name}.sha256")


def cached(cache: Path, work: Path) -> tuple[Path, str] | None:
    """Copy the cached wheel into `work`, checked; return the copy and its SHA-256. None if there is none to trust."""
    for wheel in sorted(cache.glob("*.whl")):
        try:
            said, data = digest_file(wheel).read_text().strip(), wheel.read_bytes()
        except FileNotFoundError:
            say(f"{wheel} has no digest beside it, so it is built again")
            continue
        if hashlib.sha256(data).hexdigest() != said:
            say(f"{wheel} is not what was built: its digest is another, so it is built again")
            continue
        # A copy, so that what is installed is what was read here.
        copy = work / wheel.name
        copy.write_bytes(data)
        return copy, said
    return None


def keep(wheel: Path, digest: str, cache: Path) -> None:
    """Put a wheel into the cache, in place of what is there. A killed process leaves one without digest, or none."""
    empty(cache)
    draft = cache / f".{wheel.name}"
    shutil.copy(wheel, draft)
    draft.chmod(0o600)
    draft.rename(cache / wheel.name)
    digest_file(cache / wheel.name).write_text(f"{digest}\n")


def install_built(python: Path, entry: str, work: Path) -> None:
    """Install llama-cpp-python from the cache; build it first if the cache has no wheel that can be trusted."""
    with own_folder(wheel_cache(entry)) as cache:
        found = cached(cache, work) if cache else None
        if found is None:
            wheel = build_wheel(python, entry, work)
            found = wheel, hashlib.sha256(wheel.read_bytes()).hexdigest()
            if cache:
                keep(*found, cache)
    wheel, digest = found
    wanted = work / "built.txt"
    wanted.write_text(f"{wheel} --hash=sha256:{digest}\n")
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    run("installing llama.cpp", [*command, "--require-hashes", "-r", str(wanted)])


def make(root: Path) -> None:
    """Make `root/.venv` and stamp it with what it was made from. A concurrent second call waits for the first.

    Raises:
        Stop: Something is missing or failed; the message says how to fix it.
    """
    lock = (root / "requirements.lock").read_text()
    venv = root / ".venv"
    with (root / ".venv.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        # The result depends on the lock and on this file.
        wanted, stamp = lock + Path(__file__).read_text(), venv / "goblin.stamp"
        if not stamp.is_file() or stamp.read_text() != wanted:
            make_from(root, venv, lock)
            # Write the stamp last, so that an interrupted run starts over.
            stamp.write_text(wanted)


def make_from(root: Path, venv: Path, lock: str) -> None:
    """Make `venv` from scratch from the text of the lock."""
    entries = requirements(lock)
    uv = shutil.which("uv")
    say(
        f"making .venv with Python {platform.python_version()} and {'uv' if uv else 'pip'}, once per change of the lock"
    )
    python = make_venv(venv, uv)
    with tempfile.TemporaryDirectory(prefix="goblin-") as name:
        work = Path(name)
        if not uv:
            install(python, None, [entries[INSTALLER]], work, "installing pip, checked by its hash")
            # Python 3.11 brings this one too, and nothing here needs it.
            run("removing setuptools", [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools"])
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
