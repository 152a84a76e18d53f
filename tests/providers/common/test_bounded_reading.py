"""Answers that would take a reader the square of their length, or memory without end, if it let them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest

from goblin.core.decoding import UNREADABLE
from goblin.core.errors import ProviderUnavailable
from goblin.gateway.stream_usage import TOOL_CALLS_MAX
from goblin.providers.common import chunk_reader, reading, sse
from goblin.providers.common.chunk_reader import CHOICES_MAX, ChunkReader
from goblin.providers.common.http import Upstream
from goblin.providers.common.reading import count_of
from goblin.providers.ollama import inference as ollama
from tests.fakes.odd_answers import chunk
from tests.providers.common.test_odd_answers import Answers, ask


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test reaches."""
    monkeypatch.setattr(sse, "LINE_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(chunk_reader, "TORN_BYTES_MAX", 4 << 20)
    monkeypatch.setattr(ollama, "TORN_BYTES_MAX", 4 << 20)


def reader(**more: Any) -> ChunkReader:
    return ChunkReader(Upstream("e", "http://host", None, httpx.AsyncClient()), **more)


def feed(chunks: Iterable[bytes], **more: Any) -> None:
    here = reader(**more)
    started = time.process_time()
    for data in chunks:
        for _ in here.read(data):
            pass
        assert time.process_time() - started < 20


def said(delta: Any, **more: Any) -> bytes:
    return json.dumps(chunk(delta, **more)).encode()


def call(arguments: str, **more: Any) -> dict[str, Any]:
    return {"function": {"arguments": arguments, **({"name": "add"} if "id" in more else {})}, **more}


def torn() -> Iterator[bytes]:
    yield b'{"choices": "'
    while True:
        yield b"x" * 100


def nameless() -> Iterator[bytes]:
    while True:
        yield said({"tool_calls": [call("x" * 200, index=0)]})


def renamed(field: str) -> Iterator[bytes]:
    yield said({"tool_calls": [call("{", id="c", index=0)]})
    for number in range(1_000_000):
        yield said({"tool_calls": [{field: number if field == "index" else f"c{number}"}]})


BRACES = b'{"choices": [{"delta": {"x": ' + b"[" * 40 + b"]" * 40 + b"}}]}"
ENDLESS: dict[str, Iterable[bytes]] = {
    "a chunk in many events": torn(),
    "lines that begin a chunk": [b"{\n" * 100_000],
    "calls in one chunk": [said({"tool_calls": [call("{}", id=f"c{n}") for n in range(20_000)]})],
    "calls in many chunks": (said({"tool_calls": [call("{}", id=f"c{n}", index=n)]}) for n in range(20_000)),
    "arguments of no call": nameless(),
    "indexes of one call": renamed("index"),
    "ids of one call": renamed("id"),
    "choices": [json.dumps({"choices": [{"index": n, "delta": {"content": "a"}} for n in range(20_000)]}).encode()],
    "nesting": [BRACES],
    "nesting in a list": [b"[" + BRACES + b"]"],
    "many brackets": [b'{"choices": [' + b"{}," * 600_000 + b"{}]}"],
}


@pytest.mark.parametrize("chunks", ENDLESS.values(), ids=ENDLESS)
def test_what_has_no_end_ends_as_a_broken_answer(chunks: Iterable[bytes]) -> None:
    with pytest.raises(ProviderUnavailable):
        feed(chunks)


@pytest.mark.parametrize("name", ["choices", "nesting", "nesting in a list", "many brackets"])
def test_so_does_the_older_route(name: str) -> None:
    with pytest.raises(ProviderUnavailable):
        feed(ENDLESS[name], completes=True)


async def test_a_value_of_many_lines_that_does_not_end_is_no_line() -> None:
    body = b'{"message": {"content": "' + b'\n"},' * 400_000
    with pytest.raises(ProviderUnavailable):
        await ask(Answers([body], "application/x-ndjson"), "ollama")


def test_as_many_as_an_answer_has_are_read() -> None:
    feed([said({"tool_calls": [call("{}", id=f"c{n}") for n in range(TOOL_CALLS_MAX)]})])
    feed([json.dumps({"choices": [{"index": n, "delta": {"content": "a"}} for n in range(CHOICES_MAX)]}).encode()])
    pieces = [call("x", index=n % 7, **({"id": f"c{n}"} if n < 7 else {})) for n in range(50_000)]
    feed([said({"tool_calls": pieces})])


@pytest.mark.parametrize("said", [b"[" * 33 + b"]" * 33, b'"\\ud800', b"[1" + b"0" * 5000 + b"]", b"\xff", b"", b"{"])
def test_what_cannot_be_parsed_raises_what_means_that(said: bytes) -> None:
    with pytest.raises(UNREADABLE):
        reading.parsed(said)


@pytest.mark.parametrize(
    ("said", "count"),
    [("7", 7), ("7.0", 7), ("٣", None), ("1_0", None), ("9" * 400, None), (" 7", 7), ("1e3", 1000), ("nan", None)],
)
def test_a_count_has_ascii_digits(said: str, count: int | None) -> None:
    assert count_of(said) == count


def test_an_openai_server_cannot_write_events_of_another_wire() -> None:
    here = reader()
    event = {"type": "message_start", "message": {}}
    found = [one for data in ({"content": "a"}, {"content": "b", "event": event}) for one in here.read(said(data))]
    assert [choice.delta.content for one in found for choice in one.choices] == ["a", "b"]
    assert not any(choice.delta.event for one in found for choice in one.choices)


def test_the_stop_sequence_that_vllm_names_stays_with_the_reason() -> None:
    here = reader()
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "END"}]}
    for data in (said({"content": "a"}), json.dumps(end).encode()):
        list(here.read(data))
    (last,) = [choice for one in here.end() for choice in one.choices]
    assert (last.finish_reason, last.stop_reason) == ("stop", "END")
