"""Validates a Messages request of Anthropic's wire format and converts it to our chat request.

The request itself goes along as `original`: an endpoint that speaks Anthropic's wire gets it as it came, so that cache
marks, thoughts with their signatures, effort and whatever else is not known here reach it. All other endpoints get the
translation, which has what their wire has a place for; the rest is named in `left_out`. So only what the translation
needs is validated. Source: anthropic-python 2.14 and what Claude Code 2.1.197 sends, read 2026-12-01.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from goblin.core.errors import InvalidRequest
from goblin.gateway.domain import requests
from goblin.gateway.domain.requests import ChatRequest, Original
from goblin.web import anthropic_blocks
from goblin.web.anthropic_blocks import Conversation, Turn

PROVIDER = "anthropic"
PASSED_HEADERS = ("anthropic-version", "anthropic-beta")
"""Headers that say how to read the body; an endpoint that gets the body gets them, too."""
USER_CHARACTERS_MAX = 64
"""Longest `user` that OpenAI takes; Claude Code's `user_id` has some 150 characters."""


class ToolChoice(Struct, frozen=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


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
    system: str | tuple[dict[str, Any], ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None
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


_TRANSLATED = frozenset(CheckedMessagesRequest.__struct_fields__)


def parse(data: bytes, headers: Mapping[str, str] | None = None) -> ChatRequest:
    """Parse the body of `/v1/messages`. Raises `InvalidRequest`, with the field in `param`.

    Args:
        data: The body.
        headers: The request's headers, of which `PASSED_HEADERS` go along.
    """
    return _parsed(CheckedMessagesRequest, data, headers or {})


def parse_to_count(data: bytes) -> ChatRequest:
    """Parse the body of `/v1/messages/count_tokens`, which needs no `max_tokens`. Raises like `parse`."""
    return _parsed(MessagesRequest, data, {})


def _parsed(kind: type[MessagesRequest], data: bytes, headers: Mapping[str, str]) -> ChatRequest:
    """Translate a request. One without a translation may still go on, as it came, to endpoints of Anthropic's wire."""
    body = _read(data)
    try:
        return _as_chat(_checked(kind, body), body, headers)
    except InvalidRequest as error:
        to_count = kind is MessagesRequest and isinstance(body, dict)
        chat = _untranslated({"max_tokens": 1, **body} if to_count else body, headers, error)
        if chat is None:
            raise
        return chat


def _untranslated(body: Any, headers: Mapping[str, str], error: InvalidRequest) -> ChatRequest | None:
    """Build the request for endpoints of Anthropic's wire alone; None if it lacks what the gateway itself needs."""
    match body:
        case {"model": str(model), "messages": [_, *_] as turns, "max_tokens": int(limit)} if limit >= 1:
            said = {"model": model, "messages": [{"role": "user", "content": _plainly(turns)}], "max_tokens": limit}
        case _:
            return None
    said |= {name: body[name] for name in ("stream", "goblin") if body.get(name) is not None}
    chat = requests.parse(ChatRequest, msgspec.json.encode(said))
    return msgspec.structs.replace(chat, original=_original(body, headers), untranslated=error)


def _plainly(turns: list[Any]) -> str:
    """Return the text of turns, of which tokens can be estimated."""
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)]
    return "\n".join(anthropic_blocks.text_of(content) for content in contents)


def _original(body: dict[str, Any], headers: Mapping[str, str]) -> Original:
    sent = {name: headers[name] for name in PASSED_HEADERS if headers.get(name)}
    return Original(provider=PROVIDER, body=body, headers=sent)


def _checked(kind: type[MessagesRequest], body: Any) -> MessagesRequest:
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise requests.invalid(str(error)) from error


