"""Text from token bytes: whole characters, nothing of a stop string, however it was cut."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from goblin_llamacpp.text import TextStream, first_stop, held_suffix

letters = st.text(alphabet="abé👋", max_size=12)
stops = st.lists(st.text(alphabet="abé👋", min_size=1, max_size=4), max_size=3).map(tuple)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(letters, stops, st.lists(st.integers(0, 100)))
def test_the_result_does_not_depend_on_the_cuts(text, stops, cuts):
    """And it is the text up to the stop string that is completed first."""
    stream = TextStream(stops)
    shown = "".join([stream.push(piece) for piece in cut(text.encode(), cuts)]) + stream.flush()
    found = expected_stop(text, stops)
    assert shown == (text if found is None else text[:found])
    assert (stream.stopped_by is None) == (found is None)
    assert stream.shown == len(shown)


def expected_stop(text: str, stops: tuple[str, ...]) -> int | None:
    """Where to cut, the slow way: read character by character."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return min(starts)
    return None


@given(letters, stops)
def test_what_is_held_back_is_the_least_that_must_be(text, stops):
    held = held_suffix(text, stops)
    assert held == 0 or any(stop.startswith(text[-held:]) and len(stop) > held for stop in stops)
    for size in range(held + 1, len(text) + 1):
        assert not any(stop.startswith(text[-size:]) and len(stop) > size for stop in stops)


def test_two_stops_that_end_together_cut_at_the_longer():
    assert first_stop("xxabc", ("bc", "abc")) == (2, "abc")


@given(st.binary(max_size=40), st.lists(st.integers(0, 100)))
def test_bytes_that_are_no_text_never_raise(data, cuts):
    stream = TextStream()
    shown = "".join([stream.push(piece) for piece in cut(data, cuts)]) + stream.flush()
    assert data.decode("utf-8", "replace").startswith(shown)


def test_an_unfinished_character_is_dropped_at_the_end():
    stream = TextStream()
    assert stream.push("👋".encode()[:3]) == ""
    assert stream.flush() == ""
