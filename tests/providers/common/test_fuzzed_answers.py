"""Good answers of every provider, mutated at random: what they say survives wherever it is still there.

`GOBLIN_FUZZ=20000 ./goblin test tests/providers/common/test_fuzzed_answers.py` tries more; a failure names its seed,
and `GOBLIN_SEED=17` replays exactly that one.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest

from goblin.core.endpoints import Endpoint
from goblin.core.errors import GoblinError, InvalidRequest, ProviderUnavailable
from goblin.gateway.domain import requests
from goblin.gateway.domain.chat import ChatChunk, Usage
from goblin.providers.common import http
from goblin.providers.runpod import queue as runpod_queue
from goblin.wiring import endpoints
from tests.providers.common.test_odd_answers import Pieces, meant

ROUNDS = int(os.environ.get("GOBLIN_FUZZ", "100"))
SEED = os.environ.get("GOBLIN_SEED")
TEXT = "Hello, Wörld 🌍"
THOUGHTS = "Hm, 🤔."
CALLS = (("add", {"a": 1, "ö": "}{"}), ("now", {}))
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("add", "now")]
JUNK: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    7,
    1.5,
    10**20,
    "",
    "x",
    "null",
    [],
    [None],
    [[]],
    {},
    {"x": [1]},
    "\ud83c",
]
Rng = random.Random


def _openai(words: list[str], thoughts: list[str], pieces: list[str]) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": thought} for thought in thoughts]
    deltas += [{"content": word} for word in words]
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}}
    deltas += [{"tool_calls": [first]}]
    deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in pieces]
    second = {"index": 1, "id": "c2", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    deltas += [{"tool_calls": [second]}]
    choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas]
    choices += [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}]
    base = {"id": "up", "object": "chat.completion.chunk", "created": 7, "model": "tiny", "system_fingerprint": "fp"}
    usage = {
        "prompt_tokens": 11,
        "completion_tokens": 5,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    return [
        *({**base, "choices": [choice], "usage": None} for choice in choices),
        {**base, "choices": [], "usage": usage},
    ]


def _anthropic(words: list[str], thoughts: list[str], pieces: list[str]) -> list[dict[str, Any]]:
    message = {"id": "m", "type": "message", "role": "assistant", "model": "tiny", "content": [], "stop_reason": None}
    usage = {"input_tokens": 11, "output_tokens": 1, "cache_read_input_tokens": 0, "service_tier": "standard"}
    found: list[dict[str, Any]] = [{"type": "message_start", "message": {**message, "usage": usage}}, {"type": "ping"}]

    def block(index: int, start: dict[str, Any], deltas: list[dict[str, Any]]) -> None:
        found.append({"type": "content_block_start", "index": index, "content_block": start})
        found.extend({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
        found.append({"type": "content_block_stop", "index": index})

    block(0, {"type": "thinking", "thinking": ""}, [{"type": "thinking_delta", "thinking": one} for one in thoughts])
    block(1, {"type": "text", "text": ""}, [{"type": "text_delta", "text": word} for word in words])
    called = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    block(2, {"type": "tool_use", "id": "c1", "name": "add", "input": {}}, called)
    block(3, {"type": "tool_use", "id": "c2", "name": "now", "input": {}}, [])
    stop = {"stop_reason": "tool_use", "stop_sequence": None}
    return [*found, {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 5}}, {"type": "message_stop"}]


def _ollama(words: list[str], thoughts: list[str], pieces: list[str]) -> list[dict[str, Any]]:
    base = {"model": "tiny", "created_at": "2026-01-01T00:00:00Z", "done": False}
    said: list[dict[str, Any]] = [{"content": "", "thinking": thought} for thought in thoughts]
    said += [{"content": word} for word in words]
    said += [{"content": "", "tool_calls": [{"function": {"name": "add", "arguments": json.loads("".join(pieces))}}]}]
    said += [{"content": "", "tool_calls": [{"function": {"name": "now", "arguments": {}}}]}]
    lines = [{**base, "message": {"role": "assistant", **one}} for one in said]
    counts = {"total_duration": 9, "load_duration": 2, "prompt_eval_count": 11, "eval_count": 5}
    end = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
    return [*lines, {**base, **end, **counts}]


GOOD: dict[str, Callable[[list[str], list[str], list[str]], list[dict[str, Any]]]] = {
    "openai": _openai,
    "groq": _openai,
    "llamacpp": _openai,
    "flyio": _openai,
    "runpod": _openai,
    "runpod:queue": _openai,
    "anthropic": _anthropic,
    "ollama": _ollama,
}
NEEDED = frozenset(
    {
        *(
            "choices",
            "delta",
            "content",
            "reasoning_content",
            "reasoning",
            "tool_calls",
            "function",
            "name",
            "arguments",
        ),
        *(
            "finish_reason",
            "index",
            "message",
            "thinking",
            "text",
            "partial_json",
            "content_block",
            "stop_reason",
            "done",
        ),
        *("input", "response", "error"),
    }
)
"""Fields that carry what an answer says, or where it belongs. `type` is one in Anthropic's wire."""


