"""OpenAI's wire format, for every provider that copied it: encodes requests, decodes chunks."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx
import msgspec

from goblin.core.endpoints import Capability, Endpoint
from goblin.gateway.domain.chat import ChatChunk, Embedding, Embeddings
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from goblin.providers.common import sse
from goblin.providers.common.chunk_reader import ChunkReader, tool_names
from goblin.providers.common.http import ANSWER_TIMEOUT_S, Upstream, next_piece, pieces
from goblin.providers.common.reading import count_of, usage_of
from goblin.providers.common.stream_errors import answer_error, is_error

NOTHING: Mapping[str, bool] = {}
"""No extra parameters."""
VLLM_CONTINUES: Mapping[str, bool] = {"continue_final_message": True, "add_generation_prompt": False}
"""Parameters that make vLLM continue the last assistant message."""


class OpenAICodec:
    """The three inference routes of one endpoint. The base URL ends in `/v1`, as OpenAI's does."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        limit: str | None = None,
        continues: Mapping[str, bool] = NOTHING,
    ) -> None:
        """Keep the upstream and how it differs from OpenAI.

        Args:
            upstream: Base URL and keys of the endpoint.
            limit: The parameter name that the server accepts for the output limit of a chat, one of `LIMITS`. None
                passes on the name that the caller used.
            continues: Extra parameters that make the server continue a last assistant message instead of answering it.
        """
        self._upstream = upstream
        self._limit = limit
        self._continues = continues

    def chat(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        body = {**streaming(limited(request, self._limit), model), **told(request, self._continues)}
        return self._stream("/chat/completions", body, completes=False)

    def complete(self, request: CompletionRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        return self._stream("/completions", streaming(request.body, model), completes=True)

    async def embed(self, request: EmbeddingsRequest, *, model: str) -> Embeddings:
        # Always request floats: not every server knows base64, and our own response is encoded later as the caller
        # asked.
        body = {**_ours_removed(request.body), "model": model, "encoding_format": "float"}
        answer = await self._upstream.json("POST", "/embeddings", body=body, timeout_s=ANSWER_TIMEOUT_S)
        if isinstance(answer, dict) and is_error(answer):
            raise answer_error(self._upstream, answer, said=False)
        if (found := embeddings_of(answer)) is None:
            raise self._upstream.nonsense()
        return found

    async def models(self, *, timeout_s: float) -> tuple[str, ...]:
        """List the model ids of `GET /models`."""
        answer = await self._upstream.json("GET", "/models", timeout_s=timeout_s)
        if isinstance(answer, dict):
            answer = answer.get("data", answer.get("models"))
        if not isinstance(answer, list | None):
            raise self._upstream.nonsense()
        names = [row.get("id") if isinstance(row, dict) else row for row in answer or ()]
        return tuple(name for name in names if isinstance(name, str))

    async def _stream(self, path: str, body: Mapping[str, Any], *, completes: bool) -> AsyncGenerator[ChatChunk, None]:
        """Yield chunks until every choice has a finish reason.

        `[DONE]` proves nothing: some servers leave it out, and llama-cpp-python's sends it after a stream that
        another request has cut off. All servers send a finish reason, and only when the answer is complete.
        """
        parser = sse.EventParser()
        wanted = count_of(body.get("n")) or 1
        reader = ChunkReader(self._upstream, choices=wanted, tools=tool_names(body), completes=completes)
        async with self._upstream.stream(path, body) as response:
            source = pieces(response)
            try:
                async for piece in source:
                    for event in self._feed(parser, piece):
                        for chunk in reader.read(event.data, event.event):
                            yield chunk
                    if reader.over:
                        break
                while reader.over and (rest := await next_piece(source)) is not None:
                    for event in self._feed(parser, rest):
                        for chunk in reader.read(event.data, event.event):
                            yield chunk
            except httpx.HTTPError:
                # After the finish reason only the usage can be lost, and the gateway can count that itself.
                if not reader.whole:
                    raise
        for event in parser.end():
            for chunk in reader.read(event.data, event.event):
                yield chunk
        for chunk in reader.end():
            yield chunk

    def _feed(self, parser: sse.EventParser, piece: bytes) -> list[sse.ServerEvent]:
        try:
            return parser.feed(piece)
        except sse.EventTooLarge as error:
            raise self._upstream.nonsense() from error


def embeddings_of(answer: Any) -> Embeddings | None:
    """Read vectors, in the order of their inputs; None when there is none that can be read.

    Rows without an index are in order; a vector may be base64 of little-endian float32, or alone in a list.
    """
    rows = answer.get("data") if isinstance(answer, dict) else answer
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return None
    found = []
    for position, row in enumerate(rows):
        index, vector = count_of(row.get("index")), row.get("embedding")
        try:
            if isinstance(vector, str):
                raw = base64.b64decode(vector, validate=True)
                vector = list(struct.unpack(f"<{len(raw) // 4}f", raw))
            elif isinstance(vector, list) and len(vector) == 1 and isinstance(vector[0], list):
                (vector,) = vector
            vector = msgspec.convert(vector, list[float], strict=False)
        except (ValueError, struct.error, msgspec.ValidationError):
            return None
        found.append(Embedding(index=position if index is None else index, embedding=vector))
    usage = usage_of(answer.get("usage")) if isinstance(answer, dict) else None
    return Embeddings(data=tuple(sorted(found, key=lambda row: row.index)), usage=usage)


LIMITS = ("max_tokens", "max_completion_tokens")
"""Names of the output limit: the old one, which all servers know and OpenAI's reasoning models refuse; the new one."""


def limited(request: ChatRequest, name: str | None) -> Mapping[str, Any]:
    """Move the output limit to the one name that the server knows: it would ignore the other.

    Args:
        request: The caller's request.
        name: One of `LIMITS`; None leaves the body as it is.
    """
    if name is None or request.output_tokens_max is None:
        return request.body
    rest = {key: value for key, value in request.body.items() if key not in LIMITS}
    return {**rest, name: request.output_tokens_max}


def told(request: ChatRequest, continues: Mapping[str, bool]) -> Mapping[str, bool]:
    """Choose the extra parameters that make the server continue a last assistant message."""
    return continues if request.messages[-1].role == "assistant" else NOTHING


def continues_as_vllm(endpoint: Endpoint) -> Mapping[str, bool]:
    """Choose vLLM's parameters for continuing a message, if the endpoint declares `prefill`; else vLLM answers it.

    Source: vLLM's OpenAI-compatible server, extra parameters of the chat API, read 2026-11-25. SGLang
    and TGI took over the names.
    """
    return VLLM_CONTINUES if Capability.PREFILL in endpoint.capabilities else NOTHING


def streaming(body: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Turn the caller's body into the one we send: always a stream, always with usage."""
    options = body.get("stream_options")
    return {
        **_ours_removed(body),
        "model": model,
        "stream": True,
        "stream_options": {**(options if isinstance(options, dict) else {}), "include_usage": True},
    }


def _ours_removed(body: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "goblin"}
