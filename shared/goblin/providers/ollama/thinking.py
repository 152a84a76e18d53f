"""How much a model thinks: OpenAI's `reasoning_effort` as Ollama's `think`, and less of it where a model refuses it.

Some models take a level, most only yes or no, and one that cannot think refuses both with 400. Which one it is cannot
be seen before it is asked, so a refused request is sent again with less, and the model is remembered. Source: ollama
0.33 `openai/openai.go`, `server/routes.go` and docs/capabilities/thinking, read 2026-12-01.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goblin.core.errors import GoblinError, InvalidRequest

LEVELS: Mapping[str, bool | str] = {
    "none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high",
}  # fmt: skip
MODELS_MAX = 1024


def think_of(body: Mapping[str, Any]) -> bool | str | None:
    """Return the value of `think` for a chat's body; None where the caller says nothing that is known."""
    effort = body.get("reasoning_effort")
    if effort is None and isinstance(reasoning := body.get("reasoning"), Mapping):
        effort = reasoning.get("effort")
    return LEVELS.get(effort) if isinstance(effort, str) else None


class Thinking:
    """What each model of one server takes."""

    def __init__(self) -> None:
        self._refused: dict[str, set[str]] = {}
        """By model: types of `think` that it refused, `str` and `bool`."""

    def fitted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a body without what its model refused before."""
        think, refused = body.get("think"), self._refused.get(body["model"], set())
        if think is None or not refused:
            return dict(body)
        if isinstance(think, str) and "str" in refused:
            think = True
        if think is True and "bool" in refused:
            return {name: value for name, value in body.items() if name != "think"}
        return {**body, "think": think}

    def learns(self, body: Mapping[str, Any], error: GoblinError) -> bool:
        """Note that a model refused how much it should think; False if that is not what was refused."""
        think = body.get("think")
        if not isinstance(error, InvalidRequest) or not think or "think" not in error.message.lower():
            return False
        if len(self._refused) < MODELS_MAX or body["model"] in self._refused:
            self._refused.setdefault(body["model"], set()).add(type(think).__name__)
            return True
        return False
