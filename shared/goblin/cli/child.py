"""Run a module as a child process that never outlives its parent: `python -m goblin.cli.child MODULE WORDS…`.

Standard input is a pipe from the parent. Its end means that the parent has ended, for whatever reason; the child stops.
"""

import os
import runpy
import signal
import sys
import threading
import time

ORPHAN_S_MAX = 3.0


def _watch() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    # No caller waits for the answers in flight any more, and the next `up` waits for the lock that this process shares.
    time.sleep(ORPHAN_S_MAX)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_watch, name="parent", daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
