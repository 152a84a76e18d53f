"""Worst case: the most that one upstream attempt can cost, known before it is sent. Without a bound it is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec

from goblin.billing.policy.prices import bills_time
from goblin.core.endpoints import NO_USES, Endpoint, Price
from goblin.gateway.domain.requests import (
    AudioPart,
    ChatRequest,
    CompletionRequest,
    FilePart,
    ImagePart,
    ImagesRequest,
    InferenceRequest,
    RerankRequest,
    TranscriptionRequest,
    WholeRequest,
    choices_of,
    prompts_of,
)
from goblin.gateway.policy import fan_out
from goblin.gateway.policy.passed_messages import server_tools

CONTEXT_TOKENS = 1_050_000
"""The largest context on sale whose price has no row: a million at Anthropic, 1,050,000 at OpenAI. It bounds a request
with a file where the model's own context is not known. Source: platform.claude.com and developers.openai.com, read
2026-12-01."""
TOOL_PROMPT_TOKENS = 8192
"""What Anthropic adds for tools: up to some 800 tokens that explain them, and the schemas of tools that it defines and
the caller runs, such as `bash` and `computer`. Source: platform.claude.com/docs/en/about-claude/pricing, in a stored
copy."""
TEMPLATE_TOKENS = 64
"""The most that a chat template adds beyond the request's JSON; the JSON's braces and quotes outweigh its markers."""
OF_UNKNOWN_PRICE = {
    "audio": "audio",
    "modalities": "audio answers",
    "prediction": "predicted outputs",
    "web_search_options": "web search",
    "best_of": "`best_of`",
}
"""Fields whose cost no token price covers, with what they stand for. `passed_fields` drops those that it may drop; a
request that still has one is refused."""
BY_TIME_ALONE = Price(input_usd_micros_per_mtok=0, output_usd_micros_per_mtok=0)
LIMITS = ("max_completion_tokens", "max_tokens")
COMPLETION_TOKENS = 16
"""OpenAI's default limit for `/completions`."""
TIERS = (None, "auto", "default", "flex", "on_demand")
"""Service tiers that cost no more than the price. `on_demand` is Groq's name of the default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CostBound:
    """The most that an attempt costs, if it is sent with the output limit."""

    input_tokens: int
    output_tokens: int
    """Output tokens of one choice. This limit must be sent, because the cost is not bounded without it."""
    cost_usd_micros: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpriced:
    """A request whose cost cannot be bounded, and why."""

    reason: str


def worst_case(request: InferenceRequest, endpoint: Endpoint) -> CostBound | Unpriced:
    """Bound the token cost of one upstream attempt; retries, hedges and continuations are attempts of their own.

    A token is at least one byte, so a prompt has no more tokens than its JSON has bytes. Hidden reasoning counts
    against the output limit, as every provider here counts it.
    """
    price = endpoint.price or (BY_TIME_ALONE if bills_time(endpoint) else None)
    if price is None:
        return Unpriced(reason="its price is unknown, and an unknown price is not free")
    if (reason := _unpriced(request)) is not None:
        return Unpriced(reason=f"the price of {reason} is unknown")
    inward, uses = _input_tokens(request, endpoint, price)
    outward = 0 if isinstance(request, WholeRequest) else _output_tokens(request, price)
    # Writing a prompt to a provider's cache costs more than reading it.
    dear = replace(price, input_usd_micros_per_mtok=price.dearest_input) if _writes_cache(request, endpoint) else price
    if not isinstance(request, WholeRequest):
        inward *= fan_out.readings(request.n or 1, endpoint)
    # Before each further use of its tool the vendor's model reads everything again.
    rounds = 1 + sum(uses.values())
    if rounds > 1:
        inward = max(inward, price.context_tokens or CONTEXT_TOKENS)
    cost = dear.cost_usd_micros(
        input_tokens=inward * rounds, output_tokens=outward * choices_of(request) * rounds, uses=uses
    )
    return CostBound(input_tokens=inward, output_tokens=outward, cost_usd_micros=cost)


def _input_tokens(request: InferenceRequest, endpoint: Endpoint, price: Price) -> tuple[int, Mapping[str, int]]:
    """Bound the tokens of the prompt as the endpoint gets it, and the uses of tools that the vendor runs.

    An image counts at most `image_tokens_max`. A file has as many tokens as its pages have text, which only its reader
    knows; with all else it fits into the model's context, or it is refused and costs nothing.
    """
    original = request.original_for(endpoint) if isinstance(request, ChatRequest) else None
    if original is None:
        images = _images(request)
        files = [part for part in _parts(request) if isinstance(part, FilePart)]
        data = images + [str(part.file.get("file_data", "")) for part in files]
        tokens, uses, many_files = len(msgspec.json.encode(_sent(request))), NO_USES, len(files)
    else:
        turns = original.body.get("messages")
        contents = [turn.get("content") for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
        seen = _attachments([block for one in contents for block in (one if isinstance(one, list) else [one])])
        images, data, many_files = seen.images, seen.data, seen.files
        tokens = len(msgspec.json.encode(original.body)) + (TOOL_PROMPT_TOKENS if original.body.get("tools") else 0)
        uses = Counter[str]()
        for tool in server_tools(original):
            uses[tool.name] += tool.uses_max
    if isinstance(request, RerankRequest):  # Each document is read with the query, in a template of its own.
        tokens += len(request.documents) * (TEMPLATE_TOKENS + len(msgspec.json.encode(request.query)))
    tokens += TEMPLATE_TOKENS + len(images) * price.image_tokens_max - sum(len(msgspec.json.encode(d)) for d in data)
    if many_files:
        tokens = max(tokens, price.context_tokens or CONTEXT_TOKENS)
    # Each request of a fan-out has a template of its own, and each prompt the model's context.
    prompts = len(prompts_of(request))
    tokens += (prompts - 1) * TEMPLATE_TOKENS
    # The documents of a rerank are read one by one, so all of them may be more than a context.
    if price.context_tokens is None or isinstance(request, RerankRequest):
        return tokens, uses
    return min(tokens, prompts * price.context_tokens), uses


def _sent(request: InferenceRequest) -> dict[str, Any]:
    """Return the body as the endpoint gets it: `passed_fields` leaves the Responses wire to those who speak it."""
    if isinstance(request, ChatRequest) and request.responses is not None:
        return request.responses
    return request.body


class _Attachments(NamedTuple):
    images: list[str]
    files: int
    data: list[str]
    """What is in the request's JSON and is not text."""


