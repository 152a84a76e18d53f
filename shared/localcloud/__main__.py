"""Serve the local cloud until SIGTERM or Ctrl-C. The first line on standard output is a JSON object of addresses."""

import argparse
import asyncio
import dataclasses
import json
import logging
import signal
import sys
from pathlib import Path

from localcloud.pubsub.chaos import Chaos
from localcloud.server import SERVICES, LocalCloud, Options


def options(words: list[str] | None = None) -> Options:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m localcloud", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Folder that holds all state.")
    parser.add_argument(
        "--services",
        default=",".join(SERVICES),
        help="Services to serve, separated by commas. Default: " + ", ".join(SERVICES),
    )
    parser.add_argument("--pubsub-port", type=int, default=0)
    parser.add_argument("--firestore-port", type=int, default=0)
    parser.add_argument("--storage-port", type=int, default=0)
    parser.add_argument("--declaration", type=Path, help="JSON file with indexes, ttl and schedules.")
    parser.add_argument("--functions-url", help="Base URL of the scheduled functions. Without it no schedule runs.")
    parser.add_argument(
        "--every", action="append", type=_every, default=[], metavar="SCHEDULE=SECONDS",
        help="Run a schedule every SECONDS (1 to 59) instead of as declared. Repeatable.",
    )  # fmt: skip
    parser.add_argument("--invoker-email", default=Options.__dataclass_fields__["invoker_email"].default)
    parser.add_argument("--firestore-mode", choices=["pessimistic", "optimistic"], default="pessimistic")
    parser.add_argument("--chaos-seed", type=int, help="Duplicate and reorder deliveries, from this seed.")
    said = parser.parse_args(words)
    services = tuple(name for name in SERVICES if name in said.services.split(","))
    return Options(
        folder=said.data,
        services=services,
        pubsub_port=said.pubsub_port,
        firestore_port=said.firestore_port,
        storage_port=said.storage_port,
        declaration=said.declaration,
        functions_url=said.functions_url,
        every_s=dict(said.every),
        invoker_email=said.invoker_email,
        firestore_mode=said.firestore_mode,
        chaos=None if said.chaos_seed is None else Chaos(said.chaos_seed),
    )


def _every(text: str) -> tuple[str, int]:
    name, _, seconds = text.partition("=")
    if not name or not seconds.isdecimal() or not 1 <= int(seconds) <= 59:
        raise argparse.ArgumentTypeError(f"{text!r} is not SCHEDULE=SECONDS with 1 to 59 seconds")
    return name, int(seconds)


async def serve(chosen: Options) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    cloud = LocalCloud(chosen)
    addresses = await cloud.start()
    sys.stdout.write(json.dumps(dataclasses.asdict(addresses)) + "\n")
    sys.stdout.flush()
    await stopped.wait()
    await cloud.close()


def main() -> int:
    """Run the command line and return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        asyncio.run(serve(options()))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"localcloud: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
