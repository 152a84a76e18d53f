"""Conversion of the engine's events to OpenAI's objects, for streams and for whole answers."""

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .generation import Finished, Piece
from .model import Model
from .sampling import TokenLogprob
from .tools import CallArguments, CallStarted, Delta, Text, ToolCallReader


def new_id(prefix: str) -> str:
    """Return a random id with a prefix such as `chatcmpl-`."""
    return f"{prefix}{secrets.token_hex(12)}"


@dataclass(slots=True)
class Frame:
    """Fields that every chunk or object of one response repeats."""

    model_name: str
    model: Model
    fingerprint: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))


class ChatAnswer:
    """One choice of a chat: it converts events to deltas and collects the whole answer."""

    def __init__(self, frame: Frame, index: int, *, reads_tools: bool) -> None:
        self._frame = frame
        self.index = index
        self._reader = ToolCallReader() if reads_tools else None
        self._content: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []
        self.finished: Finished | None = None

    def take_piece(self, piece: Piece) -> list[dict[str, Any]]:
        """Convert an event to the choices of the chunks that it adds."""
        logprobs = [_chat_logprob(entry, self._frame.model) for entry in piece.logprobs]
        self._logprobs += logprobs
        deltas = [self._to_delta(d) for d in (self._reader.push(piece.text) if self._reader else [Text(piece.text)])]
        return self._choices(deltas, logprobs)

    def take_finished(self, event: Finished) -> list[dict[str, Any]]:
        """Convert the last event: text that was held back, then the choice with the finish reason."""
        self.finished = event
        deltas = [self._to_delta(delta) for delta in (self._reader.flush() if self._reader else [])]
        return [*self._choices(deltas, []), self._choice({}, self.finish_reason)]

    @property
    def finish_reason(self) -> str:
        if self.finished is not None and self.finished.reason == "stop" and self._calls:
            return "tool_calls"
        return "length" if self.finished is None or self.finished.reason != "stop" else "stop"

    def opening(self) -> dict[str, Any]:
        """Return the first choice of a stream, which names the role."""
        return self._choice({"role": "assistant", "content": ""}, None)

    def whole(self) -> dict[str, Any]:
        """Return the finished choice as OpenAI's object."""
        content = "".join(self._content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content or (None if self._calls else ""),
            "refusal": None,
        }
        if self._calls:
            message["tool_calls"] = self._calls
        return {
            "index": self.index,
            "message": message,
            "logprobs": {"content": self._logprobs, "refusal": None} if self._logprobs else None,
            "finish_reason": self.finish_reason,
        }

    def _choices(self, deltas: list[dict[str, Any]], logprobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if logprobs and not deltas:
            deltas = [{"content": ""}]  # A token without text still reports its probability.
        choices = [self._choice(delta, None) for delta in deltas]
        if choices and logprobs:
            choices[0]["logprobs"] = {"content": logprobs, "refusal": None}
        return choices

    def _choice(self, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": self.index, "delta": delta, "logprobs": None, "finish_reason": reason}

    def _to_delta(self, delta: Delta) -> dict[str, Any]:
        if isinstance(delta, Text):
            self._content.append(delta.text)
            return {"content": delta.text}
        if isinstance(delta, CallStarted):
            call = {"id": new_id("call_"), "type": "function"}
            self._calls.append(call | {"function": {"name": delta.name, "arguments": ""}})
            return {"tool_calls": [{"index": delta.index, **call, "function": {"name": delta.name, "arguments": ""}}]}
        assert isinstance(delta, CallArguments)  # noqa: S101 - the only remaining type.
        self._calls[delta.index]["function"]["arguments"] += delta.text
        return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]}


class TextAnswer:
    """One choice of a plain completion. Its chunks have the same shape as the whole answer."""

    def __init__(self, frame: Frame, index: int, *, with_logprobs: bool) -> None:
        self._frame = frame
        self.index = index
        self._text: list[str] = []
        self._offset = 0
        self._logprobs: dict[str, list[Any]] | None = _empty_logprobs() if with_logprobs else None
        self.finished: Finished | None = None

    def opening(self) -> None:
        return None

    def take_piece(self, piece: Piece) -> list[dict[str, Any]]:
        logprobs = None
        if self._logprobs is not None:
            logprobs = _text_logprobs(piece.logprobs, self._frame.model, self._offset)
            self._offset += sum(len(token) for token in logprobs["tokens"])
            for key, values in logprobs.items():
                self._logprobs[key] += values
        self._text.append(piece.text)
        return [self._choice(piece.text, logprobs, None)]

    def take_finished(self, event: Finished) -> list[dict[str, Any]]:
        self.finished = event
        return [self._choice("", None, self.finish_reason)]

    @property
    def finish_reason(self) -> str:
        return "stop" if self.finished is not None and self.finished.reason == "stop" else "length"

    def whole(self) -> dict[str, Any]:
        """Return the finished choice as OpenAI's object."""
        return self._choice("".join(self._text), self._logprobs, self.finish_reason)

    def _choice(self, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": reason}


Answer = ChatAnswer | TextAnswer


def envelope(frame: Frame, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a chunk or object of the type `kind` around its choices."""
    return {
        "id": frame.id,
        "object": kind,
        "created": frame.created,
        "model": frame.model_name,
        "system_fingerprint": frame.fingerprint,
        "choices": choices,
    }


def usage(finished: Iterable[Finished]) -> dict[str, Any]:
    """Return the usage of all choices together. They share one prompt, which is counted once."""
    events = list(finished)
    prompt = events[0].prompt_tokens
    completion = sum(event.completion_tokens for event in events)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": events[0].cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def timings(event: Finished) -> dict[str, Any]:
    """Return llama-server's extra key `timings`, in milliseconds."""
    prompt_n = event.prompt_tokens - event.cached_tokens
    return {
        "cache_n": event.cached_tokens,
        "prompt_n": prompt_n,
        "prompt_ms": round(event.prompt_s * 1000, 3),
        "prompt_per_second": _rate(prompt_n, event.prompt_s),
        "predicted_n": event.completion_tokens,
        "predicted_ms": round(event.predicted_s * 1000, 3),
        "predicted_per_second": _rate(event.completion_tokens, event.predicted_s),
    }


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 2) if seconds > 0 else 0.0


def _chat_logprob(entry: TokenLogprob, model: Model) -> dict[str, Any]:
    return {
        **_token(entry.token, entry.logprob, model),
        "top_logprobs": [_token(token, logprob, model) for token, logprob in entry.top],
    }


def _token(token: int, logprob: float, model: Model) -> dict[str, Any]:
    data = model.piece(token, special=True)
    return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(data)}


def _empty_logprobs() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _text_logprobs(entries: Iterable[TokenLogprob], model: Model, offset: int) -> dict[str, list[Any]]:
    result = _empty_logprobs()
    for entry in entries:
        token = _token(entry.token, entry.logprob, model)
        result["tokens"].append(token["token"])
        result["token_logprobs"].append(token["logprob"])
        top = (_token(t, logprob, model) for t, logprob in entry.top)
        result["top_logprobs"].append({t["token"]: t["logprob"] for t in top})
        result["text_offset"].append(offset)
        offset += len(token["token"])
    return result
