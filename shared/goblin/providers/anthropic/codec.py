"""Converts a chat request, in OpenAI's format, to a Messages request of Anthropic's API.

Facts that shape it, from anthropic-python 2.14 and platform.claude.com/docs, read 2026-11-25: system prompts are
beside the messages; tool results are the first blocks of a user turn; consecutive turns of one role are one turn;
empty texts are refused; `max_tokens` is required; a schema can be enforced by a tool that must be called.
"""

from __future__ import annotations

from typing import Any

from goblin.core import decoding
from goblin.core.endpoints import Endpoint
from goblin.core.errors import Fault, InvalidRequest, ProviderUnavailable
from goblin.gateway.domain.requests import AudioPart, ChatRequest, FilePart, ImagePart, Message, RefusalPart, TextPart

VERSION = "2026-10-21"
"""Default API version."""
SAMPLING_VERSION = "2023-06-01"
"""The last API version that accepts `temperature` and `top_p`; the newer refuses them even at their defaults."""
OUTPUT_TOKENS = 8192
"""Output limit when the caller sets none, because the API requires one. The option `max_tokens` changes it."""
ANSWER_TOOL = "answer"
"""Name of the tool whose arguments are the answer when the caller wants JSON that follows a schema."""


def version_of(endpoint: Endpoint) -> str:
    """Choose the value of the header `anthropic-version`."""
    return endpoint.options.get("version", VERSION)


def wants_schema(request: ChatRequest) -> bool:
    """Tell whether the answer must follow a schema, and so comes as the arguments of `ANSWER_TOOL`."""
    return request.response_format is not None and request.response_format.type == "json_schema"


def messages_body(request: ChatRequest, model: str, endpoint: Endpoint) -> dict[str, Any]:
    """Build the body of a streamed Messages request.

    Raises:
        InvalidRequest: A part of the request cannot be expressed in Anthropic's API.
        ProviderUnavailable: With `Fault.UNSUPPORTED`, when another endpoint might accept the request.
    """
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": request.output_tokens_max or int(endpoint.options.get("max_tokens", OUTPUT_TOKENS)),
        "messages": _turns(request.messages),
        "stream": True,
    }
    if system := [block for message in request.messages if _is_system(message) for block in _texts(message)]:
        body["system"] = system
    if request.stop:
        body["stop_sequences"] = [request.stop] if isinstance(request.stop, str) else request.stop
    if version_of(endpoint) == SAMPLING_VERSION:
        if request.temperature is not None:
            body["temperature"] = min(request.temperature, 1.0)  # OpenAI's range ends at 2.
        elif request.top_p is not None:
            body["top_p"] = request.top_p  # Newer models accept only one of the two.
    if isinstance(user := request.body.get("user"), str):
        body["metadata"] = {"user_id": user}
    if isinstance(thinking := request.body.get("thinking"), dict):
        body["thinking"] = thinking
    return body | (_answer_tool(request, endpoint) if wants_schema(request) else _tools(request, endpoint))


def _tools(request: ChatRequest, endpoint: Endpoint) -> dict[str, Any]:
    if not request.tools:
        return {}
    tools = []
    for number, tool in enumerate(request.tools):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict) or "name" not in function:
            raise InvalidRequest("Only tools of type `function` can be used.", param=f"tools[{number}]")
        kept = {key: function[key] for key in ("name", "description") if function.get(key) is not None}
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        strict = {"strict": True} if function.get("strict") else {}
        tools.append({**kept, "input_schema": schema, **strict})
    said: dict[str, Any] = {"tools": tools}
    choice = _tool_choice(request, endpoint)
    if request.body.get("parallel_tool_calls") is False and choice.get("type") != "none":
        choice = {"type": "auto", **choice, "disable_parallel_tool_use": True}
    return said | ({"tool_choice": choice} if choice else {})


def _tool_choice(request: ChatRequest, endpoint: Endpoint) -> dict[str, Any]:
    match request.tool_choice:
        case None:
            return {}
        case "auto" | "none":
            return {"type": request.tool_choice}
        case "required":
            return {"type": "any"}
        case {"type": "function", "function": {"name": str(name)}}:
            return {"type": "tool", "name": name}
    raise unsupported(endpoint, "it does not support this `tool_choice`")


