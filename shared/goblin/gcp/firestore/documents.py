"""Shared by the Firestore adapters: deadlines, errors, and conversion between nouns and documents."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from google.api_core.exceptions import AlreadyExists, GoogleAPICallError, RetryError
from google.auth.exceptions import GoogleAuthError

from goblin.core import decoding
from goblin.core.errors import StoreUnavailable

DEADLINE_S = 5.0
CALL: Mapping[str, Any] = {"timeout": DEADLINE_S, "retry": None}
"""Arguments of every call: a deadline, and no retries by the client itself."""
T = TypeVar("T")


async def in_time(call: Awaitable[T], what: str, *, answers: tuple[type[Exception], ...] = (AlreadyExists,)) -> T:
    """Wait for a call until its deadline. Raises `StoreUnavailable`; exceptions in `answers` pass unchanged."""
    try:
        async with asyncio.timeout(DEADLINE_S + 0.5):
            return await call
    except answers:
        raise
    except (GoogleAPICallError, GoogleAuthError, RetryError, TimeoutError) as error:
        raise StoreUnavailable(f"Firestore did not answer in time ({what}).") from error


def plain(noun: Any, stored_as: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Convert a noun to types that Firestore has: tuples become arrays, instants stay instants.

    Args:
        noun: A dataclass or struct.
        stored_as: Older names under which fields are stored, by present name, at any depth.
    """
    fields: dict[str, Any] = msgspec.to_builtins(noun, builtin_types=(datetime,))
    return _renamed(fields, stored_as) if stored_as else fields


def read(kind: type[T], fields: Mapping[str, Any] | None, stored_as: Mapping[str, str] | None = None) -> T:
    """Convert a document to a noun. Raises `StoreUnavailable` when it does not fit."""
    try:
        found = plain_instants(fields or {})
        if stored_as:
            found = _renamed(found, {old: new for new, old in stored_as.items()})
        return msgspec.convert(found, kind)
    except decoding.UNREADABLE as error:
        raise StoreUnavailable(
            f"A document in Firestore is not a {kind.__name__}: {decoding.reason(error)}."
        ) from error


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {names.get(key, key): _renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, names) for inner in value]
    return value


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def plain_instants(value: Any) -> Any:
    """Replace every instant by a plain, aware datetime, to the microsecond."""
    if isinstance(value, datetime):
        return EPOCH + (value - EPOCH)
    if isinstance(value, Mapping):
        return {key: plain_instants(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain_instants(inner) for inner in value]
    return value
