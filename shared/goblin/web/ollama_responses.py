"""Writes answers as Ollama does: JSON lines, whole tool calls, durations in nanoseconds, errors as one sentence.

Source: ollama 0.33 `api/types.go` and `docs/api.md`, ollama-python 0.6.3, read 2026-12-01.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal

import msgspec

from goblin.core import decoding
from goblin.core.endpoints import Capability
from goblin.core.errors import GoblinError
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Embeddings, Usage
from goblin.gateway.router import ServedModel
from goblin.web import asgi
from goblin.web.ollama_requests import Asked

API_VERSION = "0.33.0"
"""The version of Ollama whose API this is. Editors refuse versions that they take for too old."""
MEDIA_TYPE = "application/x-ndjson"
LATEST = ":latest"
UNKNOWN_TIME = "1970-01-01T00:00:00Z"
_CAN = {
    Capability.CHAT: "completion", Capability.COMPLETIONS: "insert", Capability.TOOLS: "tools",
    Capability.VISION: "vision", Capability.EMBEDDINGS: "embedding",
}  # fmt: skip
Kind = Literal["chat", "generate"]
Chunks = AsyncGenerator[ChatChunk, None]


class AnswerWriter:
    """Writes one answer line by line. Tool calls are gathered: Ollama sends each as a whole."""

    def __init__(
        self, asked: Asked, kind: Kind, *, now: Callable[[], datetime], monotonic: Callable[[], float], began_s: float
    ) -> None:
        self._asked = asked
        self._kind = kind
        self._now = now
        self._monotonic = monotonic
        self._began_s = began_s
        self._first_s: float | None = None
        self._calls: dict[int, dict[str, str]] = {}
        self._finish = "stop"
        self._usage: Usage | None = None

    def write(self, chunk: ChatChunk) -> dict[str, Any] | None:
        """Return the line of a chunk; None for one without text."""
        if self._first_s is None:
            self._first_s = self._monotonic()
        if isinstance(chunk.usage, Usage):
            self._usage = chunk.usage
        text, thinking = [], []
        for choice in chunk.choices:
            if choice.index == 0:
                self._gather(choice)
                text.append(choice.delta.content or choice.delta.refusal or "")
                thinking.append(choice.delta.reasoning_content or choice.delta.reasoning or "")
        if not any(text) and not any(thinking):
            return None
        return self._line("".join(text), "".join(thinking))

    def calls(self) -> dict[str, Any] | None:
        """Return the line with the tool calls; None without any."""
        if not self._calls:
            return None
        made = [_call(call, number) for number, (_, call) in enumerate(sorted(self._calls.items()))]
        line = self._line("", "")
        if self._kind == "chat":
            line["message"]["tool_calls"] = made
        return line

    def end(self, reason: str = "") -> dict[str, Any]:
        """Return the last line, with the counts."""
        ended_s = self._monotonic()
        first_s = ended_s if self._first_s is None else self._first_s
        line = self._line("", "") | {
            "done": True,
            "done_reason": reason or ("length" if self._finish == "length" else "stop"),
            "total_duration": _ns(ended_s - self._began_s),
            "load_duration": 0,
        }
        if self._usage is not None:
            line |= {
                "prompt_eval_count": self._usage.prompt_tokens,
                "prompt_eval_duration": _ns(first_s - self._began_s),
                "eval_count": self._usage.completion_tokens,
                "eval_duration": _ns(ended_s - first_s),
            }
        return line

    def _gather(self, choice: ChunkChoice) -> None:
        self._finish = choice.finish_reason or self._finish
        for piece in choice.delta.tool_calls or ():
            call = self._calls.setdefault(piece.index, {"id": "", "name": "", "arguments": ""})
            call["id"] = piece.id or call["id"]
            if piece.function:
                call["name"] += piece.function.name or ""
                call["arguments"] += piece.function.arguments or ""

    def _line(self, text: str, thinking: str) -> dict[str, Any]:
        line: dict[str, Any] = {"model": self._asked.model, "created_at": _time(self._now())}
        if self._kind == "generate":
            line["response"] = text
            return line | ({"thinking": thinking} if thinking else {}) | {"done": False}
        message = {"role": "assistant", "content": text} | ({"thinking": thinking} if thinking else {})
        return line | {"message": message, "done": False}


async def lines(chunks: Chunks, writer: AnswerWriter) -> AsyncGenerator[bytes, None]:
    """Yield the lines of an answer, the last one with `done`; or an error line as the last."""
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                if (line := writer.write(chunk)) is not None:
                    yield _encoded(line)
            if (line := writer.calls()) is not None:
                yield _encoded(line)
            yield _encoded(writer.end())
        except GoblinError as error:
            yield _encoded({"error": error.message})


async def whole(chunks: Chunks, writer: AnswerWriter) -> bytes:
    """Collect an answer into one object. Raises as the chunks do."""
    text, thinking, calls = [], [], None
    async with aclosing(chunks):
        async for chunk in chunks:
            if (line := writer.write(chunk)) is not None:
                said = line.get("message", line)
                text.append(said.get("content", said.get("response", "")))
                thinking.append(said.get("thinking", ""))
    calls, made = writer.calls(), writer.end()
    said = made.get("message", made)
    said["content" if "message" in made else "response"] = "".join(text)
    if any(thinking):
        said["thinking"] = "".join(thinking)
    if calls is not None and "message" in calls and "tool_calls" in calls["message"]:
        said["tool_calls"] = calls["message"]["tool_calls"]
    return msgspec.json.encode(made)


def loaded(writer: AnswerWriter, reason: str) -> bytes:
    """Build the answer to a request without a prompt."""
    return _encoded(writer.end(reason))


def embed_answer(asked: Asked, answer: Embeddings, *, took_s: float) -> bytes:
    """Build the answer of `/api/embed`."""
    usage = answer.usage or Usage()
    return msgspec.json.encode(
        {
            "model": asked.model,
            "embeddings": [row.embedding for row in answer.data],
            "total_duration": _ns(took_s),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
        }
    )


def embeddings_answer(answer: Embeddings) -> bytes:
    """Build the answer of `/api/embeddings`, which has one vector."""
    return msgspec.json.encode({"embedding": answer.data[0].embedding if answer.data else []})


def refusal(error: Exception) -> tuple[int, bytes]:
    """Build status and body of an error. Ollama's clients send no key unless they are told to, so a 401 says how."""
    answer = asgi.error_answer(error)
    message = error.message if isinstance(error, GoblinError) else "Internal error. The cause is in the server's log."
    if answer.status == 401:
        message += " Ollama's clients send one as the header `Authorization`, or from the variable OLLAMA_API_KEY."
    return answer.status, msgspec.json.encode({"error": message})


