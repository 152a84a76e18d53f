"""What serves which model: endpoints, what they can do, what they cost, and how to choose among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from enum import StrEnum
from typing import Protocol


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


class Strategy(StrEnum):
    """How the endpoints that could serve a request are put in order."""

    LOWEST_LATENCY = "lowest_latency"
    LOWEST_COST = "lowest_cost"
    ROUND_ROBIN = "round_robin"
    WEIGHTED_RANDOM = "weighted_random"
    FAILOVER = "failover"


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """How to choose and how long to wait."""

    strategy: Strategy = Strategy.LOWEST_LATENCY
    attempts_max: int = 3
    first_token_timeout_s: float = 60.0
    between_tokens_timeout_s: float = 30.0
    explore_share: float = 0.02
    """Of `lowest_latency`'s requests, how many go to whoever was not heard of for longest."""
    wake: bool = True
    """Whether a quicker endpoint that sleeps may be woken beside a request that is served elsewhere."""
    deadline_ms: int | None = None
    """For requests that bring none: until the first token of a stream, or all of another answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """What the file says of one model, with the defaults filled in."""

    routing: Routing
    endpoints: tuple[Endpoint, ...] | None = None
    """Those that serve it, and nobody else does, each with what is different for this model; None: whoever has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """Everything `goblin.toml` says once the environment is filled in."""

    routing: Routing = field(default_factory=Routing)
    endpoints: tuple[Endpoint, ...] = ()
    """In the order of the file, which is the order of `failover`. Those that lack a variable are left out."""
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    """What is said of a model by name; the others go by the defaults."""
    prices: Mapping[tuple[str, str], Price] = field(default_factory=dict)
    """By provider and model; a model's own price goes before its endpoint's."""

    def prices_in_use(self) -> dict[tuple[str, str], Price]:
        """Of providers that are configured."""
        configured = {endpoint.provider for endpoint in self.endpoints}
        return {key: price for key, price in self.prices.items() if key[0] in configured}

    def routing_of(self, model: str) -> Routing:
        """How to choose for a model."""
        said = self.models.get(model)
        return self.routing if said is None else said.routing

    def endpoints_of(self, model: str) -> tuple[Endpoint, ...]:
        """Who may serve a model, each as it serves this one, in order."""
        said = self.models.get(model)
        return self.endpoints if said is None or said.endpoints is None else said.endpoints

    def connected(self, endpoints: Mapping[str, Endpoint]) -> Catalog:
        """The same, with what each endpoint's provider knows of it: what it lacks, and where its keys come from."""

        def known(said: Endpoint) -> Endpoint:
            there = endpoints[said.name]
            return replace(said, lacks=there.lacks, api_key=there.api_key, account_key=there.account_key)

        models = {
            name: replace(said, endpoints=None if said.endpoints is None else tuple(map(known, said.endpoints)))
            for name, said in self.models.items()
        }
        return replace(self, endpoints=tuple(map(known, self.endpoints)), models=models)
