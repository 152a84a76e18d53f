"""Authentication of callers: API keys, stored as hashes, looked up once and cached for a short time."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections import OrderedDict
from dataclasses import replace

from goblin.core.errors import Forbidden, RateLimited, Unauthenticated
from goblin.core.model_names import allows
from goblin.core.ports import Clock
from goblin.gateway.ports import ApiKey, KeyStore, Scope

KEY_LENGTH_MAX = 512
CACHE_TTL_S = 60.0
"""How long a valid key is cached, and so how long a revoked key may still work."""
NEGATIVE_CACHE_TTL_S = 5.0
"""How long an invalid key is refused without a lookup, and so how long a new key may have to wait."""
CACHED_MAX = 4096
LOOKUPS_MAX = 256
"""Lookups in flight at once: invented keys must not cause a flood of reads."""


def new_key() -> str:
    """Make a random API key. Its prefix is there so that a key found in a log is recognised."""
    return f"gob-{secrets.token_urlsafe(32)}"


def digest_of(key: str) -> str:
    """Compute the stored digest of a key: SHA-256 is enough for a random key that cannot be guessed."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """Authenticates API keys. While the key store is unavailable, only cached keys pass."""

    def __init__(self, store: KeyStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._looking: dict[str, asyncio.Task[ApiKey | None]] = {}
        self._cache: OrderedDict[str, tuple[float, ApiKey | None]] = OrderedDict()

    async def authenticate(self, authorization: str | None, *scopes: Scope) -> ApiKey:
        """Check an `Authorization` header.

        Args:
            authorization: The value of the header; None without one.
            scopes: Scopes of which the key must have one; none if any key will do.

        Returns:
            The key. That of a job's attempt has the limits of the key that asked for the job, beside its own.

        Raises:
            Unauthenticated: The key is missing, unknown, disabled or expired; or the key that asked for its job is.
            Forbidden: The key has none of the scopes.
            RateLimited: Too many keys are being looked up.
            StoreUnavailable: The key could not be looked up.
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
        if self._expired(found):
            raise Unauthenticated("This API key has expired. Use another one.", code="expired_api_key")
        if scopes and not set(scopes) & set(found.scopes):
            wanted = " or ".join(f"`{scope}`" for scope in scopes)
            raise Forbidden(f"This API key lacks the scope {wanted}. Use a key that has it.")
        return await self._with_limits_of_asker(found) if found.asker else found

    async def _with_limits_of_asker(self, key: ApiKey) -> ApiKey:
        """Join the limits of an attempt's key with those that the key that asked for the job has now."""
        asker = await self._find(key.asker)
        if asker is None or asker.disabled or self._expired(asker) or Scope.JOBS not in asker.scopes:
            raise Unauthenticated(
                "The API key that asked for this job was revoked, has expired, or may run no jobs.",
                code="asker_refused",
            )
        models = asker.models if key.models is None else tuple(name for name in key.models if may_ask(asker, name))
        return replace(
            key, models=models, rate_per_minute=asker.rate_per_minute, parallel_max=asker.parallel_max,
            asker_name=asker.name,
        )  # fmt: skip

    def _expired(self, key: ApiKey) -> bool:
        return key.expires_at is not None and key.expires_at <= self._clock.now()

    async def _find(self, digest: str) -> ApiKey | None:
        cached = self._cache.get(digest)
        if cached is not None and self._clock.monotonic() < cached[0]:
            return cached[1]
        looking = self._looking.get(digest)
        if looking is None:
            if len(self._looking) >= LOOKUPS_MAX:
                raise RateLimited("Too many API keys are being looked up. Try again later.", retry_after_s=1.0)
            looking = self._looking[digest] = asyncio.create_task(self._look(digest))
            looking.add_done_callback(lambda done: self._looked(digest, done))
        # A caller that leaves must not cancel the lookup for the others.
        return await asyncio.shield(looking)

    def _looked(self, digest: str, done: asyncio.Task[ApiKey | None]) -> None:
        del self._looking[digest]
        if not done.cancelled():
            done.exception()  # The waiting callers get it; this marks it as retrieved.

    async def _look(self, digest: str) -> ApiKey | None:
        # Measured before the read, because the answer may be as old as that.
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
    """Check that a key may use a model. Raises `Forbidden`."""
    if not may_ask(key, model):
        raise Forbidden(f"This API key may not use the model `{model}`.", param="model", code="model_not_allowed")


def may_ask(key: ApiKey, model: str) -> bool:
    """Return whether a key may use a model."""
    return allows(key.models, model)
