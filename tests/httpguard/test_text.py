"""Nesting and UTF-8 of JSON, judged before any parser sees it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpguard import Refusal, check_json, whole_number
from httpguard.text import BRACKETS_MAX, is_bounded

TEXT = st.text(st.sampled_from('ab"\\[]{},:é\n'), max_size=8)
VALUES = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=40,
)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(VALUES, st.booleans(), st.integers(0, 8))
def test_the_depth_is_that_of_the_parsed_value(value: object, ascii_only: bool, limit: int) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert is_bounded(data, limit) == (depth_of(value) <= limit)


@given(st.binary(max_size=200))
def test_any_bytes_are_judged(data: bytes) -> None:
    is_bounded(data, 3)


@pytest.mark.parametrize(
    ("opening", "closing", "levels"),
    [(b"[", b"]", 1), (b'{"a":', b"}", 1), (b'[{"]":', b"}]", 2), (b'{"\\"}":[', b"]}", 2), (b'{"\\\\":[', b"]}", 2)],
)
def test_thirty_two_levels_pass_and_more_do_not(opening: bytes, closing: bytes, levels: int) -> None:
    most = 32 // levels
    check_json(opening * most + b"1" + closing * most)
    with pytest.raises(Refusal) as refused:
        check_json(opening * (most + 1) + b"1" + closing * (most + 1))
    assert (refused.value.status, refused.value.code) == (400, "nested_too_deeply")


def test_many_brackets_side_by_side_are_not_deep() -> None:
    check_json(b"[" + b"[{}]," * 10_000 + b"1]")


def test_an_open_end_is_deep_too() -> None:
    with pytest.raises(Refusal):
        check_json(b"[" * 957)


@pytest.mark.parametrize(
    "data", [b'"\xff"', b'{"a": "caf\xe9"}', b'"\xed\xa0\x80"', b'"\xc0\x80"', b"\xff\xfe{\x00}\x00"]
)
def test_what_is_not_utf8_is_refused_and_says_where(data: bytes) -> None:
    with pytest.raises(Refusal, match=r"byte \d+") as refused:
        check_json(data)
    assert (refused.value.status, refused.value.code) == (400, "invalid_utf8")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0), ("7", 7), ("007", 7), ("200", 200), ("201", None), ("999", None), ("1000", None), ("", None),
        ("-1", None), ("+1", None), (" 1", None), ("1_0", None), ("1e2", None), ("0x1", None), ("²", None), ("٣", None),
        ("9" * 5000, None), ("0" * 5000, None),
    ],
)  # fmt: skip
def test_whole_numbers_from_outside(text: str, number: int | None) -> None:
    assert whole_number(text, 200) == number


def test_a_body_of_many_small_arrays_is_refused_before_they_take_memory() -> None:
    check_json(b"[" + b"[]," * (BRACKETS_MAX - 1) + b"1]")
    with pytest.raises(Refusal):
        check_json(b"[" + b"[]," * BRACKETS_MAX + b"1]")
