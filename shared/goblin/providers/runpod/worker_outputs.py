"""Converts the outputs of serverless workers, in all shapes that are in use, to chunks.

    "data: {…}\\n\\n"                                OpenAI's events as text: vLLM workers, by default
    {"choices": [{"delta" or "message" or "text"}]}   OpenAI's objects
    {"choices": [{"tokens": ["Hel"]}], "usage": {"input", "output"}}   vLLM workers, without OpenAI's route
    "Hel", {"text": "Hel"}, …                        other workers
    {"error": …}                                     any worker

Source: runpod-workers/worker-vllm `engine.py` and `utils.py`, read 2026-11-25.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import UNSET

from goblin.core.errors import Fault, InvalidRequest, ProviderUnavailable
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, ToolCallDelta, Usage
from goblin.providers.common import sse
from goblin.providers.common.http import Upstream
from goblin.providers.common.refusals import detail_of
from httpguard import whole_number

TEXT_KEYS = ("text", "content", "response", "token", "generated_text", "delta", "output")
"""Keys under which other workers write text, in order of preference."""


class OutputReader:
    """Converts the outputs of one job to chunks."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._parser = sse.EventParser()
        self._finished: dict[int, bool] = {}
        self._plain = False
        """Whether an output had a shape without a finish reason, so that the answer ends with the job."""

    def read(self, output: Any) -> Iterator[ChatChunk]:
        """Convert one output to chunks.

        Raises:
            InvalidRequest: The worker refused the request before it had answered anything.
            ProviderUnavailable: The worker failed, or its output has an unknown shape.
        """
        match output:
            case str() if output.startswith("data:"):
                yield from self._events(output)
            case str():
                yield from self._text(output)
            case list():
                for one in output:
                    yield from self.read(one)
            case {"error": _} | {"object": "error"}:
                raise self._failed(output)
            case {"choices": list(choices)}:
                for chunk in self._object(output, choices):
                    self._note(chunk)
                    yield chunk
            case dict():
                found = next((output[key] for key in TEXT_KEYS if isinstance(output.get(key), str)), None)
                if found is None:
                    raise self._upstream.nonsense()
                yield from self._text(found)
            case _:
                raise self._upstream.nonsense()

    def end(self) -> Iterator[ChatChunk]:
        """Finish the answer of a completed job. Raises `ProviderUnavailable` if the answer is not complete."""
        if self._plain and not any(self._finished.values()):
            for index in self._finished:
                yield ChatChunk(choices=(ChunkChoice(index=index, finish_reason="stop"),))
            return
        if not self._finished or not all(self._finished.values()):
            raise ProviderUnavailable(f"{self._upstream.name} ended the stream before the answer was complete.")

    def _events(self, text: str) -> Iterator[ChatChunk]:
        try:
            found = self._parser.feed(text.encode())
        except sse.EventTooLarge as error:
            raise self._upstream.nonsense() from error
        for event in found:
            if event.data != b"[DONE]":
                yield from self.read(self._upstream.decode(event.data))

    def _text(self, text: str) -> Iterator[ChatChunk]:
        self._plain = True
        chunk = ChatChunk(choices=(ChunkChoice(delta=Delta(content=text)),))
        self._note(chunk)
        yield chunk

    def _object(self, output: Mapping[str, Any], choices: list[Any]) -> Iterator[ChatChunk]:
        first = choices[0] if choices and isinstance(choices[0], dict) else {}
        if "tokens" in first:
            self._plain = True
            said = [_tokens(index, choice) for index, choice in enumerate(choices)]
            yield ChatChunk(choices=tuple(said), usage=_usage(output.get("usage")))
        elif "message" in first or "text" in first:
            whole = [self._whole(choice) for choice in choices]
            usage = output.get("usage")
            yield ChatChunk(choices=tuple(whole), usage=None if usage is None else self._upstream.convert(usage, Usage))
        else:
            yield self._upstream.convert(output, ChatChunk)

    def _whole(self, choice: dict[str, Any]) -> ChunkChoice:
        """Convert a choice that was not streamed, or one of the older completions route."""
        message = choice.get("message") or {"content": choice.get("text")}
        calls = message.get("tool_calls") or []
        numbered = [{**call, "index": number} for number, call in enumerate(calls)]
        delta = Delta(
            content=message.get("content") or "",
            tool_calls=self._upstream.convert(numbered, tuple[ToolCallDelta, ...]) if numbered else UNSET,
        )
        return ChunkChoice(index=choice.get("index", 0), delta=delta, finish_reason=choice.get("finish_reason"))

    def _note(self, chunk: ChatChunk) -> None:
        for choice in chunk.choices:
            done = self._finished.get(choice.index, False) or bool(choice.finish_reason)
            self._finished[choice.index] = done

    def _failed(self, output: Mapping[str, Any]) -> InvalidRequest | ProviderUnavailable:
        detail = detail_of(output if "error" in output else {"error": output})
        status = whole_number(detail.code, 599) or 500
        fault = self._upstream.judge(status, detail)
        if fault is None and not self._finished:
            return InvalidRequest(detail.message or "The worker refused the request.", param=detail.param)
        return ProviderUnavailable(
            f"{self._upstream.name} sent an error in the stream.", fault=fault or Fault.TRANSIENT
        )


def _tokens(index: int, choice: Any) -> ChunkChoice:
    tokens = choice.get("tokens") if isinstance(choice, dict) else None
    return ChunkChoice(index=index, delta=Delta(content="".join(str(token) for token in tokens or ())))


def _usage(said: Any) -> Usage | None:
    """Convert the worker's own counters, which are cumulative."""
    match said:
        case {"input": int(asked), "output": int(answered)}:
            return Usage(prompt_tokens=asked, completion_tokens=answered, total_tokens=asked + answered)
    return None
