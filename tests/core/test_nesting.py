"""How deep and how large foreign JSON may be, before it is parsed."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.nesting import BRACKETS_MAX, NESTING_MAX, is_bounded

TEXT = st.text(alphabet='[]{}"\\:,a\n\u00e9', max_size=30)
JSON = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(TEXT, inner, max_size=6),
    max_leaves=40,
)


def levels(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inside is None else 1 + max(map(levels, inside), default=0)


@given(JSON, st.integers(0, 40), st.sampled_from(['{"a":%s}', "[%s]", '[[],%s,"]"]']))
def test_it_counts_levels_and_no_brackets_in_texts(value: Any, around: int, shape: str) -> None:
    text = json.dumps(value)
    for _ in range(around):
        text = shape % text
    assert is_bounded(text.encode()) is (levels(value) + around <= NESTING_MAX or around == levels(value) == 0)


@pytest.mark.parametrize("text", [b"[" * 33, b"[" * 1_000_000, b'{"a":' * 5000, b"[]" * (BRACKETS_MAX + 1)])
def test_what_does_not_end_is_no_reason_to_look_on(text: bytes) -> None:
    assert not is_bounded(text)


@pytest.mark.parametrize("text", [b"[" * 20_000_000, b"[]" * 200_000, b"[[" * 100_000 + b"]]" * 100_000, b'"[' * 10**6])
def test_it_takes_no_time_whatever_the_text(text: bytes) -> None:
    began = time.process_time()
    is_bounded(text)
    assert time.process_time() - began < 2


def test_many_vectors_are_in_bounds() -> None:
    assert is_bounded(json.dumps({"data": [{"embedding": [0.5] * 30}] * 2048}).encode())
