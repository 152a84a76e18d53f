"""Ports of the gateway: each docstring is the contract, checked by a test that all adapters share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from goblin.gateway.domain.chat import ChatChunk, Embeddings, PassedAnswer, Usage
from goblin.gateway.domain.endpoint_health import EndpointHealth, Pause, Probe
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest, PassedRequest


class ChatProvider(Protocol):
    """One endpoint, called through its own API.

    Every method raises `ProviderUnavailable`, with the fault, when the endpoint is to blame, and `InvalidRequest`
    when the request is. An adapter does not retry, except that it opens one new connection when a kept one turns out
    to be closed, and leaves out a wish, such as how much to think, that was refused before anything was answered.
    Streams have no timeout between chunks: the reader sets one.
    """

    def chat(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        """Stream an answer.

        Ends normally only when every choice has a finish reason; a stream that stops before raises. Usage, if the
        endpoint reports it, is on some chunk. Closing the generator closes the connection, which tells the endpoint to
        stop.
        """

    def complete(self, request: CompletionRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        """Stream the continuation of a text, as `content` of chunks; otherwise like `chat`."""

    async def embed(self, request: EmbeddingsRequest, *, model: str) -> Embeddings:
        """Compute one vector of floats per input, in their order, whatever encoding the caller asked for."""

    async def probe(self) -> Probe:
        """Probe the endpoint at no cost. Never raises: a failure is the finding."""


class PassingProvider(Protocol):
    """An endpoint with routes beside those of `ChatProvider`. Raises, and does not retry, as that does."""

    async def pass_on(self, request: PassedRequest, *, model: str) -> PassedAnswer:
        """Send a request to the route of the same name, and return the answer."""


class HealthStore(Protocol):
    """Health of endpoints, shared by all functions. Every method raises `StoreUnavailable`."""

    async def all(self) -> Mapping[str, EndpointHealth]:
        """Read the health of every endpoint, by endpoint name."""

    async def put(self, health: EndpointHealth) -> None:
        """Replace the health of one endpoint, except its pauses."""

    async def pause(self, endpoint: str, pause: Pause) -> None:
        """Replace the pause of one model and class of an endpoint, or of its account; other pauses stay.

        A pause alone does not make an endpoint appear in `all`: it needs a health of its own.
        """


class Scope(StrEnum):
    """A part of the API that a key may use."""

    INFERENCE = "inference"
    """`/v1` and the receipts of the key itself."""
    JOBS = "jobs"
    """`/jobs`: the jobs of the key's tenant, and the models that a batch job asks within the key's limits."""
    OPERATE = "operate"
    """`/providers`, `/metrics` and `/budgets`; to see and cancel the jobs of all tenants."""


class Counted(Protocol):
    """A caller as admission control counts it."""

    @property
    def counted_as(self) -> str:
        """Callers with the same text share rate and limits."""

    @property
    def rate_per_minute(self) -> int | None:
        """The most requests per minute. None: no limit."""

    @property
    def parallel_max(self) -> int | None:
        """The most requests in flight. None: the default, `AdmissionLimits.per_key_max`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeylessCaller:
    """A caller that is recognised by something other than an API key."""

    counted_as: str
    rate_per_minute: int | None
    parallel_max: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """An API key and what it may do. The key itself is not stored, only its SHA-256."""

    digest: str
    """Lower-case hex."""
    name: str
    """A name for people, in lists and receipts; its spending counts under `key/NAME`."""
    created_at: datetime
    disabled: bool = False
    expires_at: datetime | None = None
    """The key of a job's attempt expires with it. None: never."""
    tenant: str = ""
    """The tenant that owns the key; its keys share cached answers and jobs. Empty: the key is its own tenant."""
    scopes: tuple[str, ...] = tuple(Scope)
    """An unknown scope allows nothing."""
    models: tuple[str, ...] | None = None
    """Models that the key may use; `org/*` means all that begin with `org/`. None: all."""
    rate_per_minute: int | None = None
    parallel_max: int | None = None
    """Requests in flight at once. None: the default, `AdmissionLimits.per_key_max`."""
    asker: str = ""
    """For the key of a job's attempt: digest of the key that asked for the job. It must be good as well, its limits
    apply, and its requests and those of its jobs count together. Empty: no key asked."""
    asker_name: str = ""
    """Name of that key, once it was looked up: it pays. Not stored."""

    @property
    def counted_as(self) -> str:
        """The digest under which admission control counts its requests."""
        return self.asker or self.digest

    @property
    def owner(self) -> str:
        """The owner of cached answers: the tenant, or the key itself, so that a key without a tenant shares nothing."""
        return f"tenant:{self.tenant}" if self.tenant else f"key:{self.digest}"


