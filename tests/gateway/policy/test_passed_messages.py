"""What of a Messages request goes to an endpoint that bills: all that only changes the answer, and no more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from goblin.core.endpoints import Price
from goblin.gateway.domain.requests import Original
from goblin.gateway.policy.passed_messages import USES_DEFAULT, ServerTool, passed_messages, server_tools

PRICE = Price(input_usd_micros_per_mtok=1_000_000, output_usd_micros_per_mtok=4_000_000)
SEARCHES = Price(
    input_usd_micros_per_mtok=1, output_usd_micros_per_mtok=1, context_tokens=200_000, server_tools={"web_search": 10}
)
ADD = {"name": "add", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}, "defer_loading": True}
NO_LIMIT = {"type": "web_search_20250305", "name": "s"}
SEARCH = {"type": "web_search_20260318", "name": "web_search", "max_uses": 3}
BASE: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": [{"type": "block_of_next_year"}]}],
    "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
    "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
    "output_config": {"effort": "xhigh", "task_budget": {"type": "tokens", "total": 9}},
    "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
    "tools": [ADD, {"type": "bash_20250124", "name": "bash"}, {"type": "custom", **ADD, "name": "b"}],
    "tool_choice": {"type": "tool", "name": "add"},
    "service_tier": "standard_only",
    "inference_geo": None,
}


def passed(price: Price = PRICE, betas: str = "", **more: Any) -> tuple[dict[str, Any], list[str], str | None]:
    headers = {"anthropic-beta": betas} if betas else {}
    sent, dropped = passed_messages(Original(provider="anthropic", body={**BASE, **more}, headers=headers), price)
    return sent.body, dropped, sent.headers.get("anthropic-beta")


def test_what_only_changes_the_answer_passes_unchanged() -> None:
    assert passed(betas="effort-2025-11-24, new-beta-2027-01-01") == (
        BASE,
        [],
        "effort-2025-11-24, new-beta-2027-01-01",
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("speed", "fast"),
        ("inference_geo", "us"),
        ("service_tier", "priority"),
        ("container", {"skills": []}),
        ("mcp_servers", [{"url": "https://x"}]),
        ("fallbacks", [{"model": "dearer"}]),
        ("compaction", {}),
        ("field_of_next_year", 1),
    ],
)
def test_what_may_cost_more_is_dropped_and_named(name: str, said: Any) -> None:
    body, dropped, _ = passed(**{name: said})
    assert (body, dropped) == ({key: value for key, value in BASE.items() if key != name}, [name])


@pytest.mark.parametrize(
    ("price", "tool", "kept"),
    [
        (SEARCHES, SEARCH, [ADD, SEARCH]),
        (SEARCHES, NO_LIMIT, [ADD, {**NO_LIMIT, "max_uses": USES_DEFAULT}]),
        (SEARCHES, {"type": "web_fetch_20260318", "name": "web_fetch"}, [ADD]),
        (PRICE, SEARCH, [ADD]),
        (replace(PRICE, server_tools={"web_search": 1}), SEARCH, [ADD]),
        (PRICE, {"type": "custom_20260101", "name": "x"}, [ADD]),
        (PRICE, {"type": "mcp_toolset", "mcp_server_name": "x"}, [ADD]),
    ],
)  # fmt: skip
def test_a_tool_that_the_vendor_runs_needs_a_price(price: Price, tool: dict[str, Any], kept: list[Any]) -> None:
    body, dropped, _ = passed(price, tools=[ADD, tool])
    assert body["tools"] == kept
    assert dropped == ([] if len(kept) == 2 else [f"tools[{tool['type']}]"])


def test_no_tool_is_demanded_that_was_dropped() -> None:
    choice = {"type": "tool", "name": "web_search"}
    assert "tool_choice" not in passed(tools=[ADD, SEARCH], tool_choice=choice)[0]
    assert not {"tools", "tool_choice"} & passed(tools=[SEARCH], tool_choice={"type": "any"})[0].keys()
    assert passed(tools=[ADD, SEARCH])[0]["tool_choice"] == BASE["tool_choice"]


def test_the_vendor_summarises_nothing() -> None:
    clear, compact = {"type": "clear_thinking_20251015"}, {"type": "compact_20260112"}
    body, dropped, _ = passed(context_management={"edits": [clear, compact], "x": 1})
    assert body["context_management"] == {"edits": [clear], "x": 1}
    assert dropped == ["context_management[compact_20260112]"]


def test_betas_by_which_tokens_cost_more_are_dropped() -> None:
    _, dropped, betas = passed(betas="fast-mode-2026-02-01,effort-2025-11-24,context-1m-2025-08-07")
    assert (dropped, betas) == (["fast-mode-2026-02-01", "context-1m-2025-08-07"], "effort-2025-11-24")
    assert passed(betas="fast-mode-2026-02-01")[2] is None


def test_uses_are_counted_for_the_worst_case() -> None:
    assert server_tools(Original(provider="anthropic", body={"tools": [ADD, SEARCH]})) == [ServerTool("web_search", 3)]
    assert server_tools(Original(provider="anthropic", body={})) == []
