"""Caching: which answers may be reused for the same request, and which requests are the same."""

from __future__ import annotations

import hashlib

import msgspec

from goblin.gateway.domain.requests import ChatRequest, CompletionRequest

AnyRequest = ChatRequest | CompletionRequest

# Fields that change how an answer is sent or who asked for it, but not its content.
_BESIDE = frozenset(
    {"stream", "stream_options", "goblin", "user", "safety_identifier", "metadata", "store", "prompt_cache_key"}
)


def opted_in(request: AnyRequest) -> bool:
    """Return whether the caller opted in to the cache: `extra_body={"goblin": {"cache": true}}`."""
    return request.goblin is not None and request.goblin.cache is True


def why_skip(request: AnyRequest) -> str | None:
    """Explain why a request neither reads nor writes the cache; None when it may do both."""
    if request.goblin is not None and request.goblin.cache is False:
        return "the caller turned the cache off"
    if (request.n or 1) > 1 or request.logprobs or request.body.get("modalities") not in (None, ["text"]):
        return "the answer is more than a text"
    if isinstance(request, CompletionRequest) and (request.logprobs is not None or request.body.get("echo")):
        return "the answer is more than a text"
    if not opted_in(request) and request.temperature != 0 and request.seed is None:
        return "the request is not deterministic"
    return None


def cache_key(tenant: str, request: AnyRequest) -> str:
    """Compute the cache key: equal for equal requests of one tenant, whatever their JSON formatting; lower-case hex."""
    kind = "chat" if isinstance(request, ChatRequest) else "completions"
    body = request.body
    if isinstance(request, ChatRequest) and request.original is not None:
        kind, body = request.original.provider, {**request.original.body, "headers": request.original.headers}
    asked = {name: value for name, value in body.items() if name not in _BESIDE}
    pin = request.goblin.provider if request.goblin is not None else None
    return hashlib.sha256(msgspec.json.encode([tenant, kind, pin, asked], order="sorted")).hexdigest()


def may_keep(*, finish_reason: str | None, plain: bool, unbroken: bool, text: str | None) -> bool:
    """Return whether an answer may be cached.

    Args:
        finish_reason: The finish reason of its one choice.
        plain: Whether it is only text: no tool call, no refusal, no reasoning.
        unbroken: Whether one endpoint wrote all of it.
        text: The whole text.
    """
    return plain and unbroken and bool(text) and finish_reason in ("stop", "length")
