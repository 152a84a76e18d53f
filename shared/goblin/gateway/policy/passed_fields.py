"""Passed fields: what of a request an endpoint is sent. Nothing that could make a vendor run and bill something else.

Where tokens are paid for, a field passes only if it is known to change nothing but the answer, whose tokens are
reserved. A field that nobody here knows may start a search, a container or a dearer tier, and no price covers these. It
is dropped and reported, not refused: real programs send many fields, and few of them matter. No list of prices per use
exists, so no tool that a vendor runs is ever allowed.

On a machine that bills nothing by the token, unknown fields pass: its server runs what the operator started.

Sources: the API references of OpenAI, Groq, OpenRouter, vLLM and llama.cpp's server, read 2026-12-01.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from goblin.billing.policy.prices import bills_use
from goblin.core.endpoints import Endpoint
from goblin.core.errors import InvalidRequest
from goblin.gateway.domain.requests import (
    ChatRequest,
    CompletionRequest,
    InferenceRequest,
    RerankRequest,
    caller_runs,
)
from goblin.gateway.policy.blind import LEFT_OUT
from goblin.gateway.policy.passed_messages import passed_messages
from goblin.gateway.policy.passed_responses import passed_responses, speaks_responses
from goblin.gateway.policy.worst_case import TIERS

_COMMON = frozenset({"model", "goblin", "user", "safety_identifier", "metadata"})
_SAMPLING = frozenset(
    {
        # OpenAI's.
        "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty", "seed", "stop", "stream",
        "stream_options", "temperature", "top_p",
        # Those of vLLM, llama.cpp and the vendors that run them: each only chooses between tokens.
        "dynatemp_exponent", "dynatemp_range", "dry_allowed_length", "dry_base", "dry_multiplier", "dry_penalty_last_n",
        "ignore_eos", "min_p", "min_tokens", "mirostat", "mirostat_eta", "mirostat_tau", "repeat_last_n",
        "repeat_penalty", "repetition_penalty", "skip_special_tokens", "stop_token_ids", "top_a", "top_k",
        "top_n_sigma", "typical_p", "xtc_probability", "xtc_threshold",
        # Grammars: they only forbid tokens.
        "grammar", "guided_choice", "guided_grammar", "guided_json", "guided_regex", "json_schema",
        "structured_outputs",
    }
)  # fmt: skip
_CHAT = frozenset(
    {
        "messages", "max_completion_tokens", "tools", "tool_choice", "parallel_tool_calls", "functions",
        "function_call", "disable_tool_validation", "response_format", "top_logprobs", "verbosity", "prompt_cache_key",
        "cache_prompt", "documents", "citation_options",
        # Reasoning counts against the output limit everywhere.
        "chat_template_kwargs", "enable_thinking", "include_reasoning", "reasoning", "reasoning_effort",
        "reasoning_format", "thinking", "thinking_budget",
        # They make vLLM continue a last message of the assistant.
        "add_generation_prompt", "continue_final_message",
    }
)  # fmt: skip
_COMPLETION = frozenset({"prompt", "suffix", "echo"})
_EMBEDDINGS = frozenset({"model", "input", "dimensions", "encoding_format", "user", "goblin", "input_type", "truncate"})
_RERANK = frozenset({"model", "query", "documents", "top_n", "return_documents", "user", "goblin"})
_DECIDED_LATER = frozenset({"audio", "modalities", "best_of"})
"""Fields that make the answer another thing. Without them the caller would get what was not asked for, so
`worst_case` refuses the request instead."""
_VALUES: Mapping[str, tuple[Any, ...]] = {"service_tier": TIERS, "store": (False,)}
"""Fields of which only some values cost no more than the price."""
NAMES_MAX = 16
"""The most names that are reported."""
_NAME_CHARACTERS_MAX = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class PassedFields:
    """What an endpoint is sent."""

    request: InferenceRequest
    dropped: tuple[str, ...] = ()
    """What it is not sent: `service_tier`, `tools[web_search]`. In plain ASCII, because it goes out in a header."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NothingLeft:
    """A request that demands a tool call, of a tool that was dropped, or that has no translation for the endpoint."""

    error: InvalidRequest


