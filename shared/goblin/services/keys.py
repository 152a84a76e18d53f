"""Who calls: API keys, known by their hash, read seldom and believed for a short time."""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict

from goblin.errors import Unauthenticated
from goblin.ports import ApiKey, Clock, KeyStore

KEY_LENGTH_MAX = 512
BELIEVED_S = 60.0
"""How long a good key is believed, and so how long a revoked one may live on."""
DISBELIEVED_S = 5.0
"""How long a bad key is refused without looking, and so how long a new one may have to wait."""
CACHED_MAX = 4096


def digest_of(key: str) -> str:
    """What is stored of a key: SHA-256 is enough for what nobody can guess."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """Answers who a key belongs to; when the store is silent, nobody."""

    def __init__(self, store: KeyStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._cache: OrderedDict[str, tuple[float, ApiKey | None]] = OrderedDict()

    async def authenticate(self, authorization: str | None) -> ApiKey:
        """Check an `Authorization` header.

        Raises:
            Unauthenticated: no key, or not one of ours, or a disabled one.
            StoreUnavailable: nobody could tell.
        """
        scheme, _, key = (authorization or "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated(
                "You did not provide an API key: send `Authorization: Bearer KEY`.", code="missing_api_key"
            )
        if len(key) > KEY_LENGTH_MAX:
            raise Unauthenticated("Incorrect API key provided.")
        digest = digest_of(key)
        found = await self._find(digest)
        if found is None or found.disabled or not hmac.compare_digest(found.digest, digest):
            raise Unauthenticated("Incorrect API key provided.")
        if found.expires_at is not None and found.expires_at <= self._clock.now():
            raise Unauthenticated("This key has expired.", code="expired_api_key")
        return found

    async def _find(self, digest: str) -> ApiKey | None:
        cached = self._cache.get(digest)
        if cached is not None and self._clock.monotonic() < cached[0]:
            return cached[1]
        found = await self._store.get(digest)
        good = found is not None and not found.disabled
        until = self._clock.monotonic() + (BELIEVED_S if good else DISBELIEVED_S)
        self._cache[digest] = (until, found)
        self._cache.move_to_end(digest)
        while len(self._cache) > CACHED_MAX:
            self._cache.popitem(last=False)
        return found