def cut(text: str, rng: Rng) -> list[str]:
    """Cut a text at random, also in the middle of a character's surrogates."""
    units = text.encode("utf-16-le", "surrogatepass")
    edges = sorted({0, len(units), *(2 * rng.randrange(len(units) // 2 + 1) for _ in range(rng.randrange(5)))})
    return [units[a:b].decode("utf-16-le", "surrogatepass") for a, b in itertools.pairwise(edges)]


def paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from paths(inner, (*before, key))


def decorate(events: list[dict[str, Any]], rng: Rng, kept: frozenset[str]) -> None:
    """Drop, null, retype, reorder and add what nobody needs."""
    for event in events:
        spare = [path for path in paths(event) if isinstance(path[-1], str) and not _needed(path, kept)]
        for path in rng.sample(spare, min(len(spare), rng.randrange(3))):
            holder = event
            try:
                for key in path[:-1]:
                    holder = holder[key]
                if rng.random() < 0.3 and isinstance(holder, dict):
                    del holder[path[-1]]
                else:
                    holder[path[-1]] = copy.deepcopy(rng.choice(JUNK))
            except (KeyError, IndexError, TypeError):
                continue  # An earlier mutation took it away.
        if rng.random() < 0.2:
            event[rng.choice(["provider", "obfuscation", "x_y", "logprobs", "timings", "p"])] = rng.choice(JUNK)
        if rng.random() < 0.3:
            shuffled = rng.sample(sorted(event.items(), key=lambda item: item[0]), len(event))
            event.clear()
            event.update(shuffled)


def _needed(path: tuple[Any, ...], kept: frozenset[str]) -> bool:
    """Tell whether a field says something; an id does where it tells calls apart."""
    inside = {"arguments", "input", "finish_reason"} & set(path)
    return path[-1] in kept or bool(inside) or ("tool_calls" in path and path[-1] == "id")


def restate(provider: str, events: list[dict[str, Any]], rng: Rng) -> None:
    """Say the same in another of the shapes that servers use."""
    for event in events:
        for choice in event.get("choices") or []:
            delta = choice["delta"]
            if delta.get("content") and rng.random() < 0.2:
                delta["content"] = [{"type": "text", "text": delta["content"]}]
            if delta.get("reasoning_content") and rng.random() < 0.2:
                delta[rng.choice(["reasoning", "thinking"])] = delta.pop("reasoning_content")
            if not delta and rng.random() < 0.3:
                choice["delta"] = None
            if choice["finish_reason"] and rng.random() < 0.5:
                choice["finish_reason"] = rng.choice(["stop", "STOP", "eos", "end_turn", "tool_use", {"type": "stop"}])
            if rng.random() < 0.2:
                choice["index"] = rng.choice([None, "0", 0.0])
            for call in delta.get("tool_calls") or []:
                if rng.random() < 0.1:
                    call["index"] = str(call["index"])
                if "name" in call["function"] and rng.random() < 0.2:
                    call["type"] = None
        for call in (event.get("message") or {}).get("tool_calls") or []:
            if provider == "ollama" and rng.random() < 0.3:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    if provider == "anthropic" and rng.random() < 0.5:
        start = next(event for event in events if event.get("content_block", {}).get("type") == "tool_use")
        start["content_block"]["input"] = CALLS[0][1]
        for event in [event for event in events if event.get("delta", {}).get("type") == "input_json_delta"]:
            events.remove(event)
    elif provider not in ("anthropic", "ollama") and rng.random() < 0.3:
        for event in events:  # Neither id nor number where a name begins the call and the rest follows.
            for call in [
                call for choice in event["choices"] for call in (choice["delta"] or {}).get("tool_calls") or []
            ]:
                del call["index"]


def framed(provider: str, events: list[dict[str, Any]], rng: Rng) -> tuple[bytes, str]:
    """Write events as bytes, in one of the ways in which they are written."""
    ascii_only = rng.random() < 0.5
    texts = [_raw(json.dumps(event, ensure_ascii=ascii_only)) for event in events]
    if provider == "ollama":
        return b"\n".join(texts) + rng.choice([b"", b"\n"]), rng.choice(["application/x-ndjson", "text/plain"])
    newline = rng.choice([b"\n", b"\r\n", b"\r"])
    space = rng.choice([b"", b" "])
    said = rng.choice([b"", b"\xef\xbb\xbf", b": hello" + newline * 2])
    for event, text in zip(events, texts, strict=True):
        named = b"event: " + _raw(_type_of(event)) + newline if provider == "anthropic" else b""
        said += named + b"data:" + space + text + newline * 2
        if rng.random() < 0.2:
            said += rng.choice([b":", b": ping", b"data:", b"data: null", b"retry: 5", b"id: 7"]) + newline * 2
    if provider != "anthropic" and rng.random() < 0.7:
        said += b"data: [DONE]" + newline * rng.randrange(3)
    elif rng.random() < 0.3:
        said = said.removesuffix(newline)
    return said, rng.choice(["text/event-stream", "text/event-stream; charset=utf-8", "text/plain", "application/json"])


def _raw(text: str) -> bytes:
    """Encode JSON; halves of characters that were not escaped become the escapes that they are."""
    return "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text).encode()


class Upstream(httpx.AsyncBaseTransport):
    """Sends one body in pieces; for a queue, as the outputs of a job."""

    def __init__(self, body: bytes, content_type: str, rng: Rng, outputs: list[Any] | None = None) -> None:
        edges = sorted({0, len(body), *(rng.randrange(len(body) + 1) for _ in range(rng.randrange(9)))})
        self._pieces = [body[a:b] for a, b in itertools.pairwise(edges)]
        self._headers = {"content-type": content_type}
        self._outputs = outputs

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        path = request.url.path
        if path.endswith("/run"):
            return httpx.Response(200, json={"id": "j", "status": "IN_QUEUE"})
        if "/stream/" in path:
            pieces, self._outputs = [{"output": one} for one in self._outputs or []], []
            return httpx.Response(200, content=json.dumps({"status": "COMPLETED", "stream": pieces}).encode())
        if "/status/" in path or "/cancel/" in path:
            return httpx.Response(200, json={"status": "COMPLETED", "output": None})
        return httpx.Response(200, headers=self._headers, stream=Pieces(self._pieces))


async def ask(name: str, upstream: Upstream) -> list[ChatChunk]:
    provider, _, route = name.partition(":")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS}
    asked = requests.parse(requests.ChatRequest, json.dumps(body).encode())
    options = {"route": route} if route else {}
    endpoint = Endpoint(name="e", provider=provider, url="http://host", api_key="k", models=("tiny",), options=options)
    async with asyncio.timeout(10), httpx.AsyncClient(transport=upstream) as client:
        return [chunk async for chunk in endpoints.connect(endpoint, client)[1].chat(asked, model="tiny")]


def seeds(name: str) -> Iterator[tuple[int, Rng]]:
    for seed in [int(SEED)] if SEED else range(ROUNDS):
        yield seed, Rng(f"{name} {seed}")


def recorded(name: str, rng: Rng) -> list[dict[str, Any]]:
    arguments = json.dumps(CALLS[0][1], ensure_ascii=False)
    pieces = [piece for piece in cut(arguments, rng) if piece] if "ollama" not in name else [arguments]
    return GOOD[name](cut(TEXT, rng), cut(THOUGHTS, rng), pieces)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LINGER_S", 0.05)
    monkeypatch.setattr(runpod_queue, "PAUSE_S", 0.0)


@pytest.mark.parametrize("name", sorted(GOOD))
async def test_what_an_answer_says_survives(name: str) -> None:
    kept = NEEDED | ({"type"} if name == "anthropic" else frozenset())
    for seed, rng in seeds(name):
        events = recorded(name, rng)
        restate(name, events, rng)
        decorate(events, rng, kept)
        body, content_type = framed(name, events, rng)
        outputs = [json.loads(_raw(json.dumps(event))) for event in events] if ":" in name else None
        if outputs is not None and rng.random() < 0.5:
            outputs = [f"data: {json.dumps(event)}\n\n" for event in events]
        try:
            got = meant(chunks := await ask(name, Upstream(body, content_type, rng, outputs)))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}\n{body.decode(errors='replace')}") from error
        wanted = {"text": TEXT, "thoughts": THOUGHTS, "calls": CALLS, "reasons": ["tool_calls"]}
        assert got == wanted, f"seed {seed}\n{body.decode(errors='replace')}"
        assert encoded(chunks), f"seed {seed}"


def harm(events: list[dict[str, Any]], rng: Rng) -> None:
    """Mutate anything at all."""
    for _ in range(rng.randrange(1, 6)):
        event = rng.choice(events)
        if rng.random() < 0.15:
            events.remove(event)
            events.insert(rng.randrange(len(events) + 1), rng.choice([event, *JUNK]))
            continue
        found = list(paths(event)) if isinstance(event, dict) else []
        if not found:
            continue
        path, holder = rng.choice(found), event
        for key in path[:-1]:
            holder = holder[key]
        if isinstance(holder, dict) and rng.random() < 0.3:
            del holder[path[-1]]
        else:
            holder[path[-1]] = copy.deepcopy(rng.choice(JUNK))


@pytest.mark.parametrize("name", sorted(GOOD))
async def test_whatever_comes_is_an_answer_or_our_own_error(name: str) -> None:
    answered = 0
    for seed, rng in seeds(f"harm {name}"):
        events: list[Any] = recorded(name.removeprefix("harm "), rng)
        harm(events, rng)
        body, content_type = framed(name, events, rng)
        if rng.random() < 0.3:
            at = rng.randrange(len(body))
            body = (
                body[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(3))) + body[at + rng.randrange(4) :]
            )
        outputs = [json.loads(_raw(json.dumps(event))) for event in events] if ":" in name else None
        try:
            chunks = await ask(name, Upstream(body, content_type, rng, outputs))
        except (ProviderUnavailable, InvalidRequest):
            continue
        except GoblinError as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}\n{body.decode(errors='replace')}") from error
        answered += 1
        assert encoded(chunks), f"seed {seed}"
        reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
        assert reasons, f"seed {seed}"
        assert set(reasons) <= {"stop", "length", "tool_calls", "content_filter", "function_call"}, f"seed {seed}"
        for usage in [chunk.usage for chunk in chunks if isinstance(chunk.usage, Usage)]:
            assert 0 <= usage.prompt_tokens <= 10**9 >= usage.completion_tokens >= 0, f"seed {seed}"
    assert answered > ROUNDS // 5 or SEED


def _type_of(event: Any) -> str:
    return str(event.get("type")) if isinstance(event, dict) else "x"


def encoded(chunks: list[ChatChunk]) -> bool:
    """Tell whether the faces can write the chunks."""
    try:
        return bool(msgspec.json.encode(chunks))
    except ValueError:
        return False
