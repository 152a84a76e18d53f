"""Cloud Storage: objects by URI, every write with a precondition, signed URLs for hosts without a key.

The client is synchronous; its calls run in a few threads of their own. A URL is signed with a private key where the
credentials hold one (a laptop), and by IAM's signBlob where they do not (Cloud Run). The `headers` that are signed must
be sent exactly as they are. Source: google-cloud-storage 3.17, read 2026-11-23.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import google.auth
import google.auth.credentials
import google.auth.transport.requests
from google.api_core.exceptions import (
    GoogleAPICallError,
    PreconditionFailed,
    RequestRangeNotSatisfiable,
    RetryError,
)
from google.api_core.exceptions import (
    NotFound as GoogleNotFound,
)
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from requests.exceptions import RequestException

from goblin.core.errors import Broken, Conflict, NotFound, StoreRefused, StoreUnavailable
from goblin.core.ports import ObjectFacts, SignedRequest

THREADS = 8
DEADLINE_S = 30.0
READ_BYTES = 1024 * 1024
GRANT_LIFE = timedelta(hours=1)
"""Validity of a signed request; a signature by signBlob is guaranteed to verify for twelve hours."""
SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
MAY_PASS = frozenset({401, 403, 408, 409, 425, 429})
"""Statuses below 500 that time or a person mends: a grant that is on its way, another write, a rate limit."""
T = TypeVar("T")


class GcsObjects:
    """The port `ObjectStore`."""

    def __init__(self, client: storage.Client, *, signer: google.auth.credentials.Credentials | None = None) -> None:
        """Keep the client.

        Args:
            client: Used from several threads.
            signer: Credentials that sign URLs; None: the process's own, looked up on first use.
        """
        self._client = client
        self._signer = signer
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="gcs")

    async def stat(self, uri: str) -> ObjectFacts | None:
        def call() -> ObjectFacts | None:
            blob = self._blob(uri)
            try:
                blob.reload(timeout=DEADLINE_S)
            except GoogleNotFound:
                return None
            return _facts(blob)

        return await self._run(call)

    async def list_from(self, prefix: str, start: str) -> Sequence[str]:
        bucket, _, name = prefix.removeprefix("gs://").partition("/")
        offset = start.removeprefix(f"gs://{bucket}/")

        def call() -> list[str]:
            # Only names: a page holds a thousand of them in few bytes.
            found = self._client.list_blobs(
                bucket, prefix=name, start_offset=offset, fields="items(name),nextPageToken", timeout=DEADLINE_S
            )
            return [f"gs://{bucket}/{blob.name}" for blob in found]

        return await self._run(call)

    async def read(self, uri: str, *, generation: int, start: int = 0) -> AsyncGenerator[bytes, None]:
        while True:
            chunk = await self._run(partial(self._range, uri, generation, start))
            if chunk:
                yield chunk
            start += len(chunk)
            if len(chunk) < READ_BYTES:
                return

    def _range(self, uri: str, generation: int, start: int) -> bytes:
        blob = self._blob(uri, generation)
        try:
            found: bytes = blob.download_as_bytes(
                start=start, end=start + READ_BYTES - 1, raw_download=True, checksum=None, timeout=DEADLINE_S
            )
        except GoogleNotFound as error:
            raise NotFound(f"There is no object {uri} of generation {generation}.") from error
        except RequestRangeNotSatisfiable:
            return b""  # The previous chunk ended exactly at the end of the object.
        return found

    async def create(self, uri: str, data: bytes, *, content_type: str) -> ObjectFacts | None:
        def call() -> ObjectFacts | None:
            blob = self._blob(uri)
            try:
                blob.upload_from_string(
                    data, content_type=content_type, if_generation_match=0, checksum="crc32c", timeout=DEADLINE_S
                )
            except PreconditionFailed:
                return None
            return _facts(blob)

        return await self._run(call)

    async def compose(
        self, sources: Sequence[ObjectFacts], uri: str, *, metadata: Mapping[str, str]
    ) -> ObjectFacts | None:
        def call() -> ObjectFacts | None:
            blob = self._blob(uri)
            blob.metadata = dict(metadata)
            blob.content_type = "application/jsonl" if uri.endswith(".jsonl") else "application/octet-stream"
            try:
                blob.compose(
                    [self._blob(source.uri, source.generation) for source in sources],
                    if_generation_match=0,
                    if_source_generation_match=[source.generation for source in sources],
                    timeout=DEADLINE_S,
                )
            except (GoogleNotFound, PreconditionFailed) as error:
                # The answer is the same for two causes: the target exists, or a source changed.
                if self._blob(uri).exists(timeout=DEADLINE_S):
                    return None
                raise Conflict(f"A part of {uri} was deleted or replaced.") from error
            blob.reload(timeout=DEADLINE_S)
            return _facts(blob)

        return await self._run(call)

    async def delete(self, facts: ObjectFacts) -> None:
        def call() -> None:
            try:
                self._blob(facts.uri).delete(if_generation_match=facts.generation, timeout=DEADLINE_S)
            except (GoogleNotFound, PreconditionFailed):
                return

        await self._run(call)

    async def sign_get(self, uri: str, *, generation: int) -> SignedRequest:
        return await self._run(partial(self._sign, "GET", uri, {}, generation))

    async def sign_put(self, uri: str, *, size: int, crc32c: str) -> SignedRequest:
        headers = {
            "x-goog-content-length-range": f"{size},{size}",
            "x-goog-hash": f"crc32c={crc32c}",
            "x-goog-if-generation-match": "0",
        }
        return await self._run(partial(self._sign, "PUT", uri, headers, None))

    def _sign(self, method: str, uri: str, headers: dict[str, str], generation: int | None) -> SignedRequest:
        url = self._blob(uri).generate_signed_url(
            version="v4", method=method, expiration=GRANT_LIFE, headers=dict(headers), generation=generation,
            **self._signature(),
        )  # fmt: skip
        return SignedRequest(method=method, url=url, headers=headers)

    def _signature(self) -> dict[str, Any]:
        """Return the signing arguments of `generate_signed_url`."""
        if self._signer is None:
            self._signer, _ = google.auth.default(scopes=SCOPES)
        signer = self._signer
        if isinstance(signer, google.auth.credentials.Signing):
            return {"credentials": signer}
        if not signer.valid:
            signer.refresh(google.auth.transport.requests.Request())
        email = getattr(signer, "service_account_email", None)
        if not email:
            raise Broken(
                "There is no service account to sign URLs with. Set GOOGLE_APPLICATION_CREDENTIALS to its key file."
            )
        return {"service_account_email": email, "access_token": signer.token}

    def _blob(self, uri: str, generation: int | None = None) -> Any:
        bucket, _, name = uri.removeprefix("gs://").partition("/")
        return self._client.bucket(bucket).blob(name, generation=generation)

    async def _run(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except (GoogleAPICallError, GoogleAuthError, RetryError, RequestException) as error:
            status = error.code if isinstance(error, GoogleAPICallError) else None
            if status is not None and 400 <= status < 500 and status not in MAY_PASS:
                raise StoreRefused(f"Cloud Storage refuses this: {type(error).__name__}: {error}") from error
            raise StoreUnavailable(f"Cloud Storage failed to answer: {type(error).__name__}: {error}") from error


def _facts(blob: Any) -> ObjectFacts:
    return ObjectFacts(
        uri=f"gs://{blob.bucket.name}/{blob.name}", generation=int(blob.generation), size=int(blob.size),
        crc32c=str(blob.crc32c), metadata=dict(blob.metadata or {}),
    )  # fmt: skip