def _answer_tool(request: ChatRequest, endpoint: Endpoint) -> dict[str, Any]:
    """Enforce a schema by a single tool that must be called."""
    assert request.response_format is not None  # noqa: S101  `wants_schema` checked it.
    wanted = request.response_format.json_schema
    schema = wanted.schema if wanted is not None else None
    if wanted is None or schema is None:
        raise InvalidRequest(
            "A response format of type `json_schema` needs a schema.", param="response_format.json_schema.schema"
        )
    if request.tools:
        raise unsupported(endpoint, "it follows a schema only in requests without tools")
    if schema.get("type") != "object":
        raise unsupported(endpoint, "it follows a schema only if the schema's type is object")
    tool = {"name": ANSWER_TOOL, "description": f"Give the answer: {wanted.name[:128]}.", "input_schema": schema}
    choice = {"type": "tool", "name": ANSWER_TOOL, "disable_parallel_tool_use": True}
    return {"tools": [tool], "tool_choice": choice}


def _is_system(message: Message) -> bool:
    return message.role in ("system", "developer")


def _turns(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """Convert messages to turns: without system messages, consecutive ones of one role joined."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if _is_system(message):
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if not blocks:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role in ("tool", "function"):
        if not message.tool_call_id:
            raise InvalidRequest("A tool's result needs the `tool_call_id` of its call.", param="messages")
        result: dict[str, Any] = {"type": "tool_result", "tool_use_id": message.tool_call_id}
        return [result | ({"content": _parts(message)} if _parts(message) else {})]
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.function.name, "input": _arguments(call.function.arguments)}
        for call in message.tool_calls or ()
    ]
    return _parts(message) + calls


def _texts(message: Message) -> list[dict[str, Any]]:
    return [block for block in _parts(message) if block["type"] == "text"]


def _parts(message: Message) -> list[dict[str, Any]]:
    if message.content is None or isinstance(message.content, str):
        return [{"type": "text", "text": message.content}] if message.content else []
    return [block for part in message.content if (block := _part(part)) is not None]


def _part(part: TextPart | ImagePart | AudioPart | FilePart | RefusalPart) -> dict[str, Any] | None:
    match part:
        case TextPart(text=text) | RefusalPart(refusal=text):
            return {"type": "text", "text": text} if text else None
        case ImagePart():
            return {"type": "image", "source": _source(part.image_url.url)}
        case FilePart():
            data = part.file.get("file_data")
            if not isinstance(data, str):
                raise InvalidRequest("A file must come with its `file_data`.", param="messages")
            source = _source(data)
            if source.get("media_type") != "application/pdf":
                raise InvalidRequest("Only PDF files can be sent to this model.", param="messages")
            return {"type": "document", "source": source}
        case AudioPart():
            raise InvalidRequest("Audio cannot be sent to this model.", param="messages")


def _source(url: str) -> dict[str, Any]:
    """Convert a URL to a source: a link, which Anthropic fetches, or the bytes of a `data:` URL."""
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    head, comma, data = url.removeprefix("data:").partition(",")
    if not comma or not head.endswith(";base64"):
        raise InvalidRequest("A `data:` URL must be base64.", param="messages", code="invalid_image_url")
    return {"type": "base64", "media_type": head.removesuffix(";base64"), "data": data}


def _arguments(text: str) -> dict[str, Any]:
    """Parse tool arguments into an object, which the API requires; a model may have written something else."""
    try:
        arguments = decoding.parse(text or "{}")
    except decoding.UNREADABLE:
        return {"_": text}
    return arguments if isinstance(arguments, dict) else {"_": arguments}


def unsupported(endpoint: Endpoint, why: str) -> ProviderUnavailable:
    """Build the error for a request that this API cannot serve and another endpoint may."""
    return ProviderUnavailable(f"{endpoint.name}: {why}.", fault=Fault.UNSUPPORTED)
