"""Order keys, field paths and document paths: what must hold for every value."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcloud.firestore import names, values
from localcloud.firestore.protos import Value
from localcloud.firestore.refusals import Refused

INTEGERS = st.integers(-(2**63), 2**63 - 1)
NUMBERS = INTEGERS | st.floats(allow_nan=False)
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


def number(amount: int | float) -> Any:
    return Value(integer_value=amount) if isinstance(amount, int) else Value(double_value=amount)


def array(elements: list[Any]) -> Any:
    return Value(array_value={"values": elements})


def mapping(fields: dict[str, Any]) -> Any:
    return Value(map_value={"fields": fields})


SCALARS = st.one_of(
    st.just(Value(null_value=0)),
    st.booleans().map(lambda flag: Value(boolean_value=flag)),
    st.just(Value(double_value=math.nan)),
    NUMBERS.map(number),
    TEXTS.map(lambda text: Value(string_value=text)),
    st.binary().map(lambda octets: Value(bytes_value=octets)),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(array) | st.dictionaries(TEXTS.filter(bool), inner, max_size=3).map(mapping)
    ),
    max_leaves=6,
)


@given(NUMBERS, NUMBERS)
def test_numbers_sort_exactly(left: int | float, right: int | float) -> None:
    # Python compares integers with doubles exactly; so must the keys, also beyond 2**53.
    left_key, right_key = values.order_key(number(left)), values.order_key(number(right))
    assert (left_key < right_key) == (left < right)
    assert (left_key == right_key) == (left == right)


@given(INTEGERS, st.sampled_from([-1, 0, 1]))
def test_neighbouring_integers_and_doubles_sort_exactly(integer: int, step: int) -> None:
    double = float(integer) if step == 0 else math.nextafter(float(integer), math.inf * step)
    keys = [values.order_key(number(amount)) for amount in (integer, double)]
    assert (keys[0] < keys[1], keys[0] == keys[1]) == (integer < double, integer == double)


@given(TEXTS, TEXTS)
def test_texts_sort_by_their_utf8(left: str, right: str) -> None:
    keys = [values.order_key(Value(string_value=text)) for text in (left, right)]
    assert (keys[0] < keys[1]) == (left.encode() < right.encode())


@given(st.lists(NUMBERS, max_size=4), st.lists(NUMBERS, max_size=4))
def test_arrays_sort_element_by_element(left: list[Any], right: list[Any]) -> None:
    keys = [values.order_key(array([number(one) for one in side])) for side in (left, right)]
    assert (keys[0] < keys[1]) == (left < right)


@given(VALUES, VALUES)
def test_no_key_starts_another(left: Any, right: Any) -> None:
    keys = [values.order_key(value) for value in (left, right)]
    assert keys[0] == keys[1] or not keys[1].startswith(keys[0])
    assert (keys[0] < keys[1]) == (values.invert(keys[0]) > values.invert(keys[1]))


@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=4).map(tuple))
def test_field_paths_read_back(path: tuple[str, ...]) -> None:
    assert values.parse_path(values.render_path(path)) == path


@pytest.mark.parametrize("text", ["", "a..b", "a.", ".a", "1a", "a b", "`a", "a`b", "`a`b", "``", "a.1"])
def test_refuses_what_is_no_field_path(text: str) -> None:
    with pytest.raises(Refused):
        values.parse_path(text)


SEGMENTS = st.lists(TEXTS.filter(lambda text: text and "/" not in text), min_size=1, max_size=4).map(tuple)


@given(SEGMENTS, SEGMENTS)
def test_paths_sort_by_segment_and_read_back(left: tuple[str, ...], right: tuple[str, ...]) -> None:
    keys = [names.encode(side) for side in (left, right)]
    assert [names.decode(key) for key in keys] == [left, right]
    octets = [[segment.encode() for segment in side] for side in (left, right)]
    assert (keys[0] < keys[1]) == (octets[0] < octets[1])
    assert keys[1].startswith(keys[0]) == (right[: len(left)] == left)


def test_numeric_ids_sort_as_numbers_before_all_others() -> None:
    ordered = ["__id-9223372036854775808__", "__id-1__", "__id2__", "__id10__", "A", "a"]
    assert sorted(ordered, key=lambda segment: names.encode((segment,))) == ordered


@pytest.mark.parametrize(
    "name",
    [
        "projects/p/databases/d",
        "projects/p/databases/d/documents/a//b",
        "projects//databases/d/documents/a/b",
        "a/b",
        "projects/p/databases/d/documentsa/b",
    ],
)
def test_refuses_what_is_no_name(name: str) -> None:
    with pytest.raises(Refused):
        names.split(name)
