"""What the services need from outside: each docstring is the contract, held by a test that adapters share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from goblin.gateway.domain.chat import ChatChunk, Embeddings, Usage
from goblin.gateway.domain.endpoint_health import EndpointHealth, Pause, Probe
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest


class ChatProvider(Protocol):
    """One endpoint, spoken to in its own language.

    Every method raises `ProviderUnavailable` when the endpoint is to blame, with the fault, and
    `InvalidRequest` when the request is. Nothing of ours in it retries, except for one new connection when a
    kept one turns out to be dead. Streams have no timeout of their own between chunks: who reads them has.
    """

    def chat(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        """Stream an answer.

        Ends normally only when every choice has a finish reason; a stream that stops before raises. Usage, if
        the endpoint tells it, is on some chunk. Closing the generator closes the connection, which is how the
        endpoint learns to stop.
        """

    def complete(self, request: CompletionRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        """Stream the continuation of a text, as `content` of chunks; otherwise like `chat`."""

    async def embed(self, request: EmbeddingsRequest, *, model: str) -> Embeddings:
        """Vectors of floats, whatever encoding the caller wants, one per input and in their order."""

    async def probe(self) -> Probe:
        """Look at the endpoint without being billed. Never raises: what goes wrong is the finding."""


class HealthStore(Protocol):
    """Judgements over endpoints, shared by all functions. Raises `StoreUnavailable`."""

    async def all(self) -> Mapping[str, EndpointHealth]:
        """Every endpoint's, by its name."""

    async def put(self, health: EndpointHealth) -> None:
        """Replace one endpoint's, all but its pauses."""

    async def pause(self, endpoint: str, pause: Pause) -> None:
        """Replace what is said of one model and class of an endpoint, or of its account; the rest stays.

        An endpoint that nobody has judged yet is not among `all` for that.
        """


class Scope(StrEnum):
    """What a key is for."""

    INFERENCE = "inference"
    """`/v1` and one's own receipts."""
    JOBS = "jobs"
    """`/jobs`."""
    OPERATE = "operate"
    """`/providers` and `/metrics`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """Who may call. The key itself is nowhere: it is known by its SHA-256."""

    digest: str
    """Lower-case hex."""
    name: str
    """For a person, in lists and records."""
    created_at: datetime
    disabled: bool = False
    expires_at: datetime | None = None
    """An attempt's key ends with it; None never does."""
    tenant: str = ""
    """Whose it is: keys of one tenant share what is cached. Empty: the key is its own tenant."""
    scopes: tuple[str, ...] = tuple(Scope)
    """Words that no version of ours knows allow nothing."""
    models: tuple[str, ...] | None = None
    """Those it may ask; `org/*` means all that begin so. None: all."""
    rate_per_minute: int | None = None
    parallel_max: int | None = None
    """Requests under way at once; None: as many as anybody's."""

    @property
    def owner(self) -> str:
        """The tenant, so that a key without one shares nothing."""
        return f"tenant:{self.tenant}" if self.tenant else f"key:{self.digest}"


class KeyStore(Protocol):
    """API keys by digest. Raises `StoreUnavailable`."""

    async def get(self, digest: str) -> ApiKey | None:
        """The key, disabled or not; None if there is none."""

    async def put(self, key: ApiKey) -> None:
        """Create or replace."""

    async def all(self) -> Sequence[ApiKey]:
        """Every key, the oldest first."""

    async def disable(self, digest: str) -> bool:
        """Revoke one; False when there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedAnswer:
    """The text of an answer that was given before."""

    text: str
    finish_reason: str
    usage: Usage
    """Of the time when it was written."""
    expires_at: datetime


class CacheStore(Protocol):
    """Answers by the hash of their question. Raises `StoreUnavailable`."""

    async def get(self, key: str) -> CachedAnswer | None:
        """One, perhaps expired: what is over is deleted late."""

    async def put(self, key: str, answer: CachedAnswer) -> None:
        """Keep one; the same key again replaces it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredHttpReply:
    """A whole HTTP answer, to be given again."""

    status: int
    media_type: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class IdempotencyClaim:
    """Somebody's word that a request is being answered, or was."""

    body_digest: str
    until: datetime
    """When whoever works on it is taken for dead."""
    expires_at: datetime
    """When all of it is forgotten."""
    reply: StoredHttpReply | None = None


