"""The stores' ports in memory, held to the same contract as the Firestore adapters, and able to fail."""

from __future__ import annotations

from collections.abc import Mapping

from goblin.domain.health import EndpointHealth
from goblin.errors import StoreUnavailable
from goblin.ports import ApiKey, RequestRecord


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


class MemoryHealth(_Failing):
    def __init__(self) -> None:
        self.judged: dict[str, EndpointHealth] = {}

    async def all(self) -> Mapping[str, EndpointHealth]:
        self._check()
        return dict(self.judged)

    async def put(self, health: EndpointHealth) -> None:
        self._check()
        self.judged[health.endpoint] = health


class MemoryRequests(_Failing):
    def __init__(self) -> None:
        self.records: dict[str, RequestRecord] = {}

    async def put(self, record: RequestRecord) -> None:
        self._check()
        self.records[record.request_id] = record

    async def get(self, request_id: str) -> RequestRecord | None:
        self._check()
        return self.records.get(request_id)
