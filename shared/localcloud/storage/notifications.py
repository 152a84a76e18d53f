"""Object notifications, published to Pub/Sub at least once.

An event is a row in the outbox, committed with its change. A task publishes the rows in order and deletes each
after Pub/Sub accepted it. After a crash in between, the next start publishes the event again.
Source: https://cloud.google.com/storage/docs/pubsub-notifications, read 2026-11-25.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any

import msgspec

from localcloud.storage.catalog import Catalog
from localcloud.storage.errors import StorageError, invalid
from localcloud.storage.records import PRODUCTION_ENDPOINT, StoredObject, rfc3339

log = logging.getLogger(__name__)

Publish = Callable[[str, bytes, Mapping[str, str]], Awaitable[str]]
"""A function: `publish("projects/P/topics/T", data, attributes)` returns the message id."""
_TOPIC = re.compile(r"//pubsub\.googleapis\.com/(projects/[^/]+/topics/[^/]+)")
_PER_BUCKET_MAX = 100
_BACKOFF_FIRST_S = 0.1
_BACKOFF_MAX_S = 10.0
_KEPT_US = 7 * 86_400 * 1_000_000


class _Wanted(msgspec.Struct):
    """The types of what else a configuration may say: every later upload reads it."""

    event_types: list[str] = []
    object_name_prefix: str = ""
    custom_attributes: dict[str, str] = {}


class Event(StrEnum):
    """Production's event types."""

    FINALIZE = "OBJECT_FINALIZE"
    METADATA_UPDATE = "OBJECT_METADATA_UPDATE"
    DELETE = "OBJECT_DELETE"
    ARCHIVE = "OBJECT_ARCHIVE"


