"""`goblin dead-letters`: list and replay messages that used up their delivery attempts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from goblin.cli import terminal
from goblin.cli.api import needed
from goblin.cli.deployment import reach
from goblin.cli.main import DATA, fail
from goblin.core.events import REASON, SOURCE, TOPICS

PULL_S = 2.0
CALL_S = 10.0
LISTED_MAX = 100
SHOWN_BYTES_MAX = 300

TOPIC = click.argument("topic", type=click.Choice(sorted(TOPICS)), required=False)


@click.group("dead-letters", context_settings={"help_option_names": ["-h", "--help"]})
def dead_letters() -> None:
    """List and replay messages that no function could handle."""


@dead_letters.command("list")
@TOPIC
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@DATA
def list_letters(topic: str | None, as_json: bool, data: Path | None) -> None:
    """List dead letters of TOPIC, or of every topic. They stay where they are."""
    found = []
    with _clouds(data) as (_, subscriber, project):
        for name, held in _pull_all(subscriber, project, topic):
            _give_back(subscriber, project, name, [letter.ack_id for letter in held])
            found += [_row(name, letter) for letter in held]
    if as_json:
        terminal.echo_json(json.dumps(found))
        return
    for row in found:
        terminal.echo(f"{row['topic']}  {row['message_id']}  {row['published_at']}\n    {terminal.plain(row['data'])}")
        if row["reason"]:
            terminal.echo(f"    {terminal.plain(row['reason'])}")
    terminal.echo(f"{len(found)} dead letter{'' if len(found) == 1 else 's'}")


@dead_letters.command()
@TOPIC
@click.option("--message", "message_id", help="Id of the only message to replay. Default: all.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@DATA
def replay(topic: str | None, message_id: str | None, as_json: bool, data: Path | None) -> None:
    """Publish dead letters to their topic again, after you fixed the cause. A second replay does no harm."""
    replayed = []
    with _clouds(data) as (publisher, subscriber, project):
        for name, held in _pull_all(subscriber, project, topic):
            for letter in held:
                if message_id not in (None, letter.message.message_id):
                    _give_back(subscriber, project, name, [letter.ack_id])
                    continue
                path = publisher.topic_path(project, name)
                # Publish, then acknowledge: a crash in between replays a message twice, and handlers are idempotent.
                publisher.publish(path, letter.message.data, **_attributes(letter)).result(CALL_S)
                _acknowledge(subscriber, project, name, letter.ack_id)
                replayed.append({"topic": name, "message_id": letter.message.message_id})
    if as_json:
        terminal.echo_json(json.dumps(replayed))
        return
    terminal.echo(f"{len(replayed)} replayed")


@contextmanager
def _clouds(data: Path | None) -> Iterator[tuple[Any, Any, str]]:
    """Yield a publisher, a subscriber and the project of the Goblin that the environment names or that runs here."""
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import pubsub_v1

    reach(data)
    project = needed("GOOGLE_CLOUD_PROJECT")
    with ExitStack() as open_clients:
        try:
            publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
            open_clients.enter_context(subscriber)
            open_clients.callback(publisher.transport.close)
            yield publisher, subscriber, project
        except (GoogleAPICallError, GoogleAuthError) as error:
            fail(f"Pub/Sub answered {type(error).__name__}: {getattr(error, 'message', error)}")


def _pull_all(subscriber: Any, project: str, topic: str | None) -> list[tuple[str, list[Any]]]:
    """Pull the dead letters of one topic or of all, in parallel: an empty subscription takes seconds to answer."""
    names = [topic] if topic else sorted(TOPICS)
    with ThreadPoolExecutor(len(names)) as threads:
        return list(zip(names, threads.map(lambda name: list(_pull(subscriber, project, name)), names), strict=True))


def _pull(subscriber: Any, project: str, topic: str) -> Iterator[Any]:
    """Pull every dead letter of a topic, up to a limit; each is held for the acknowledgement deadline."""
    from google.api_core.exceptions import DeadlineExceeded

    seen: set[str] = set()
    while len(seen) < LISTED_MAX:
        request = {"subscription": _dead(subscriber, project, topic), "max_messages": LISTED_MAX}
        try:
            got = subscriber.pull(request=request, timeout=PULL_S, retry=None).received_messages
        except DeadlineExceeded:
            return  # No message: the server keeps the call open until there is one.
        fresh = [letter for letter in got if letter.message.message_id not in seen]
        seen |= {letter.message.message_id for letter in fresh}
        yield from fresh
        if not fresh:
            return


def _dead(subscriber: Any, project: str, topic: str) -> str:
    path: str = subscriber.subscription_path(project, f"{topic}-dead")
    return path


def _give_back(subscriber: Any, project: str, topic: str, ack_ids: Sequence[str]) -> None:
    if ack_ids:
        request = {"subscription": _dead(subscriber, project, topic), "ack_ids": ack_ids, "ack_deadline_seconds": 0}
        subscriber.modify_ack_deadline(request=request, timeout=CALL_S)


def _acknowledge(subscriber: Any, project: str, topic: str, ack_id: str) -> None:
    request = {"subscription": _dead(subscriber, project, topic), "ack_ids": [ack_id]}
    subscriber.acknowledge(request=request, timeout=CALL_S)


def _attributes(letter: Any) -> dict[str, str]:
    """Return the message's own attributes, without those that were added when it became a dead letter."""
    return {
        name: value
        for name, value in letter.message.attributes.items()
        if not name.startswith(SOURCE) and name != REASON
    }


def _row(topic: str, letter: Any) -> dict[str, Any]:
    message = letter.message
    return {
        "topic": topic,
        "message_id": message.message_id,
        "published_at": message.publish_time.isoformat(),
        "delivery_count": message.attributes.get(f"{SOURCE}DeliveryCount"),
        "reason": _line(message.attributes.get(REASON, "")),
        "data": _line(message.data[:SHOWN_BYTES_MAX].decode("utf-8", "replace")),
        "attributes": _attributes(letter),
    }


def _line(text: str) -> str:
    """Return one line without control characters, because a terminal would execute them."""
    return "".join(sign if sign.isprintable() else " " for sign in text)