_IN_WORDS = frozenset(
    {
        "text", "thinking", "redacted_thinking", "tool_use", "tool_result", "tool_reference", "search_result",
        "server_tool_use", "web_search_tool_result", "web_search_result", "web_search_tool_result_error",
        "web_fetch_tool_result", "web_fetch_result", "web_fetch_tool_result_error", "mcp_tool_use", "mcp_tool_result",
        "tool_search_tool_result", "tool_search_tool_search_result", "tool_search_tool_result_error", "compaction",
        "bash_code_execution_tool_result", "bash_code_execution_result", "code_execution_tool_result",
        "code_execution_result", "text_editor_code_execution_tool_result", "fallback", "browser_state",
    }
)  # fmt: skip
"""Content blocks that count what their JSON has, or less."""


def _attachments(content: Any) -> _Attachments:
    """Find the images and files in content of a Messages request: in turns, results of tools, and documents.

    Nothing else is looked into: what stands in a call's arguments is text, whatever it looks like.
    """
    images: list[str] = []
    data: list[str] = []
    files = 0
    for block in content if isinstance(content, list) else [content]:
        if not isinstance(block, dict):
            continue
        source, kind = block.get("source"), str(block.get("type"))
        source = source if isinstance(source, dict) else {}
        if kind == "image":
            images.append(str(source.get("data")))
        elif kind == "document":
            files += source.get("type") not in ("text", "content")
        elif kind not in _IN_WORDS:
            files += 1  # A vendor may read anything behind a type that nobody here knows.
        if kind in ("image", "document") and source.get("type") == "base64" and isinstance(source.get("data"), str):
            data.append(source["data"])
        for inner in (block.get("content"), source.get("content")):
            found = _attachments(inner)
            images, files, data = images + found.images, files + found.files, data + found.data
    return _Attachments(images, files, data)


def limited(request: InferenceRequest, bound: CostBound) -> InferenceRequest:
    """Set the output limit that bounds the cost, under the field name that the caller used."""
    if isinstance(request, WholeRequest):
        return request
    names = [name for name in LIMITS if request.body.get(name) is not None]
    names = names or ["max_completion_tokens" if isinstance(request, ChatRequest) else "max_tokens"]
    limits = {name: min(request.body.get(name, bound.output_tokens), bound.output_tokens) for name in names}
    return msgspec.structs.replace(request, **limits, body={**request.body, **limits})


def price_of(prices: Mapping[tuple[str, str], Price], endpoint: Endpoint, model: str) -> Price | None:
    """Return the price of a model at an endpoint: the catalog's price for the model, else the endpoint's default."""
    return prices.get((endpoint.provider, model), endpoint.price)


def _unpriced(request: InferenceRequest) -> str | None:
    if isinstance(request, ImagesRequest):
        return "images that are made"
    if isinstance(request, TranscriptionRequest):
        return "recordings"
    for name, what in OF_UNKNOWN_PRICE.items():
        said = request.body.get(name)
        if said is not None and said not in (["text"], 1):
            return what
    if request.body.get("service_tier") not in TIERS:
        return "this service tier"
    if any(isinstance(part, AudioPart) for part in _parts(request)):
        return "audio"
    return None


def _parts(request: InferenceRequest) -> Iterator[Any]:
    if isinstance(request, ChatRequest):
        for message in request.messages:
            if isinstance(message.content, tuple):
                yield from message.content


def _images(request: InferenceRequest) -> list[str]:
    """List the URLs of the images, which may be `data:` URLs with the images themselves."""
    return [part.image_url.url for part in _parts(request) if isinstance(part, ImagePart)]


def _output_tokens(request: ChatRequest | CompletionRequest, price: Price) -> int:
    """Compute the output limit of one choice: the caller's, or a default, and no more than the model's maximum."""
    asked = [request.body[name] for name in LIMITS if request.body.get(name) is not None]
    otherwise = price.output_tokens_default if isinstance(request, ChatRequest) else COMPLETION_TOKENS
    most = max(asked, default=otherwise)
    return most if price.output_tokens_max is None else min(most, price.output_tokens_max)


def _writes_cache(request: InferenceRequest, endpoint: Endpoint) -> bool:
    """Tell whether the prompt, as the endpoint gets it, may be written to the provider's cache."""
    original = request.original_for(endpoint) if isinstance(request, ChatRequest) else None
    return _mentions(request.body if original is None else original.body, "cache_control")


def _mentions(value: Any, name: str) -> bool:
    match value:
        case dict():
            return name in value or any(_mentions(inner, name) for inner in value.values())
        case list():
            return any(_mentions(inner, name) for inner in value)
    return False
