"""Cloud Storage's rules for names, as documented, and what of them a signed request reaches."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.object_names import why_refused

NAMES = [
    ("a", None),
    ("x" * 1024, None),
    ("x" * 1025, "has 1025 bytes"),
    ("é" * 512, None),
    ("é" * 513, "has 1026 bytes"),
    ("語" * 342, "has 1026 bytes"),
    ("😀" * 256, None),
    ("😀" * 257, "has 1028 bytes"),
    ("", "no name"),
    ("a\rb", "line break"),
    ("a\nb", "line break"),
    ("a\r\nb", "line break"),
    ("a\n", "line break"),
    (".", "`.` or `..`"),
    ("..", "`.` or `..`"),
    ("a/./b", "`.` or `..`"),
    ("a/../b", "`.` or `..`"),
    ("../b", "`.` or `..`"),
    ("a/..", "`.` or `..`"),
    ("...", None),
    (".hidden", None),
    ("a..b/c.", None),
    (".well-known/acme-challenge/token", "below .well-known/acme-challenge/"),
    (".well-known/acme-challenge/", "below .well-known/acme-challenge/"),
    (".well-known/acme-challenge", None),
    ("in/.well-known/acme-challenge/token", None),
    (".well-known/other", None),
    ("a#b?c*[d] %2F é/語", None),
    ("a\tb", None),
    ("a//b", None),
    ("\ud800", "character that UTF-8 does not have"),
]


@pytest.mark.parametrize(("name", "words"), NAMES, ids=[ascii(name[:30]) for name, _ in NAMES])
def test_a_name_is_refused_by_googles_rules_and_no_others(name: str, words: str | None) -> None:
    reason = why_refused(name)
    assert reason is None if words is None else words in str(reason)


@given(st.text(min_size=1, max_size=400), st.integers(min_value=0, max_value=200))
def test_room_is_bytes_that_may_still_be_appended(name: str, room: int) -> None:
    if why_refused(name, room=room) is None:
        assert len((name + "x" * room).encode()) <= 1024


@given(st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=60))
def test_an_accepted_name_is_what_a_client_asks_for(name: str) -> None:
    """A client that folds `..` asks for another object than was signed."""
    from urllib.parse import quote, unquote

    if why_refused(name) is None:
        asked = httpx.URL(f"https://storage.googleapis.com/bkt/{quote(name, safe=b'/~')}")
        assert unquote(asked.raw_path.decode().removeprefix("/bkt/")) == name
