"""OpenAI's wire, as spoken by every provider that copied it: requests out, chunks in."""

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


class _TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    text: str = ""
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class _TextChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk of the older completions route."""

    choices: tuple[_TextChoice, ...] = ()
    usage: Usage | None = None
    cut_short: str | None = None


NOTHING: Mapping[str, bool] = {}
VLLM_CONTINUES: Mapping[str, bool] = {"continue_final_message": True, "add_generation_prompt": False}


class OpenAICodec:
    """The three inference routes of one endpoint. The base URL ends where OpenAI's does, in `/v1`."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        chunk: type[ChatChunk] = ChatChunk,
        limit: str | None = None,
        continues: Mapping[str, bool] = NOTHING,
    ) -> None:
        """Speak it.

        Args:
            upstream: Where.
            chunk: What a chunk of a chat is read as, for those who add to it.
            limit: The name under which it knows the limit of a chat's answer, whichever the caller used; None passes
                on what the caller said.
            continues: What it must be told to continue a last message of the assistant, which it would answer else.
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
        # Floats whatever the caller wants: not every server knows base64, and the answer is encoded on its way out.
        body = {**_ours_removed(request.body), "model": model, "encoding_format": "float"}
        answer = await self._upstream.json("POST", "/embeddings", body=body, timeout_s=ANSWER_TIMEOUT_S)
        found = self._upstream.convert(answer, Embeddings)
        return Embeddings(data=tuple(sorted(found.data, key=lambda row: row.index)), usage=found.usage)

    async def models(self, *, timeout_s: float) -> tuple[str, ...]:
        """Ids of `GET /models`."""
        answer = await self._upstream.json("GET", "/models", timeout_s=timeout_s)
        listed = self._upstream.convert(answer, _ModelList)
        return tuple(row.id for row in listed.data)

    async def _stream(self, path: str, body: Mapping[str, Any], kind: type[Any]) -> AsyncGenerator[Any, None]:
        """Chunks up to the end, which is that every choice has a reason to finish.

        `[DONE]` proves nothing: some servers leave it out, and llama-cpp-python's sends it after a stream that
        another request has cut. A finish reason is sent by all of them, and only when an answer is whole.
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
                            raise ProviderUnavailable(f"{self._upstream.name} goes away before its answer is whole.")
                        for choice in chunk.choices:
                            done = finished.get(choice.index, False) or bool(choice.finish_reason)
                            finished[choice.index] = done
                        yield chunk
            except httpx.HTTPError:
                # After the last word only the usage can be lost, and that can be counted.
                if not _whole(finished):
                    raise
        if not _whole(finished):
            raise ProviderUnavailable(f"{self._upstream.name} ended the stream before the answer.")

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
        status = int(detail.code) if detail.code.isdigit() else 500
        # Under way, even a 4xx is the endpoint's failure: the request was accepted.
        fault = self._upstream.judge(status, detail) or Fault.TRANSIENT
        raise ProviderUnavailable(f"{self._upstream.name} reported an error in the stream.", fault=fault)


class _ModelRow(msgspec.Struct, frozen=True):
    id: str


class _ModelList(msgspec.Struct, frozen=True):
    data: tuple[_ModelRow, ...]


LIMITS = ("max_tokens", "max_completion_tokens")
"""The old name, which every server knows and OpenAI's reasoning models refuse, and the new one."""


def limited(request: ChatRequest, name: str | None) -> Mapping[str, Any]:
    """The caller's request, its limit under one name: a server that does not know the other would ignore it."""
    if name is None or request.output_tokens_max is None:
        return request.body
    rest = {key: value for key, value in request.body.items() if key not in LIMITS}
    return {**rest, name: request.output_tokens_max}


def told(request: ChatRequest, continues: Mapping[str, bool]) -> Mapping[str, bool]:
    """What to add to a request, so that a last message of the assistant is continued."""
    return continues if request.messages[-1].role == "assistant" else NOTHING


def continues_as_vllm(endpoint: Endpoint) -> Mapping[str, bool]:
    """What vLLM is told, if the endpoint is said to continue messages: by itself it answers them.

    Source: vLLM's OpenAI-compatible server, extra parameters of the chat API, read 2026-11-25. SGLang
    and TGI took over the names.
    """
    return VLLM_CONTINUES if Capability.PREFILL in endpoint.capabilities else NOTHING


def streaming(body: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The caller's request as we send it: always a stream, always with usage."""
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
