"""Fan-out: which requests an endpoint is sent for one request with several prompts, or for several answers (`n`).

An endpoint that can do both is sent the request as it is. For another the gateway sends several requests and merges
their answers:

prompts [a, b], n = 2     neither: a, a, b, b     `choices` alone: a with n = 2, b with n = 2
index of each choice               0  1  2  3                      0, 1          2, 3
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from goblin.core.endpoints import Capability, Endpoint
from goblin.gateway.domain.chat import Usage
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, prompts_of

AnyRequest = ChatRequest | CompletionRequest


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """One of the requests that an endpoint is sent for the caller's one."""

    request: AnyRequest
    first_index: int = 0
    """The caller's index of its first choice."""
    choices: int = 1
    """How many choices it has."""
    repeats: bool = False
    """Whether an earlier part has the same prompt, which the caller is told once."""


def split(request: AnyRequest, endpoint: Endpoint) -> tuple[Part, ...]:
    """Divide a request into those that the endpoint can serve; one part is the request as it is."""
    n, prompts = request.n or 1, prompts_of(request)
    several = len(prompts) > 1 and not _can(endpoint, Capability.PROMPTS)
    apart = n > 1 and not _can(endpoint, Capability.CHOICES) and not _chooses_the_best(request)
    if not several and not apart:
        return (Part(request=request, choices=len(prompts) * n),)
    # A list of prompts for each of several answers would be sent in another order than the caller's indexes have.
    each, copies = (1, n) if apart else (n, 1)
    return tuple(
        Part(
            request=_single(request, prompt, n=each, copy=copy),
            first_index=number * n + copy,
            choices=each,
            repeats=copy > 0,
        )
        for number, prompt in enumerate(prompts)
        for copy in range(copies)
    )


def readings(n: int, endpoint: Endpoint) -> int:
    """Count how often the endpoint reads each prompt: once, or once for each of `n` answers to it."""
    return 1 if _can(endpoint, Capability.CHOICES) else n


def told_usage(parts: Mapping[Part, Usage]) -> Usage:
    """Add up what the caller is told: each prompt once, as OpenAI counts it, and all answers."""
    asked = added_usage([usage for part, usage in parts.items() if not part.repeats])
    answered = added_usage(list(parts.values()))
    return msgspec.structs.replace(
        asked,
        completion_tokens=answered.completion_tokens,
        total_tokens=asked.prompt_tokens + answered.completion_tokens,
        completion_tokens_details=answered.completion_tokens_details,
    )


def added_usage(usages: list[Usage]) -> Usage:
    """Add up usages, with all counts of their details."""
    asked = sum(usage.prompt_tokens for usage in usages)
    answered = sum(usage.completion_tokens for usage in usages)
    return Usage(
        prompt_tokens=asked,
        completion_tokens=answered,
        total_tokens=asked + answered,
        prompt_tokens_details=_added([usage.prompt_tokens_details for usage in usages]),
        completion_tokens_details=_added([usage.completion_tokens_details for usage in usages]),
    )


def _added(details: list[Any]) -> Any:
    counts: dict[str, Any] = {}
    for one in details:
        for name, said in one.items() if isinstance(one, dict) else ():
            if isinstance(said, int) and not isinstance(said, bool):
                counts[name] = counts.get(name, 0) + said
    return counts or msgspec.UNSET


def _can(endpoint: Endpoint, need: Capability) -> bool:
    return need in endpoint.capabilities and need not in endpoint.lacks


def _chooses_the_best(request: AnyRequest) -> bool:
    """Whether `n` answers are chosen among more, which only the endpoint itself can do."""
    return (request.body.get("best_of") or 1) != 1


def _single(request: AnyRequest, prompt: Any, *, n: int, copy: int) -> AnyRequest:
    """Build the request for one prompt. Each further answer to it has the next seed, as llama.cpp counts them."""
    body: dict[str, Any] = {name: value for name, value in request.body.items() if name != "n"}
    changes: dict[str, Any] = {"n": None}
    if n > 1:
        body["n"] = changes["n"] = n
    if request.seed is not None and copy:
        body["seed"] = changes["seed"] = request.seed + copy
    if isinstance(request, CompletionRequest):
        body["prompt"] = changes["prompt"] = prompt
    return msgspec.structs.replace(request, body=body, **changes)
