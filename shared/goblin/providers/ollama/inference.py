"""Ollama inference through its own API, which shows what its OpenAI route hides: which models are in memory.

Source: ollama 0.33 `api/types.go` and `server/routes.go`, read 2026-11-23. Streams are JSON lines; an error after
the first token is a line `{"error": …}` under status 200. A full queue answers 503 `server busy`. The context
length depends on the GPU unless `num_ctx` is sent, and a new `num_ctx` reloads the model, so it is always sent and
always the same. Ollama has no authentication: a key is for the proxy in front of it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import msgspec

from goblin.core import decoding
from goblin.core.endpoints import Capability, Endpoint
from goblin.core.errors import Fault, InvalidRequest, ProviderUnavailable
from goblin.gateway.domain.chat import (
    ChatChunk,
    ChunkChoice,
    Delta,
    Embedding,
    Embeddings,
    FunctionDelta,
    ToolCallDelta,
    Usage,
)
from goblin.gateway.domain.endpoint_health import Finding, Probe
from goblin.gateway.domain.requests import (
    AudioPart,
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    FilePart,
    ImagePart,
    Message,
)
from goblin.gateway.ports import ChatProvider
from goblin.providers.common import probes
from goblin.providers.common.http import ANSWER_TIMEOUT_S, Upstream, lines
from goblin.providers.common.reading import (
    BROKEN,
    Halves,
    count_of,
    decoded,
    finish_of,
    mend,
    usage_of,
)
from goblin.providers.common.stream_errors import answer_error
from goblin.providers.common.tool_calls import argument_text, call_id_of
from goblin.providers.ollama.thinking import Thinking, think_of

NAME = "ollama"
UNSUPPORTED = {
    Capability.AUDIO: "its API takes only text and images",
    Capability.CHOICES: "it returns one choice per request",
    Capability.FILES: "its API takes only text and images",
    Capability.LOGPROBS: "its log probabilities are not mapped",
    Capability.TOKEN_IDS: "its API takes text",
    Capability.PROMPTS: "it takes one prompt per request",
}
"""Capabilities that it lacks, and why."""
OPTIONS = ("top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n")
"""Options under the names that llama.cpp and vLLM gave them in OpenAI's wire, too."""
LINE_BYTES_MAX = 8 * 1024 * 1024
"""Longest line of a stream."""
TORN_BYTES_MAX = 4 * LINE_BYTES_MAX
"""Bytes that are parsed in vain in one answer, because the rest of a value comes in another line."""


def connect(endpoint: Endpoint, client: httpx.AsyncClient) -> ChatProvider:
    """Connect to the server at the endpoint's URL, which has no path: `http://host:11434`."""
    return Ollama(endpoint, client)


