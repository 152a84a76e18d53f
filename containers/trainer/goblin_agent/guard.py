"""`python -m goblin_agent.guard COMMAND…`: run a task that never outlives the agent.

Standard input is a pipe from the agent. When it ends, the agent is gone, however it died, and the whole process group
is killed. SIGTERM is handed to the task alone: its own children must not die while it saves.
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
    """The exit code of the command; 128 and the signal's number when one ended it."""
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
