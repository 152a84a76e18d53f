"""Lines and items of a batch file, however they are cut on their way."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.jobs.domain import batch
from goblin.jobs.domain.batch import DatasetCheck, LineSplitter, MalformedItem, parse_item
from tests.fakes.batch_host import item


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data in chunks of these sizes, over and over."""
    chunks, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        chunks.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return chunks


def feed_all(reader: LineSplitter | DatasetCheck, chunks: list[bytes]) -> None:
    for chunk in chunks:
        reader.feed(chunk)


@given(st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=12), st.data())
def test_lines_do_not_depend_on_how_the_bytes_are_cut(rows: list[bytes], data: st.DataObject) -> None:
    text = b"\n".join(rows) + data.draw(st.sampled_from([b"", b"\n"]))
    lines = LineSplitter(limit=100)
    found = []
    for chunk in cut(text, data.draw(st.lists(st.integers(1, 9), min_size=1))):
        found += lines.feed(chunk)
    found += lines.close()
    wanted = [(number, row) for number, row in enumerate(text.split(b"\n"), 1) if row.strip()]
    assert [(number, row) for number, _, row in found] == wanted
    for _, offset, row in found:
        assert text[:offset].removesuffix(b"\n").endswith(row), "a resume at the offset begins after the row"


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_line_over_the_limit_is_refused_before_it_is_held(chunk: int) -> None:
    lines = LineSplitter(limit=50)
    with pytest.raises(MalformedItem, match="line 2: over 50 bytes"):
        feed_all(lines, cut(b"short\n" + b"x" * 5000, [chunk]))


def test_openais_own_example_is_an_item() -> None:
    row = (
        '{"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-4o-mini", '
        '"messages": [{"role": "system", "content": "You are a helpful assistant."}], "max_tokens": 1000}}'
    )
    assert parse_item(row.encode(), 1).custom_id == "request-1"


@pytest.mark.parametrize(
    "changes",
    [
        {"custom_id": ""},
        {"custom_id": 7},
        {"custom_id": "x" * 513},
        {"method": "GET"},
        {"url": "/v1/chat/completions/"},
        {"url": "//evil/v1/embeddings"},
        {"body": None},
        {"body": [1]},
        {"body": {"stream": True}},
    ],
)
def test_what_is_no_item_names_its_line(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedItem, match="line 9"):
        parse_item(json.dumps(item(1, **changes)).encode(), 9)


@pytest.mark.parametrize("line", [b'{"custom_id": "\\ud800"}', b"\xff", b"", b"[]", b'"x"', b"{" * 5000])
def test_nonsense_is_malformed_and_nothing_worse(line: bytes) -> None:
    with pytest.raises(MalformedItem):
        parse_item(line, 1)


def test_as_many_items_as_openai_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "ITEMS_MAX", 3)
    check = DatasetCheck()
    with pytest.raises(MalformedItem, match="line 4: more than 3 items"):
        feed_all(check, [json.dumps(item(number)).encode() + b"\n" for number in range(4)])
