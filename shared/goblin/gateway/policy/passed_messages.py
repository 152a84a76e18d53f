"""Passed messages: what of a Messages request an endpoint of Anthropic's wire is sent that bills what it does.

As in `passed_fields`: what only changes the answer passes unchanged, with all that it holds; what could make the vendor
run and bill something else is dropped and named. A tool that the vendor runs passes where the price of its use, and of
the context that it may fill, is known. Sources: anthropic-python 2.14 and platform.claude.com/docs (pricing, web search
tool, fast mode, context editing, data residency), read 2026-12-01.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from msgspec.structs import replace

from goblin.core.endpoints import Price
from goblin.gateway.domain.requests import Original

_PASSED = frozenset(
    {
        "model", "messages", "system", "max_tokens", "stream", "stop_sequences", "temperature", "top_k", "top_p",
        "tools", "tool_choice", "thinking", "metadata", "cache_control", "output_config", "output_format",
        "diagnostics", "context_management", "goblin",
    }
)  # fmt: skip
_VALUES: dict[str, tuple[Any, ...]] = {
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
    "inference_geo": ("global",),
}
"""Fields of which only some values cost no more than the price: fast mode costs six times as much, processing in one
country a tenth more."""
_DEAR_BETAS = ("fast-mode-", "context-1m-")
"""Betas by which the same tokens cost more: fast mode, and contexts beyond the price's."""
_RUN_BY_THE_CALLER = ("bash_", "text_editor_", "computer_", "memory_", "browser_")
USES_DEFAULT = 8
"""How often a tool that the vendor runs may be used where the caller sets no limit, without which nothing bounds it."""


class PassedMessages(NamedTuple):
    """What an endpoint is sent."""

    original: Original
    dropped: list[str]


class ServerTool(NamedTuple):
    """A tool that the vendor runs in a request."""

    name: str
    """As a price names it: `web_search`."""
    uses_max: int


def passed_messages(original: Original, price: Price | None) -> PassedMessages:
    """Decide what of a request is sent to an endpoint that bills, and name the rest."""
    dropped: list[str] = []
    body: dict[str, Any] = {}
    for name, said in original.body.items():
        if said is None or name in _PASSED or said in _VALUES.get(name, ()):
            body[name] = said
        else:
            dropped.append(name)
    if isinstance(tools := body.get("tools"), list):
        passed = [(tool, _tool(tool, price)) for tool in tools]
        kept, gone = [one for _, one in passed if one is not None], [tool for tool, one in passed if one is None]
        dropped += [f"tools[{tool.get('type') if isinstance(tool, dict) else '?'}]" for tool in gone]
        if gone:
            body = _without_tools(body, kept, gone)
        else:
            body["tools"] = kept
    if (edits := _edits(body.get("context_management"))) is not None:
        cheap = [edit for edit in edits if str(edit.get("type")).startswith("clear_")]
        if len(cheap) < len(edits):
            # The vendor would summarise the conversation and bill that as one more answer.
            dropped += [f"context_management[{e.get('type')}]" for e in edits if e not in cheap]
            body["context_management"] = {**body["context_management"], "edits": cheap}
    betas = [beta.strip() for beta in original.headers.get("anthropic-beta", "").split(",") if beta.strip()]
    dear = [beta for beta in betas if beta.startswith(_DEAR_BETAS)]
    headers = original.headers
    if dear:
        dropped += dear
        kept_betas = ",".join(beta for beta in betas if beta not in dear)
        headers = {name: value for name, value in headers.items() if name != "anthropic-beta"}
        headers |= {"anthropic-beta": kept_betas} if kept_betas else {}
    return PassedMessages(replace(original, body=body, headers=headers), dropped)


def server_tools(original: Original) -> list[ServerTool]:
    """List the tools of a request that the vendor runs."""
    tools = original.body.get("tools")
    found = []
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict) and not _caller_runs(tool):
            uses = tool.get("max_uses")
            found.append(ServerTool(_priced_name(tool), uses if isinstance(uses, int) else USES_DEFAULT))
    return found


def _tool(tool: Any, price: Price | None) -> Any:
    """Return a tool as it is sent; None if it is not."""
    if not isinstance(tool, dict) or _caller_runs(tool):
        return tool
    if price is None or price.context_tokens is None or _priced_name(tool) not in price.server_tools:
        return None
    uses = tool.get("max_uses")
    return tool if isinstance(uses, int) and uses > 0 else {**tool, "max_uses": USES_DEFAULT}


def _caller_runs(tool: dict[str, Any]) -> bool:
    kind = tool.get("type")
    return kind in (None, "custom") or str(kind).startswith(_RUN_BY_THE_CALLER)


def _priced_name(tool: dict[str, Any]) -> str:
    """Return the tool's kind without its date: `web_search_20260318` is `web_search`."""
    return str(tool.get("type")).rpartition("_")[0]


def _without_tools(body: dict[str, Any], kept: list[Any], gone: list[Any]) -> dict[str, Any]:
    """Return a body with the tools that are left, and a choice that demands none of the others."""
    rest = {name: said for name, said in body.items() if name not in ("tools", "tool_choice")}
    if not kept:
        return rest
    choice = body.get("tool_choice")
    names = [tool.get("name") for tool in gone if isinstance(tool, dict)]
    demands = isinstance(choice, dict) and choice.get("type") == "tool" and choice.get("name") in names
    return {**rest, "tools": kept} | ({} if choice is None or demands else {"tool_choice": choice})


def _edits(management: Any) -> list[dict[str, Any]] | None:
    edits = management.get("edits") if isinstance(management, dict) else None
    return [edit for edit in edits if isinstance(edit, dict)] if isinstance(edits, list) else None
