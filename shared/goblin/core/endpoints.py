"""Endpoints: which models they serve, what they can do, what they cost, and how they authenticate us."""

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
    RERANK = "rerank"
    """Ordering documents by how well they answer a query."""
    IMAGES = "images"
    """Making images."""
    TRANSCRIPTIONS = "transcriptions"
    """Writing down, or translating, what a recording says."""
    TOOLS = "tools"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    VISION = "vision"
    FILES = "files"
    """PDF files. An endpoint that sees images takes them, unless its provider's adapter lacks it."""
    AUDIO = "audio"
    LOGPROBS = "logprobs"
    CHOICES = "choices"
    """More than one answer to one prompt (`n`). For an endpoint without it the gateway sends several requests."""
    PROMPTS = "prompts"
    """A list of prompts in one request. For an endpoint without it the gateway sends several requests."""
    PREFILL = "prefill"
    """Continuing a last message of the assistant instead of answering it."""
    TOKEN_IDS = "token_ids"  # noqa: S105
    """Texts to embed as token ids. To a model with another tokenizer the same ids are another text, and it does not
    notice; so its own must be known to callers."""


ORDINARY = frozenset(Capability) - {
    Capability.PREFILL, Capability.TOKEN_IDS, Capability.RERANK, Capability.IMAGES, Capability.TRANSCRIPTIONS,
}  # fmt: skip
"""Capabilities of an endpoint that declares none: what few endpoints have is not among them."""


