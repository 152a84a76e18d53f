"""What serves which model: endpoints, what they can do, what they cost, and how to choose among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import NamedTuple, Protocol


class Capability(StrEnum):
    """Something a request may need and an endpoint may lack."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    TOOLS = "tools"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    VISION = "vision"
    AUDIO = "audio"
    LOGPROBS = "logprobs"
    CHOICES = "choices"
    """More than one answer to one prompt (`n`)."""
    PREFILL = "prefill"
    """A last message of the assistant is continued, not answered."""


ORDINARY = frozenset(Capability) - {Capability.PREFILL}
"""What is believed of an endpoint that says nothing: few continue a message, and none says so when it does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """Millionths of a dollar per million tokens. An unknown price is the absence of this, never zero."""

    input_usd_micros_per_mtok: int
    output_usd_micros_per_mtok: int
    output_tokens_default: int = 4096
    """The limit that is sent with a request that has none: what is not limited cannot be paid for in advance."""
    output_tokens_max: int | None = None
    """The most that is asked for, whatever the caller wants."""
    image_tokens_max: int = 50_000
    """The most that one image counts; gpt-4o-mini counts up to 48,169 tokens for one."""
    source: str = ""
    """Where it was read, for a person."""
    read_on: date | None = None
    """When; older than 90 days, it is to be read again."""

    def cost_usd_micros(self, *, input_tokens: int, output_tokens: int) -> int:
        """Rounded up, so that a sum of estimates never undercuts the bill."""
        parts = input_tokens * self.input_usd_micros_per_mtok + output_tokens * self.output_usd_micros_per_mtok
        return -(-parts // 1_000_000)


class KeySource(Protocol):
    """What gives a key at the moment it is needed: keys are rotated while a process lives."""

    async def key(self) -> str:
        """The key now. Raises `ProviderUnavailable` when it cannot be had."""

    async def renew(self, refused: str) -> bool:
        """Look again, because this key was refused; whether there is another one now. Raises like `key`."""


class Credential(NamedTuple):
    """A header that says who we are."""

    header: str
    scheme: str
    """`Bearer`, or nothing where the header is the key alone."""
    key: str | KeySource

    def value(self, key: str) -> str:
        return f"{self.scheme} {key}" if self.scheme else key


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A URL that answers OpenAI-like requests for some models, as `goblin.toml` declares it."""

    name: str
    """Unique; the key in `/providers` and the label in metrics."""
    provider: str
    """The file in `adapters/providers/` that speaks its language."""
    url: str
    api_key: str | KeySource | None = field(default=None, repr=False)
    """For what answers at `url`."""
    account_key: str | KeySource | None = field(default=None, repr=False)
    """For the provider's own API, where machines are listed; never sent to what answers requests."""
    credentials: tuple[Credential, ...] = field(default=(), repr=False)
    """Headers that identify this process to `url` beside the key, such as an identity token for Cloud Run."""
    models: tuple[str, ...] | None = None
    """None: ask the endpoint."""
    capabilities: frozenset[Capability] = ORDINARY
    """What its models can do; what the provider's file cannot do is taken off."""
    lacks: Mapping[Capability, str] = field(default_factory=dict)
    """What the provider's file cannot do, each with its reason."""
    context_tokens: int | None = None
    price: Price | None = None
    cancel_stops_bill: bool = True
    """Hanging up ends what it costs; else an answer nobody reads is read to its end, to know what it cost."""
    weight: int = 1
    parallel: int = 1
    """Requests it serves at once before the next one waits."""
    first_token_prior_ms: int = 1000
    """What we expect of it before we have seen it; never zero, or a newcomer would get every request."""
    prefill_prior_tokens_per_s: int = 2000
    decode_prior_tokens_per_s: int = 30
    cold_start_prior_ms: int = 30_000
    """From asleep to the first token, beyond what it takes when awake."""
    sleeps_after_s: int | None = None
    """Idle for so long, it scales to zero or unloads its model; None: never."""
    price_usd_micros_per_hour: int | None = None
    """What the machine costs while it is awake, for one that sleeps and is not billed by the token."""
    request_s_max: float = 300.0
    """The longest that a request may keep such a machine busy, its start included: what is not limited cannot be
    paid for in advance."""
    external: bool = False
    """Somebody else's service reads the prompts; `allow_external: false` keeps them from it."""
    upstream_model: str | None = None
    """What the endpoint calls the model that was asked for; None: the same."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What only its provider's file understands, such as Ollama's `keep_alive`."""