class KeyStore(Protocol):
    """API keys by digest. Every method raises `StoreUnavailable`."""

    async def get(self, digest: str) -> ApiKey | None:
        """Read a key, disabled or not; None if there is none."""

    async def put(self, key: ApiKey) -> None:
        """Create or replace a key."""

    async def all(self) -> Sequence[ApiKey]:
        """List every key, the oldest first."""

    async def disable(self, digest: str) -> bool:
        """Revoke a key; False if there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedAnswer:
    """An earlier answer: its text and usage."""

    text: str
    finish_reason: str
    usage: Usage
    """The usage when the answer was written."""
    expires_at: datetime


class CacheStore(Protocol):
    """Answers by the hash of their request. Every method raises `StoreUnavailable`."""

    async def get(self, key: str) -> CachedAnswer | None:
        """Read an answer; None if there is none. It may be expired: the store deletes late."""

    async def put(self, key: str, answer: CachedAnswer) -> None:
        """Write an answer; an earlier one under the same key is replaced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredHttpReply:
    """A complete HTTP reply that can be replayed."""

    status: int
    media_type: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class IdempotencyClaim:
    """A process's claim on an idempotent request, with the reply once there is one."""

    body_digest: str
    until: datetime
    """After this time, a process that has not replied is taken as crashed."""
    expires_at: datetime
    """When the claim and its reply are forgotten."""
    reply: StoredHttpReply | None = None


class IdempotencyStore(Protocol):
    """Idempotent requests by entry, shared by all processes. Every method raises `StoreUnavailable`."""

    async def claim(self, entry: str, claim: IdempotencyClaim, *, now: datetime) -> IdempotencyClaim | None:
        """Write the claim unless there is one already. Returns the existing claim, or None if ours was written.

        An existing claim that is past `expires_at`, or past `until` without a reply, is replaced. When two processes
        claim at once, one of them gets the other's claim.
        """

    async def finish(self, entry: str, reply: StoredHttpReply) -> None:
        """Write the reply into our claim."""

    async def release(self, entry: str) -> None:
        """Delete our claim; does nothing if there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptRecord:
    """One upstream attempt, as the receipt records it."""

    endpoint: str
    reason: str
    """Why the route had the endpoint at this place."""
    outcome: str
    """`ok`, `cut`, `left` (the caller left), `lost` (another attempt was quicker), or a fault."""
    error: str = ""
    first_token_ms: int | None = None
    duration_ms: int | None = None
    predicted_first_token_ms: int | None = None
    """The forecast when it was sent."""
    began_ms: int = 0
    """Its start, counted from the arrival of the request; attempts may overlap."""
    dropped: tuple[str, ...] = ()
    """What of the request the endpoint was not sent, by name: `service_tier`, `tools[web_search]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateRecord:
    """One endpoint of the route, tried or not, with the forecast at the time the route was chosen."""

    endpoint: str
    reason: str
    """Why it has this place in the route."""
    predicted_first_token_ms: int | None = None
    predicted_cost_usd_micros: int | None = None
    """None when its price is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """The record of one request: route, attempts, tokens, cost and reasons."""

    request_id: str
    key_digest: str
    """The API key that sent the request."""
    key_name: str
    operation: str
    model: str
    stream: bool
    strategy: str
    outcome: str
    """`ok`, `cut` (the answer broke off), `left` (the caller left), or an error's code."""
    provider: str | None
    """The endpoint that served it, `cache` for a cached answer, or None."""
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
    """When the store may delete it."""
    cost_usd_micros: int = 0
    """The cost of all attempts, by our prices."""
    candidates: tuple[CandidateRecord, ...] = ()
    """The endpoints of the route, in order."""


class ReceiptStore(Protocol):
    """Receipts by request id. Every method raises `StoreUnavailable`."""

    async def put(self, record: Receipt) -> None:
        """Write a receipt; an earlier one with the same id is replaced."""

    async def get(self, request_id: str) -> Receipt | None:
        """Read a receipt; None if there is none."""


class ReceiptBatchStore(ReceiptStore, Protocol):
    """A receipt store that can write many receipts at once."""

    async def put_all(self, records: Sequence[Receipt]) -> None:
        """Write up to 500 receipts: all of them, or none."""


class Tracer(Protocol):
    """A sink for traces. It gets every request that has ended. Never raises."""

    def request(self, record: Receipt, *, traceparent: str | None, model_label: str) -> None:
        """Export one request.

        Args:
            record: The receipt of the request.
            traceparent: The caller's W3C trace context, unchanged.
            model_label: The model, or `unknown` for models that do not exist: labels must stay few.
        """


class Meter(Protocol):
    """Counters and durations for operators. Labels must come from bounded sets."""

    def request(self, *, provider: str, model: str, outcome: str, duration_s: float) -> None:
        """Count one request that has ended."""

    def provider_error(self, *, provider: str, model: str, outcome: str) -> None:
        """Count one attempt that has failed; `outcome` is the fault."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpReply:
    """An HTTP reply, whole or streamed."""

    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | AsyncGenerator[bytes, None] = b""