def passed_fields(request: InferenceRequest, endpoint: Endpoint) -> PassedFields | NothingLeft:
    """Decide what of a request an endpoint is sent, and name the rest.

    A tool that the caller does not run is dropped for every endpoint: a vendor would bill it, and a server of our own
    runs none and would refuse the request.
    """
    if isinstance(request, ChatRequest) and (original := request.original_for(endpoint)) is not None:
        unsent: list[str] = []
        if bills_use(endpoint):
            original, unsent = passed_messages(original, endpoint.price)
        unsent = unsent + [name for name in request.left_out if name in LEFT_OUT]
        return PassedFields(
            request=msgspec.structs.replace(request, original=original),
            dropped=_few([_name(name) for name in unsent]),
        )
    if isinstance(request, ChatRequest) and request.responses is not None:
        if speaks_responses(endpoint):
            return _as_it_came(request, request.responses, endpoint)
        request = msgspec.structs.replace(request, responses=None)
    if isinstance(request, ChatRequest) and request.untranslated is not None:
        return NothingLeft(error=request.untranslated)
    body = request.body
    dropped = [name for name in body if not _passes(request, name, body[name])] if bills_use(endpoint) else []
    if "store" in dropped and "metadata" in body:
        dropped.append("metadata")  # OpenAI refuses it in a request that is not stored.
    kept = {name: value for name, value in body.items() if name not in dropped}
    names = [_name(name) for name in dropped]
    if not isinstance(request, ChatRequest):
        return PassedFields(
            request=msgspec.structs.replace(request, body=kept) if dropped else request, dropped=_few(names)
        )
    names += [_name(name) for name in request.left_out]
    tools = [tool for tool in request.tools or () if caller_runs(tool)]
    gone = [tool for tool in request.tools or () if not caller_runs(tool)]
    choice = request.tool_choice
    if gone:
        names += [f"tools[{_name(tool.get('type'))}]" for tool in gone]
        left = _tool_choice(choice, tools)
        if isinstance(left, InvalidRequest):
            return NothingLeft(error=left)
        # Without tools, `tool_choice` and `parallel_tool_calls` are refused by OpenAI, and mean nothing.
        for name in ("tools", "tool_choice", *(() if tools else ("parallel_tool_calls",))):
            kept.pop(name, None)
        kept |= {"tools": tools} if tools else {}
        kept |= {"tool_choice": left} if tools and left is not None else {}
        choice = left if tools else None
    if not gone and not dropped:
        return PassedFields(request=request, dropped=_few(names))
    sent = msgspec.structs.replace(
        request, body=kept, tools=tools if request.tools is not None and tools else None, tool_choice=choice
    )
    return PassedFields(request=sent, dropped=_few(names))


def _as_it_came(request: ChatRequest, responses: Mapping[str, Any], endpoint: Endpoint) -> PassedFields:
    sent_as, dropped = passed_responses(responses, endpoint)
    body = {name: value for name, value in request.body.items() if name not in dropped}
    sent = msgspec.structs.replace(request, body=body, responses=sent_as)
    return PassedFields(request=sent, dropped=_few([_name(name) for name in dropped]))


def _passes(request: InferenceRequest, name: str, value: Any) -> bool:
    if value is None or name in _DECIDED_LATER:
        return True
    if name in _VALUES:
        # `1 == True`, and other types than these are no value of the field.
        return any(type(value) is type(one) and value == one for one in _VALUES[name])
    match request:
        case ChatRequest():
            return name in _COMMON or name in _SAMPLING or name in _CHAT
        case CompletionRequest():
            return name in _COMMON or name in _SAMPLING or name in _COMPLETION
        case RerankRequest():
            return name in _RERANK
    return name in _EMBEDDINGS


def _tool_choice(choice: str | dict[str, Any] | None, tools: list[dict[str, Any]]) -> Any:
    """Return what is left of a tool choice after tools were dropped; an error if it demands what is gone."""
    if choice is None or choice in ("auto", "none"):
        return choice
    if choice in ("required", "any"):
        return choice if tools else _demands_what_is_gone()
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools")
        listed = allowed.get("tools") if isinstance(allowed, dict) else None
        if not isinstance(allowed, dict) or not isinstance(listed, list):
            return choice
        left = [one for one in listed if isinstance(one, dict) and caller_runs(one)]
        if left:
            return {**choice, "allowed_tools": {**allowed, "tools": left}}
        # The caller allows no tool that is left.
        return _demands_what_is_gone() if allowed.get("mode") == "required" else "none"
    named = choice.get(str(choice.get("type")))
    name = named.get("name") if isinstance(named, dict) else None
    if caller_runs(choice) and name in [_tool_name(tool) for tool in tools]:
        return choice
    return _demands_what_is_gone()


def _demands_what_is_gone() -> InvalidRequest:
    return InvalidRequest(
        "The `tool_choice` demands a tool that a provider would run and bill, and no price for it is known. "
        "Choose a function of your own, or leave `tool_choice` out.",
        param="tool_choice",
        code="tool_not_allowed",
    )


def _tool_name(tool: Mapping[str, Any]) -> Any:
    inner = tool.get(str(tool.get("type", "function")))
    return inner.get("name") if isinstance(inner, dict) else None


def _name(name: object) -> str:
    """Return a caller's name of a field as it may stand in a header."""
    shown = "".join(
        c if c.isascii() and (c.isalnum() or c in "_-.$:[]") else "?" for c in str(name)[:_NAME_CHARACTERS_MAX]
    )
    return shown or "?"


def _few(names: list[str]) -> tuple[str, ...]:
    once = list(dict.fromkeys(names))
    if len(once) <= NAMES_MAX:
        return tuple(once)
    return (*once[:NAMES_MAX], f"and {len(once) - NAMES_MAX} more")
