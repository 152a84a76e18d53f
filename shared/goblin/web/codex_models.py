"""Lists models as Codex CLI reads them: `GET /v1/models?client_version=…`, which it asks beside OpenAI's list.

Codex takes context and instructions of a model from the list, and its own defaults for a model that is not in it. So a
model is listed only if its context is known: without it Codex would fill the window of a far larger model. Every entry
needs instructions, which replace Codex's own of 17 KB; these leave a small window to the work. Source: tried with Codex
CLI 0.171, 2026-12-01.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from goblin.gateway.router import ServedModel

OUTPUT_BYTES = 10_000
"""The most of a command's output that Codex shows to the model."""
INSTRUCTIONS = """\
You are a coding agent. You run in Codex CLI, on the user's machine, in the user's working directory. Work on the task \
until it is done, then say in a few sentences what you did and what you found.

- Look before you act: read the files that matter, and follow any AGENTS.md that covers them.
- Use the tools: run commands to search, build and test; edit files with `apply_patch` or a command. Do not paste \
files into the answer instead of writing them.
- Change only what the task needs, in the style of the code around it. Never undo changes that are not yours.
- Check your work with the project's own tests where there are any, and say what you could not check.
- Ask before you do what cannot be undone. Do not commit or push unless you are asked to.
"""


def model_list(models: Sequence[ServedModel]) -> list[dict[str, Any]]:
    """Build the entries of the models whose context is known."""
    return [_entry(model, place) for place, model in enumerate(models) if model.context_tokens is not None]


def _entry(model: ServedModel, place: int) -> dict[str, Any]:
    return {
        "slug": model.id,
        "display_name": model.id,
        "description": None,
        "context_window": model.context_tokens,
        "input_modalities": ["text", "image"] if model.sees else ["text"],
        "supported_reasoning_levels": [],
        "supports_reasoning_summaries": False,
        "support_verbosity": False,
        "default_verbosity": None,
        "supports_parallel_tool_calls": True,
        "shell_type": "default",
        "apply_patch_tool_type": None,
        "experimental_supported_tools": [],
        "truncation_policy": {"mode": "bytes", "limit": OUTPUT_BYTES},
        "base_instructions": INSTRUCTIONS,
        "visibility": "list",
        "supported_in_api": True,
        "priority": place,
        "upgrade": None,
    }
