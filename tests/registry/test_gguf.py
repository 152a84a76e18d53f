"""A GGUF file is whole or it is refused, whatever its header claims; the reader's work is bounded by the file."""

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goblin.core.errors import InvalidRequest
from goblin.registry import gguf
from tests.fakes.gguf import gguf as made

HEAD = b"GGUF" + struct.pack("<I", 3)


def check(folder: Path, data: bytes) -> None:
    file = folder / "m.gguf"
    file.write_bytes(data)
    gguf.check(file)


@pytest.mark.parametrize(
    ("content", "kind", "shape"),
    [
        (b"x" * 7, 24, (7,)),
        (b"x" * 4, 0, ()),
        (b"x" * 18 * 4, 2, (64, 2)),
        (b"x" * 144, 12, (256, 1, 1, 1)),
        (b"x" * 34, 8, (32,)),
        (b"x" * 2, 999, (10**6,)),
    ],
)
def test_a_whole_file_passes_and_one_byte_less_does_not(
    tmp_path: Path, content: bytes, kind: int, shape: tuple[int, ...]
) -> None:
    for alignment in (None, 8, 64):
        whole = made(content, kind=kind, shape=shape, alignment=alignment) if shape else made(content)
        check(tmp_path, whole)
        check(tmp_path, whole + b"more")
        if kind != 999:  # The size of a newer type is not known.
            with pytest.raises(InvalidRequest, match="cut off"):
                check(tmp_path, whole[:-1])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_cut_anywhere_it_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = made(b"weights" * 20)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(InvalidRequest):
        check(tmp_path_factory.getbasetemp(), whole[:cut])


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_of_a_damaged_header_one_error_comes_out(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = bytearray(made(b"weights" * 20))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidRequest):
        check(tmp_path_factory.getbasetemp(), bytes(whole))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a GGUF"),
        (b"PK\x03\x04" * 20, "not a GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 1, 0), "version 1"),
        (HEAD + struct.pack("<QQ", 0, 0), "counts 0 tensors"),
        (HEAD + struct.pack("<QQ", 2**63, 0), "counts 9223372036854775808 tensors"),
        (HEAD + struct.pack("<QQ", 1, 2**63), "keys"),
        (HEAD + struct.pack("<QQQ", 1, 1, 2**62), "too large"),
        (HEAD + struct.pack("<QQQ", 1, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**51), "too large"),
        (HEAD + struct.pack("<QQQ", 1, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**30), "too many"),
        (HEAD + struct.pack("<QQQ", 1, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**20), "cut off inside its header"),
        (
            HEAD + struct.pack("<QQQ", 1, 1, 1) + b"k" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9,
            "levels deep",
        ),
        (HEAD + struct.pack("<QQQ", 1, 1, 1) + b"k" + struct.pack("<I", 77), "unknown type 77"),
        (HEAD + struct.pack("<QQQ", 1, 0, 1) + b"w" + struct.pack("<I", 9), "too large"),
        (HEAD + struct.pack("<QQQ", 1, 0, 1) + b"w" + struct.pack("<IQIQ", 1, 0, 0, 0), "a tensor of 0 values"),
        (HEAD + struct.pack("<QQQ", 1, 0, 1) + b"w" + struct.pack("<IQIQ", 1, 33, 2, 0), "blocks of 32"),
        (HEAD + struct.pack("<QQQ", 1, 1, 17) + b"general.alignment" + struct.pack("<II", 4, 3), "alignment is 3"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        check(tmp_path, data + b"")


def test_the_model_that_is_included_is_whole() -> None:
    from goblin.cli import paths

    gguf.check(paths.default_model())
