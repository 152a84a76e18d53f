"""`goblin dead-letters`: list, replay and drop messages that no function could handle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from goblin.cli import terminal
from goblin.cli.api import needed
from goblin.cli.deployment import reach, run
from goblin.cli.main import DATA
from goblin.core import dead_letters as service
from goblin.core.dead_letters import DeadLetter
from goblin.core.events import TOPICS
from goblin.core.ports import DeadLetterBox
from goblin.web.dead_letters import letter as row_of

SHOWN_MAX = 100

TOPIC = click.argument("topic", type=click.Choice(sorted(TOPICS)), required=False)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("dead-letters", context_settings={"help_option_names": ["-h", "--help"]})
def dead_letters() -> None:
    """List, replay and drop messages that no function could handle."""


@dead_letters.command("list")
@TOPIC
@click.option(
    "--limit", type=click.IntRange(1, service.PULLED_MAX), default=SHOWN_MAX, show_default=True,
    help="Most letters to print, the oldest first. --json prints all.",
)  # fmt: skip
@JSON
@DATA
def list_letters(topic: str | None, limit: int, as_json: bool, data: Path | None) -> None:
    """List dead letters of TOPIC, or of every topic. They stay where they are."""
    _reach(data)

    async def work() -> service.Listed:
        return await service.list_letters(topic, _box())

    found = run(work())
    if as_json:
        terminal.echo_json(json.dumps([row_of(one) for one in found.letters]))
        return
    for one in found.letters[:limit]:
        _print(one)
    count, more = len(found.letters), "" if found.whole else "more than "
    if count > limit or not found.whole:
        terminal.echo(f"the first {min(limit, count)} of {more}{count} dead letters")
    else:
        terminal.echo(f"{count} dead letter{'' if count == 1 else 's'}")


@dead_letters.command()
@TOPIC
@click.option("--message", "message_id", help="Id of the only message to replay. Default: all.")
@click.option("--force", is_flag=True, help="Also replay what cannot be parsed.")
@JSON
@DATA
def replay(topic: str | None, message_id: str | None, force: bool, as_json: bool, data: Path | None) -> None:
    """Publish dead letters to their topic again, after you fixed the cause. A second replay does no harm.

    A message that cannot be parsed would fail again: it is left, unless you --force it.
    """
    _reach(data)

    async def work() -> service.Replayed:
        return await service.replay(topic, message_id, _box(), force=force)

    found = run(work())
    if as_json:
        terminal.echo_json(json.dumps([{"topic": one.topic, "message_id": one.message_id} for one in found.replayed]))
    else:
        terminal.echo(f"{len(found.replayed)} replayed")
    if found.left:
        terminal.echo(
            f"{len(found.left)} cannot be parsed and {'was' if len(found.left) == 1 else 'were'} left: "
            "drop them, or replay them with --force", err=True,
        )  # fmt: skip
    if not found.whole:
        terminal.echo("there are more; replay again", err=True)


@dead_letters.command()
@click.argument("message_id")
@click.option("--topic", type=click.Choice(sorted(TOPICS)), help="Topic of the message. Default: look in all.")
@JSON
@DATA
def drop(message_id: str, topic: str | None, as_json: bool, data: Path | None) -> None:
    """Delete the dead letter MESSAGE_ID. It cannot be brought back."""
    _reach(data)

    async def work() -> DeadLetter:
        return await service.drop(topic, message_id, _box())

    gone = run(work())
    if as_json:
        terminal.echo_json(json.dumps({"topic": gone.topic, "message_id": gone.message_id}))
    else:
        terminal.echo(f"{gone.message_id} of {gone.topic} is deleted")


def _print(one: DeadLetter) -> None:
    row: dict[str, Any] = row_of(one)
    times = f"{one.deliveries} deliver{'y' if one.deliveries == 1 else 'ies'}"
    if one.replays:
        times += f", {one.replays} replay{'' if one.replays == 1 else 's'}"
    terminal.echo(f"{one.topic}  {one.message_id}  first {row['first_at']}, {times}, dead since {row['published_at']}")
    terminal.echo(f"    {terminal.plain(row['reason'])}")
    if one.unreadable is not None:
        terminal.echo("    it cannot be parsed: a replay needs --force")
    terminal.echo(f"    {terminal.plain(row['data'])}")


def _reach(data: Path | None) -> None:
    reach(data)
    needed("GOOGLE_CLOUD_PROJECT")


def _box() -> DeadLetterBox:
    from goblin.wiring import dead_letters as wiring

    return wiring.box()
