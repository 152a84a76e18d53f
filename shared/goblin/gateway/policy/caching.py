"""Which answers may be given again to the same question, and what makes a question the same."""

from __future__ import annotations

import hashlib

import msgspec

from goblin.gateway.domain.requests import ChatRequest, CompletionRequest

AnyRequest = ChatRequest | CompletionRequest

# They change how an answer is sent or who asked for it, not what it says.
_BESIDE = frozenset(
    {"stream", "stream_options", "goblin", "user", "safety_identifier", "metadata", "store", "prompt_cache_key"}
)


def opted_in(request: AnyRequest) -> bool:
    """Whether the caller asked for it: `extra_body={"goblin": {"cache": true}}`."""
    return request.goblin is not None and request.goblin.cache is True


def why_skip(request: AnyRequest) -> str | None:
    """Why a request neither takes its answer from the cache nor leaves it there; None when it may."""
    if request.goblin is not None and request.goblin.cache is False:
        return "the caller wants none"
    if (request.n or 1) > 1 or request.logprobs or request.body.get("modalities") not in (None, ["text"]):
        return "the answer is more than a text"
    if isinstance(request, CompletionRequest) and (request.logprobs is not None or request.body.get("echo")):
        return "the answer is more than a text"
    if not opted_in(request) and request.temperature != 0 and request.seed is None:
        return "another answer would be as good"
    return None


def cache_key(tenant: str, request: AnyRequest) -> str:
    """The same for the same question of the same tenant, however it is spelled in JSON; lower-case hex."""
    kind = "chat" if isinstance(request, ChatRequest) else "completions"
    asked = {name: value for name, value in request.body.items() if name not in _BESIDE}
    pin = request.goblin.provider if request.goblin is not None else None
    return hashlib.sha256(msgspec.json.encode([tenant, kind, pin, asked], order="sorted")).hexdigest()


def may_keep(*, finish_reason: str | None, plain: bool, unbroken: bool, text: str | None) -> bool:
    """Whether an answer that came is one to give again.

    Args:
        finish_reason: Of its one choice.
        plain: It is text and nothing else: no tool call, no refusal, no reasoning.
        unbroken: One endpoint wrote all of it.
        text: All of it.
    """
    return plain and unbroken and bool(text) and finish_reason in ("stop", "length")
