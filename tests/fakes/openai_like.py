"""A fake of OpenAI's API as OpenAI and llama-server serve it, faults included, on a real socket.

Tests set the next answers on the instance between requests. The requests it received are kept there, too.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.fakes.serving import Startable, run

WORDS = ["Hel", "lo", ",", " Wörld", " 🌍"]


@dataclass
class Call:
    """A tool call with its arguments in pieces."""

    id: str
    name: str
    pieces: list[str]


@dataclass
class Script:
    """Script of the next answers."""

    words: list[str] = field(default_factory=lambda: list(WORDS))
    status: int | None = None
    """Refuse with this."""
    error: Any = None
    """The refusal's body."""
    headers: dict[str, str] = field(default_factory=dict)
    usage: bool = True
    done: bool = True
    """End with `[DONE]`."""
    finish: str | None = "stop"
    break_after: int | None = None
    """Close the connection after so many words."""
    error_after: int | None = None
    """Send an error event after so many words."""
    silent_after: int | None = None
    """Say nothing more after so many words, until the caller leaves."""
    pings: bool = False
    newline: str = "\n"
    content_type: str = "text/event-stream"
    raw: bytes | None = None
    """Send exactly this as the stream."""
    deltas: list[dict[str, Any]] | None = None
    """Instead of words: tool calls, refusals, reasoning."""
    choices: int = 1
    """Choices of an answer to one prompt that asks for none (`n`)."""
    echo: bool = False
    """Answer a text with its prompt instead of the words."""
    calls: list[Call] = field(default_factory=list)
    """Tool calls after the words."""


@dataclass
class FakeOpenAI(Startable):
    """The fake server. `root` is the path of the API: OpenAI's base URL ends in `/v1`, and so does this one."""

    models: list[str] = field(default_factory=lambda: ["tiny"])
    api_key: str | None = None
    owner: str = "openai"
    loading: bool = False
    down: bool = False
    script: Script = field(default_factory=Script)
    prepare: Callable[[dict[str, Any]], None] | None = None
    """Sets the next answer of a chat by the request."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    path = "/v1"
    left: threading.Event = field(default_factory=threading.Event)
    """Set when a caller hung up in the middle of a stream."""

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/embeddings", self._embed, methods=["POST"]),
            ]
        )

    async def _health(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        if self.loading:
            return _error(503, {"code": 503, "message": "Loading model", "type": "unavailable_error"})
        return JSONResponse({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        if (refused := self._not_served(request)) is not None:
            return refused
        rows = [{"id": m, "object": "model", "created": 1, "owned_by": self.owner, "meta": None} for m in self.models]
        return JSONResponse({"object": "list", "data": rows})

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        if self.prepare is not None:
            self.prepare(body)
        if (wrong := wrong_chat(body)) is not None:
            self.asked.append(body)
            return _error(400, {"message": wrong, "type": "invalid_request_error", "param": None, "code": None})
        return await self._generate(request, self._chat_events)

    async def _complete(self, request: Request) -> Response:
        return await self._generate(request, self._text_events)

    async def _embed(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        body = await request.json()
        self.asked.append(body)
        if (refused := self._refused(request)) is not None:
            return refused
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        # Out of order on purpose: the index is what counts.
        rows = [{"object": "embedding", "index": i, "embedding": [float(i), 0.5, -1.0]} for i in range(len(inputs))]
        usage = {"prompt_tokens": 3 * len(inputs), "total_tokens": 3 * len(inputs)}
        answer: dict[str, Any] = {"object": "list", "data": rows[::-1], "model": body["model"]}
        return JSONResponse(answer | ({"usage": usage} if self.script.usage else {}))

    async def _generate(self, request: Request, events: Any) -> Response:
        self.paths.append(request.url.path)
        body = await request.json()
        self.asked.append(body)
        if (refused := self._refused(request)) is not None:
            return refused
        if body["model"] not in self.models:
            said = {"message": f"The model `{body['model']}` does not exist", "type": "invalid_request_error"}
            return _error(404, {**said, "param": None, "code": "model_not_found"})
        if not body.get("stream"):
            raise AssertionError("the gateway always streams upstream")
        return StreamingResponse(self._watched(request, events(body)), media_type=self.script.content_type)

    def _refused(self, request: Request) -> Response | None:
        if (refused := self._not_served(request)) is not None:
            return refused
        if self.script.status is not None:
            return JSONResponse(self.script.error, self.script.status, headers=self.script.headers)
        return None

    def _not_served(self, request: Request) -> Response | None:
        """What is wrong with every route."""
        if self.down:
            return _error(500, {"message": "The server had an error", "type": "server_error"})
        if self.loading:
            return _error(503, {"code": 503, "message": "Loading model", "type": "unavailable_error"})
        sent = request.headers.get("authorization", "")
        if self.api_key is not None and sent != f"Bearer {self.api_key}":
            said = {"message": f"Incorrect API key provided: {sent}.", "type": "invalid_request_error"}
            return _error(401, {**said, "param": None, "code": "invalid_api_key"})
        return None

    async def _watched(self, request: Request, events: AsyncIterator[str]) -> AsyncIterator[bytes]:
        script = self.script
        if script.raw is not None:
            yield script.raw
            return
        try:
            async for event in events:
                yield event.replace("\n", script.newline).encode()
        except asyncio.CancelledError:
            self.left.set()
            raise

    async def _chat_events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        base = {"id": "chatcmpl-up", "object": "chat.completion.chunk", "created": 7, "model": body["model"]}
        for index in range(self._choices(body)):
            first = {**base, "choices": [_choice(index, {"role": "assistant", "content": ""})], "usage": None}
            yield _data(first | self._beside_the_first())
        deltas = self.script.deltas or [{"content": word} for word in self.script.words]
        deltas = deltas + list(call_deltas(self.script.calls))
        async for event in self._body(deltas, lambda i, d, f: {**base, "choices": [_choice(i, d, f)]}, body, base):
            yield event

    async def _text_events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        base = {"id": "cmpl-up", "object": "text_completion", "created": 7, "model": body["model"]}

        def chunk(index: int, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
            text = delta.get("content", "")
            if self.script.echo and text:
                text = str(_prompts(body)[index // (body.get("n") or 1)])
            return {**base, "choices": [{"index": index, "text": text, "logprobs": None, "finish_reason": finish}]}

        deltas = [{"content": word} for word in self.script.words[: 1 if self.script.echo else None]]
        async for event in self._body(deltas, chunk, body, base):
            yield event

    async def _body(
        self, deltas: list[dict[str, Any]], chunk: Any, body: dict[str, Any], base: dict[str, Any]
    ) -> AsyncIterator[str]:
        script = self.script
        for number, delta in enumerate(deltas):
            if number == script.break_after:
                raise ConnectionError("the fake breaks off")
            if number == script.error_after:
                said = {"code": 500, "message": "CUDA error: secret prompt", "type": "server_error"}
                yield f"data: {json.dumps({'error': said})}\n\n"
                return
            if number == script.silent_after:
                await asyncio.Event().wait()
            if script.pings:
                yield ":\n\n"
            for index in range(self._choices(body)):
                yield _data(chunk(index, delta, None))
        if script.finish is not None:
            finish = "tool_calls" if script.calls and script.finish == "stop" else script.finish
            for index in range(self._choices(body)):
                yield _data(chunk(index, {}, finish))
        for extra in self._before_done(base, len(deltas)):
            yield _data(extra)
        asked_usage = (body.get("stream_options") or {}).get("include_usage")
        if script.usage and asked_usage:
            asked, count = 11 * len(_prompts(body)), len(deltas) * self._choices(body)
            usage = {"prompt_tokens": asked, "completion_tokens": count, "total_tokens": asked + count}
            yield _data({**base, "choices": [], "usage": usage})
        if script.done:
            yield "data: [DONE]\n\n"

    def _choices(self, body: dict[str, Any]) -> int:
        return max(self.script.choices, (body.get("n") or 1) * len(_prompts(body)))

    def _beside_the_first(self) -> dict[str, Any]:
        """More fields of the first chunk, for those who have some."""
        return {}

    def _before_done(self, base: dict[str, Any], count: int) -> list[dict[str, Any]]:
        """More chunks at the end, for those who have some."""
        return []


def _prompts(body: dict[str, Any]) -> list[Any]:
    """The prompts of a text; token ids are one."""
    prompt = body.get("prompt")
    return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]


_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def wrong_chat(body: dict[str, Any]) -> str | None:
    """What OpenAI's API refuses in a chat, in its words; None for a sound one."""
    try:
        return _wrong_messages(body)
    except (AttributeError, KeyError, TypeError):
        return "Invalid type for a field of the request."


