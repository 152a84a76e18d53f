"""Server-sent events do not depend on how the network cuts them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.providers.common import sse
from goblin.providers.common.sse import EventParser, EventTooLarge, ServerEvent

NEWLINES = st.sampled_from(["\n", "\r\n", "\r"])
WORDS = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)


@given(
    events=st.lists(st.tuples(st.sampled_from(["message", "error", "ping"]), st.lists(WORDS, min_size=1, max_size=3))),
    newline=NEWLINES,
    comment=WORDS,
    cuts=st.lists(st.integers(0, 400)),
)
def test_any_cut_gives_the_same_events(
    events: list[tuple[str, list[str]]], newline: str, comment: str, cuts: list[int]
) -> None:
    text = ""
    for name, data in events:
        text += f":{comment}{newline}"
        text += f"event: {name}{newline}" if name != "message" else ""
        text += "".join(f"data: {line}{newline}" for line in data) + newline
    # What is not followed by anything may be half of a CRLF; another comment settles it.
    raw = (text + ":end\n").encode()
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    parser = EventParser()
    got = [event for a, b in itertools.pairwise(edges) for event in parser.feed(raw[a:b])]
    assert got == [ServerEvent(name, "\n".join(data).encode()) for name, data in events]


def test_an_unfinished_event_is_no_event() -> None:
    assert EventParser().feed(b"data: half") == []
    assert EventParser().feed(b"data: half\n") == []


def test_one_space_after_the_colon_belongs_to_the_field() -> None:
    assert EventParser().feed(b"data:a\ndata:  b\n\n") == [ServerEvent("message", b"a\n b")]


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "LINE_BYTES_MAX", 1000)
    parser = EventParser()
    for _ in range(33):
        parser.feed(b"data: " + b"x" * 30 + b"\n")
    with pytest.raises(EventTooLarge):
        parser.feed(b"data: " + b"x" * 30 + b"\n")
    with pytest.raises(EventTooLarge):
        EventParser().feed(b"data: " + b"x" * 2000)
