"""Continuation of an answer that broke off at another endpoint: when that is sound, and with which request.

The next endpoint gets the conversation and the text so far as the assistant's last message, which it continues
(the capability `prefill`); a plain text is continued as a longer text. If a continuation is not sound, the caller
gets the error that the answer was cut.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from goblin.core.endpoints import Capability
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, Message

AnyRequest = ChatRequest | CompletionRequest

# Extensions of llama.cpp and vLLM that bind an answer to a grammar, which would start over in the middle of it.
_BINDING = frozenset(
    {
        "grammar",
        "json_schema",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structured_outputs",
    }
)


def why_not(request: AnyRequest) -> str | None:
    """Explain why an answer to this request cannot be continued; None when it can, as long as it is only text."""
    if (request.n or 1) > 1:
        return "the request asks for several answers"
    if any(request.body.get(name) is not None for name in _BINDING):
        return "the answer is bound to a grammar"
    if isinstance(request, CompletionRequest):
        return _why_not_text(request)
    if request.response_format is not None and request.response_format.type != "text":
        return "the answer is bound to a JSON schema"
    if request.tools and request.tool_choice not in (None, "auto", "none"):
        return "the answer must be a tool call"
    return None


def _why_not_text(request: CompletionRequest) -> str | None:
    if not isinstance(request.prompt, str) or request.suffix is not None:
        return "the prompt cannot be made longer"
    if request.logprobs is not None or request.body.get("echo") or (request.body.get("best_of") or 1) != 1:
        return "the answer is more than the text that follows the prompt"
    return None


def needed(request: AnyRequest) -> Capability:
    """Return the capability that an endpoint needs to continue the answer."""
    return Capability.PREFILL if isinstance(request, ChatRequest) else Capability.COMPLETIONS


def seam(text: str) -> tuple[str, str]:
    """Split the text so far into what to send and the white space at its end, which is held back.

    Models write a word together with the space before it, and some APIs refuse a message that ends in a space. So
    the next endpoint writes that space again, and `Seam` removes it.
    """
    kept = text.rstrip()
    return kept, text[len(kept) :]


def continued(request: AnyRequest, text: str, *, tokens_written: int) -> AnyRequest:
    """Build the request for the rest of an answer.

    Args:
        request: The caller's request, for which `why_not` returned None.
        text: The text so far, without white space at the end; may be empty.
        tokens_written: The estimated tokens of that text, which count against the caller's limit.
    """
    body: dict[str, Any] = dict(request.body)
    # The caller has read the beginning of a translation, so that the rest must be one, too.
    changes: dict[str, Any] = {"responses": None} if isinstance(request, ChatRequest) else {}
    for name in ("max_tokens", "max_completion_tokens"):
        if (limit := getattr(request, name, None)) is not None:
            body[name] = changes[name] = max(limit - tokens_written, 1)
    if isinstance(request, CompletionRequest):
        body["prompt"] = changes["prompt"] = f"{request.prompt}{text}"
    elif text:
        body["messages"] = [*body.get("messages", ()), {"role": "assistant", "content": text}]
        changes["messages"] = (*request.messages, Message(role="assistant", content=text))
        if request.original is not None:
            turns = [*request.original.body.get("messages", ()), {"role": "assistant", "content": text}]
            changes["original"] = replace(request.original, body={**request.original.body, "messages": turns})
    return replace(request, body=body, **changes)


class Seam:
    """Removes the white space at the beginning of a continuation that the caller already has."""

    def __init__(self, held: str) -> None:
        self._held = held

    @property
    def closed(self) -> bool:
        """Whether nothing is left to remove."""
        return not self._held

    def trim(self, text: str) -> str:
        """Return the part of the next piece that is new."""
        shared = 0
        while shared < len(text) and shared < len(self._held) and text[shared] == self._held[shared]:
            shared += 1
        # If the whole piece matched, the next piece may match further; a difference ends the search.
        self._held = self._held[shared:] if shared == len(text) else ""
        return text[shared:]
