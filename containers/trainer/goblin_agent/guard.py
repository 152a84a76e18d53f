"""`python -m goblin_agent.guard COMMAND…`: run a task that never outlives the agent.

Standard input is a pipe from the agent. It closes when the agent has ended, for whatever reason; the guard then kills
the whole process group. SIGTERM is forwarded to the task alone: its children must not be terminated while it saves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def _watch() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


def main(command: list[str]) -> int:
    """Run the command and return its exit code: 128 + the signal's number if a signal ended it."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    threading.Thread(target=_watch, name="agent", daemon=True).start()
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error}\n")
        return 127
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    if asked:
        child.terminate()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
