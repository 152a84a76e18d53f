"""Firestore: `serving/{endpoint}`, the versions that each model server serves and those that it refused."""

from __future__ import annotations

from collections.abc import Sequence

from google.cloud.firestore import AsyncClient

from goblin.gcp.firestore.documents import CALL, in_time, plain, read
from goblin.registry.domain.versions import ServingState

ENDPOINTS_MAX = 1000


class FirestoreServing:
    """The port `ServingStore`."""

    def __init__(self, client: AsyncClient) -> None:
        self._serving = client.collection("serving")

    async def get(self, endpoint: str) -> ServingState:
        found = await in_time(self._serving.document(endpoint).get(**CALL), "read of a model server")
        return read(ServingState, found.to_dict()) if found.exists else ServingState(endpoint=endpoint)

    async def all(self) -> Sequence[ServingState]:
        query = self._serving.order_by("endpoint").limit(ENDPOINTS_MAX)
        found = await in_time(query.get(**CALL), "list of model servers")
        return [read(ServingState, document.to_dict()) for document in found]

    async def put(self, serving: ServingState) -> None:
        document = self._serving.document(serving.endpoint)
        await in_time(document.set(plain(serving), **CALL), "write of a model server")
