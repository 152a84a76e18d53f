"""Converts a chat request, in OpenAI's format, to a Messages request of Anthropic's API.

Facts that shape it, from anthropic-python 2.14 and platform.claude.com/docs, read 2026-11-25: system prompts are
beside the messages; the first turn is the user's; tool results are the first blocks of the turn behind their calls, and
each call has one; consecutive turns of one role are one turn; texts without a letter and stop sequences of white space
are refused; ids have an alphabet; the schema of a tool is an object's; `max_tokens` is required; a schema can be
enforced by a tool that must be called. A request that came in Anthropic's wire is passed on as it is.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from goblin.core import decoding
from goblin.core.endpoints import Endpoint
from goblin.core.errors import Fault, InvalidRequest, ProviderUnavailable
from goblin.gateway.domain.requests import (
    AudioPart,
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    Original,
    RefusalPart,
    TextPart,
)

VERSION = "2026-10-21"
"""Default API version."""
SAMPLING_VERSION = "2023-06-01"
"""The last API version that accepts `temperature` and `top_p`; the newer refuses them even at their defaults."""
OUTPUT_TOKENS = 8192
"""Output limit when the caller sets none, because the API requires one. The option `max_tokens` changes it."""
USER_CHARACTERS_MAX = 256
"""Longest `user_id`."""
OPENING = "(The conversation goes on from here.)"
"""The user's turn before a conversation that has none at its beginning, which the API refuses."""
_WORD = re.compile(r"[a-zA-Z0-9_-]+")
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
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if stops := [stop for stop in stops if stop.strip()]:
        body["stop_sequences"] = stops  # Those of white space alone are refused.
    if version_of(endpoint) == SAMPLING_VERSION:
        if request.temperature is not None:
            body["temperature"] = min(request.temperature, 1.0)  # OpenAI's range ends at 2.
        elif request.top_p is not None:
            body["top_p"] = request.top_p  # Newer models accept only one of the two.
    if isinstance(user := request.body.get("user"), str):
        body["metadata"] = {"user_id": user if len(user) <= USER_CHARACTERS_MAX else _digest(user)}
    if isinstance(thinking := request.body.get("thinking"), dict):
        body["thinking"] = thinking
    return body | (_answer_tool(request, endpoint) if wants_schema(request) else _tools(request, endpoint))


def passed_on(original: Original, request: ChatRequest, model: str) -> dict[str, Any]:
    """Build the body of a streamed Messages request from one that came in Anthropic's wire.

    It stays as it is, but for the model, the output limit, and what would be refused although it is not the caller's
    fault: thoughts of another model, which have no signature, and contents that are null or empty.
    """
    body = {name: said for name, said in original.body.items() if name != "goblin"}
    body |= {"model": model, "stream": True}
    if request.output_tokens_max is not None:
        body["max_tokens"] = request.output_tokens_max
    turns = body.get("messages")
    if isinstance(turns, list):
        body["messages"] = [mended for turn in turns if (mended := _mended(turn)) is not None]
    return body


def _mended(turn: Any) -> Any:
    """Return a turn as the API takes it; None if nothing of it is left."""
    if not isinstance(turn, dict):
        return turn
    content = turn.get("content")
    if isinstance(content, list):
        blocks = [_mended_block(block) for block in content if not _is_foreign_thought(block)]
        content = content if blocks == content else blocks
    return None if content in (None, "", []) else {**turn, "content": content}


def _is_foreign_thought(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "thinking" and not block.get("signature")


def _mended_block(block: Any) -> Any:
    if isinstance(block, dict) and block.get("type") == "tool_result" and block.get("content", "") is None:
        return {name: said for name, said in block.items() if name != "content"}
    return block


def _tools(request: ChatRequest, endpoint: Endpoint) -> dict[str, Any]:
    if not request.tools:
        return {}
    tools = []
    for number, tool in enumerate(request.tools):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict) or "name" not in function:
            raise InvalidRequest("Only tools of type `function` can be used.", param=f"tools[{number}]")
        kept = {key: function[key] for key in ("name", "description") if function.get(key) is not None}
        strict = {"strict": True} if function.get("strict") else {}
        tools.append({**kept, "input_schema": _object_schema(function.get("parameters")), **strict})
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


