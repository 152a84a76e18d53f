"""OpenAI's wire format, for every provider that copied it: encodes requests, decodes chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import httpx
import msgspec

from goblin.core.endpoints import Capability, Endpoint
from goblin.core.errors import Fault, ProviderUnavailable
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, Embeddings, Usage
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from goblin.providers.common import sse
from goblin.providers.common.http import ANSWER_TIMEOUT_S, Upstream, pieces
from goblin.providers.common.refusals import detail_of
from httpguard import whole_number


class _TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    text: str = ""
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class _TextChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One chunk of the older completions route."""

    choices: tuple[_TextChoice, ...] = ()
    usage: Usage | None = None
    cut_short: str | None = None


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
        chunk: type[ChatChunk] = ChatChunk,
        limit: str | None = None,
        continues: Mapping[str, bool] = NOTHING,
    ) -> None:
        """Keep the upstream and how it differs from OpenAI.

        Args:
            upstream: Base URL and keys of the endpoint.
            chunk: The type that chat chunks are decoded as; a subclass where the provider adds fields.
            limit: The parameter name that the server accepts for the output limit of a chat, one of `LIMITS`. None
                passes on the name that the caller used.
            continues: Extra parameters that make the server continue a last assistant message instead of answering it.
        """
        self._upstream = upstream
        self._chunk_kind = chunk
        self._limit = limit
        self._continues = continues

    def chat(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        body = {**streaming(limited(request, self._limit), model), **told(request, self._continues)}
        return self._stream("/chat/completions", body, self._chunk_kind)

    async def complete(self, request: CompletionRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        body = streaming(request.body, model)
        async with aclosing(self._stream("/completions", body, _TextChunk)) as chunks:
            async for chunk in chunks:
                yield _as_chat(chunk)

    async def embed(self, request: EmbeddingsRequest, *, model: str) -> Embeddings:
        # Always request floats: not every server knows base64, and our own response is encoded later as the caller
        # asked.
        body = {**_ours_removed(request.body), "model": model, "encoding_format": "float"}
        answer = await self._upstream.json("POST", "/embeddings", body=body, timeout_s=ANSWER_TIMEOUT_S)
        found = self._upstream.convert(answer, Embeddings)
        return Embeddings(data=tuple(sorted(found.data, key=lambda row: row.index)), usage=found.usage)

    async def models(self, *, timeout_s: float) -> tuple[str, ...]:
        """List the model ids of `GET /models`."""
        answer = await self._upstream.json("GET", "/models", timeout_s=timeout_s)
        listed = self._upstream.convert(answer, _ModelList)
        return tuple(row.id for row in listed.data)

    async def _stream(self, path: str, body: Mapping[str, Any], kind: type[Any]) -> AsyncGenerator[Any, None]:
        """Yield chunks until every choice has a finish reason.

        `[DONE]` proves nothing: some servers leave it out, and llama-cpp-python's sends it after a stream that
        another request has cut off. All servers send a finish reason, and only when the answer is complete.
        """
        finished: dict[int, bool] = {}
        parser = sse.EventParser()
        async with self._upstream.stream(path, body) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise self._upstream.nonsense()
            try:
                async for piece in pieces(response):
                    for event in self._feed(parser, piece):
                        if event.data == b"[DONE]":
                            continue
                        chunk = self._chunk(event, kind)
                        if chunk.cut_short:
                            raise ProviderUnavailable(
                                f"{self._upstream.name} is shutting down and cut its answer short."
                            )
                        for choice in chunk.choices:
                            done = finished.get(choice.index, False) or bool(choice.finish_reason)
                            finished[choice.index] = done
                        yield chunk
            except httpx.HTTPError:
                # After the finish reason only the usage can be lost, and the gateway can count that itself.
                if not _whole(finished):
                    raise
        if not _whole(finished):
            raise ProviderUnavailable(f"{self._upstream.name} ended the stream before the answer was complete.")

    def _feed(self, parser: sse.EventParser, piece: bytes) -> list[sse.ServerEvent]:
        try:
            return parser.feed(piece)
        except sse.EventTooLarge as error:
            raise self._upstream.nonsense() from error

    def _chunk(self, event: sse.ServerEvent, kind: type[Any]) -> Any:
        if event.event == "error" or b'"error"' in event.data:
            self._raise_if_error(event)
        return self._upstream.decode(event.data, kind)

    def _raise_if_error(self, event: sse.ServerEvent) -> None:
        body = self._upstream.decode(event.data)
        if not isinstance(body, dict) or not (body.get("error") or event.event == "error"):
            return
        detail = detail_of(body)
        status = whole_number(detail.code, 599) or 500
        # Once the stream has started, even a 4xx is the endpoint's failure: it had accepted the request.
        fault = self._upstream.judge(status, detail) or Fault.TRANSIENT
        raise ProviderUnavailable(f"{self._upstream.name} sent an error in the stream.", fault=fault)


class _ModelRow(msgspec.Struct, frozen=True):
    id: str


class _ModelList(msgspec.Struct, frozen=True):
    data: tuple[_ModelRow, ...]


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


def _as_chat(chunk: _TextChunk) -> ChatChunk:
    return ChatChunk(
        choices=tuple(
            ChunkChoice(
                index=choice.index,
                delta=Delta(content=choice.text),
                logprobs=choice.logprobs,
                finish_reason=choice.finish_reason,
            )
            for choice in chunk.choices
        ),
        usage=chunk.usage,
    )


def _whole(finished: Mapping[int, bool]) -> bool:
    return bool(finished) and all(finished.values())