def _wrong_messages(body: dict[str, Any]) -> str | None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return (
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead."
        )
    waiting: list[str] = []
    for number, message in enumerate(messages):
        role, content, calls = message["role"], message.get("content"), message.get("tool_calls")
        if role == "tool":
            if message.get("tool_call_id") not in waiting:
                return "Invalid parameter: messages with role 'tool' must be a response to a preceding message."
            waiting.remove(message["tool_call_id"])
            continue
        if waiting:
            return f"An assistant message with 'tool_calls' must be followed by tool messages: {', '.join(waiting)}"
        if (content is None or content == []) and not calls and not message.get("function_call"):
            return f"Invalid value for 'messages[{number}].content': expected a string, got null."
        for call in calls or ():
            if len(call["id"]) > 40:
                return f"Invalid 'messages[{number}].tool_calls[0].id': string too long."
            if not _NAME.fullmatch(call["function"]["name"]):
                return f"Invalid 'messages[{number}].tool_calls[0].function.name': string does not match pattern."
        waiting = [call["id"] for call in calls or ()]
    if waiting:
        return f"An assistant message with 'tool_calls' must be followed by tool messages: {', '.join(waiting)}"
    return _wrong_beside(body)


def _wrong_beside(body: dict[str, Any]) -> str | None:
    if len(body.get("user") or "") > 64:
        return "Invalid 'user': string too long. Expected a string with maximum length 64."
    tools = [tool["function"] for tool in body.get("tools") or () if tool.get("type") == "function"]
    if body.get("tools") == []:
        return "Invalid 'tools': empty array. Expected an array with minimum length 1."
    if "tool_choice" in body and not body.get("tools"):
        return "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified."
    for number, tool in enumerate(tools):
        if not _NAME.fullmatch(tool["name"]):
            return f"Invalid 'tools[{number}].function.name': string does not match pattern '^[a-zA-Z0-9_-]+$'."
        schema = tool.get("parameters")
        if schema is not None and schema.get("type") != "object":
            return f"Invalid schema for function '{tool['name']}': schema must be a JSON Schema of 'type: \"object\"'."
    return None


def call_deltas(calls: list[Call]) -> Iterator[dict[str, Any]]:
    """Tool calls as OpenAI streams them: a head with the name, then arguments in pieces."""
    for index, call in enumerate(calls):
        head = {"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield {"tool_calls": [head]}
        for piece in call.pieces:
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _choice(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def _data(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _error(status: int, error: dict[str, Any]) -> Response:
    return JSONResponse({"error": error}, status)


if __name__ == "__main__":
    run(FakeOpenAI())
