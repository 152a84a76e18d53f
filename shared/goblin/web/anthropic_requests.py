"""Validates a Messages request of Anthropic's wire format and converts it to our chat request.

Left out, because no other wire format has a place for it: `cache_control`, `top_k`, `thinking` and its blocks in
earlier turns, `service_tier`, `container`. The fields among them are named in `left_out`. Tools that Anthropic runs
itself, or defines, keep only their type and name; `passed_fields` decides on them. Source: anthropic-python 2.14, read
2026-11-25.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from goblin.core.errors import InvalidRequest
from goblin.gateway.domain import requests
from goblin.gateway.domain.requests import ChatRequest


class Base64Source(Struct, frozen=True, tag="base64"):
    media_type: str
    data: str


class URLSource(Struct, frozen=True, tag="url"):
    url: str


class TextSource(Struct, frozen=True, tag="text"):
    data: str


class Text(Struct, frozen=True, tag="text"):
    text: str


class Image(Struct, frozen=True, tag="image"):
    source: Base64Source | URLSource


class Document(Struct, frozen=True, tag="document"):
    source: Base64Source | URLSource | TextSource
    title: str | None = None


class ToolUse(Struct, frozen=True, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class ToolResult(Struct, frozen=True, tag="tool_result"):
    tool_use_id: str
    content: str | tuple[Text | Image | Document, ...] = ""
    is_error: bool = False


class Thinking(Struct, frozen=True, tag="thinking"):
    """Thinking of an earlier turn; dropped, because only the model that wrote it can read it."""


class RedactedThinking(Struct, frozen=True, tag="redacted_thinking"):
    """Encrypted thinking of an earlier turn; dropped."""


Shown = Text | Image | Document
Block = Text | Image | Document | ToolUse | ToolResult | Thinking | RedactedThinking


class Turn(Struct, frozen=True):
    role: Literal["user", "assistant"]
    content: str | tuple[Block, ...]


class Tool(Struct, frozen=True):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(Struct, frozen=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Format(Struct, frozen=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct, frozen=True):
    format: Format | None = None


class Metadata(Struct, frozen=True):
    user_id: str | None = None


class MessagesRequest(Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/messages/count_tokens`, and the fields that both routes share."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[tuple[Turn, ...], Meta(min_length=1, max_length=100_000)]
    system: str | tuple[Text, ...] = ()
    tools: tuple[Tool, ...] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    max_tokens: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    metadata: Metadata | None = None
    goblin: dict[str, Any] | None = None


class CheckedMessagesRequest(MessagesRequest, frozen=True, kw_only=True):
    """Body of `POST /v1/messages`, which requires `max_tokens`."""

    max_tokens: Annotated[int, Meta(ge=1)]


def parse(data: bytes) -> ChatRequest:
    """Parse the body of `/v1/messages`. Raises `InvalidRequest`, with the field in `param`."""
    return _as_chat(_read(CheckedMessagesRequest, data), data)


def parse_to_count(data: bytes) -> ChatRequest:
    """Parse the body of `/v1/messages/count_tokens`, which needs no `max_tokens`. Raises like `parse`."""
    return _as_chat(_read(MessagesRequest, data), data)


def _read(kind: type[MessagesRequest], data: bytes) -> MessagesRequest:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise requests.invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.") from error


_KNOWN = frozenset(CheckedMessagesRequest.__struct_fields__)


def _as_chat(asked: MessagesRequest, data: bytes) -> ChatRequest:
    messages = [{"role": "system", "content": system}] if (system := _joined(asked.system)) else []
    for turn in asked.messages:
        messages += _assistant(turn) if turn.role == "assistant" else _user(turn)
    stop = asked.stop_sequences or None
    body = {
        "model": asked.model,
        "messages": messages,
        "max_tokens": asked.max_tokens,
        "stop": stop,
        "stream": asked.stream,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "user": asked.metadata.user_id if asked.metadata else None,
        "goblin": asked.goblin,
        **_tools(asked),
        **_format(asked),
    }
    asked_chat = requests.parse(
        ChatRequest, msgspec.json.encode({key: said for key, said in body.items() if said is not None})
    )
    fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    left_out = tuple(name for name in fields if name not in _KNOWN)
    return msgspec.structs.replace(asked_chat, left_out=left_out) if left_out else asked_chat


def _tools(asked: MessagesRequest) -> dict[str, Any]:
    tools: list[dict[str, Any]] = []
    for number, tool in enumerate(asked.tools or ()):
        if tool.type not in (None, "custom"):
            tools.append({"type": tool.type, "name": tool.name})
            continue
        if tool.input_schema is None:
            raise InvalidRequest(
                f"Missing required parameter: 'tools[{number}].input_schema'.",
                param=f"tools[{number}].input_schema",
                code="missing_required_parameter",
            )
        function = {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.input_schema,
            "strict": tool.strict,
        }
        kept = {key: said for key, said in function.items() if said is not None}
        tools.append({"type": "function", "function": kept})
    if not tools:
        return {}
    return {"tools": tools, **_tool_choice(asked.tool_choice)}


def _tool_choice(choice: ToolChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    if choice.type == "tool" and not choice.name:
        raise InvalidRequest("Missing required parameter: 'tool_choice.name'.", param="tool_choice.name")
    named = {"type": "function", "function": {"name": choice.name}}
    said: Any = {"auto": "auto", "any": "required", "none": "none", "tool": named}[choice.type]
    return {"tool_choice": said} | ({"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {})


def _format(asked: MessagesRequest) -> dict[str, Any]:
    wanted = asked.output_config.format if asked.output_config else None
    if wanted is None:
        return {}
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": wanted.schema, "strict": True},
        }
    }


def _user(turn: Turn) -> list[dict[str, Any]]:
    """Convert a user turn. Tool results become messages of their own, placed first; their images join the user's."""
    if isinstance(turn.content, str):
        return [{"role": "user", "content": turn.content}]
    messages: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for block in turn.content:
        match block:
            case ToolResult(content=str(said)):
                messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": said})
            case ToolResult(content=tuple(shown)):
                texts = "".join(one.text for one in shown if isinstance(one, Text))
                messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": texts})
                parts += [_part(one) for one in shown if not isinstance(one, Text)]
            case Text() | Image() | Document():
                parts.append(_part(block))
            case ToolUse():
                raise InvalidRequest("A `tool_use` block is allowed only in assistant turns.", param="messages")
    if parts:
        plain = len(parts) == 1 and parts[0]["type"] == "text"
        messages.append({"role": "user", "content": parts[0]["text"] if plain else parts})
    return messages


