"""Lines of Ollama's own wire as other servers and versions write them, each with what it means."""

from __future__ import annotations

import json
from typing import Any

import pytest

from goblin.core.errors import Fault, InvalidRequest, ProviderUnavailable
from goblin.gateway.domain.chat import ChatChunk, Usage
from tests.providers.common.test_odd_answers import Answers, ask, meant

COUNTS = {"prompt_eval_count": 11, "eval_count": 5}
DONE: dict[str, Any] = {"message": {"content": ""}, "done": True, "done_reason": "stop", **COUNTS}
CALL = ("add", {"a": 1})


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **more}, "done": False}


def called(*calls: Any) -> dict[str, Any]:
    return said("", tool_calls=list(calls))


def lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


async def answer(body: bytes, content_type: str = "application/x-ndjson") -> list[ChatChunk]:
    return await ask(Answers([body[:37], body[37:]], content_type), "ollama")


WHOLE = {"message": {"role": "assistant", "content": "Hello"}, "done": True, "done_reason": "stop"}


@pytest.mark.parametrize(
    ("body", "text", "thoughts"),
    [
        (lines(said("Hel"), said(None), said("lo"), DONE), "Hello", ""),
        (lines(said(["Hel", {"type": "text", "text": "lo"}]), DONE), "Hello", ""),
        (lines(said("Hello", thinking=None, images=None, tool_calls=None), DONE), "Hello", ""),
        (lines(said("Hello", thinking=["Hm."]), DONE), "Hello", "Hm."),
        (lines(said("Hello", tool_calls=[]), said("", tool_calls={}), DONE), "Hello", ""),
        (lines({"message": None}, said("Hello"), {**DONE, "message": None}), "Hello", ""),
        (lines({**said("Hello"), "created_at": 7, "model": None, "context": "x"}, DONE), "Hello", ""),
        (lines(said("Hello"), {**DONE, "done": "true", "done_reason": None}), "Hello", ""),
        (lines(said("Hello"), {**DONE, "done_reason": 7}), "Hello", ""),
        (lines(None, said("Hello"), [], "ping", DONE), "Hello", ""),
        (b": hi\n\n" + b"\n\n".join(b"data: " + line for line in lines(said("Hello"), DONE).splitlines()), "Hello", ""),
        (lines(said("Hello"), DONE).replace(b"\n", b"\r\n"), "Hello", ""),
        (lines(said("Hello"), DONE).rstrip(), "Hello", ""),
        (json.dumps(WHOLE).encode(), "Hello", ""),
        (json.dumps(WHOLE, indent=2).encode(), "Hello", ""),
        (lines(said("\ud83c"), said("\udf0d"), DONE), "🌍", ""),
        (lines(said("\ud83c"), DONE), "\ufffd", ""),
        (lines(said("Hello"), DONE).replace(b"Hello", b"W\xc3") + b"{oh", "W\ufffd", ""),
    ],
)  # fmt: skip
async def test_an_answer_means_what_it_says(body: bytes, text: str, thoughts: str) -> None:
    got = meant(await answer(body))
    assert got == {"text": text, "thoughts": thoughts, "calls": (), "reasons": ["stop"]}


@pytest.mark.parametrize(
    ("calls", "meaning"),
    [
        ([{"function": {"name": "add", "arguments": {"a": 1}}}], (CALL,)),
        ([{"function": {"name": "add", "arguments": '{"a": 1}'}}], (CALL,)),
        ([{"id": 17, "function": {"index": 0, "name": "add", "arguments": {"a": 1}}}], (CALL,)),
        ([{"function": {"name": "now", "arguments": None}}], (("now", {}),)),
        ([{"function": {"name": "now"}}], (("now", {}),)),
        ([{"function": {"name": "now", "arguments": {}}}, {"function": {"name": "now", "arguments": {}}}],
         (("now", {}), ("now", {}))),
        ([None, {"function": {"name": "add", "arguments": {"a": 1}}, "type": 7}], (CALL,)),
    ],
)  # fmt: skip
async def test_calls_are_whole(calls: list[Any], meaning: tuple[Any, ...]) -> None:
    for body in (lines(called(*calls), DONE), lines(*(called(call) for call in calls), DONE)):
        got = meant(await answer(body))
        assert (got["calls"], got["reasons"]) == (meaning, ["tool_calls"])


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        (COUNTS, (11, 5)),
        ({"prompt_eval_count": "11", "eval_count": 5.0}, (11, 5)),
        ({"eval_count": 5}, (0, 5)),
        ({"prompt_eval_count": 11}, (11, 0)),
        ({"prompt_eval_count": None, "eval_count": None}, None),
        ({"prompt_eval_count": -1, "eval_count": 1e300}, None),
        ({"prompt_eval_count": 0, "eval_count": 0}, None),
    ],
)
async def test_counts_are_read_where_there_are_some(counts: Any, usage: tuple[int, int] | None) -> None:
    chunks = await answer(lines(said("Hello"), {"message": {}, "done": True, **counts}))
    told = [chunk.usage for chunk in chunks if isinstance(chunk.usage, Usage)]
    assert [(one.prompt_tokens, one.completion_tokens) for one in told] == ([] if usage is None else [usage])


@pytest.mark.parametrize(
    ("error", "kind", "fault"),
    [
        ("the input length exceeds the context length", InvalidRequest, None),
        ("server busy, please try again. maximum pending requests exceeded", ProviderUnavailable, Fault.CAPACITY),
        ("model 'x' not found, try pulling it first", ProviderUnavailable, Fault.MISSING),
        ("an error was encountered while running the model: CUDA error", ProviderUnavailable, Fault.TRANSIENT),
        ({"message": "boom"}, ProviderUnavailable, Fault.TRANSIENT),
    ],
)
async def test_an_error_before_and_after_the_first_word(error: Any, kind: type[Exception], fault: Fault | None) -> None:
    with pytest.raises(kind) as caught:
        await answer(lines({"error": error}))
    assert getattr(caught.value, "fault", None) is fault
    with pytest.raises(ProviderUnavailable):
        await answer(lines(said("Hel"), {"error": error}))


@pytest.mark.parametrize(
    "rest", [b"", b"{oh\n", b'{"message": {"content": "lo"}, "do', lines({**DONE, "done_reason": "error"})]
)
async def test_half_an_answer_is_not_whole(rest: bytes) -> None:
    with pytest.raises(ProviderUnavailable):
        await answer(lines(said("Hel")) + rest)
