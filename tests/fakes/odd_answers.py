"""Answers as upstreams really write them, each with what it means; from public bug reports, all in OpenAI's wire."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

TEXT = "Hello, Wörld 🌍"
CALL = ("add", {"a": 1})
OTHER = ("add", {"b": 2})
USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
BASE = {"id": "chatcmpl-up", "object": "chat.completion.chunk", "created": 7, "model": "tiny"}


@dataclass(frozen=True, kw_only=True)
class Odd:
    """One answer, and what every face must make of it."""

    name: str
    body: bytes
    text: str = TEXT
    thoughts: str = ""
    calls: tuple[tuple[str, Any], ...] = ()
    finish: str = "stop"
    usage: tuple[int | None, int | None] | None = (11, 5)
    """Tokens of prompt and completion that the upstream counted; None where it did not, so that we estimate."""
    content_type: str = "text/event-stream"


def chunk(delta: Any, finish: Any = None, **more: Any) -> dict[str, Any]:
    return {**BASE, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def event(value: Any) -> bytes:
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()


def sse(values: Iterable[Any]) -> bytes:
    return b"".join(event(value) for value in values)


HEAD = chunk({"role": "assistant", "content": ""})
SAID = [HEAD, *(chunk({"content": word}) for word in ("Hel", "lo", ",", " Wörld", " 🌍"))]
STOP = chunk({}, "stop")
COUNTED = {**BASE, "choices": [], "usage": USAGE}
TAIL = [STOP, COUNTED, "[DONE]"]


def called(name: str, *pieces: Any, finish: Any = "tool_calls", **expected: Any) -> Odd:
    """An answer of tool calls alone; each piece is one delta's `tool_calls`."""
    chunks = [HEAD, *(chunk({"tool_calls": piece}) for piece in pieces), chunk({}, finish), COUNTED, "[DONE]"]
    meant = {"text": "", "calls": (CALL,), "finish": "tool_calls", **expected}
    return Odd(name=f"call: {name}", body=sse(chunks), **meant)


def fn(arguments: Any = None, name: Any = None, **more: Any) -> dict[str, Any]:
    said = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {**more, "function": said}


def ended(name: str, *tail: Any, **expected: Any) -> Odd:
    return Odd(name=name, body=sse([*SAID, *tail]), **expected)


def worded(name: str, *chunks: Any, **expected: Any) -> Odd:
    return Odd(name=name, body=sse([*chunks, *TAIL]), **expected)


def _choice(**fields: Any) -> dict[str, Any]:
    return {**BASE, "choices": [{"index": 0, "finish_reason": None, **fields}]}


PARTS = [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "Wörld 🌍"}]
WHOLE = {
    "id": "x",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
    "usage": USAGE,
}
WHOLE_CALL = {
    "choices": [{"message": {"content": None, "tool_calls": [fn({"a": 1}, "add", id="c1")]}, "finish_reason": "stop"}],
    "usage": USAGE,
}
GOOD = sse([*SAID, *TAIL])
HALVES = rb'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}' + b"\n\n"