def _assistant(turn: Turn) -> list[dict[str, Any]]:
    if isinstance(turn.content, str):
        return [{"role": "assistant", "content": turn.content}]
    calls = []
    texts = []
    for block in turn.content:
        match block:
            case Text():
                texts.append(block.text)
            case ToolUse():
                arguments = msgspec.json.encode(block.input).decode()
                call = {"name": block.name, "arguments": arguments}
                calls.append({"id": block.id, "type": "function", "function": call})
            case Image() | Document() | ToolResult():
                raise InvalidRequest(f"This block is allowed only in user turns: {block!r:.40}.", param="messages")
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or None}
    return [message | ({"tool_calls": calls} if calls else {})]


def _part(block: Shown) -> dict[str, Any]:
    match block:
        case Text():
            return {"type": "text", "text": block.text}
        case Image():
            return {"type": "image_url", "image_url": {"url": _url(block.source)}}
        case Document(source=TextSource(data=text)):
            return {"type": "text", "text": text}
        case Document(source=Base64Source() as source):
            return {"type": "file", "file": {"filename": block.title or "document.pdf", "file_data": _url(source)}}
    raise InvalidRequest("A document must come with its data.", param="messages")


def _url(source: Base64Source | URLSource) -> str:
    if isinstance(source, URLSource):
        return source.url
    return f"data:{source.media_type};base64,{source.data}"


def _joined(texts: str | tuple[Text, ...]) -> str:
    return texts if isinstance(texts, str) else "\n\n".join(block.text for block in texts)