class Ollama:
    """One server with several models, some of which are in memory."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
        self._endpoint = endpoint
        self._upstream = Upstream(endpoint.name, endpoint.url, endpoint.api_key, client)
        self._thinking = Thinking()

    def chat(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        body = chat_body(request, model, self._endpoint)
        return self._answer("/api/chat", body)

    def complete(self, request: CompletionRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        return self._answer("/api/generate", generate_body(request, model, self._endpoint))

    async def embed(self, request: EmbeddingsRequest, *, model: str) -> Embeddings:
        body = {"model": model, "input": _texts(request.input), **self._keep_alive()}
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        answer = await self._upstream.json("POST", "/api/embed", body=body, timeout_s=ANSWER_TIMEOUT_S)
        found = self._upstream.convert(answer, EmbedAnswer)
        rows = tuple(Embedding(index=i, embedding=vector) for i, vector in enumerate(found.embeddings))
        counted = count_of(found.prompt_eval_count) or None
        usage = None if counted is None else Usage(prompt_tokens=counted, total_tokens=counted)
        return Embeddings(data=rows, usage=usage)

    async def probe(self) -> Probe:
        return await probes.look(self._look)

    async def _look(self) -> Probe:
        started = time.monotonic()
        await self._get("/api/version")
        latency_ms = probes.elapsed_ms(started)
        loaded = self._upstream.convert(await self._get("/api/ps"), OllamaModels)
        there = self._upstream.convert(await self._get("/api/tags"), OllamaModels)
        return Probe(
            finding=Finding.OK,
            latency_ms=latency_ms,
            models=model_names(there),
            loaded=model_names(loaded),
        )

    async def _get(self, path: str) -> Any:
        return await self._upstream.json("GET", path, timeout_s=probes.PROBE_TIMEOUT_S)

    @asynccontextmanager
    async def _open(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[httpx.Response]:
        """Send a request; again with less thinking if its model refuses that much. Raises as `Upstream.stream`."""
        sent = self._thinking.fitted(body)
        while True:
            opened = False
            try:
                async with self._upstream.stream(path, sent) as response:
                    opened = True
                    yield response
                return
            except InvalidRequest as error:
                if opened or not self._thinking.learns(sent, error):
                    raise
            sent = self._thinking.fitted(sent)

    def _keep_alive(self) -> dict[str, Any]:
        keep = self._endpoint.options.get("keep_alive")
        return {} if keep is None else {"keep_alive": keep}

    async def _answer(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[ChatChunk, None]:
        """Yield chunks up to the line with `done`. Raises `ProviderUnavailable` when it is missing."""
        calls, said, halves = 0, False, Halves()
        async with (
            self._open(path, {**body, **self._keep_alive()}) as response,
            aclosing(self._lines(response)) as found,
        ):
            async for line in found:
                if line.error:
                    raise answer_error(self._upstream, {"error": line.error}, said=said)
                if line.done and finish_of(line.done_reason) == BROKEN:
                    raise ProviderUnavailable(f"{self._endpoint.name} broke off its answer.")
                chunk = parse_line(line, calls_before=calls, halves=halves)
                calls += sum(len(choice.delta.tool_calls or ()) for choice in chunk.choices)
                said = said or chunk.starts_answer
                yield chunk
                if line.done:
                    return
        raise ProviderUnavailable(f"{self._endpoint.name} ended the stream before the answer was complete.")

    async def _lines(self, response: httpx.Response) -> AsyncGenerator[OllamaLine, None]:
        """Yield the lines of a body. One that is no JSON is put before the next: it may be a part of a longer value."""
        torn, wasted = b"", 0
        async with aclosing(lines(self._upstream, response, LINE_BYTES_MAX)) as found:
            async for data in found:
                data = torn + (data if torn else data.strip().removeprefix(b"data:"))
                try:
                    value = decoded(data, OllamaLine)
                except msgspec.ValidationError:
                    torn = b""
                    continue  # No object: a keep-alive.
                except decoding.UNREADABLE:
                    wasted += len(data)
                    torn = data + b"\n" if data.lstrip()[:1] in (b"{", b"[") else b""
                    if len(torn) > LINE_BYTES_MAX or wasted > TORN_BYTES_MAX:
                        raise self._upstream.nonsense() from None
                    continue
                torn = b""
                yield value
        if torn:
            raise self._upstream.nonsense()


class LineFunction(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    arguments: Any = ""


class LineCall(msgspec.Struct, frozen=True, kw_only=True):
    function: LineFunction = LineFunction()
    id: Any = ""


class LineMessage(msgspec.Struct, frozen=True, kw_only=True):
    content: str = ""
    thinking: str = ""
    tool_calls: tuple[LineCall, ...] | None = None


class OllamaLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `/api/chat` (`message`) or `/api/generate` (`response`); durations are nanoseconds."""

    message: LineMessage | None = None
    response: str = ""
    thinking: str = ""
    done: bool = False
    done_reason: Any = None
    prompt_eval_count: Any = None
    eval_count: Any = None
    error: Any = None


class EmbedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    embeddings: list[list[float]]
    prompt_eval_count: Any = None