class IdempotencyStore(Protocol):
    """Idempotent requests by entry, shared by all instances. Raises `StoreUnavailable`."""

    async def claim(self, entry: str, claim: IdempotencyClaim, *, now: datetime) -> IdempotencyClaim | None:
        """Write the claim unless there is one; the one that is there, or None if it is ours now.

        One that is past `expires_at`, or past `until` without a reply, counts as none. Of two who claim at once
        one gets the other's.
        """

    async def finish(self, entry: str, reply: StoredHttpReply) -> None:
        """Put the reply into our claim."""

    async def release(self, entry: str) -> None:
        """Take our claim back; nothing happens if there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptRecord:
    """One endpoint that was tried."""

    endpoint: str
    reason: str
    """Why the route had it there."""
    outcome: str
    """`ok`, `cut`, `left` (the caller went), `lost` (another was quicker), or a fault."""
    error: str = ""
    first_token_ms: int | None = None
    duration_ms: int | None = None
    predicted_first_token_ms: int | None = None
    """What was expected when it was sent."""
    began_ms: int = 0
    """After the request came; attempts may overlap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateRecord:
    """One endpoint of the route, tried or not, and what was expected of it when the route was chosen."""

    endpoint: str
    reason: str
    """Why it stands where it stands."""
    predicted_first_token_ms: int | None = None
    predicted_cost_usd_micros: int | None = None
    """None when its price is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """The receipt of one request."""

    request_id: str
    key_digest: str
    """Whose it is."""
    key_name: str
    operation: str
    model: str
    stream: bool
    strategy: str
    outcome: str
    """`ok`, `cut` (an answer broke off), `left` (the caller went), or an error's code."""
    provider: str | None
    """The endpoint that served it."""
    attempts: tuple[AttemptRecord, ...]
    rejected: Mapping[str, str]
    """Endpoints left out of the route, each with the reason."""
    prompt_tokens: int
    completion_tokens: int
    usage_estimated: bool
    first_token_ms: int | None
    duration_ms: int
    created_at: datetime
    expires_at: datetime
    """When the store may forget it."""
    cost_usd_micros: int = 0
    """Of all attempts, by our prices."""
    candidates: tuple[CandidateRecord, ...] = ()
    """The route, in its order."""


class ReceiptStore(Protocol):
    """Receipts. Raises `StoreUnavailable`."""

    async def put(self, record: Receipt) -> None:
        """Write one; the same id again replaces it."""

    async def get(self, request_id: str) -> Receipt | None:
        """Read one."""


class ReceiptBatchStore(ReceiptStore, Protocol):
    """Receipts, many in one write."""

    async def put_all(self, records: Sequence[Receipt]) -> None:
        """Write all of them, or none; up to 500."""


class Tracer(Protocol):
    """Told of every request when it has ended. Never raises."""

    def request(self, record: Receipt, *, traceparent: str | None, model_label: str) -> None:
        """Tell of one.

        Args:
            record: Its receipt.
            traceparent: The caller's W3C trace context, as it came.
            model_label: The model, or a word for those that do not exist: labels must stay few.
        """


class Meter(Protocol):
    """Counters and times for operators; labels must come from bounded sets."""

    def request(self, *, provider: str, model: str, outcome: str, duration_s: float) -> None:
        """One request has ended."""

    def provider_error(self, *, provider: str, model: str, outcome: str) -> None:
        """One attempt has failed; `outcome` is the fault."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpReply:
    """What to send."""

    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | AsyncGenerator[bytes, None] = b""
