"""Going on elsewhere with an answer that broke off: when that is sound, and what the next endpoint is asked.

The next endpoint gets the conversation and the text so far as the assistant's last message, which it continues
(the capability `prefill`); a plain text is continued as a longer text. What is not sound is refused: the caller
then hears that the answer is cut.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from goblin.core.endpoints import Capability
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, Message

AnyRequest = ChatRequest | CompletionRequest

# Extensions of llama.cpp and vLLM that bind an answer to a grammar, which would start anew in its middle.
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
    """Why an answer to this request cannot be continued; None when it can, as long as it is text."""
    if (request.n or 1) > 1:
        return "it has several answers"
    if any(request.body.get(name) is not None for name in _BINDING):
        return "it is bound to a grammar"
    if isinstance(request, CompletionRequest):
        return _why_not_text(request)
    if request.response_format is not None and request.response_format.type != "text":
        return "it is bound to a JSON schema"
    if request.tools and request.tool_choice not in (None, "auto", "none"):
        return "it must be a tool call"
    return None


def _why_not_text(request: CompletionRequest) -> str | None:
    if not isinstance(request.prompt, str) or request.suffix is not None:
        return "its prompt cannot be made longer"
    if request.logprobs is not None or request.body.get("echo") or (request.body.get("best_of") or 1) != 1:
        return "its answer is more than the text that follows"
    return None


def needed(request: AnyRequest) -> Capability:
    """What an endpoint must be able to do to go on."""
    return Capability.PREFILL if isinstance(request, ChatRequest) else Capability.COMPLETIONS


def seam(text: str) -> tuple[str, str]:
    """What to send of the text so far, and the white space at its end, which is kept back.

    Models write a word with the space before it, and some APIs refuse a message that ends in one. So the next
    endpoint writes that space again, and `Seam` takes it off.
    """
    kept = text.rstrip()
    return kept, text[len(kept) :]


def continued(request: AnyRequest, text: str, *, tokens_written: int) -> AnyRequest:
    """The request for the rest of an answer.

    Args:
        request: As the caller made it; `why_not` has nothing against it.
        text: What was written so far, without white space at the end; may be empty.
        tokens_written: About how many tokens that was, of those the caller allows.
    """
    body: dict[str, Any] = dict(request.body)
    changes: dict[str, Any] = {}
    for name in ("max_tokens", "max_completion_tokens"):
        if (limit := getattr(request, name, None)) is not None:
            body[name] = changes[name] = max(limit - tokens_written, 1)
    if isinstance(request, CompletionRequest):
        body["prompt"] = changes["prompt"] = f"{request.prompt}{text}"
    elif text:
        body["messages"] = [*body.get("messages", ()), {"role": "assistant", "content": text}]
        changes["messages"] = (*request.messages, Message(role="assistant", content=text))
    return replace(request, body=body, **changes)


class Seam:
    """Takes white space off the beginning of a continuation, as far as the caller has it already."""

    def __init__(self, held: str) -> None:
        self._held = held

    @property
    def closed(self) -> bool:
        """Nothing is left to take off."""
        return not self._held

    def trim(self, text: str) -> str:
        """What of the next piece is new."""
        shared = 0
        while shared < len(text) and shared < len(self._held) and text[shared] == self._held[shared]:
            shared += 1
        # A piece that ends here may go on with more of the same; one that differs ends the search.
        self._held = self._held[shared:] if shared == len(text) else ""
        return text[shared:]