TEXTS = [
    worded("delta: null", HEAD, _choice(delta=None), *SAID[1:]),
    worded("data: null", "null", *SAID, "null"),
    worded("no head", *SAID[1:]),
    worded("content in parts", chunk({"content": PARTS})),
    worded("content is one part", chunk({"content": PARTS[0]}), chunk({"content": PARTS[1]})),
    worded(
        "thoughts in parts",
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]}),
        *SAID,
        thoughts="Hm.",
    ),
    worded("thoughts as reasoning", chunk({"reasoning": "Hm."}), *SAID, thoughts="Hm."),
    worded("thoughts as thinking", chunk({"thinking": "Hm."}), *SAID, thoughts="Hm."),
    worded(
        "thoughts as details",
        chunk({"reasoning_details": [{"type": "reasoning.text", "text": "Hm."}], "content": None}),
        *SAID,
        thoughts="Hm.",
    ),
    worded("logprobs: []", *({**one, "choices": [{**one["choices"][0], "logprobs": []}]} for one in SAID)),
    worded("odd decorations", *({**one, "created": "now", "id": 7, "model": None, "object": []} for one in SAID)),
    worded("odd fingerprint", *({**one, "system_fingerprint": 7, "service_tier": {}} for one in SAID)),
    worded("role: null", *(chunk({"role": None, **one["choices"][0]["delta"]}) for one in SAID[1:])),
    worded("role: 7", chunk({"role": 7, "content": TEXT})),
    worded("no index", *({**BASE, "choices": [{"delta": one["choices"][0]["delta"]}]} for one in SAID)),
    worded("index as text", *(_choice(index="0", delta=one["choices"][0]["delta"]) for one in SAID)),
    worded("index: null", *(_choice(index=None, delta=one["choices"][0]["delta"]) for one in SAID)),
    worded("choices as an object", *({**BASE, "choices": one["choices"][0]} for one in SAID)),
    worded("choices: null between", {**BASE, "choices": None}, *SAID, {"choices": [None]}),
    worded(
        "filter results without a delta",
        *SAID,
        {"choices": [{"index": 0, "finish_reason": None, "content_filter_results": {}, "content_filter_offsets": {}}]},
    ),
    worded("filter results first", {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}, *SAID),
    worded(
        "tool_calls: null, [] and {}",
        *(
            chunk({"content": w, "tool_calls": t})
            for w, t in zip(("Hello", ", ", "Wörld", " 🌍"), (None, [], {}, ""), strict=True)
        ),
    ),
    worded("error: null", *({**one, "error": None} for one in SAID)),
    worded("error with code 0", *({**one, "error": {"code": 0, "message": ""}} for one in SAID)),
    worded("in an envelope", *({"code": 0, "data": one} for one in SAID)),
    worded("text in a chat", *(_choice(text=one["choices"][0]["delta"]["content"]) for one in SAID)),
    worded("message in a stream", _choice(message={"role": "assistant", "content": TEXT})),
    worded("message again at the end", *SAID, _choice(delta={}, message={"role": "assistant", "content": TEXT})),
    worded("function_call: null", *(chunk({**one["choices"][0]["delta"], "function_call": None}) for one in SAID)),
    worded("audio: false", *(chunk({**one["choices"][0]["delta"], "audio": False, "refusal": ""}) for one in SAID)),
    worded("a number", chunk({"content": "7 "}), chunk({"content": 8}), text="7 8"),
    Odd(
        name="surrogates in two chunks",
        body=sse([HEAD]) + HALVES % rb"Hello, W\u00f6rld \ud83c" + HALVES % rb"\udf0d" + sse(TAIL),
    ),
    Odd(
        name="bytes in two chunks",
        body=sse([HEAD]) + HALVES % b"Hello, W\xc3" + HALVES % b"\xb6rld \xf0\x9f" + HALVES % b"\x8c\x8d" + sse(TAIL),
    ),
    Odd(name="half a surrogate", body=sse([HEAD]) + HALVES % rb"Hello \ud83c" + sse(TAIL), text="Hello \ufffd"),
    Odd(name="a chunk in two events", body=GOOD.replace(b'"delta"', b'"del\n\ndata: ta"', 2)),
    Odd(name="two choices' names", body=GOOD.replace(b'"index": 0', b'"index": 1')),
]

