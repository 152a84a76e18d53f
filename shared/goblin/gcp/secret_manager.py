"""Secret Manager: provider keys that are rotated while functions run.

A key is read on first use and cached for half an hour. When a provider refuses it, it is read again at once, so that a
rotated key works without a redeploy. Error messages never contain the key. Google's client is synchronous here: its
calls are rare, and run in a thread of their own.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from google.api_core.exceptions import (
    FailedPrecondition,
    GoogleAPICallError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RetryError,
)
from google.auth.exceptions import GoogleAuthError

from goblin.core.errors import Fault, ProviderUnavailable
from goblin.core.redaction import learn

log = logging.getLogger(__name__)

PREFIX = "secret:"
DEADLINE_S = 5.0
CACHE_TTL_S = 1800.0
"""Each read is billed, and the scheduled functions use every key each minute. A refused key does not wait for it."""
LOOK_AGAIN_S = 10.0
"""Shortest time between reads of a key that is refused, so that it is not read again for every request."""
_NAME = re.compile(r"(?:projects/(?P<project>[^/]{1,128})/secrets/)?(?P<name>[A-Za-z0-9_-]{1,255})"
                   r"(?:/versions/(?P<version>[A-Za-z0-9_-]{1,64}))?")  # fmt: skip
_KEY = re.compile(r"[!-~]{1,8192}")


class SecretManager:
    """A reader of secret versions. The client is created on first use: importing it takes half a second."""

    def __init__(self, project: str, *, emulator: str = "") -> None:
        """Set the address and the default project.

        Args:
            project: The project of secrets whose names have none.
            emulator: `http://host:port` of a local Secret Manager; empty means Google's.
        """
        self._project = project
        self._emulator = emulator
        self._client: Any = None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="secrets")

    def source(self, name: str) -> SecretKey:
        """Return the source of a key: `NAME`, `NAME/versions/3` or `projects/P/secrets/NAME`. Raises `ValueError`."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError(f"{name[:300]!r} is not the name of a secret")
        project = found["project"] or self._project
        if not project:
            raise ValueError("no project is set")
        version = found["version"] or "latest"
        return SecretKey(f"projects/{project}/secrets/{found['name']}/versions/{version}", self.read)

    async def read(self, resource: str) -> str:
        """Read the text of a version, without the newline that editors add.

        Raises:
            ProviderUnavailable: With fault `AUTH` when a person must look, `TRANSIENT` when a retry may help.
        """
        try:
            data = await asyncio.get_running_loop().run_in_executor(self._threads, self._access, resource)
        except (NotFound, PermissionDenied, FailedPrecondition, InvalidArgument) as error:
            raise ProviderUnavailable(f"{resource}: {type(error).__name__}.", fault=Fault.AUTH) from error
        except (GoogleAPICallError, GoogleAuthError, RetryError, OSError) as error:
            raise ProviderUnavailable(f"{resource} cannot be read: {type(error).__name__}.") from error
        text = data.decode("utf-8", "replace").strip()
        if not _KEY.fullmatch(text):
            # It would make an illegal header, which libraries quote in their error messages.
            raise ProviderUnavailable(f"{resource} holds no key. Add a version with the key.", fault=Fault.AUTH)
        learn(text)
        return text

    def _access(self, resource: str) -> bytes:
        if self._client is None:
            self._client = self._connect()
        answer = self._client.access_secret_version(request={"name": resource}, timeout=DEADLINE_S, retry=None)
        data: bytes = answer.payload.data
        return data

    def _connect(self) -> Any:
        from google.cloud import secretmanager_v1

        if not self._emulator:
            return secretmanager_v1.SecretManagerServiceClient()
        from google.api_core.client_options import ClientOptions
        from google.auth.credentials import AnonymousCredentials

        return secretmanager_v1.SecretManagerServiceClient(
            transport="rest",
            credentials=AnonymousCredentials(),
            client_options=ClientOptions(api_endpoint=self._emulator),
        )


class SecretKey:
    """A `KeySource` that reads one version of one secret, by default its newest."""

    def __init__(
        self,
        resource: str,
        read: Callable[[str], Awaitable[str]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resource = resource
        self._read = read
        self._monotonic = monotonic
        self._key: str | None = None
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def key(self) -> str:
        if self._key is not None and self._monotonic() - self._read_at < CACHE_TTL_S:
            return self._key
        async with self._reading:
            if self._key is None or self._monotonic() - self._read_at >= CACHE_TTL_S:
                await self._look()
        assert self._key is not None  # noqa: S101  _look raises where it finds none.
        return self._key

    async def renew(self, refused: str) -> bool:
        async with self._reading:
            if self._key == refused and self._monotonic() - self._read_at >= LOOK_AGAIN_S:
                await self._look()
            return self._key != refused

    async def _look(self) -> None:
        """Read the key. While Secret Manager does not answer, keep the old key."""
        try:
            self._key = await self._read(self._resource)
        except ProviderUnavailable as error:
            if self._key is None:
                raise
            log.warning("A cached key is used beyond its time: %s", error.message)
        self._read_at = self._monotonic()
