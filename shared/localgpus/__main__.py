"""`python -m localgpus --port P --data DIR [--pace X] -- COMMAND…`: local GPUs, whose instances run that command."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from httpguard.lines import log_lines
from localgpus import server
from localgpus.machines import Processes


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="localgpus", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="Port on 127.0.0.1. 0: a free one, which is printed.")
    parser.add_argument("--data", type=Path, required=True, help="Folder for the markets' state, disks and logs.")
    parser.add_argument("--pace", type=float, default=1.0, help="Divides every simulated time. Default: 1.")
    parser.add_argument("--simulate", type=int, help="Seed of the market simulation. Default: none.")
    parser.add_argument("--no-limits", action="store_true", help="Never answer 429.")
    parser.add_argument("command", nargs="+", help="Command that runs in place of any image.")
    said = parser.parse_args(words)
    log_lines()
    # Logs and disks of instances are their owner's, whatever folder was chosen.
    os.umask(0o077)
    if not 0 < said.pace <= 10_000:
        parser.error("--pace must be above 0 and at most 10000.")
    try:
        sock = server.listen(said.port)
    except OSError as error:
        parser.error(str(error))
    markets = server.Markets(
        Processes(said.command, said.data / "machines"), folder=said.data, pace=said.pace, limits=not said.no_limits,
        simulation=said.simulate,
        vast_key=os.environ.get("VASTAI_API_KEY") or "local-vast-key",
        runpod_key=os.environ.get("RUNPOD_API_KEY") or "local-runpod-key",
    )  # fmt: skip
    sys.stdout.write(f"http://127.0.0.1:{sock.getsockname()[1]}\n")
    sys.stdout.flush()
    server.serve(markets, sock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
