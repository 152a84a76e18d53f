"""Log lines and terminals: what a caller wrote stays inside its line."""

import io
import logging
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpguard.lines import LINE_CHARACTERS_MAX, STACK_MARGIN, Escaper, OneLine, escape


def line_of(message: str, *arguments: object, error: BaseException | None = None) -> str:
    record = logging.LogRecord("n", logging.WARNING, "f.py", 1, message, arguments, None)
    if error is not None:
        try:
            raise error
        except type(error):
            record.exc_info = sys.exc_info()
    return OneLine().format(record)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("kid\nERROR root: forged", r"kid\nERROR root: forged"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("a\r\nb\x85c\u2028d\u2029e\x0bf\x0cg", r"a\r\nb\x85c\u2028d\u2029e\x0bf\x0cg"),
        ("\x00\x7f\x9b0m", r"\x00\x7f\x9b0m"),
        ("user\u202egpj.exe\u2066", r"user\u202egpj.exe\u2066"),
        ("\ud800", r"\ud800"),
        ("plain, ä, 漢, 😀", "plain, ä, 漢, 😀"),
    ],
)
def test_a_record_is_one_line_without_controls(written: str, shown: str) -> None:
    assert line_of("refused: %s", written) == f"WARNING n: refused: {shown}"
    # What a caller names itself could also be a logger's name.
    assert escape(written) == shown


def test_a_stack_is_told_from_a_record_by_its_margin() -> None:
    first, *stack = line_of("failed", error=ValueError("x\nERROR root: forged\x1b[2J")).split("\n")
    assert first == "WARNING n: failed"
    assert stack[0] == f"{STACK_MARGIN}Traceback (most recent call last):"
    assert stack[-1] == rf"{STACK_MARGIN}ERROR root: forged\x1b[2J"
    assert all(line.startswith(STACK_MARGIN) for line in stack)


def test_a_line_has_a_limit_and_wrong_arguments_lose_no_line() -> None:
    assert len(line_of("%s", "x" * 10_000_000)) < LINE_CHARACTERS_MAX + 100
    assert line_of("%d items", "no number") == "WARNING n: %d items"


@given(st.text(), st.text())
def test_no_text_has_a_control_character_left(text: str, message: str) -> None:
    said = line_of("%s", text + message)
    assert not any(unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") for sign in said)
    assert escape(escape(text)) == escape(text)


@given(st.binary(), st.lists(st.integers(1, 7), min_size=1))
def test_a_stream_is_escaped_the_same_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    escaper, pieces, at, turn = Escaper(), [], 0, 0
    while at < len(data):
        pieces.append(escaper.feed(data[at : at + cuts[turn % len(cuts)]]))
        at, turn = at + cuts[turn % len(cuts)], turn + 1
    pieces.append(escaper.feed(b"", last=True))
    assert b"".join(pieces) == Escaper().feed(data, last=True)
    said = b"".join(pieces).decode()
    assert said.replace("\n", "").replace("\t", "").isprintable()


def test_letters_of_several_bytes_survive_a_cut() -> None:
    escaper = Escaper()
    assert escaper.feed("ä".encode()[:1]) == b""
    assert escaper.feed("ä".encode()[1:]) == "ä".encode()
    assert io.BytesIO(escaper.feed(b"\xff", last=True)).read() == rb"\xff"
