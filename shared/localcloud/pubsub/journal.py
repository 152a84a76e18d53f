"""All messages and unacknowledged deliveries in SQLite, written before a request is answered.

A message's number is its publish time in microseconds since 1970, incremented until it is unique: it grows with
every message, is never used twice, and turns retention and seeks into ranges of the primary key.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from localcloud.pubsub.filters import Filter
from localcloud.pubsub.wire import PubsubMessage
from localcloud.store import Store

SCHEMA = """
CREATE TABLE IF NOT EXISTS topics (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, resource BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS subscriptions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, topic INTEGER NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0, resource BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, topic INTEGER NOT NULL,
    last_message INTEGER NOT NULL, expires_us INTEGER NOT NULL, resource BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS snapshot_messages (
    snapshot INTEGER NOT NULL, message INTEGER NOT NULL, PRIMARY KEY (snapshot, message)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS messages_by_topic ON messages (topic, id);
CREATE TABLE IF NOT EXISTS deliveries (
    subscription INTEGER NOT NULL, message INTEGER NOT NULL, size INTEGER NOT NULL, key TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, available_us INTEGER NOT NULL DEFAULT 0,
    acked INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (subscription, message)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS deliveries_waiting ON deliveries (subscription, message) WHERE acked = 0;
CREATE INDEX IF NOT EXISTS deliveries_by_message ON deliveries (message);
"""

QUERY_IDS_MAX = 500
_ORPHANED = """
    NOT EXISTS (SELECT 1 FROM deliveries WHERE message = messages.id)
    AND NOT EXISTS (SELECT 1 FROM snapshots WHERE topic = messages.topic)
"""


class Delivery(NamedTuple):
    """The delivery of one message to one subscription, until it is acknowledged."""

    message_id: int
    size: int
    key: str
    attempts: int = 0
    available_at_us: int = 0


class Journal:
    """The SQL statements. Each method joins the caller's transaction if there is one."""

    def __init__(self, store: Store) -> None:
        """Continue after the last message ever published."""
        self.store = store
        row = store.execute("SELECT max(id) FROM messages").fetchone()
        owed = store.execute("SELECT max(message) FROM deliveries").fetchone()
        self._last = max(row[0] or 0, owed[0] or 0)

    @property
    def last_message(self) -> int:
        """The number of the newest message."""
        return self._last

    def next_message(self, now_us: int) -> int:
        """Return a number for a new message."""
        self._last = max(self._last + 1, now_us)
        return self._last

    def publish(
        self,
        topic: int,
        bodies: Sequence[tuple[int, bytes]],
        owed: Sequence[tuple[int, Delivery]],
    ) -> None:
        """Store messages and the deliveries they need."""
        with self.store.transaction():
            self.store.executemany(
                "INSERT INTO messages (id, topic, body) VALUES (?, ?, ?)",
                [(number, topic, body) for number, body in bodies],
            )
            self.store.executemany(
                "INSERT INTO deliveries (subscription, message, size, key) VALUES (?, ?, ?, ?)",
                [(who, one.message_id, one.size, one.key) for who, one in owed],
            )

    def waiting(self, subscription: int, *, after: int, limit: int) -> list[Delivery]:
        """Return the oldest unacknowledged deliveries after a message."""
        rows = self.store.execute(
            "SELECT message, size, key, attempts, available_us FROM deliveries INDEXED BY deliveries_waiting "
            "WHERE subscription = ? AND message > ? AND acked = 0 ORDER BY message LIMIT ?",
            (subscription, after, limit),
        )
        return [Delivery(*row) for row in rows]

    def owes(self, subscription: int, message: int) -> bool:
        """Return whether a message is still unacknowledged."""
        found = self.store.execute(
            "SELECT 1 FROM deliveries WHERE subscription = ? AND message = ? AND acked = 0",
            (subscription, message),
        )
        return found.fetchone() is not None

    def bodies(self, messages: Sequence[int]) -> dict[int, bytes]:
        """Return serialised messages by their numbers."""
        found: dict[int, bytes] = {}
        for start in range(0, len(messages), QUERY_IDS_MAX):
            some = tuple(messages[start : start + QUERY_IDS_MAX])
            marks = ",".join("?" * len(some))
            rows = self.store.execute(f"SELECT id, body FROM messages WHERE id IN ({marks})", some)  # noqa: S608
            found.update((row[0], row[1]) for row in rows)
        return found

    def count_attempts(self, subscription: int, messages: Iterable[int]) -> None:
        """Count one more delivery attempt of each message."""
        with self.store.transaction():
            self.store.executemany(
                "UPDATE deliveries SET attempts = attempts + 1 WHERE subscription = ? AND message = ?",
                [(subscription, message) for message in messages],
            )

    def delay(self, subscription: int, until_us: Iterable[tuple[int, int]]) -> None:
        """Store until when returned messages pause: (message, instant)."""
        with self.store.transaction():
            self.store.executemany(
                "UPDATE deliveries SET available_us = ? WHERE subscription = ? AND message = ?",
                [(until, subscription, message) for message, until in until_us],
            )

    def acknowledge(self, subscription: int, messages: Sequence[int], *, retain: bool, keep_bodies: bool) -> None:
        """Acknowledge messages of a subscription.

        Args:
            subscription: The subscription's id.
            messages: The acknowledged messages.
            retain: Whether to keep the deliveries for a later seek (`retain_acked_messages`).
            keep_bodies: Whether the topic retains its messages.
        """
        debts: list[tuple[object, ...]] = [(subscription, message) for message in messages]
        with self.store.transaction():
            if retain:
                self.store.executemany("UPDATE deliveries SET acked = 1 WHERE subscription = ? AND message = ?", debts)
                return
            self.store.executemany("DELETE FROM deliveries WHERE subscription = ? AND message = ?", debts)
            if not keep_bodies:
                self.store.executemany(
                    f"DELETE FROM messages WHERE id = ? AND {_ORPHANED}",  # noqa: S608
                    [(message,) for message in messages],
                )

    def forget_before(self, subscription: int, message: int) -> int:
        """Drop deliveries, acknowledged or not, of messages older than one. Returns how many."""
        return self.store.execute(
            "DELETE FROM deliveries WHERE subscription = ? AND message < ?", (subscription, message)
        ).rowcount

    def forget_subscription(self, subscription: int) -> None:
        """Drop all deliveries of a subscription."""
        self.store.execute("DELETE FROM deliveries WHERE subscription = ?", (subscription,))

    def sweep(self, topic: int, *, before: int) -> None:
        """Drop a topic's old messages that no delivery and no snapshot needs."""
        self.store.execute(
            f"DELETE FROM messages WHERE topic = ? AND id < ? AND {_ORPHANED}",  # noqa: S608
            (topic, before),
        )

    def forget_snapshots(self, now_us: int) -> set[int]:
        """Drop the snapshots that have expired. Returns their topics."""
        expired = self.store.execute("SELECT id, topic FROM snapshots WHERE expires_us <= ?", (now_us,)).fetchall()
        for number, _ in expired:
            self.forget_snapshot(number)
        return {topic for _, topic in expired}

    def forget_snapshot(self, snapshot: int) -> None:
        """Drop one snapshot."""
        self.store.execute("DELETE FROM snapshot_messages WHERE snapshot = ?", (snapshot,))
        self.store.execute("DELETE FROM snapshots WHERE id = ?", (snapshot,))

    def settle_before(self, subscription: int, message: int, *, retain: bool) -> None:
        """Acknowledge everything older than a message, for a seek."""
        change = "UPDATE deliveries SET acked = 1" if retain else "DELETE FROM deliveries"
        self.store.execute(f"{change} WHERE subscription = ? AND message < ?", (subscription, message))

    def owe_again(self, subscription: int, message: int) -> None:
        """Undo the acknowledgements from a message on, for a seek; attempts count from zero again."""
        self.store.execute(
            "UPDATE deliveries SET acked = 0, attempts = 0, available_us = 0 WHERE subscription = ? AND message >= ?",
            (subscription, message),
        )

    def owe_from_topic(
        self, subscription: int, topic: int, *, since: int, matches: Filter, key_of: Callable[[str], str]
    ) -> None:
        """Deliver every retained message of the topic from one on, delivered before or not, for a seek."""
        rows = self.store.execute("SELECT id, body FROM messages WHERE topic = ? AND id >= ?", (topic, since))
        self._owe(subscription, ((row[0], row[1]) for row in rows), matches, key_of)

    def owe_snapshot(self, subscription: int, snapshot: int, *, matches: Filter, key_of: Callable[[str], str]) -> None:
        """Deliver what the snapshot's subscription had not acknowledged when it was made, for a seek."""
        rows = self.store.execute(
            "SELECT id, body FROM messages JOIN snapshot_messages ON message = id WHERE snapshot = ?",
            (snapshot,),
        )
        self._owe(subscription, ((row[0], row[1]) for row in rows), matches, key_of)

    def _owe(
        self,
        subscription: int,
        bodies: Iterable[tuple[int, bytes]],
        matches: Filter,
        key_of: Callable[[str], str],
    ) -> None:
        for number, body in bodies:
            message = PubsubMessage.FromString(body)
            if matches(message.attributes):
                self.store.execute(
                    "INSERT INTO deliveries (subscription, message, size, key) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT DO UPDATE SET acked = 0, attempts = 0, available_us = 0",
                    (subscription, number, len(body), key_of(message.ordering_key)),
                )
