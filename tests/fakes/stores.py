"""The stores' ports in memory. They pass the same contract tests as the Firestore adapters, and can be made to fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from goblin.core.errors import StoreUnavailable
from goblin.gateway.domain.endpoint_health import EndpointHealth, Pause
from goblin.gateway.ports import ApiKey, CachedAnswer, IdempotencyClaim, Receipt, StoredHttpReply


class _Failing:
    down = False

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailable("the store is down")


class MemoryKeys(_Failing):
    def __init__(self) -> None:
        self.keys: dict[str, ApiKey] = {}
        self.reads = 0

    async def get(self, digest: str) -> ApiKey | None:
        self.reads += 1
        self._check()
        return self.keys.get(digest)

    async def put(self, key: ApiKey) -> None:
        self._check()
        self.keys[key.digest] = key

    async def all(self) -> Sequence[ApiKey]:
        self._check()
        return sorted(self.keys.values(), key=lambda key: key.created_at)

    async def disable(self, digest: str) -> bool:
        self._check()
        if digest not in self.keys:
            return False
        self.keys[digest] = replace(self.keys[digest], disabled=True)
        return True


class MemoryHealth(_Failing):
    def __init__(self) -> None:
        self.judged: dict[str, EndpointHealth] = {}
        self.pauses: dict[str, dict[tuple[str, str | None], Pause]] = {}

    async def all(self) -> Mapping[str, EndpointHealth]:
        self._check()
        return {
            name: replace(health, pauses=tuple(self.pauses.get(name, {}).values()))
            for name, health in self.judged.items()
        }

    async def put(self, health: EndpointHealth) -> None:
        self._check()
        self.judged[health.endpoint] = health

    async def pause(self, endpoint: str, pause: Pause) -> None:
        self._check()
        self.pauses.setdefault(endpoint, {})[pause.model, pause.kind] = pause


class MemoryReceipts(_Failing):
    def __init__(self) -> None:
        self.records: dict[str, Receipt] = {}
        self.batches: list[int] = []

    async def put_all(self, records: Sequence[Receipt]) -> None:
        self._check()
        self.batches.append(len(records))
        self.records.update({record.request_id: record for record in records})

    async def put(self, record: Receipt) -> None:
        self._check()
        self.records[record.request_id] = record

    async def get(self, request_id: str) -> Receipt | None:
        self._check()
        return self.records.get(request_id)


class MemoryAnswers(_Failing):
    def __init__(self) -> None:
        self.answers: dict[str, CachedAnswer] = {}
        self.reads = 0

    async def get(self, key: str) -> CachedAnswer | None:
        self.reads += 1
        self._check()
        return self.answers.get(key)

    async def put(self, key: str, answer: CachedAnswer) -> None:
        self._check()
        self.answers[key] = answer


class MemoryReplies(_Failing):
    def __init__(self) -> None:
        self.claims: dict[str, IdempotencyClaim] = {}

    async def claim(self, entry: str, claim: IdempotencyClaim, *, now: datetime) -> IdempotencyClaim | None:
        self._check()
        there = self.claims.get(entry)
        if there is None or there.expires_at <= now or (there.reply is None and there.until <= now):
            self.claims[entry] = claim
            return None
        return there

    async def finish(self, entry: str, reply: StoredHttpReply) -> None:
        self._check()
        self.claims[entry] = replace(self.claims[entry], reply=reply)

    async def release(self, entry: str) -> None:
        self._check()
        self.claims.pop(entry, None)
