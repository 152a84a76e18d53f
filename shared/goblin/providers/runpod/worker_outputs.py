"""Converts the outputs of serverless workers, in all shapes that are in use, to chunks.

    "data: {…}\\n\\n"                                OpenAI's events as text: vLLM workers, by default
    {"choices": [{"delta" or "message" or "text"}]}   OpenAI's objects
    {"choices": [{"tokens": ["Hel"]}], "usage": {"input", "output"}}   vLLM workers, without OpenAI's route
    "Hel", {"text": "Hel"}, …                        other workers
    {"error": …}                                     any worker

Source: runpod-workers/worker-vllm `engine.py` and `utils.py`, read 2026-11-25.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from goblin.gateway.domain.chat import ChatChunk
from goblin.providers.common import sse
from goblin.providers.common.chunk_reader import ChunkReader
from goblin.providers.common.http import Upstream
from goblin.providers.common.stream_errors import answer_error, is_error

TEXT_KEYS = ("text", "content", "response", "token", "generated_text", "delta", "output")
"""Keys under which other workers write text, in order of preference."""


class OutputReader:
    """Converts the outputs of one job to chunks."""

    def __init__(self, upstream: Upstream, *, choices: int = 1, tools: Collection[str] = ()) -> None:
        """Start an answer.

        Args:
            upstream: Whose answer it is: its name and its judge of errors.
            choices: How many choices were asked for.
            tools: Names of the tools in the request.
        """
        self._upstream = upstream
        self._parser = sse.EventParser()
        self._chunks = ChunkReader(upstream, choices=choices, tools=tools)
        self._has_events = False
        """Whether the worker writes server-sent events as text."""
        self._plain: set[int] = set()
        """Choices that came in a shape without a finish reason, so that the answer ends with the job."""

    def read(self, output: Any) -> Iterator[ChatChunk]:
        """Convert one output to chunks.

        Raises:
            InvalidRequest: The worker refused the request before it had answered anything.
            ProviderUnavailable: The worker failed, or its output has an unknown shape.
        """
        match output:
            case str() if self._has_events or _EVENT.match(output):
                yield from self._events(output)
            case str():
                yield from self._text(output)
            case list():
                for one in output:
                    yield from self.read(one)
            case dict() if is_error(output):
                raise answer_error(self._upstream, output, said=self._chunks.said)
            case {"choices": [{"tokens": _}, *_]}:
                yield from self._tokens(output)
            case {"choices": list() | dict()}:
                yield from self._chunks.read_value(output)
            case {"choices": None} | {"usage": dict()} | None:
                return
            case dict():
                found = next((output[key] for key in TEXT_KEYS if isinstance(output.get(key), str)), None)
                if found is None:
                    raise self._upstream.nonsense()
                yield from self._text(found)
            case _:
                raise self._upstream.nonsense()

    def end(self) -> Iterator[ChatChunk]:
        """Finish the answer of a completed job. Raises `ProviderUnavailable` if the answer is not complete."""
        for event in self._parser.end():
            yield from self._chunks.read(event.data, event.event)
        if not self._chunks.finished:
            for index in self._plain:
                self._chunks.finish(index)
        yield from self._chunks.end()

    def _events(self, text: str) -> Iterator[ChatChunk]:
        self._has_events = True
        try:
            found = self._parser.feed(text.encode("utf-8", "surrogatepass"))
        except sse.EventTooLarge as error:
            raise self._upstream.nonsense() from error
        for event in found:
            yield from self._chunks.read(event.data, event.event)

    def _text(self, text: str) -> Iterator[ChatChunk]:
        self._plain.add(0)
        yield from self._chunks.read_value({"choices": [{"index": 0, "delta": {"content": text}}]})

    def _tokens(self, output: Mapping[str, Any]) -> Iterator[ChatChunk]:
        """Convert a vLLM worker's own shape; its counters are cumulative."""
        self._plain |= set(range(len(output["choices"])))
        choices = [{"index": index, "text": _joined(choice)} for index, choice in enumerate(output["choices"])]
        yield from self._chunks.read_value({"choices": choices, "usage": output.get("usage")})


_EVENT = re.compile(r"\s*(event:[^\n]*\n)?data:")


def _joined(choice: Any) -> str:
    tokens = choice.get("tokens") if isinstance(choice, dict) else None
    return "".join(str(token) for token in tokens) if isinstance(tokens, list) else str(tokens or "")
