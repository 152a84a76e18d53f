"""Validates requests of Ollama's own API and converts them to ours: a chat, a text to continue, texts to embed.

What is about the server and not about the answer is left out and named in `left_out`: the size of its context, its
threads, how long a model stays in memory. Streaming is the default. A request without a prompt asks Ollama to load the
model; here that is done by whoever answers. Source: ollama 0.33 `api/types.go` and `docs/api.md`, ollama-python 0.6.3,
read 2026-12-01.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from goblin.core.errors import InvalidRequest
from goblin.gateway.domain import requests
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest, InferenceRequest

Model = Annotated[str, Meta(min_length=1, max_length=256)]
SAMPLING = {
    "temperature": "temperature", "top_p": "top_p", "seed": "seed", "stop": "stop",
    "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty", "top_k": "top_k",
    "min_p": "min_p", "typical_p": "typical_p", "repeat_penalty": "repeat_penalty", "repeat_last_n": "repeat_last_n",
    "mirostat": "mirostat", "mirostat_tau": "mirostat_tau", "mirostat_eta": "mirostat_eta",
}  # fmt: skip
"""Options that choose between tokens, and their names in OpenAI's wire as llama.cpp and vLLM extend it."""
LIMIT = "num_predict"
_MAGIC = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"RIFF", "webp"))


class Function(Struct, frozen=True):
    name: str
    arguments: dict[str, Any] | str | None = None


class Call(Struct, frozen=True):
    function: Function
    id: str | None = None


