"""What the Firestore adapters of registry and ledger share: deadlines, errors, and nouns as documents."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from google.api_core.exceptions import AlreadyExists, GoogleAPICallError, RetryError
from google.auth.exceptions import GoogleAuthError

from goblin.core.errors import StoreUnavailable
from goblin.gcp.firestore.instants import plain_instants

DEADLINE_S = 5.0
CALL: Mapping[str, Any] = {"timeout": DEADLINE_S, "retry": None}
"""What every call is given: a deadline, and no retries of the client's own."""
T = TypeVar("T")


async def in_time(call: Awaitable[T], what: str, *, answers: tuple[type[Exception], ...] = (AlreadyExists,)) -> T:
    """Wait for a call; raises `StoreUnavailable`, and lets those through that are an answer."""
    try:
        async with asyncio.timeout(DEADLINE_S + 0.5):
            return await call
    except answers:
        raise
    except (GoogleAPICallError, GoogleAuthError, RetryError, TimeoutError) as error:
        raise StoreUnavailable(f"Firestore did not answer in time ({what}).") from error


def plain(noun: Any) -> dict[str, Any]:
    """Fields that Firestore has types for: tuples become arrays, instants stay instants."""
    fields: dict[str, Any] = msgspec.to_builtins(noun, builtin_types=(datetime,))
    return fields


def read(kind: type[T], fields: Mapping[str, Any] | None) -> T:
    """Turn a document into a noun; raises `StoreUnavailable` when it is not one."""
    try:
        return msgspec.convert(plain_instants(fields or {}), kind)
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise StoreUnavailable(f"A document in Firestore is not a {kind.__name__}: {error}.") from error