class Notifications:
    """The notification configurations of all buckets, and the outbox."""

    def __init__(self, catalog: Catalog, publish: Publish | None) -> None:
        """Use the outbox. Without `publish`, configurations are stored and events are dropped."""
        self._catalog = catalog
        self._store = catalog.store
        self._publish = publish
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Publish the events left by an earlier process, then all new ones."""
        if self._publish is not None:
            self._task = asyncio.create_task(self._publish_all(self._publish), name="storage notifications")
            self._news.set()

    async def close(self) -> None:
        """Stop; the remaining events are published after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wake(self) -> None:
        """Announce that the outbox may have rows."""
        self._news.set()

    def create(self, bucket: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Add a configuration; raises 400 for a malformed topic."""
        topic = fields.get("topic")
        if not isinstance(topic, str) or _TOPIC.fullmatch(topic) is None:
            raise invalid("topic must look like //pubsub.googleapis.com/projects/P/topics/T")
        if fields.get("payload_format") not in ("JSON_API_V1", "NONE"):
            raise invalid("payload_format must be JSON_API_V1 or NONE")
        try:
            msgspec.convert({name: value for name, value in fields.items() if value is not None}, _Wanted)
        except msgspec.ValidationError as error:
            raise invalid(f"Parse Error: {error}") from error
        unknown = set(fields.get("event_types") or ()) - set(Event)
        if unknown:
            raise invalid(f"Unknown event types: {sorted(unknown)}")
        names = ("topic", "payload_format", "event_types", "object_name_prefix", "custom_attributes")
        kept = {name: fields[name] for name in names if fields.get(name)}
        with self._catalog.transaction():
            self._catalog.bucket(bucket)
            row = self._store.execute(
                "SELECT count(*) AS count, max(id) AS last FROM notifications WHERE bucket = ?", (bucket,)
            ).fetchone()
            if row["count"] >= _PER_BUCKET_MAX:
                raise StorageError(429, "rateLimitExceeded", f"A bucket has at most {_PER_BUCKET_MAX} notifications")
            number = (row["last"] or 0) + 1
            self._store.execute(
                "INSERT INTO notifications VALUES (?, ?, ?)", (bucket, number, msgspec.json.encode(kept))
            )
        return _resource(bucket, number, kept)

    def all(self, bucket: str) -> list[dict[str, Any]]:
        """Return all configurations of a bucket."""
        self._catalog.bucket(bucket)
        return [_resource(bucket, number, fields) for number, fields in self._configurations(bucket)]

    def get(self, bucket: str, number: str) -> dict[str, Any]:
        """Return one configuration; raises 404 when there is none."""
        for resource in self.all(bucket):
            if resource["id"] == number:
                return resource
        raise StorageError(404, "notFound", f"The specified notification {number} does not exist.")

    def delete(self, bucket: str, number: str) -> None:
        """Remove one configuration; raises 404 when there is none."""
        self.get(bucket, number)
        self._store.execute("DELETE FROM notifications WHERE bucket = ? AND id = ?", (bucket, int(number)))

    def record(
        self,
        event: Event,
        stored: StoredObject,
        *,
        overwrote: int | None = None,
        overwritten_by: int | None = None,
    ) -> None:
        """Add an event to the outbox, in the transaction of the change itself; call `wake` after it.

        Args:
            event: What happened.
            stored: The version that it happened to.
            overwrote: The generation that a finalised one replaced.
            overwritten_by: The generation that replaced a deleted or archived one.
        """
        if self._publish is None:
            return
        for number, fields in self._configurations(stored.bucket):
            if event not in fields.get("event_types", (event,)):
                continue
            if not stored.name.startswith(fields.get("object_name_prefix", "")):
                continue
            attributes = {
                **fields.get("custom_attributes", {}),
                "notificationConfig": f"projects/_/buckets/{stored.bucket}/notificationConfigs/{number}",
                "eventType": str(event),
                "payloadFormat": fields["payload_format"],
                "bucketId": stored.bucket,
                "objectId": stored.name,
                "objectGeneration": str(stored.generation),
                "eventTime": rfc3339(self._catalog.now_us()),
            }
            if overwrote is not None:
                attributes["overwroteGeneration"] = str(overwrote)
            if overwritten_by is not None:
                attributes["overwrittenByGeneration"] = str(overwritten_by)
            data = b""
            if fields["payload_format"] == "JSON_API_V1":
                data = msgspec.json.encode(stored.as_json(PRODUCTION_ENDPOINT))
            self._store.execute(
                "INSERT INTO outbox (topic, data, attributes, created_us) VALUES (?, ?, ?, ?)",
                (_topic(fields), data, msgspec.json.encode(attributes), self._catalog.now_us()),
            )

    def _configurations(self, bucket: str) -> list[tuple[int, dict[str, Any]]]:
        rows = self._store.execute("SELECT id, fields FROM notifications WHERE bucket = ? ORDER BY id", (bucket,))
        return [(row["id"], msgspec.json.decode(row["fields"])) for row in rows]

    async def _publish_all(self, publish: Publish) -> None:
        backoff_s = _BACKOFF_FIRST_S
        while True:
            self._news.clear()
            if await self._publish_pass(publish):
                backoff_s = _BACKOFF_FIRST_S
                await self._news.wait()
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), backoff_s)
                backoff_s = min(backoff_s * 2, _BACKOFF_MAX_S)

    async def _publish_pass(self, publish: Publish) -> bool:
        """Try every row once; a failing topic holds back its own later rows only.

        Returns:
            Whether the outbox is empty.
        """
        oldest_us = self._catalog.now_us() - _KEPT_US
        dropped = self._store.execute("DELETE FROM outbox WHERE created_us < ?", (oldest_us,)).rowcount
        if dropped:
            log.warning("Dropped %d object events that could not be published for seven days.", dropped)
        failed: set[str] = set()
        after = 0
        while rows := self._store.execute(
            "SELECT * FROM outbox WHERE id > ? ORDER BY id LIMIT 100", (after,)
        ).fetchall():
            for row in rows:
                after, topic = row["id"], row["topic"]
                if topic in failed:
                    continue
                try:
                    await publish(topic, row["data"], msgspec.json.decode(row["attributes"]))
                except Exception as error:  # noqa: BLE001 (Whatever Pub/Sub raises, the event must not be lost.)
                    log.warning("Cannot publish object events to %s, trying again: %r", topic, error)
                    failed.add(topic)
                else:
                    self._store.execute("DELETE FROM outbox WHERE id = ?", (row["id"],))
        return not failed


def _resource(bucket: str, number: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **fields,
        "kind": "storage#notification",
        "id": str(number),
        "etag": str(number),
        "selfLink": f"{PRODUCTION_ENDPOINT}/storage/v1/b/{bucket}/notificationConfigs/{number}",
    }


def _topic(fields: Mapping[str, Any]) -> str:
    match = _TOPIC.fullmatch(fields["topic"])
    if match is None:
        raise ValueError(f"The stored topic {fields['topic']} is malformed.")
    return match.group(1)