class OllamaModel(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    model: str = ""


class OllamaModels(msgspec.Struct, frozen=True, kw_only=True):
    models: tuple[OllamaModel, ...] | None = None


def model_names(listed: OllamaModels) -> tuple[str, ...]:
    """List model names as requests use them; `llama3` and `llama3:latest` are one model, so both are listed."""
    names: list[str] = []
    for row in listed.models or ():
        name = row.model or row.name
        names.append(name)
        if name.endswith(":latest"):
            names.append(name.removesuffix(":latest"))
    return tuple(name for name in names if name)


def parse_line(line: OllamaLine, *, calls_before: int, halves: Halves | None = None) -> ChatChunk:
    """Convert one line to a chunk; the last line also carries the usage.

    Args:
        line: The parsed line.
        calls_before: Number of tool calls in earlier lines; Ollama sends whole calls and does not number them.
        halves: Halves of characters from earlier lines.
    """
    halves = Halves() if halves is None else halves
    message = line.message or LineMessage(content=line.response, thinking=line.thinking)
    said = [call for call in message.tool_calls or () if call.function.name or call.function.arguments]
    calls = tuple(_call(call, calls_before + i) for i, call in enumerate(said))
    content, thinking = halves.join("content", message.content), halves.join("thinking", message.thinking)
    if line.done:
        content, thinking = content + halves.take("content"), thinking + halves.take("thinking")
    delta = Delta(
        role="assistant",
        content=content,
        reasoning_content=thinking or msgspec.UNSET,
        tool_calls=calls or msgspec.UNSET,
    )
    finish = _finish_reason(line, called=bool(calls_before or calls)) if line.done else None
    usage = _usage(line) if line.done else msgspec.UNSET
    return ChatChunk(choices=(ChunkChoice(delta=delta, finish_reason=finish),), usage=usage)


def chat_body(request: ChatRequest, model: str, endpoint: Endpoint) -> dict[str, Any]:
    """Build the body of `/api/chat`.

    Raises:
        InvalidRequest: A part of a message cannot be expressed in Ollama's API.
        ProviderUnavailable: With `Fault.UNSUPPORTED`, when another endpoint might accept the request.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message, request.messages) for message in request.messages],
        "stream": True,
        "options": _options(request, endpoint),
    }
    if request.tools and request.tool_choice != "none":
        if request.tool_choice not in (None, "auto"):
            raise _unsupported(endpoint, "it cannot be forced to call a tool")
        body["tools"] = request.tools
    if (think := think_of(request.body)) is not None:
        body["think"] = think
    wanted = request.response_format
    if wanted is not None and wanted.type == "json_object":
        body["format"] = "json"
    if wanted is not None and wanted.type == "json_schema":
        schema = wanted.json_schema.schema if wanted.json_schema else None
        body["format"] = "json" if schema is None else schema
    return body


def generate_body(request: CompletionRequest, model: str, endpoint: Endpoint) -> dict[str, Any]:
    """Build the body of `/api/generate`: the text is continued as it is, without the model's chat template."""
    texts = _texts(request.prompt)
    text = texts if isinstance(texts, str) else texts[0]
    body = {"model": model, "prompt": text, "stream": True, "options": _options(request, endpoint)}
    # Only the template inserts a suffix, so `raw` must be off then.
    return body | ({"raw": True} if request.suffix is None else {"suffix": request.suffix})


def _options(request: ChatRequest | CompletionRequest, endpoint: Endpoint) -> dict[str, Any]:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    wanted = {
        "num_ctx": endpoint.context_tokens,
        "num_predict": request.output_tokens_max,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "stop": stop,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        **{name: request.body.get(name) for name in OPTIONS},
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _message(message: Message, conversation: tuple[Message, ...]) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    said: dict[str, Any] = {"role": "tool" if role == "function" else role, "content": message.text}
    parts = message.content if isinstance(message.content, tuple) else ()
    if any(isinstance(part, AudioPart | FilePart) for part in parts):
        raise InvalidRequest("Only text and images can be sent to this model.", param="messages")
    if images := [_image(part) for part in parts if isinstance(part, ImagePart)]:
        said["images"] = images
    if message.tool_calls:
        said["tool_calls"] = [
            {"function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)}}
            for call in message.tool_calls
        ]
    if said["role"] == "tool" and (name := _tool_name(message, conversation)):
        said["tool_name"] = name
    return said


def _image(part: ImagePart) -> str:
    """Extract the base64 of a `data:` URL. Other URLs are refused: neither we nor Ollama fetch them."""
    head, comma, data = part.image_url.url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise InvalidRequest(
            "This model takes images as base64 `data:` URLs only.", param="messages", code="invalid_image_url"
        )
    return data


def _arguments(text: str) -> Any:
    """Parse tool arguments into an object, which Ollama requires; a model may have written something else."""
    try:
        arguments = decoding.parse(text or "{}")
    except decoding.UNREADABLE:
        return {"_": text}
    return arguments if isinstance(arguments, dict) else {"_": arguments}


def _tool_name(message: Message, conversation: tuple[Message, ...]) -> str | None:
    """Find the tool that a result belongs to: OpenAI's wire names the call, Ollama's the tool."""
    if message.name:
        return message.name
    for earlier in conversation:
        for call in earlier.tool_calls or ():
            if call.id == message.tool_call_id:
                return call.function.name
    return None


def _call(call: LineCall, index: int) -> ToolCallDelta:
    text = mend(argument_text(call.function.arguments))[0]
    called = FunctionDelta(name=mend(call.function.name)[0], arguments=(text.strip() and text) or "{}")
    return ToolCallDelta(index=index, id=call_id_of(call.id), type="function", function=called)


def _finish_reason(line: OllamaLine, *, called: bool) -> str:
    if called:
        return "tool_calls"
    finish = finish_of(line.done_reason)
    return finish if finish in ("length", "content_filter") else "stop"


def _usage(line: OllamaLine) -> Usage | None:
    """Convert Ollama's counts; None when it did not count. Older versions leave out the count of a cached prompt."""
    return usage_of({"prompt_eval_count": line.prompt_eval_count, "eval_count": line.eval_count})


def _texts(value: str | list[Any]) -> str | list[str]:
    if isinstance(value, str) or all(isinstance(inner, str) for inner in value):
        return value
    raise InvalidRequest("This model takes text, not token IDs.", param="input")


def _unsupported(endpoint: Endpoint, why: str) -> ProviderUnavailable:
    return ProviderUnavailable(f"{endpoint.name}: {why}.", fault=Fault.UNSUPPORTED)