def _read(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.") from error


def _as_chat(asked: MessagesRequest, original: dict[str, Any], headers: Mapping[str, str]) -> ChatRequest:
    tools, skipped = _tools(asked)
    talk = Conversation()
    talk.system(_system(asked, skipped))
    for number, turn in enumerate(asked.messages):
        talk.add(number, turn)
    messages = talk.whole()
    body = {
        "model": asked.model,
        "messages": messages,
        "max_tokens": asked.max_tokens,
        "stop": asked.stop_sequences or None,
        "stream": asked.stream,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "user": _user(asked.metadata),
        "goblin": asked.goblin,
        **({"tools": tools} if tools else {}),
        **_tool_choice(asked.tool_choice, tools),
        **_format(asked),
    }
    chat = requests.parse(
        ChatRequest, msgspec.json.encode({key: said for key, said in body.items() if said is not None})
    )
    fields = [name for name, said in original.items() if said is not None and name not in _TRANSLATED]
    config = original.get("output_config") or {}
    fields += [f"output_config.{name}" for name, said in config.items() if said is not None and name != "format"]
    return msgspec.structs.replace(
        chat,
        original=_original(original, headers),
        left_out=(*fields, *skipped, *talk.left_out),
    )


def tool_names(tools: object) -> dict[str, str]:
    """Return the names that a caller's tools have in the translation, with the caller's names."""
    named = [tool.get("name") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list | tuple) else []
    return {anthropic_blocks.tool_name(name): name for name in named if isinstance(name, str)}


def _system(asked: MessagesRequest, skipped: list[str]) -> str:
    said = anthropic_blocks.text_of(asked.system, between="\n\n")
    if not skipped:
        return said
    # A model that was told of a tool elsewhere in the prompt would make up its results.
    names = ", ".join(name.removeprefix("tools[").removesuffix("]") for name in skipped)
    note = f"These tools are not available in this conversation, do not act as if they were: {names}."
    return f"{said}\n\n{note}" if said else note


def _tools(asked: MessagesRequest) -> tuple[list[dict[str, Any]], list[str]]:
    """Convert the tools that the caller runs; the others, which Anthropic runs or defines, are named."""
    tools: list[dict[str, Any]] = []
    skipped = []
    for number, tool in enumerate(asked.tools or ()):
        kind, name = tool.get("type"), tool.get("name")
        if kind not in (None, "custom"):
            skipped.append(f"tools[{kind}]")
            continue
        for field, said in (("name", name), ("input_schema", tool.get("input_schema"))):
            if not isinstance(said, str if field == "name" else dict) or said == "":
                param = f"tools[{number}].{field}"
                raise InvalidRequest(
                    f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
                )
        function = {
            "name": anthropic_blocks.tool_name(str(name)),
            "description": tool.get("description"),
            "parameters": _schema(tool["input_schema"]),
            "strict": tool.get("strict"),
        }
        kept = {key: said for key, said in function.items() if said is not None}
        tools.append({"type": "function", "function": kept})
    return tools, skipped


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a tool's schema as OpenAI takes it: an object that has `properties`."""
    if schema.get("type") == "object" and "properties" in schema:
        return schema
    return {"properties": {}, **schema, "type": "object"}


def _tool_choice(choice: ToolChoice | None, tools: list[dict[str, Any]]) -> dict[str, Any]:
    """Convert the choice of a tool. Without tools there is none, and a tool that was skipped cannot be demanded."""
    if choice is None:
        return {}
    if choice.type == "tool" and not choice.name:
        raise InvalidRequest("Missing required parameter: 'tool_choice.name'.", param="tool_choice.name")
    if not tools:
        return {}
    name = anthropic_blocks.tool_name(choice.name or "")
    if choice.type == "tool" and name not in [tool["function"]["name"] for tool in tools]:
        return {}
    named = {"type": "function", "function": {"name": name}}
    said: Any = {"auto": "auto", "any": "required", "none": "none", "tool": named}[choice.type]
    return {"tool_choice": said} | ({"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {})


def _format(asked: MessagesRequest) -> dict[str, Any]:
    wanted = (asked.output_config.format if asked.output_config else None) or asked.output_format
    if wanted is None:
        return {}
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": wanted.schema, "strict": True},
        }
    }


def _user(metadata: Metadata | None) -> str | None:
    """Return the caller's user as OpenAI takes it: hashed where it is too long, so that it still tells users apart."""
    if metadata is None or metadata.user_id is None or len(metadata.user_id) <= USER_CHARACTERS_MAX:
        return metadata.user_id if metadata is not None else None
    return hashlib.sha256(metadata.user_id.encode("utf-8", "surrogatepass")).hexdigest()
