"""Whatever bytes come, a document is decoded or refused with the caller's own error."""

import contextlib
import json
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core import decoding


class No(Exception):
    """What a caller of `decode` chose."""


@dataclass(frozen=True)
class Inner:
    count: int = 0


class Document(msgspec.Struct):
    text: str = ""
    count: int = 0
    at: datetime | None = None
    usd: Decimal | None = None
    kept: msgspec.Raw = msgspec.Raw(b"{}")
    inner: tuple[Inner, ...] = ()


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"text": "caf\xe9"}', r"byte 14 is 0xe9, which is not UTF-8"),
        (b'{"unknown": "\xff"}', "byte 14 is 0xff"),
        (b'{"kept": {"a": "\x80"}}', "is not UTF-8"),
        (b'{"\xed\xa0\x80": 1}', "is not UTF-8"),
        (b'\xef\xbb\xbf{"text": "x"}', "byte order mark"),
        ('{"text": "x"}'.encode("utf-16"), "is not UTF-8"),
        (b'{"text": "\\ud800 alone"}', "surrogate"),
        (b'{"kept": {"a": "\\ud800"}}', "."),
        (b'{"text": "\x00"}', "invalid character"),
        (b'{"unknown": ' + nested(32) + b"}", r"nested more than 32 levels deep - at `\$.unknown`"),
        (b'{"text": "[[", "kept": {"a[": ' + nested(957) + b"}}", r"nested more than 32 levels deep - at `\$.kept`"),
        (nested(1_000_000), "nested more than 32 levels"),
        (b'{"count": 9223372036854775808}', r"64 bits - at `\$.count`"),
        (b'{"count": -9223372036854775809}', r"64 bits - at `\$.count`"),
        (b'{"count": ' + b"9" * 5000 + b"}", "out of range"),
        (b'{"inner": [{}, {"count": 1e30}]}', r"`\$.inner\[1\].count`"),
        (b'{"inner": [{}, {"count": 99999999999999999999}]}', r"64 bits - at `\$.inner\[1\].count`"),
        (b'{"at": "0001-01-01T00:00:00+00:01"}', r"years 1 and 9999 in UTC - at `\$.at`"),
        (b'{"at": "9999-12-31T23:59:59-00:01"}', r"years 1 and 9999 in UTC - at `\$.at`"),
        (b'{"at": "0000-01-01T00:00:00Z"}', r"`\$.at`"),
        (b'{"at": "10000-01-01T00:00:00Z"}', r"`\$.at`"),
        *(
            (b'{"usd": "%s"}' % usd, r"finite amount below 10\^31 - at `\$.usd`")
            for usd in (
                b"1e999999",
                b"-1e31",
                b"NaN",
                b"sNaN",
                b"Infinity",
                b"-Infinity",
            )
        ),
        (b'{"kept": {"x": 1e999}}', r"out of range - at `\$.kept`"),
        (b'{"kept": {"x": ' + b"9" * 5000 + b"}}", r"out of range - at `\$.kept`"),
        ('{"text": "\ud800"}', "character that UTF-8 does not have"),
        (b"", "truncated"),
        (b"null", "Expected `object`"),
    ],
)
def test_a_document_that_cannot_be_read_is_refused_with_the_reason(data: bytes | str, why: str) -> None:
    with pytest.raises(No, match=why):
        decoding.decode(data, Document, No)


@pytest.mark.parametrize(
    "data",
    [
        nested(32),
        b'{"a": "' + b"[{" * 1000 + b'"}',
        b'{"a": "\\"' + b"[{" * 1000 + b'\\\\"}',
        b"[" + b"[]," * 1000 + b"{}]",
        '"é\ud7ff😀"'.encode(),
    ],
)
def test_width_and_strings_are_no_nesting(data: bytes) -> None:
    assert decoding.decode(data, object, No) == json.loads(data)


def test_text_that_is_kept_stays_as_it_came() -> None:
    data = b'{"kept": { "a" : 1.50,\n "a":2e2, "big": 123456789012345678901234567890 } }'
    assert bytes(decoding.decode(data, Document, No).kept) == data[9:-2]


def test_the_edges_are_read() -> None:
    found = decoding.decode(
        b'{"count": 9223372036854775807, "at": "9999-12-31T23:59:59Z", "usd": "1e30", "inner": [{"count": -1}]}',
        Document, No,
    )  # fmt: skip
    assert (found.count, found.inner) == (2**63 - 1, (Inner(count=-1),))


# Brackets and quotes in any order, closed or not: what the count of levels could be led astray by.
TANGLES = st.lists(st.sampled_from([b"[", b"]", b"{", b"}", b'"', b"\\", b"a", b"[" * 20, b'\\"' * 20]), max_size=60)


@given(st.one_of(st.binary(max_size=300), TANGLES.map(b"".join), st.integers(0, 3000).map(nested)))
def test_nothing_but_a_value_or_the_callers_error_comes_out(data: bytes) -> None:
    for kind in (Document, object, dict[str, Any], Inner):
        with contextlib.suppress(No):
            decoding.decode(data, kind, No)


@given(st.recursive(st.none() | st.text() | st.floats(allow_nan=False, allow_infinity=False), st.lists, max_leaves=80))
def test_what_is_flat_enough_passes_and_the_levels_are_counted_as_a_parser_does(value: Any) -> None:
    def levels(one: Any) -> int:
        return 1 + max(map(levels, one), default=0) if isinstance(one, list) else 0

    data = json.dumps(value).encode()
    try:
        assert decoding.decode(data, object, No) == value
        assert levels(value) <= decoding.DEPTH_MAX
    except No:
        assert levels(value) > decoding.DEPTH_MAX