FRAMES = [
    Odd(name="CRLF", body=GOOD.replace(b"\n", b"\r\n")),
    Odd(name="CR", body=GOOD.replace(b"\n", b"\r")),
    Odd(name="no space", body=GOOD.replace(b"data: ", b"data:")),
    Odd(name="byte order mark", body=b"\xef\xbb\xbf" + GOOD),
    Odd(name="white space first", body=b"\r\n\n  \n" + GOOD),
    Odd(name="comments", body=b": OPENROUTER PROCESSING\n\n" + GOOD.replace(b"\n\n", b"\n: ping\n\n")),
    Odd(name="empty data", body=GOOD.replace(b"\n\n", b"\n\ndata:\n\ndata: \n\n", 3)),
    Odd(name="keep-alive words", body=b"data: ping\n\nevent: ping\ndata: {}\n\n" + GOOD),
    Odd(name="ids and retry", body=GOOD.replace(b"data:", b"id: 1\nretry: 5\nevent: completion\ndata:")),
    Odd(name="several lines of data", body=GOOD.replace(b', "choices"', b',\ndata: "choices"')),
    Odd(name="one line each", body=GOOD.replace(b"\n\n", b"\n")),
    Odd(name="no [DONE]", body=GOOD.replace(b"data: [DONE]\n\n", b"")),
    Odd(name="[DONE] in the same event", body=GOOD.replace(b"\n\ndata: [DONE]", b"\ndata: [DONE]")),
    Odd(name="no blank line at the end", body=sse(SAID) + sse([COUNTED]) + event(STOP).rstrip()),
    Odd(name="usage after [DONE]", body=sse([*SAID, STOP, "[DONE]", COUNTED])),
    Odd(name="words after the reason", body=sse([*SAID[:-1], STOP, SAID[-1], COUNTED, "[DONE]"])),
    Odd(name="the reason twice", body=sse([*SAID, STOP, {**STOP, "usage": USAGE}, "[DONE]"])),
    Odd(name="an error after the reason", body=sse([*SAID, *TAIL[:2], {"error": {"message": "late"}}])),
    Odd(name="nonsense after the reason", body=sse([*SAID, *TAIL[:2]]) + b"data: {oh\n\n"),
    *(
        Odd(name=f"as {kind or 'nothing'}", body=GOOD, content_type=kind)
        for kind in ("text/plain", "application/json", "application/octet-stream", "text/html; charset=utf-8", "")
    ),
    Odd(name="whole JSON", body=json.dumps(WHOLE).encode(), content_type="application/json"),
    Odd(name="whole JSON, indented", body=json.dumps(WHOLE, indent=2).encode(), content_type="application/json"),
    Odd(name="whole JSON as an event stream", body=json.dumps(WHOLE).encode()),
    Odd(name="whole JSON as one event", body=sse([WHOLE, "[DONE]"])),
    Odd(name="a list of chunks", body=json.dumps([*SAID, STOP, COUNTED]).encode(), content_type="application/json"),
    Odd(
        name="lines of chunks",
        body=b"\n".join(json.dumps(one).encode() for one in [*SAID, STOP, COUNTED]),
        content_type="application/x-ndjson",
    ),
]

REASONS = [
    *(
        ended(f"reason {reason}", chunk({}, reason), COUNTED)
        for reason in (
            *("eos", "eos_token", "STOP", "end_turn", "END_TURN", "stop_sequence", "COMPLETE", "end", "complete"),
            *(
                "FINISH_REASON_STOP",
                "stopped_eos",
                "endTurn",
                "unknown",
                "other",
                7,
                True,
                {"type": "stop", "matched": 2},
            ),
        )
    ),
    *(
        ended(f"reason {reason}", chunk({}, reason), COUNTED, finish="length")
        for reason in (
            "length",
            "max_tokens",
            "MAX_TOKENS",
            "model_length",
            "token_limit",
            "maxTokens",
            "stopped_limit",
            "model_context_window_exceeded",
            {"type": "length", "length": 5},
        )
    ),
    *(
        ended(f"reason {reason}", chunk({}, reason), COUNTED, finish="content_filter")
        for reason in ("content_filter", "SAFETY", "sensitive", "refusal", "guardrail_intervened", "content_filtered")
    ),
    ended("no calls, although it says so", chunk({}, "tool_calls"), COUNTED),
    ended("reason in the last words", chunk({"content": ""}, "stop"), COUNTED),
    ended("empty reasons before", {**chunk({}), "choices": [{"delta": {}, "finish_reason": ""}]}, STOP, COUNTED),
]

BROKEN_REASONS = (
    *("error", "abort", "aborted", "cancelled", "timeout", "time_limit", "network_error", "internal_error", "ERROR"),
    *("insufficient_system_resource", "MALFORMED_FUNCTION_CALL", {"type": "abort", "message": "x"}),
)

