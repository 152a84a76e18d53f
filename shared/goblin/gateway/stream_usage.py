"""Text and tokens of one upstream attempt so far: enough to bill it, count it and continue it where it broke off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import structs

from goblin.gateway.domain.chat import ChatChunk, Embeddings, PassedAnswer, Usage
from goblin.gateway.policy import tokens

KEPT_CHARS_MAX = 1 << 20
"""A longer answer is still counted, but can be neither continued nor cached."""

ITEMS_MAX = 500_000
"""Chunks of one answer. Models write at most a few hundred thousand tokens, and each chunk is held for a while."""
TOOL_CALLS_MAX = 512
"""Tool calls of one answer, of all its choices. OpenAI takes at most 128 tools."""


@dataclass(slots=True)
class StreamUsage:
    """Usage of one attempt, updated with every chunk, so the work for each is small."""

    keeps_text: bool = True
    """Whether the text may be needed, to continue the answer or to cache it."""
    told: Usage | None = None
    """The provider's own count; None until it reports one. A count that is 0 may only be missing: see `counted`."""
    heard: bool = False
    """Whether any item has arrived: from then on the attempt may cost money."""
    pieces: list[str] = field(default_factory=list)
    """The text of the one choice; kept only while `plain`."""
    plain: bool = True
    """Whether only text of one choice has arrived: no tool call, no reasoning, no refusal, no audio."""
    finish_reason: str | None = None
    fingerprint: str | None = None
    too_much: str = ""
    """What it has sent more of than any answer has; empty: nothing."""
    _items: int = 0
    _calls: set[tuple[int, int]] = field(default_factory=set)
    """Choice and index of each tool call."""
    _steps: int = 0
    _chars: int = 0
    _other_bytes: int = 0

    def add(self, item: ChatChunk | Embeddings | PassedAnswer) -> None:
        self.heard = True
        if item.usage and _tells(item.usage):
            self.told = _merged(self.told, item.usage)
        if not isinstance(item, ChatChunk):
            return
        self._items += 1
        if self._items > ITEMS_MAX:
            self.too_much = f"more than {ITEMS_MAX} chunks"
        for choice in item.choices:
            delta = choice.delta
            for call in delta.tool_calls or ():
                self._calls.add((choice.index, call.index))
                if len(self._calls) > TOOL_CALLS_MAX:
                    self.too_much = f"more than {TOOL_CALLS_MAX} tool calls"
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason
            if delta.beyond_text or choice.index or not self.keeps_text:
                self.plain = False
                self._other_bytes += len(delta.text.encode("utf-8", "surrogatepass"))
                self._steps += 1
            elif delta.content:
                self.pieces.append(delta.content)
                self._chars += len(delta.content)
                self._steps += 1
        if item.system_fingerprint:
            self.fingerprint = item.system_fingerprint
        if self._chars > KEPT_CHARS_MAX:
            self._let_go()

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def completion_tokens(self) -> int:
        """Estimate the tokens written: at least one for each chunk."""
        written = self._other_bytes + sum(len(piece.encode("utf-8", "surrogatepass")) for piece in self.pieces)
        return max(tokens.estimate_tokens(written), self._steps)

    def estimate(self, prompt_bytes: int) -> Usage:
        """Estimate the usage by our own count."""
        asked, answered = tokens.estimate_tokens(prompt_bytes), self.completion_tokens()
        return Usage(prompt_tokens=asked, completion_tokens=answered, total_tokens=asked + answered)

    def counted(self, prompt_bytes: Callable[[], int]) -> tuple[Usage, bool]:
        """Count the usage, and say whether any of it is an estimate of ours.

        A provider's zero is none where there was something: every prompt has tokens, and every text. So counts that
        were left out are estimated, and those that are there are believed.
        """
        told = self.told
        if told is None:
            return self.estimate(prompt_bytes()), True
        asked, answered = told.prompt_tokens, told.completion_tokens
        if asked and (answered or not self._steps):
            return told, False
        asked, answered = asked or tokens.estimate_tokens(prompt_bytes()), answered or self.completion_tokens()
        counts = {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}
        return structs.replace(told, **counts), True

    def _let_go(self) -> None:
        self.plain = False
        self._other_bytes += sum(len(piece.encode("utf-8", "surrogatepass")) for piece in self.pieces)
        self.pieces.clear()
        self._chars = 0


def _tells(usage: Usage) -> bool:
    """Tell whether a report has counts, and those that can be true."""
    asked, answered = usage.prompt_tokens, usage.completion_tokens
    return bool(asked or answered) and tokens.is_believable(asked, answered)


def _merged(before: Usage | None, news: Usage) -> Usage:
    """Take the newer report, which is cumulative, and from the older one what the newer leaves out."""
    if before is None or (news.prompt_tokens and news.completion_tokens):
        return news
    asked = news.prompt_tokens or before.prompt_tokens
    answered = news.completion_tokens or before.completion_tokens
    return structs.replace(
        news,
        prompt_tokens=asked,
        completion_tokens=answered,
        total_tokens=asked + answered,
        prompt_tokens_details=news.prompt_tokens_details or before.prompt_tokens_details,
        completion_tokens_details=news.completion_tokens_details or before.completion_tokens_details,
    )
