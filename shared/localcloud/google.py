"""Google's own Pub/Sub and Firestore emulators, to check localcloud against where gcloud and Java are installed.

The jars are started directly: `gcloud emulators` adds a second of Python and a process tree that is hard to stop.
Source: gcloud SDK 528.0.0, pubsub emulator 0.8.20 and firestore emulator 1.19.9, tried 2026-11-23.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
START_S_MAX = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Emulators:
    """The installed emulators; `reason` says what is missing."""

    java: str | None
    pubsub_jar: Path | None
    firestore_jar: Path | None

    @property
    def reason(self) -> str | None:
        """Why the emulators cannot be used and how to install them; None when they can."""
        if self.java is None:
            return "Google's emulators need Java 11 or newer on PATH"
        missing = [
            name
            for name, jar in (("pubsub-emulator", self.pubsub_jar), ("cloud-firestore-emulator", self.firestore_jar))
            if jar is None
        ]
        if missing:
            return f"Google's emulators are not installed: gcloud components install {' '.join(missing)}"
        return None


def find() -> Emulators:
    """Find the emulators: in `GOBLIN_EMULATORS` (an SDK root), beside `gcloud`, then in the usual SDK roots."""
    roots = [Path(named)] if (named := os.environ.get("GOBLIN_EMULATORS")) else []
    if gcloud := shutil.which("gcloud"):
        roots.append(Path(gcloud).resolve().parent.parent)
    roots += [Path("/usr/lib/google-cloud-sdk"), Path("/opt/google-cloud-sdk"), Path.home() / "google-cloud-sdk"]
    platforms = [root / "platform" for root in roots]

    def jar(pattern: str) -> Path | None:
        return next((path for platform in platforms for path in sorted(platform.glob(pattern))), None)

    return Emulators(
        java=shutil.which("java"),
        pubsub_jar=jar("pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar"),
        firestore_jar=jar("cloud-firestore-emulator/cloud-firestore-emulator.jar"),
    )


def free_port() -> int:
    """Return a port that was free a moment ago; the emulators cannot choose one themselves."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def pubsub_command(found: Emulators, port: int) -> list[str]:
    """Return the command line of the Pub/Sub emulator."""
    jvm = ["-XX:+UseSerialGC", "-Xmx256m", "-XX:TieredStopAtLevel=1"]
    return [str(found.java), *jvm, "-jar", str(found.pubsub_jar), f"--host={HOST}", f"--port={port}"]


def firestore_command(found: Emulators, port: int) -> list[str]:
    """Return the command line of the Firestore emulator."""
    jvm = ["-XX:+UseSerialGC", "-Xmx512m", "-Duser.language=en", "-cp", str(found.firestore_jar)]
    main = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"
    return [str(found.java), *jvm, main, f"--host={HOST}", f"--port={port}"]


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process listens on the port.

    Raises:
        RuntimeError: The process ended, or did not listen within `START_S_MAX`.
    """
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"The emulator exited with status {process.returncode}.")
        try:
            with socket.create_connection((HOST, port), timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"The emulator did not listen on port {port} within {START_S_MAX:.0f} s.")


@contextmanager
def running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run an emulator until the block ends."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            wait_for_port(port, process)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