COUNTS = [
    ended("usage in the last chunk", {**STOP, "usage": USAGE}),
    ended("usage under x_groq", {**STOP, "x_groq": {"id": "r", "usage": USAGE}}),
    ended("usage in the choice", {**BASE, "choices": [{"delta": {}, "finish_reason": "stop", "usage": USAGE}]}),
    ended("counts as floats", STOP, {"choices": [], "usage": {"prompt_tokens": 11.0, "completion_tokens": 5.0}}),
    ended("counts as text", STOP, {"choices": [], "usage": {"prompt_tokens": "11", "completion_tokens": "5"}}),
    ended("counts by Anthropic's names", STOP, {"choices": [], "usage": {"input_tokens": 11, "output_tokens": 5}}),
    ended("prompt and total", STOP, {"choices": [], "usage": {"prompt_tokens": 11, "total_tokens": 16}}),
    ended(
        "thoughts beside the completion",
        STOP,
        {
            "choices": [],
            "usage": {
                "prompt_tokens": 11,
                "completion_tokens": 2,
                "total_tokens": 16,
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
        },
    ),
    ended(
        "odd details",
        STOP,
        {
            "choices": [],
            "usage": {**USAGE, "prompt_tokens_details": [], "completion_tokens_details": {"reasoning_tokens": "x"}},
        },
    ),
    Odd(
        name="cumulative usage",
        body=sse(
            [
                *(
                    {**one, "usage": {"prompt_tokens": 11, "completion_tokens": i, "total_tokens": 11 + i}}
                    for i, one in enumerate(SAID)
                ),
                STOP,
                "[DONE]",
            ]
        ),
    ),
    Odd(
        name="zeros until the end",
        body=sse([*({**one, "usage": dict.fromkeys(USAGE, 0)} for one in SAID), {**STOP, "usage": USAGE}, "[DONE]"]),
    ),
    Odd(name="zeros after it", body=sse([*SAID, STOP, COUNTED, {"choices": [], "usage": dict.fromkeys(USAGE, 0)}])),
    Odd(name="empty usage after it", body=sse([*SAID, STOP, COUNTED, {"choices": [], "usage": {}}])),
    ended("prompt only", STOP, {"choices": [], "usage": {"prompt_tokens": 11}}, usage=(11, None)),
    ended("prompt and its total", STOP, {"usage": {"prompt_tokens": 11, "total_tokens": 11}}, usage=(11, None)),
    ended("completion only", STOP, {"choices": [], "usage": {"completion_tokens": 5}}, usage=(None, 5)),
    *(
        ended(f"usage: {json.dumps(said)}", STOP, {"choices": [], "usage": said}, usage=None)
        for said in (
            *(None, {}, [], "x", 7, False, dict.fromkeys(USAGE, 0), dict.fromkeys(USAGE), dict.fromkeys(USAGE, "many")),
            *(
                dict.fromkeys(USAGE, -1),
                dict.fromkeys(USAGE, 1e300),
                dict.fromkeys(USAGE, 10**18),
                dict.fromkeys(USAGE, True),
            ),
            *(dict.fromkeys(USAGE, 1.5), {"prompt_tokens": {}, "completion_tokens": []}, {"total_tokens": 16}),
        )
    ),
]

HEADS = [[fn("", "add", id="c1", index=0)], [fn('{"a"', index=0)], [fn(": 1}", index=0)]]
CALLS = [
    called("as OpenAI does", *HEADS),
    called("ends in stop", *HEADS, finish="stop"),
    called("ends in STOP", *HEADS, finish="STOP"),
    called("ends in end_turn", *HEADS, finish="end_turn"),
    called("ends in tool_use", *HEADS, finish="tool_use"),
    called("no index", [fn("", "add", id="c1")], [fn('{"a"')], [fn(": 1}")]),
    called("no index, ids everywhere", [fn("", "add", id="c1")], [fn('{"a"', id="c1")], [fn(": 1}", id="c1")]),
    called("index: null", [fn("", "add", id="c1", index=None)], [fn('{"a": 1}', index=None)]),
    called("index as text", [fn("", "add", id="c1", index="0")], [fn('{"a": 1}', index="0")]),
    called("index from 1", [fn("", "add", id="c1", index=1)], [fn('{"a": 1}', index=1)]),
    called("no id", [fn("", "add", index=0)], [fn('{"a": 1}', index=0)]),
    called("id is a number", [fn('{"a": 1}', "add", index=0, id=17)]),
    called(
        "another id in each piece",
        [fn("", "add", id="r1", index=0)],
        [fn('{"a"', id="r2", index=0)],
        [fn(": 1}", id="r3", index=0)],
    ),
    called("id after the name", [fn("", "add", index=0)], [fn("", id="c1", index=0)], [fn('{"a": 1}', index=0)]),
    called("name after the id", [fn("", index=0, id="c1")], [fn("", "add", index=0)], [fn('{"a": 1}', index=0)]),
    called("name after the arguments", [fn('{"a": 1}', index=0, id="c1")], [fn("", "add", index=0)]),
    called("name in two pieces", [fn("", "a", id="c1", index=0)], [fn("", "dd", index=0)], [fn('{"a": 1}', index=0)]),
    called(
        "name in every piece",
        [fn("", "add", id="c1", index=0)],
        [fn('{"a"', "add", index=0)],
        [fn(": 1}", "add", index=0)],
        [fn("", "add", index=0)],
    ),
    called(
        "name and id in every piece",
        [fn("", "add", id="c1", index=0)],
        [fn('{"a"', "add", id="c1", index=0)],
        [fn(": 1}", "add", id="c1", index=0)],
    ),
    called(
        "another id and an empty piece at the end",
        *HEADS,
        [fn("", "", id="r2", index=0)],
        [fn("", id="r3", index=0)],
        [{"id": "r4", "index": 1}],
    ),
    called("an empty piece in between", [{"index": 0}], [fn("", "add", id="c1", index=1)], [fn('{"a": 1}', index=1)]),
    called("id inside the function", [{"index": 0, "function": {"id": "c1", "name": "add", "arguments": '{"a": 1}'}}]),
    called("arguments encoded twice at the end", *HEADS, [fn(json.dumps('{"a": 1}'), "add", id="c1", index=0)]),
    called("the whole call again", *HEADS, [fn('{"a": 1}', "add", id="c1", index=0)]),
    called("arguments again without a name", *HEADS, [fn('{"a": 1}', index=0)]),
    called("arguments as an object", [fn({"a": 1}, "add", id="c1", index=0)]),
    called("arguments: {} first", [fn("{}", "add", id="c1", index=0)], [fn('{"a": 1}', index=0)]),
    called(
        "arguments: null first",
        [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": None}}],
        [fn('{"a": 1}', index=0)],
    ),
    called("flat", [{"index": 0, "id": "c1", "name": "add", "arguments": '{"a": 1}'}]),
    called("parameters", [{"id": "c1", "function": {"name": "add", "parameters": {"a": 1}}}]),
    called("one call, not a list", fn('{"a": 1}', "add", id="c1", index=0)),
    called("null among them", [None, fn('{"a": 1}', "add", id="c1", index=0), 7]),
    called("type: null", [fn("", "add", id="c1", index=0, type=None)], [fn('{"a": 1}', index=0, type="")]),
    called("no arguments", [fn("", "now", id="c1", index=0)], calls=(("now", {}),)),
    called("arguments: null", [{"id": "c1", "function": {"name": "now", "arguments": None}}], calls=(("now", {}),)),
    called(
        "two",
        [fn("", "add", id="c1", index=0)],
        [fn('{"a": 1}', index=0)],
        [fn("", "add", id="c2", index=1)],
        [fn('{"b": 2}', index=1)],
        calls=(CALL, OTHER),
    ),
    called(
        "two under one index",
        [fn("", "add", id="c1", index=0)],
        [fn('{"a": 1}', index=0)],
        [fn("", "add", id="c2", index=0)],
        [fn('{"b": 2}', index=0)],
        calls=(CALL, OTHER),
    ),
    called(
        "two whole under one index",
        [fn('{"a": 1}', "add", id="c1", index=0)],
        [fn('{"b": 2}', "add", id="c2", index=0)],
        calls=(CALL, OTHER),
    ),
    called(
        "two whole under one index in one chunk",
        [fn('{"a": 1}', "add", id="c1", index=0), fn('{"b": 2}', "add", id="c2", index=0)],
        calls=(CALL, OTHER),
    ),
    called(
        "two under one index without ids",
        [fn('{"a": 1}', "add", index=0)],
        [fn('{"b": 2}', "add", index=0)],
        calls=(CALL, OTHER),
    ),
    called(
        "two under one index, heads first",
        [fn("", "add", index=0)],
        [fn('{"a": 1}', index=0)],
        [fn("", "add", index=0)],
        [fn('{"b": 2}', index=0)],
        calls=(CALL, OTHER),
    ),
    called(
        "two without index",
        [fn("", "add", id="c1")],
        [fn('{"a": 1}')],
        [fn("", "add", id="c2")],
        [fn('{"b": 2}')],
        calls=(CALL, OTHER),
    ),
    called("two without index and id", [fn('{"a": 1}', "add")], [fn('{"b": 2}', "add")], calls=(CALL, OTHER)),
    called("two without index in one chunk", [fn({"a": 1}, "add"), fn({"b": 2}, "add")], calls=(CALL, OTHER)),
    called(
        "two in turn",
        [fn("", "add", id="c1", index=0), fn("", "add", id="c2", index=1)],
        [fn('{"b"', index=1), fn('{"a"', index=0)],
        [fn(": 1}", index=0)],
        [fn(": 2}", index=1)],
        calls=(CALL, OTHER),
    ),
    called(
        "two in turn by ids",
        [fn('{"a"', "add", id="c1")],
        [fn('{"b"', "add", id="c2")],
        [fn(": 1}", id="c1")],
        [fn(": 2}", id="c2")],
        calls=(CALL, OTHER),
    ),
    called(
        "two without arguments",
        [fn("{}", "now", id="c1")],
        [fn("{}", "add", id="c2")],
        calls=(("now", {}), ("add", {})),
    ),
    called("one twice without arguments", [fn({}, "now")], [fn({}, "now")], calls=(("now", {}), ("now", {}))),
    called(
        "braces in text",
        [fn('{"a": "}{', "add", id="c1", index=0)],
        [fn('\\"}', index=0)],
        [fn('"}', index=0)],
        calls=(("add", {"a": '}{"}'}),),
    ),
    called(
        "an escape in two pieces",
        [fn('{"a": "x\\', "add", id="c1", index=0)],
        [fn('"}"', index=0)],
        [fn("}", index=0)],
        calls=(("add", {"a": 'x"}'}),),
    ),
    Odd(
        name="calls after the reason",
        text="",
        calls=(CALL,),
        finish="tool_calls",
        body=sse([HEAD, STOP, chunk({"tool_calls": [fn('{"a": 1}', "add", id="c1", index=0)]}), COUNTED, "[DONE]"]),
    ),
    Odd(
        name="words and a call",
        calls=(CALL,),
        finish="tool_calls",
        body=sse([*SAID, chunk({"tool_calls": [fn('{"a": 1}', "add", id="c1", index=0)]}, "stop"), COUNTED]),
    ),
    Odd(
        name="calls beside the delta",
        text="",
        calls=(CALL,),
        finish="tool_calls",
        body=sse([HEAD, _choice(delta={}, tool_calls=[fn('{"a": 1}', "add", id="c1")]), *TAIL]),
    ),
    Odd(
        name="a whole message with a call",
        text="",
        calls=(CALL,),
        finish="tool_calls",
        body=json.dumps(WHOLE_CALL).encode(),
        content_type="application/json",
    ),
]

ALL = [*TEXTS, *FRAMES, *REASONS, *COUNTS, *CALLS]
"""Every answer. Names are unique."""
