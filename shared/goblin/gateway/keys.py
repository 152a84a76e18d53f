"""Who calls: API keys, known by their hash, read seldom and believed for a short time."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import OrderedDict

from goblin.core.errors import Forbidden, RateLimited, Unauthenticated
from goblin.core.ports import Clock
from goblin.gateway.ports import ApiKey, KeyStore, Scope

KEY_LENGTH_MAX = 512
CACHE_TTL_S = 60.0
"""How long a good key is believed, and so how long a revoked one may live on."""
NEGATIVE_CACHE_TTL_S = 5.0
"""How long a bad key is refused without looking, and so how long a new one may have to wait."""
CACHED_MAX = 4096
LOOKUPS_MAX = 256
"""At once, each of another key: made-up keys must not become a flood of reads."""


def digest_of(key: str) -> str:
    """What is stored of a key: SHA-256 is enough for what nobody can guess."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """Answers who a key belongs to; when the store is silent, nobody."""

    def __init__(self, store: KeyStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._looking: dict[str, asyncio.Task[ApiKey | None]] = {}
        self._cache: OrderedDict[str, tuple[float, ApiKey | None]] = OrderedDict()

    async def authenticate(self, authorization: str | None, scope: Scope | None = None) -> ApiKey:
        """Check an `Authorization` header.

        Args:
            authorization: As it came.
            scope: What the key must be for; None if any key will do.

        Raises:
            Unauthenticated: no key, or not one of ours, or a disabled one.
            Forbidden: it is not for this.
            RateLimited: too many keys are being looked up.
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
        if scope is not None and scope not in found.scopes:
            raise Forbidden(f"This key is not for {scope}.")
        return found

    async def _find(self, digest: str) -> ApiKey | None:
        cached = self._cache.get(digest)
        if cached is not None and self._clock.monotonic() < cached[0]:
            return cached[1]
        looking = self._looking.get(digest)
        if looking is None:
            if len(self._looking) >= LOOKUPS_MAX:
                raise RateLimited("Too many keys are being looked up.", retry_after_s=1.0)
            looking = self._looking[digest] = asyncio.create_task(self._look(digest))
            looking.add_done_callback(lambda done: self._looked(digest, done))
        # Whoever leaves must not take the answer from the others.
        return await asyncio.shield(looking)

    def _looked(self, digest: str, done: asyncio.Task[ApiKey | None]) -> None:
        del self._looking[digest]
        if not done.cancelled():
            done.exception()  # Those who waited have it.

    async def _look(self, digest: str) -> ApiKey | None:
        # What the store says is at least as old as the question.
        asked_at = self._clock.monotonic()
        found = await self._store.get(digest)
        good = found is not None and not found.disabled
        until = asked_at + (CACHE_TTL_S if good else NEGATIVE_CACHE_TTL_S)
        self._cache[digest] = (until, found)
        self._cache.move_to_end(digest)
        while len(self._cache) > CACHED_MAX:
            self._cache.popitem(last=False)
        return found


def check_model(key: ApiKey, model: str) -> None:
    """Raises `Forbidden` when the key is not for this model."""
    if not may_ask(key, model):
        raise Forbidden(f"This key is not for the model `{model}`.", param="model", code="model_not_allowed")


def may_ask(key: ApiKey, model: str) -> bool:
    """Whether a key is for a model; `org/*` means all that begin so."""
    if key.models is None:
        return True
    return any(model.startswith(name[:-1]) if name.endswith("*") else model == name for name in key.models)
