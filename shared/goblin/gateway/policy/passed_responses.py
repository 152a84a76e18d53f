"""Passed responses: what of a Responses request an endpoint is sent that speaks the Responses API itself.

It gets the request as it came, so that nothing is lost in a translation: thoughts that only it can read, its own tools,
fields that are not known here. As in `passed_fields`, an endpoint that bills is sent only what a token price covers.
Nothing is stored there either, because nobody could ask for it: what it stored would be found under no key of ours.
Source: openai-python 3.57, read 2026-12-01.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from goblin.billing.policy.prices import bills_use
from goblin.core.endpoints import Endpoint
from goblin.gateway.domain.requests import caller_runs
from goblin.gateway.policy.worst_case import TIERS

HOST = "api.openai.com"
OPTION = "responses"
"""The option of an endpoint: `yes`, `no`, or `auto`, which is `yes` at OpenAI itself."""
_PASSED = frozenset(
    {
        "model", "input", "instructions", "stream", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning",
        "max_output_tokens", "max_tool_calls", "temperature", "top_p", "top_logprobs", "include", "metadata", "user",
        "safety_identifier", "prompt_cache_key", "truncation", "service_tier",
    }
)  # fmt: skip
_ITEMS = frozenset(
    {
        "message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output", "reasoning",
    }
)  # fmt: skip
_REASONING = frozenset({"effort", "summary", "generate_summary", "context"})


def speaks_responses(endpoint: Endpoint) -> bool:
    """Tell whether an endpoint gets Responses requests as they come."""
    said = endpoint.options.get(OPTION, "auto")
    at_openai = said == "auto" and urlsplit(endpoint.url).hostname == HOST
    return endpoint.provider == "openai" and (said == "yes" or at_openai)


def passed_responses(body: Mapping[str, Any], endpoint: Endpoint) -> tuple[dict[str, Any], list[str]]:
    """Return the body that an endpoint is sent, and the names of what it is not sent."""
    sent = {name: value for name, value in body.items() if name not in ("goblin", "background") and value is not None}
    sent["store"] = False
    if not bills_use(endpoint):
        return sent, []
    dropped = [name for name in sent if name not in _PASSED and name != "store"]
    if sent.get("service_tier") not in TIERS:
        dropped.append("service_tier")
    sent = {name: value for name, value in sent.items() if name not in dropped}
    if isinstance(sent.get("reasoning"), dict):
        dropped += [f"reasoning.{name}" for name in sent["reasoning"] if name not in _REASONING]
        sent["reasoning"] = {name: value for name, value in sent["reasoning"].items() if name in _REASONING}
    if isinstance(sent.get("input"), list):
        dropped += [f"input.{item.get('type')}" for item in sent["input"] if not _item_passes(item)]
        sent["input"] = [item for item in sent["input"] if _item_passes(item)]
    return _without_vendors_tools(sent, dropped), dropped


def _item_passes(item: Mapping[str, Any]) -> bool:
    """Tell whether an item is text, an image, a call or its result, or thoughts that the vendor need not look up."""
    kind = str(item.get("type") or "message")
    return kind in _ITEMS and (kind != "reasoning" or bool(item.get("encrypted_content")))


def _without_vendors_tools(sent: dict[str, Any], dropped: list[str]) -> dict[str, Any]:
    """Leave out the tools that the vendor runs, and a choice that names one of them."""
    tools = sent.get("tools")
    if not isinstance(tools, list):
        return sent
    gone = [tool for tool in tools if not _caller_runs(tool)]
    if not gone:
        return sent
    dropped += [f"tools[{tool.get('type')}]" for tool in gone]
    left = [tool for tool in tools if _caller_runs(tool)]
    rest = {name: value for name, value in sent.items() if name not in ("tools", "tool_choice")}
    if not left:
        rest.pop("parallel_tool_calls", None)
        return rest
    choice = sent.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = [tool for tool in choice.get("tools") or () if isinstance(tool, dict) and _caller_runs(tool)]
        choice = {**choice, "tools": allowed} if allowed else None
    elif isinstance(choice, dict) and not _caller_runs(choice):
        choice = None
    return rest | {"tools": left} | ({} if choice is None else {"tool_choice": choice})


def _caller_runs(tool: Mapping[str, Any]) -> bool:
    if tool.get("type") == "namespace":
        inner = tool.get("tools")
        return isinstance(inner, list) and all(isinstance(one, dict) and caller_runs(one) for one in inner)
    return caller_runs(tool)
