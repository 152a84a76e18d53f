"""Serve the local cloud until SIGTERM or Ctrl-C. When all ports are open, print the variables that point apps at it."""

import argparse
import asyncio
import dataclasses
import json
import os
import shlex
import signal
import sys
from pathlib import Path

from httpguard.lines import log_lines
from localcloud import __version__
from localcloud.pubsub.chaos import Chaos
from localcloud.server import SERVICES, Addresses, LocalCloud, Options

PUBSUB_PORT, FIRESTORE_PORT, STORAGE_PORT = 8085, 8086, 8087
"""Fixed, so that apps find the cloud again after a restart. 8085 is also the default of Google's Pub/Sub emulator."""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m localcloud", description=__doc__)
    parser.add_argument("--version", action="version", version=f"localcloud {__version__}")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(".localcloud"),
        help="Folder that holds all state. Default: .localcloud in the current folder.",
    )
    parser.add_argument(
        "--json", action="store_true", help="Print the addresses as one JSON object instead of shell variables."
    )
    parser.add_argument(
        "--services",
        default=",".join(SERVICES),
        help="Services to serve, separated by commas. Default: " + ", ".join(SERVICES),
    )
    parser.add_argument(
        "--pubsub-port", type=int, default=PUBSUB_PORT, metavar="PORT",
        help="Port for Pub/Sub and Secret Manager's gRPC; 0: any that is free. Default: %(default)s.",
    )  # fmt: skip
    parser.add_argument(
        "--firestore-port", type=int, default=FIRESTORE_PORT, metavar="PORT",
        help="Port for Firestore; 0: any that is free. Default: %(default)s.",
    )  # fmt: skip
    parser.add_argument(
        "--storage-port", type=int, default=STORAGE_PORT, metavar="PORT",
        help="Port for Storage, Secret Manager's REST and schedules; 0: any that is free. Default: %(default)s.",
    )  # fmt: skip
    parser.add_argument("--declaration", type=Path, help="JSON file with indexes, ttl and schedules.")
    parser.add_argument("--functions-url", help="Base URL of the scheduled functions. Without it no schedule runs.")
    parser.add_argument(
        "--every", action="append", type=_every, default=[], metavar="SCHEDULE=SECONDS",
        help="Run a schedule every SECONDS (1 to 59) instead of as declared. Repeatable.",
    )  # fmt: skip
    parser.add_argument("--invoker-email", default=Options.__dataclass_fields__["invoker_email"].default)
    parser.add_argument("--firestore-mode", choices=["pessimistic", "optimistic"], default="pessimistic")
    parser.add_argument("--chaos-seed", type=int, help="Duplicate and reorder deliveries, from this seed.")
    return parser.parse_args(words)


def options(said: argparse.Namespace) -> Options:
    """Return the settings that the command line asks for."""
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


def listing(addresses: Addresses, *, as_json: bool = False) -> str:
    """Return what to print about the addresses: `export` lines for a shell, or one JSON object."""
    if as_json:
        return json.dumps(dataclasses.asdict(addresses))
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in addresses.variables().items())


async def serve(chosen: Options, *, as_json: bool) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    cloud = LocalCloud(chosen)
    try:
        addresses = await cloud.start()
        sys.stdout.write(listing(addresses, as_json=as_json) + "\n")
        sys.stdout.flush()
        await stopped.wait()
    finally:
        await cloud.close()


def main() -> int:
    """Run the command line and return the exit status."""
    log_lines()
    said = parse()
    # Objects and secrets are their owner's, whatever folder was chosen.
    os.umask(0o077)
    try:
        asyncio.run(serve(options(said), as_json=said.json))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"localcloud: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