CACHE_WRITE_FACTOR = 2
"""The most that writing input to a provider's cache costs, as a multiple of its price: Anthropic's for an hour. Source:
platform.claude.com/docs/en/build-with-claude/prompt-caching, read 2026-12-01: 1.25 for five minutes, 2 for an hour."""
NO_USES: Mapping[str, int] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """Price in micro-dollars per million tokens. An unknown price is the absence of this object, never zero."""

    input_usd_micros_per_mtok: int
    output_usd_micros_per_mtok: int
    output_tokens_default: int = 4096
    """Token limit sent with a request that has none: without a limit, the worst case could not be reserved."""
    output_tokens_max: int | None = None
    """The most output tokens to request, whatever the caller wants."""
    image_tokens_max: int = 50_000
    """The most tokens that one image counts; gpt-4o-mini counts up to 48,169 tokens for one."""
    context_tokens: int | None = None
    """The model's context window: no request is billed for more input. None: unknown."""
    cache_read_usd_micros_per_mtok: int | None = None
    """Price of input that the provider had in its cache. None: unknown, and charged like other input."""
    cache_write_usd_micros_per_mtok: int | None = None
    """Price of input that is written to the cache, for five minutes at Anthropic. None: `CACHE_WRITE_FACTOR`."""
    cache_write_1h_usd_micros_per_mtok: int | None = None
    """The same for an hour."""
    server_tools: Mapping[str, int] = field(default_factory=dict)
    """Price in micro-dollars of one use of a tool that the provider runs, such as `web_search`. Others are not used."""
    source: str = ""
    """Where the price was read, for a person."""
    read_on: date | None = None
    """Date on which the price was read. After 90 days it is to be read again."""

    @property
    def dearest_input(self) -> int:
        """The most that a million input tokens can cost, in micro-dollars: all of them written to the cache."""
        plain = self.input_usd_micros_per_mtok
        writes = (self.cache_write_usd_micros_per_mtok, self.cache_write_1h_usd_micros_per_mtok)
        return max(plain, *(CACHE_WRITE_FACTOR * plain if price is None else price for price in writes))

    def cost_usd_micros(
        self,
        *,
        input_tokens: int,
        output_tokens: int,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        cache_write_1h_tokens: int = 0,
        uses: Mapping[str, int] = NO_USES,
    ) -> int:
        """Compute the cost, rounded up so that a sum of estimates is never below the bill.

        Args:
            input_tokens: All tokens of the prompt, those of the cache included.
            output_tokens: All tokens of the answer.
            cache_read_tokens: Those of the prompt that came from the cache.
            cache_write_tokens: Those of the prompt that were written to the cache.
            cache_write_1h_tokens: Those of `cache_write_tokens` that stay for an hour.
            uses: How often each tool that the provider runs was used.
        """
        plain, read = self.input_usd_micros_per_mtok, self.cache_read_usd_micros_per_mtok
        written = self.cache_write_usd_micros_per_mtok
        longer = self.cache_write_1h_usd_micros_per_mtok
        parts = (
            (input_tokens - cache_read_tokens - cache_write_tokens) * plain
            + cache_read_tokens * (plain if read is None else read)
            + (cache_write_tokens - cache_write_1h_tokens)
            * (CACHE_WRITE_FACTOR * plain if written is None else written)
            + cache_write_1h_tokens * (CACHE_WRITE_FACTOR * plain if longer is None else longer)
            + output_tokens * self.output_usd_micros_per_mtok
        )
        tools = sum(count * self.server_tools.get(tool, 0) for tool, count in uses.items())
        return -(-parts // 1_000_000) + tools


class KeySource(Protocol):
    """A source of a key at the moment of use, because keys are rotated while a process runs."""

    async def key(self) -> str:
        """Return the current key. Raises `ProviderUnavailable` when it cannot be read."""

    async def renew(self, refused: str) -> bool:
        """Read the key again, because `refused` was refused; True if it is another one now. Raises like `key`."""


class Credential(NamedTuple):
    """A header that authenticates this process."""

    header: str
    scheme: str
    """`Bearer`, or empty where the header is the key alone."""
    key: str | KeySource

    def value(self, key: str) -> str:
        return f"{self.scheme} {key}" if self.scheme else key


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A URL that answers OpenAI-like requests for some models, as `goblin.toml` declares it."""

    name: str
    """Unique name; the key in `/providers` and the label in metrics."""
    provider: str
    """The package in `goblin/providers/` that speaks its API."""
    url: str
    api_key: str | KeySource | None = field(default=None, repr=False)
    """Key for the server at `url`."""
    account_key: str | KeySource | None = field(default=None, repr=False)
    """Key for the provider's own API, where machines are listed; never sent to `url`."""
    credentials: tuple[Credential, ...] = field(default=(), repr=False)
    """Headers that identify this process to `url` beside the key, such as an identity token for Cloud Run."""
    models: tuple[str, ...] | None = None
    """None: ask the endpoint."""
    capabilities: frozenset[Capability] = ORDINARY
    """What its models can do, without what the provider's adapter cannot do."""
    lacks: Mapping[Capability, str] = field(default_factory=dict)
    """What the provider's adapter cannot do, each with its reason."""
    context_tokens: int | None = None
    price: Price | None = None
    cancel_stops_bill: bool = True
    """Whether a closed connection ends the cost. Otherwise an answer without a reader is drained, to know the cost."""
    weight: int = 1
    parallel: int = 1
    """Requests it serves at once before the next one waits."""
    first_token_prior_ms: int = 1000
    """Expected time to the first token before any request was measured; never zero, or a new endpoint would get every
    request."""
    prefill_prior_tokens_per_s: int = 2000
    decode_prior_tokens_per_s: int = 30
    cold_start_prior_ms: int = 30_000
    """Extra time to the first token after a cold start, beyond that of a warm endpoint."""
    sleeps_after_s: int | None = None
    """Idle time after which it scales to zero or unloads its model; None: never."""
    price_usd_micros_per_hour: int | None = None
    """Price of the machine while it runs, for a machine that sleeps and is not billed by the token."""
    request_s_max: float = 300.0
    """The longest that a request may keep such a machine busy, its start included: without a limit, the worst case
    could not be reserved."""
    external: bool = False
    """Whether a third party's service reads the prompts; `allow_external: false` keeps them from it."""
    upstream_model: str | None = None
    """The endpoint's name of the requested model; None: the same."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options that only the provider's adapter understands, for example Ollama's `keep_alive`."""
