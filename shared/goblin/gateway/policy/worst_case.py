"""The most that one attempt at a request can cost, known before it is sent; what cannot be bounded is refused."""

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
    EmbeddingsRequest,
    FilePart,
    ImagePart,
    InferenceRequest,
)

TEMPLATE_TOKENS = 64
"""What a chat template adds at most beyond the JSON it stands for; a message's braces and quotes outweigh its marks."""
OF_UNKNOWN_PRICE = {
    "audio": "sounds",
    "modalities": "answers in sound",
    "prediction": "predicted outputs",
    "web_search_options": "web search",
    "best_of": "choosing the best of several",
}
"""Fields that cost something which no token price covers."""
BY_TIME_ALONE = Price(input_usd_micros_per_mtok=0, output_usd_micros_per_mtok=0)
LIMITS = ("max_completion_tokens", "max_tokens")
COMPLETION_TOKENS = 16
"""OpenAI's own default for `/completions`."""
TIERS = (None, "auto", "default", "flex")


@dataclass(frozen=True, kw_only=True, slots=True)
class CostBound:
    """What an attempt costs at the most, if it is sent with the limit."""

    input_tokens: int
    output_tokens: int
    """Of one choice: the limit that must be sent, for what is not limited is not bounded."""
    cost_usd_micros: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpriced:
    """Why nobody can say what it would cost."""

    reason: str


def worst_case(request: InferenceRequest, endpoint: Endpoint) -> CostBound | Unpriced:
    """Bound what one attempt costs in tokens, for itself: retries, hedges and continuations are attempts of their own.

    A token is at least one byte, so a prompt has no more tokens than its JSON has bytes. Reasoning that nobody sees
    counts against the limit on the answer, as every provider here counts it.
    """
    price = endpoint.price or (BY_TIME_ALONE if bills_time(endpoint) else None)
    if price is None:
        return Unpriced(reason="its price is unknown, and unknown is not free")
    if (reason := _unpriced(request)) is not None:
        return Unpriced(reason=f"the price of {reason} is unknown")
    images = _images(request)
    text_bytes = len(msgspec.json.encode(request.body)) - sum(len(msgspec.json.encode(url)) for url in images)
    inward = text_bytes + TEMPLATE_TOKENS + len(images) * price.image_tokens_max
    outward = 0 if isinstance(request, EmbeddingsRequest) else _output_tokens(request, price)
    choices = _choices(request)
    cost = price.cost_usd_micros(input_tokens=inward * _factor(request), output_tokens=outward * choices)
    return CostBound(input_tokens=inward, output_tokens=outward, cost_usd_micros=cost)


def limited(request: InferenceRequest, bound: CostBound) -> InferenceRequest:
    """The request with the limit that bounds it, under the name that the caller used."""
    if isinstance(request, EmbeddingsRequest):
        return request
    names = [name for name in LIMITS if request.body.get(name) is not None]
    names = names or ["max_completion_tokens" if isinstance(request, ChatRequest) else "max_tokens"]
    limits = {name: min(request.body.get(name, bound.output_tokens), bound.output_tokens) for name in names}
    return msgspec.structs.replace(request, **limits, body={**request.body, **limits})


def price_of(prices: Mapping[tuple[str, str], Price], endpoint: Endpoint, model: str) -> Price | None:
    """The price of a model at an endpoint: the catalogue's for the model, else the endpoint's for all of them."""
    return prices.get((endpoint.provider, model), endpoint.price)


def _unpriced(request: InferenceRequest) -> str | None:
    for name, what in OF_UNKNOWN_PRICE.items():
        said = request.body.get(name)
        if said is not None and said not in (["text"], 1):
            return what
    if request.body.get("service_tier") not in TIERS:
        return "this service tier"
    if any(isinstance(part, AudioPart | FilePart) for part in _parts(request)):
        return "sounds and files"
    return None


def _parts(request: InferenceRequest) -> Iterator[Any]:
    if isinstance(request, ChatRequest):
        for message in request.messages:
            if isinstance(message.content, tuple):
                yield from message.content


def _images(request: InferenceRequest) -> list[str]:
    """Their addresses, which may be the images themselves."""
    return [part.image_url.url for part in _parts(request) if isinstance(part, ImagePart)]


def _output_tokens(request: ChatRequest | CompletionRequest, price: Price) -> int:
    """The limit on one choice: the caller's, or what we set, and no more than the ceiling."""
    asked = [request.body[name] for name in LIMITS if request.body.get(name) is not None]
    otherwise = price.output_tokens_default if isinstance(request, ChatRequest) else COMPLETION_TOKENS
    most = max(asked, default=otherwise)
    return most if price.output_tokens_max is None else min(most, price.output_tokens_max)


def _choices(request: InferenceRequest) -> int:
    if isinstance(request, EmbeddingsRequest):
        return 1
    several = isinstance(request, CompletionRequest) and isinstance(request.prompt, list)
    prompts = 1
    if several and not all(isinstance(item, int) for item in request.body["prompt"]):
        prompts = len(request.body["prompt"])
    return prompts * (request.n or 1)


def _factor(request: InferenceRequest) -> int:
    """Writing a prompt into a provider's cache costs up to twice as much as reading it."""
    return 2 if _mentions(request.body, "cache_control") else 1


def _mentions(value: Any, name: str) -> bool:
    match value:
        case dict():
            return name in value or any(_mentions(inner, name) for inner in value.values())
        case list():
            return any(_mentions(inner, name) for inner in value)
    return False
