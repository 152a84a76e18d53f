"""Snapshots, and seeking a subscription to one or to an instant."""

from localcloud.pubsub import names
from localcloud.pubsub.backlog import Backlog
from localcloud.pubsub.errors import exists, invalid, not_found
from localcloud.pubsub.state import State
from localcloud.pubsub.wire import MICROS, Raw, Snapshot, raw, timestamp, timestamp_us

LIFETIME_US = 7 * 24 * 3600 * MICROS
MUTABLE = frozenset({"labels", "expire_time"})


class Snapshots:
    """The snapshot RPCs of `google.pubsub.v1.Subscriber`."""

    def __init__(self, state: State) -> None:
        """Use a state."""
        self._state = state
        self._store = state.store

    async def create_snapshot(self, request: Raw) -> Raw:
        """CreateSnapshot: keep what is unacknowledged now, and everything the topic gets from now on."""
        names.check_name("snapshots", request.name)
        names.check_name("subscriptions", request.subscription)
        names.check_labels(request.labels)
        backlog = self._state.backlog(request.subscription)
        if self._find(request.name) is not None:
            raise exists("Snapshot", request.name)
        if backlog.over is not None:
            raise backlog.over
        expires_us = self._state.now_us() + LIFETIME_US
        snapshot = Snapshot(
            name=request.name,
            topic=backlog.resource.topic,
            expire_time=timestamp(expires_us),
            labels=request.labels,
        )
        with self._store.transaction():
            cursor = self._store.execute(
                "INSERT INTO snapshots (name, topic, last_message, expires_us, resource) VALUES (?, ?, ?, ?, ?)",
                (
                    snapshot.name,
                    backlog.topic,
                    self._state.journal.last_message,
                    expires_us,
                    snapshot.SerializeToString(),
                ),
            )
            self._store.execute(
                "INSERT INTO snapshot_messages (snapshot, message) "
                "SELECT ?, message FROM deliveries WHERE subscription = ? AND acked = 0",
                (cursor.lastrowid, backlog.number),
            )
        return snapshot

    async def get_snapshot(self, request: Raw) -> Raw:
        """GetSnapshot."""
        names.check_name("snapshots", request.snapshot)
        return self._resource(request.snapshot)

    async def list_snapshots(self, request: Raw) -> Raw:
        """ListSnapshots of a project, by name."""
        names.check_project(request.project)
        rows = self._store.execute("SELECT name FROM snapshots WHERE expires_us > ?", (self._state.now_us(),))
        inside = [row[0] for row in rows if row[0].startswith(f"{request.project}/snapshots/")]
        some, token = names.page(inside, request.page_size, request.page_token)
        snapshots = [self._resource(name) for name in some]
        return raw("ListSnapshotsResponse")(snapshots=snapshots, next_page_token=token)

    async def update_snapshot(self, request: Raw) -> Raw:
        """UpdateSnapshot."""
        names.check_name("snapshots", request.snapshot.name)
        fields = names.check_mask("UpdateSnapshotRequest", request.snapshot, request.update_mask, MUTABLE)
        snapshot = self._resource(request.snapshot.name)
        names.apply_fields(snapshot, request.snapshot, fields)
        names.check_labels(snapshot.labels)
        expires_us = timestamp_us(snapshot.expire_time)
        if not self._state.now_us() < expires_us <= self._state.now_us() + LIFETIME_US:
            raise invalid("expire_time must be in the future, at most seven days away.")
        self._store.execute(
            "UPDATE snapshots SET resource = ?, expires_us = ? WHERE name = ?",
            (snapshot.SerializeToString(), expires_us, snapshot.name),
        )
        return snapshot

    async def delete_snapshot(self, request: Raw) -> Raw:
        """DeleteSnapshot: also drop the messages that only it needed."""
        names.check_name("snapshots", request.snapshot)
        row = self._find(request.snapshot)
        if row is None:
            raise not_found("Snapshot", request.snapshot)
        number, topic = row["id"], row["topic"]
        with self._store.transaction():
            self._state.journal.forget_snapshot(number)
            self._state.journal.sweep(topic, before=self._state.retained_since(topic))

    async def seek(self, request: Raw) -> Raw:
        """Seek to an instant or to a snapshot; outstanding leases end."""
        names.check_name("subscriptions", request.subscription)
        backlog = self._state.backlog(request.subscription)
        if backlog.over is not None:
            raise backlog.over
        target = request.WhichOneof("target")
        if target == "time":
            self._seek_to_time(backlog, timestamp_us(request.time))
        elif target == "snapshot":
            names.check_name("snapshots", request.snapshot)
            self._seek_to_snapshot(backlog, request.snapshot)
        else:
            raise invalid("The request must name a time or a snapshot to seek to.")
        return raw("SeekResponse")()

    def _seek_to_time(self, backlog: Backlog, at_us: int) -> None:
        """Acknowledge everything published before an instant, and nothing retained from then on."""
        topic = self._state.topics.get(backlog.resource.topic)
        journal = self._state.journal
        with self._store.transaction():
            journal.settle_before(backlog.number, at_us, retain=bool(backlog.resource.retain_acked_messages))
            journal.owe_again(backlog.number, at_us)
            if topic is not None and topic.retention_us:
                since = max(at_us, self._state.now_us() - topic.retention_us)
                journal.owe_from_topic(
                    backlog.number,
                    topic.number,
                    since=since,
                    matches=backlog.matches,
                    key_of=backlog.key_of,
                )
            self._finish(backlog)

    def _seek_to_snapshot(self, backlog: Backlog, name: str) -> None:
        row = self._find(name)
        if row is None:
            raise not_found("Snapshot", name)
        if row["topic"] != backlog.topic:
            raise invalid("The snapshot and the subscription belong to different topics.")
        journal = self._state.journal
        with self._store.transaction():
            journal.settle_before(
                backlog.number,
                journal.last_message + 1,
                retain=bool(backlog.resource.retain_acked_messages),
            )
            journal.owe_snapshot(backlog.number, row["id"], matches=backlog.matches, key_of=backlog.key_of)
            journal.owe_from_topic(
                backlog.number,
                backlog.topic,
                since=row["last_message"] + 1,
                matches=backlog.matches,
                key_of=backlog.key_of,
            )
            self._finish(backlog)

    def _finish(self, backlog: Backlog) -> None:
        """Void all older ack ids, and drop messages that no delivery needs any more."""
        backlog.restart()
        self._state.save_subscription(backlog)
        self._state.journal.sweep(backlog.topic, before=self._state.retained_since(backlog.topic))

    def _find(self, name: str) -> Raw | None:
        return self._store.execute(
            "SELECT * FROM snapshots WHERE name = ? AND expires_us > ?", (name, self._state.now_us())
        ).fetchone()

    def _resource(self, name: str) -> Raw:
        row = self._find(name)
        if row is None:
            raise not_found("Snapshot", name)
        return Snapshot.FromString(row["resource"])
