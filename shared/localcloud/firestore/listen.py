"""The Listen stream: it first sends the present results, then each change.

    client   add_target 1 ──────────────────────────────────────
    server   ADD 1 · documents · CURRENT 1 · NO_CHANGE (read_time, resume_token) · changes · NO_CHANGE · …

Each NO_CHANGE without target ids closes one consistent view. A client that reconnects with a resume token gets only
what changed since. When that is no longer known, it gets RESET and all documents.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from localcloud.firestore import indexes, names, times
from localcloud.firestore.documents import Change, Documents
from localcloud.firestore.indexes import Declared
from localcloud.firestore.protos import ListenResponse, Pb, Status, TargetChange
from localcloud.firestore.query import Query
from localcloud.firestore.refusals import Refused, invalid
from localcloud.firestore.transactions import version

DIRTY_MAX = 10_000
"""Changed documents to check one by one; beyond that, targets are read again in full."""
TARGETS_MAX = 100
"""Most targets of one stream."""
REQUESTS_AHEAD_MAX = 16

Kind = TargetChange.TargetChangeType


@dataclass(eq=False, slots=True)
class _Target:
    """One target: what it watches and what its client has."""

    target_id: int
    query: Query | None
    paths: dict[bytes, str]
    """The named documents, when the target is not a query."""
    known: dict[bytes, int] = field(default_factory=dict)
    """The version of each document that the client has in this target."""

    def is_reordered_by(self, paths: set[bytes]) -> bool:
        """Return whether changes at these paths may move other documents out of, or into, the results."""
        return self.query is not None and self.query.is_cut and any(map(self.query.scope.holds, paths))


class Listening:
    """One Listen stream."""

    def __init__(self, documents: Documents, declared: Sequence[Declared]) -> None:
        self._documents = documents
        self._declared = declared
        self._targets: dict[int, _Target] = {}
        self._database = 0  # 0 until the first request names the database.
        self._database_name = ""
        self._dirty: set[bytes] | None = set()
        """Paths changed since the last answer; None when too many to list."""
        self._wake = asyncio.Event()
        self._requests: asyncio.Queue[Pb | None] = asyncio.Queue(REQUESTS_AHEAD_MAX)

    async def answer(self, requests: AsyncIterator[Pb]) -> AsyncIterator[Pb]:
        """Answer the client's requests and send changes until it hangs up."""
        stop = self._documents.listen(self._note)
        reader = asyncio.create_task(self._read(requests))
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                responses, ended = self._respond()
                for response in responses:
                    yield response
                if ended:
                    return
        finally:
            stop()
            reader.cancel()

    async def _read(self, requests: AsyncIterator[Pb]) -> None:
        async for request in requests:
            await self._requests.put(request)
            self._wake.set()
        await self._requests.put(None)
        self._wake.set()

    def _note(self, changes: list[Change]) -> None:
        if self._dirty is not None:
            self._dirty.update(change.path for change in changes if change.database == self._database)
            if len(self._dirty) > DIRTY_MAX:
                self._dirty = None
        self._wake.set()

    def _respond(self) -> tuple[list[Pb], bool]:
        """Return all messages to send for one instant, and whether the client has hung up."""
        dirty, self._dirty = self._dirty, set()
        responses = [
            response for target in self._targets.values() for response in self._changes(target, dirty)
        ]  # fmt: skip
        ended = False
        while not self._requests.empty():
            request = self._requests.get_nowait()
            if request is None:
                ended = True
                break
            responses += self._obey(request)
        if responses:
            responses.append(self._target_change(Kind.NO_CHANGE, token=True))
        return responses, ended

    def _obey(self, request: Pb) -> list[Pb]:
        if not self._database:
            self._database, self._database_name = self._documents.database(request.database), request.database
        elif request.database != self._database_name:
            raise invalid("A stream listens to one database.")
        if request.WhichOneof("target_change") == "remove_target":
            self._targets.pop(request.remove_target, None)
            return [self._target_change(Kind.REMOVE, request.remove_target)]
        wanted = request.add_target
        try:
            target = self._target(wanted)
        except Refused as refused:
            cause = Status(code=refused.code.value[0], message=refused.message)
            return [self._target_change(Kind.REMOVE, wanted.target_id, cause=cause)]
        responses = [self._target_change(Kind.ADD, target.target_id), *self._catch_up(target, wanted)]
        responses.append(self._target_change(Kind.CURRENT, target.target_id, token=True))
        if wanted.once:
            responses.append(self._target_change(Kind.REMOVE, target.target_id))
        else:
            self._targets[target.target_id] = target
        return responses

    def _target(self, wanted: Pb) -> _Target:
        target_id = wanted.target_id or max(self._targets, default=0) + 1
        if target_id in self._targets or len(self._targets) >= TARGETS_MAX:
            raise invalid(f"Target {target_id} is taken, or a stream has more than {TARGETS_MAX} targets.")
        if wanted.WhichOneof("target_type") == "documents":
            named = wanted.documents.documents
            return _Target(target_id, None, {names.document_path(self._database_name, name): name for name in named})
        if wanted.WhichOneof("target_type") != "query":
            raise invalid("A target names documents or a query.")
        query = Query(self._documents, wanted.query.parent, wanted.query.structured_query)
        if query.scope.database != self._database:
            raise invalid("A stream listens to one database.")
        indexes.check(query.structured, self._declared)
        return _Target(target_id, query, {})

    def _catch_up(self, target: _Target, wanted: Pb) -> Iterator[Pb]:
        """Yield what the client does not have yet of a new target."""
        since_us = _resume_us(wanted)
        if since_us is None:
            yield from self._changes(target, None)
        elif since_us < self._documents.changes_since_us or (target.query is not None and target.query.is_cut):
            yield self._target_change(Kind.RESET, target.target_id)
            yield from self._changes(target, None)
        else:
            changed = {
                change.path for change in self._documents.changes
                if change.at_us > since_us and change.database == self._database
            }  # fmt: skip
            # The client's documents are unknown: assume what is there now, older than its token, and what changed.
            target.known = {path: version(document) or 0 for path, document in self._current(target).items()}
            target.known |= dict.fromkeys(changed, 0)
            yield from self._changes(target, changed)

    def _current(self, target: _Target) -> dict[bytes, Pb]:
        """Return the documents of a target as they are now."""
        if target.query is not None:
            results, _ = target.query.run()
            return {names.encode(names.split(document.name)[1]): document for document in results}
        found = {path: self._documents.get(self._database, path) for path in target.paths}
        return {path: document for path, document in found.items() if document is not None}

    def _changes(self, target: _Target, dirty: set[bytes] | None) -> Iterator[Pb]:
        """Yield how a target differs from what its client has; `dirty` are the paths to check, None is all."""
        whole = dirty is None or target.is_reordered_by(dirty)
        current = self._current(target) if whole else {}
        paths = target.known.keys() | current.keys() | target.paths.keys() if whole else dirty or set()
        for path in sorted(paths):
            document = current.get(path) if whole else self._member(target, path)
            if document is not None:
                yield from self._told_of(target, path, document)
            elif target.known.pop(path, None) is not None or (whole and path in target.paths):
                yield self._gone(target, path)

    def _member(self, target: _Target, path: bytes) -> Pb | None:
        """Return the document at a path if it belongs to a target."""
        if target.query is None and path not in target.paths:
            return None
        document = self._documents.get(self._database, path)
        if document is None or target.query is None:
            return document
        return document if target.query.matches(path, document) else None

    def _told_of(self, target: _Target, path: bytes, document: Pb) -> Iterator[Pb]:
        if target.known.get(path) == version(document):
            return
        target.known[path] = version(document) or 0
        response = ListenResponse()
        response.document_change.document.CopyFrom(target.query.project(document) if target.query else document)
        response.document_change.target_ids.append(target.target_id)
        yield response

    def _gone(self, target: _Target, path: bytes) -> Pb:
        exists = self._documents.get(self._database, path) is not None
        response = ListenResponse()
        message = response.document_remove if exists else response.document_delete
        message.document = names.join(self._database_name, names.decode(path))
        message.removed_target_ids.append(target.target_id)
        message.read_time.CopyFrom(times.to_timestamp(self._documents.now_us()))
        return response

    def _target_change(self, kind: int, *target_ids: int, token: bool = False, cause: Pb | None = None) -> Pb:
        response = ListenResponse()
        change = response.target_change
        change.target_change_type = kind
        change.target_ids.extend(target_ids)
        if cause is not None:
            change.cause.CopyFrom(cause)
        if token:
            change.resume_token = self._documents.last_us.to_bytes(8, "big")
            change.read_time.CopyFrom(times.to_timestamp(self._documents.now_us()))
        return response


def _resume_us(wanted: Pb) -> int | None:
    match wanted.WhichOneof("resume_type"):
        case "resume_token":
            return int.from_bytes(wanted.resume_token[:8], "big")
        case "read_time":
            return times.from_timestamp(wanted.read_time)
    return None
