"""Firestore: `cache/{sha256}`, cached answers, and `idempotency/{sha256}`, idempotent requests.

Firestore deletes both by their TTL field `expires_at`. Unlike receipts they hold text of callers and answers: any
account that may read these collections can read that text.
"""

from __future__ import annotations

from datetime import datetime

from google.api_core.exceptions import AlreadyExists, FailedPrecondition, NotFound
from google.cloud.firestore import AsyncClient

from goblin.core.errors import StoreUnavailable
from goblin.gateway.ports import CachedAnswer, IdempotencyClaim, StoredHttpReply
from goblin.gcp.firestore.documents import CALL, in_time, plain, read


class FirestoreCache:
    """The port `CacheStore`."""

    def __init__(self, client: AsyncClient) -> None:
        self._answers = client.collection("cache")

    async def get(self, key: str) -> CachedAnswer | None:
        found = await in_time(self._answers.document(key).get(**CALL), "read of a cached answer")
        return read(CachedAnswer, found.to_dict()) if found.exists else None

    async def put(self, key: str, answer: CachedAnswer) -> None:
        await in_time(self._answers.document(key).set(plain(answer), **CALL), "write of a cached answer")


class FirestoreIdempotency:
    """The port `IdempotencyStore`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._claims = client.collection("idempotency")

    async def claim(self, entry: str, claim: IdempotencyClaim, *, now: datetime) -> IdempotencyClaim | None:
        document = self._claims.document(entry)
        try:
            await in_time(document.create(plain(claim), **CALL), "claim of a request")
        except AlreadyExists:
            pass
        else:
            return None
        found = await in_time(document.get(**CALL), "read of a claimed request")
        if found.exists:
            there = read(IdempotencyClaim, found.to_dict())
            dead = there.expires_at <= now or (there.reply is None and there.until <= now)
            if not dead:
                return there
            try:
                # Delete it only if it has not changed since it was read.
                option = self._client.write_option(last_update_time=found.update_time)
                await in_time(document.delete(option, **CALL), "delete of an expired claim")
            except StoreUnavailable as error:
                if not isinstance(error.__cause__, FailedPrecondition | NotFound):
                    raise
        try:
            await in_time(document.create(plain(claim), **CALL), "claim of a request")
        except AlreadyExists as error:
            raise StoreUnavailable("Another process claims the request at this moment. Try again.") from error
        return None

    async def finish(self, entry: str, reply: StoredHttpReply) -> None:
        # The body stays bytes: base64 would make it a third longer, and a document holds 1 MiB.
        fields = {"reply": {**plain(reply), "body": reply.body}}
        await in_time(self._claims.document(entry).update(fields, **CALL), "write of an idempotent answer")

    async def release(self, entry: str) -> None:
        await in_time(self._claims.document(entry).delete(**CALL), "release of a claim")