class Turn(Struct, frozen=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: tuple[str, ...] | None = None
    tool_calls: tuple[Call, ...] | None = None
    tool_name: str | None = None
    name: str | None = None
    tool_call_id: str | None = None
    thinking: str | None = None


class Common(Struct, frozen=True, kw_only=True):
    """What all routes share."""

    model: Model
    options: dict[str, Any] | None = None
    keep_alive: Any = None
    goblin: dict[str, Any] | None = None


class Generating(Common, frozen=True, kw_only=True):
    stream: bool | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class Chat(Generating, frozen=True, kw_only=True):
    messages: tuple[Turn, ...] | None = None
    tools: list[dict[str, Any]] | None = None


class Generate(Generating, frozen=True, kw_only=True):
    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    images: tuple[str, ...] | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None


class Embed(Common, frozen=True, kw_only=True):
    input: str | list[str]
    truncate: bool | None = None
    dimensions: int | None = None


class EmbedOne(Common, frozen=True, kw_only=True):
    prompt: str


class Show(Struct, frozen=True, kw_only=True):
    model: Model | None = None
    name: Model | None = None
    """The older name of `model`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request in both forms."""

    request: InferenceRequest
    model: str
    """As the caller wrote it: the answer repeats it."""
    loads: Literal["", "load", "unload"] = ""
    """What a request without a prompt asks for, as `done_reason` names it."""

    def named(self, model: str) -> Asked:
        """Return the same request of another model."""
        if model == self.request.model:
            return self
        body = {**self.request.body, "model": model}
        return replace(self, request=msgspec.structs.replace(self.request, model=model, body=body))


def parse_chat(data: bytes) -> Asked:
    """Parse the body of `POST /api/chat`. Raises `InvalidRequest`."""
    asked = _parse(Chat, data)
    if not asked.messages:
        return _loading(asked)
    body = _body(asked) | {"messages": _messages(asked.messages)}
    if asked.tools:
        body["tools"] = [{"type": "function", **tool} for tool in asked.tools]
    beside = ("messages.thinking",) if any(turn.thinking for turn in asked.messages) else ()
    return _chat(asked, body, beside)


def parse_generate(data: bytes) -> Asked:
    """Parse the body of `POST /api/generate`: a chat of one turn; with `raw` or a suffix, a text to continue."""
    asked = _parse(Generate, data)
    if not asked.prompt:
        return _loading(asked)
    if asked.raw or asked.suffix:
        body = _body(asked) | {"prompt": asked.prompt}
        if asked.suffix:
            body["suffix"] = asked.suffix
        body = {name: value for name, value in body.items() if name not in ("response_format", "reasoning_effort")}
        return Asked(request=requests.parse(CompletionRequest, msgspec.json.encode(body)), model=asked.model)
    turns = [Turn(role="system", content=asked.system)] if asked.system else []
    turns.append(Turn(role="user", content=asked.prompt, images=asked.images))
    beside = [name for name in ("template", "context") if getattr(asked, name)]
    return _chat(asked, _body(asked) | {"messages": _messages(turns)}, beside)


def parse_embed(data: bytes) -> Asked:
    """Parse the body of `POST /api/embed`. Raises `InvalidRequest`."""
    asked = _parse(Embed, data)
    body: dict[str, Any] = {"model": asked.model, "input": asked.input}
    if asked.dimensions is not None:
        body["dimensions"] = asked.dimensions
    return _embedding(asked, body)


def parse_embeddings(data: bytes) -> Asked:
    """Parse the body of `POST /api/embeddings`, the older route for one text. Raises `InvalidRequest`."""
    asked = _parse(EmbedOne, data)
    return _embedding(asked, {"model": asked.model, "input": asked.prompt})


def parse_show(data: bytes) -> str:
    """Parse the body of `POST /api/show`; return the model's name. Raises `InvalidRequest`."""
    asked = _parse(Show, data)
    if (model := asked.model or asked.name) is None:
        raise requests.invalid("Object missing required field `model`")
    return model


S = TypeVar("S", bound=Struct)


def _parse(kind: type[S], data: bytes) -> S:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise requests.invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from error


def _chat(asked: Generating, body: dict[str, Any], beside: Sequence[str]) -> Asked:
    request = requests.parse(ChatRequest, msgspec.json.encode(body))
    left_out = (*_left_out(asked), *beside)
    return Asked(request=msgspec.structs.replace(request, left_out=left_out), model=asked.model)


def _embedding(asked: Common, body: dict[str, Any]) -> Asked:
    if asked.goblin is not None:
        body["goblin"] = asked.goblin
    return Asked(request=requests.parse(EmbeddingsRequest, msgspec.json.encode(body)), model=asked.model)


def _loading(asked: Generating) -> Asked:
    request = ChatRequest(model=asked.model, messages=(), stream=asked.stream is not False)
    return Asked(request=request, model=asked.model, loads="unload" if asked.keep_alive in (0, "0", "0s") else "load")


def _body(asked: Generating) -> dict[str, Any]:
    """Translate what chats and texts share."""
    streams = asked.stream is not False
    body: dict[str, Any] = {"model": asked.model, "stream": streams}
    if asked.goblin is not None:
        body["goblin"] = asked.goblin
    options = asked.options or {}
    body |= {SAMPLING[name]: value for name, value in options.items() if name in SAMPLING and value is not None}
    limit = options.get(LIMIT)
    if limit is not None and not isinstance(limit, int):
        raise InvalidRequest(
            "Invalid type for 'options.num_predict'.", param="options.num_predict", code="invalid_type"
        )
    if limit is not None and limit > 0:  # Less than that means without limit.
        body["max_tokens"] = limit
    if asked.format == "json":
        body["response_format"] = {"type": "json_object"}
    elif isinstance(asked.format, dict):
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": asked.format}}
    if asked.think is not None:
        efforts = {True: "medium", False: "none", "max": "high"}
        body["reasoning_effort"] = efforts.get(asked.think, asked.think)
    return body


def _left_out(asked: Generating) -> tuple[str, ...]:
    """Name the fields that are not passed on."""
    names = [f"options.{name}" for name in asked.options or () if name not in SAMPLING and name != LIMIT]
    names += [name for name in ("keep_alive", "logprobs", "top_logprobs") if getattr(asked, name) is not None]
    return tuple(names)


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Translate a conversation. Ollama's calls need no ids, and a result names its tool; OpenAI's wire needs ids."""
    made: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []
    """Name and id of each call without a result, the oldest first."""
    for place, turn in enumerate(turns):
        message: dict[str, Any] = {"role": turn.role, "content": _content(turn, place)}
        if turn.tool_calls:
            calls = [_call(call, f"call_{place}_{number}") for number, call in enumerate(turn.tool_calls)]
            open_calls += [(call["function"]["name"], call["id"]) for call in calls]
            message["tool_calls"] = calls
        if turn.role == "tool":
            message["tool_call_id"] = _answered(turn, open_calls, f"call_{place}")
        made.append(message)
    return made


def _content(turn: Turn, place: int) -> Any:
    if not turn.images:
        return turn.content or ""
    text = [{"type": "text", "text": turn.content}] if turn.content else []
    return [*text, *({"type": "image_url", "image_url": {"url": _image(image, place)}} for image in turn.images)]


def _image(data: str, place: int) -> str:
    """Return the `data:` URL of an image, whose type is in its first bytes. Raises `InvalidRequest`."""
    try:
        beginning = b64decode(data[:16], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            f"Invalid 'messages[{place}].images': expected base64 without a prefix.",
            param=f"messages[{place}].images",
            code="invalid_value",
        ) from None
    kind = next((kind for magic, kind in _MAGIC if beginning.startswith(magic)), "png")
    return f"data:image/{kind};base64,{data}"


def _call(call: Call, call_id: str) -> dict[str, Any]:
    said = call.function.arguments
    arguments = said if isinstance(said, str) else msgspec.json.encode(said or {}).decode()
    return {
        "id": call.id or call_id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }


def _answered(turn: Turn, open_calls: list[tuple[str, str]], otherwise: str) -> str:
    """Find the call that a result belongs to, and take it off the list: by its id, its tool's name, else by order."""
    name = turn.tool_name or turn.name
    for number, (tool, call_id) in enumerate(open_calls):
        if turn.tool_call_id == call_id or (turn.tool_call_id is None and name in (tool, None)):
            del open_calls[number]
            return call_id
    return turn.tool_call_id or otherwise
