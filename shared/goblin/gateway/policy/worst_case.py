"""Worst case: the most that one upstream attempt can cost, known before it is sent. Without a bound it is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from goblin.billing.policy.prices import bills_time
from goblin.core.endpoints import Endpoint, Price
from goblin.gateway.domain.requests import (
    AudioPart,
    ChatRequest,
    CompletionRequest,
    FilePart,
    ImagePart,
    ImagesRequest,
    InferenceRequest,
    RerankRequest,
    WholeRequest,
)

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
    images = _images(request)
    sent = request.responses if isinstance(request, ChatRequest) and request.responses is not None else request.body
    text_bytes = len(msgspec.json.encode(sent)) - sum(len(msgspec.json.encode(url)) for url in images)
    inward = text_bytes + TEMPLATE_TOKENS + len(images) * price.image_tokens_max
    if isinstance(request, RerankRequest):  # Each document is read with the query, in a template of its own.
        each = TEMPLATE_TOKENS + len(msgspec.json.encode(request.query))
        inward += len(request.documents) * each
    outward = 0 if isinstance(request, WholeRequest) else _output_tokens(request, price)
    choices = _choices(request)
    cost = price.cost_usd_micros(input_tokens=inward * _factor(request), output_tokens=outward * choices)
    return CostBound(input_tokens=inward, output_tokens=outward, cost_usd_micros=cost)


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
    for name, what in OF_UNKNOWN_PRICE.items():
        said = request.body.get(name)
        if said is not None and said not in (["text"], 1):
            return what
    if request.body.get("service_tier") not in TIERS:
        return "this service tier"
    if any(isinstance(part, AudioPart | FilePart) for part in _parts(request)):
        return "audio and files"
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


def _choices(request: InferenceRequest) -> int:
    if isinstance(request, WholeRequest):
        return 1
    several = isinstance(request, CompletionRequest) and isinstance(request.prompt, list)
    prompts = 1
    if several and not all(isinstance(item, int) for item in request.body["prompt"]):
        prompts = len(request.body["prompt"])
    return prompts * (request.n or 1)


def _factor(request: InferenceRequest) -> int:
    """Return the factor on the input price: writing a prompt to a provider's cache costs up to twice the price."""
    return 2 if _mentions(request.body, "cache_control") else 1


def _mentions(value: Any, name: str) -> bool:
    match value:
        case dict():
            return name in value or any(_mentions(inner, name) for inner in value.values())
        case list():
            return any(_mentions(inner, name) for inner in value)
    return False