def model_list(models: Sequence[ServedModel]) -> dict[str, Any]:
    """Build the answer of `/api/tags`: every name has a tag, and `llama3` and `llama3:latest` are one model."""
    return {"models": [_row(name) for name in dict.fromkeys(_tagged(model.id) for model in models)]}


def loaded_list(models: Sequence[ServedModel]) -> dict[str, Any]:
    """Build the answer of `/api/ps`: the models that an endpoint is known to have in memory."""
    found = {_tagged(model.id): model for model in models if model.loaded}
    rows = []
    for name, model in found.items():
        context = {} if model.context_tokens is None else {"context_length": model.context_tokens}
        rows.append({**_row(name), "expires_at": UNKNOWN_TIME, "size_vram": 0, **context})
    return {"models": rows}


def model_details(model: ServedModel) -> dict[str, Any]:
    """Build the answer of `/api/show`, of which editors read the capabilities and the context's length."""
    info: dict[str, Any] = {"general.architecture": "goblin", "general.basename": model.id}
    if model.context_tokens is not None:
        info["goblin.context_length"] = model.context_tokens
    return {
        "modelfile": f"FROM {model.id}\n",
        "parameters": "",
        "template": "{{ .Prompt }}",
        "details": _DETAILS,
        "model_info": info,
        "capabilities": [said for capability, said in _CAN.items() if capability in model.capabilities],
        "modified_at": UNKNOWN_TIME,
    }


_DETAILS = {
    "parent_model": "", "format": "", "family": "", "families": None, "parameter_size": "", "quantization_level": "",
}  # fmt: skip


def _row(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "modified_at": UNKNOWN_TIME,
        "size": 0,
        "digest": sha256(name.encode()).hexdigest(),
        "details": _DETAILS,
    }


def _tagged(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] else name + LATEST


def _call(call: dict[str, str], number: int) -> dict[str, Any]:
    """Return a call with its arguments as an object, which Ollama's clients need; a model may have written another."""
    try:
        arguments = decoding.parse(call["arguments"] or "{}")
    except decoding.UNREADABLE:
        arguments = call["arguments"]
    said = arguments if isinstance(arguments, dict) else {"_": arguments}
    return {"id": call["id"], "function": {"index": number, "name": call["name"], "arguments": said}}


def _time(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


def _encoded(line: dict[str, Any]) -> bytes:
    return msgspec.json.encode(line) + b"\n"