def _object_schema(schema: Any) -> dict[str, Any]:
    """Return a tool's schema as the API takes it: of an object, without a choice of schemas at its top."""
    if not isinstance(schema, dict) or not schema:
        return {"type": "object", "properties": {}}
    branches = [one for name in _CHOICES for one in schema.get(name) or () if isinstance(one, dict)]
    if not branches:
        return schema if schema.get("type") == "object" else {**schema, "type": "object"}
    # The properties of all branches are allowed, and none is required that one of them does not require.
    rest = {name: said for name, said in schema.items() if name not in _CHOICES}
    properties = dict(schema.get("properties") or {})
    for branch in branches:
        properties |= {name: said for name, said in (branch.get("properties") or {}).items() if name not in properties}
    return {**rest, "type": "object", "properties": properties}


_CHOICES = ("anyOf", "oneOf", "allOf")


def _is_system(message: Message) -> bool:
    return message.role in ("system", "developer")


def _turns(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """Convert messages to turns for the API: the user's first, no two of one role, each call with its result."""
    turns: list[dict[str, Any]] = []
    waiting: list[str] = []
    later: list[dict[str, Any]] = []
    for message in messages:
        if _is_system(message):
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if role == "assistant":
            if waiting or later:
                _add(turns, "user", [*_no_results(waiting), *later])
                waiting, later = [], []
            waiting = [block["id"] for block in blocks if block["type"] == "tool_use"]
        elif blocks and blocks[0]["type"] == "tool_result":
            call_id = blocks[0]["tool_use_id"]
            if call_id in waiting:
                waiting.remove(call_id)
            else:  # The result of no call would be refused.
                said = blocks[0].get("content") or []
                blocks = [{"type": "text", "text": "[Result of an earlier tool call:]"}, *said]
                later, blocks = later + blocks, []
        elif waiting:  # Results are the first blocks of the turn behind their calls.
            later, blocks = later + blocks, []
        _add(turns, role, blocks)
        if role == "user" and not waiting and later:
            _add(turns, "user", later)
            later = []
    if waiting or later:
        _add(turns, "user", [*_no_results(waiting), *later])
    if not turns or turns[0]["role"] != "user":
        turns.insert(0, {"role": "user", "content": [{"type": "text", "text": OPENING}]})
    if turns[-1]["role"] == "assistant" and turns[-1]["content"][-1]["type"] == "text":
        last = turns[-1]["content"][-1]
        turns[-1]["content"][-1] = {**last, "text": last["text"].rstrip()}  # White space at its end is refused.
    return turns


def _add(turns: list[dict[str, Any]], role: str, blocks: list[dict[str, Any]]) -> None:
    """Add blocks, to the last turn if it has the same role."""
    if not blocks:
        return
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    else:
        turns.append({"role": role, "content": list(blocks)})


def _no_results(call_ids: list[str]) -> list[dict[str, Any]]:
    said = "There is no result: the call was interrupted."
    return [{"type": "tool_result", "tool_use_id": call_id, "content": said, "is_error": True} for call_id in call_ids]


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role in ("tool", "function"):
        if not message.tool_call_id:
            raise InvalidRequest("A tool's result needs the `tool_call_id` of its call.", param="messages")
        result: dict[str, Any] = {"type": "tool_result", "tool_use_id": _call_id(message.tool_call_id)}
        return [result | ({"content": _parts(message)} if _parts(message) else {})]
    calls = [
        {
            "type": "tool_use",
            "id": _call_id(call.id),
            "name": call.function.name,
            "input": _arguments(call.function.arguments),
        }
        for call in message.tool_calls or ()
    ]
    return _parts(message) + calls


def _texts(message: Message) -> list[dict[str, Any]]:
    return [block for block in _parts(message) if block["type"] == "text"]


def _parts(message: Message) -> list[dict[str, Any]]:
    if message.content is None or isinstance(message.content, str):
        return [{"type": "text", "text": message.content}] if (message.content or "").strip() else []
    return [block for part in message.content if (block := _part(part)) is not None]


def _part(part: TextPart | ImagePart | AudioPart | FilePart | RefusalPart) -> dict[str, Any] | None:
    match part:
        case TextPart(text=text) | RefusalPart(refusal=text):
            return {"type": "text", "text": text} if text.strip() else None
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


def _call_id(call_id: str) -> str:
    """Return a call's id in the API's alphabet; the same for the call and its result."""
    if _WORD.fullmatch(call_id):
        return call_id
    return f"{re.sub('[^a-zA-Z0-9_-]', '_', call_id)}_{_digest(call_id)[:8]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


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
