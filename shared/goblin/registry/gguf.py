"""The header of a GGUF file, read to tell a whole file from one that was cut off: where its last tensor ends.

Source: ggml's gguf.h and ggml.c, versions 2 and 3 (little endian). Magic, version, counts, key-value pairs, one record
per tensor, padding, then the tensors. The file is not trusted: each size is checked against a limit and the file.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from goblin.core.errors import InvalidRequest

PAIRS_MAX = 65_536
STRING_BYTES_MAX = 64 * 2**20
ARRAY_ITEMS_MAX = 16 * 2**20
"""Strings and arrays in arrays, of all arrays together."""
TENSORS_MAX = 2**20
DIMENSIONS_MAX = 4
NAME_BYTES_MAX = 4096
DEPTH_MAX = 4
"""Levels of arrays in arrays."""
SIZE_MAX = 2**50
ALIGNMENT = 32
ALIGNMENT_MAX = 2**20

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by its type; 8 is a string, 9 an array."""
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
"""Values and bytes of a block, by tensor type. A type that is not here is newer: only its beginning is checked."""


def check(path: Path) -> None:
    """Check that a GGUF file's header is sound and that the file has all of its tensors.

    Raises:
        InvalidRequest: It is no GGUF, its header is damaged, or it was cut off.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        try:
            _Reader(file, path.stat().st_size).check()
        except _Damaged as why:
            raise InvalidRequest(f"{path} {why}", param="file") from None


class _Damaged(Exception):
    """Completes a sentence that begins with the file's name."""


class _Reader:
    """The bytes of a header: what the file claims is compared with what it has before anything is read."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._at = 0
        self._alignment = ALIGNMENT
        self._items = 0

    def check(self) -> None:
        if self._size < 4 or self._take(4) != b"GGUF":
            raise _Damaged("is not a GGUF file.")
        version, tensors, pairs = struct.unpack("<IQQ", self._take(20))
        if version not in (2, 3):
            raise _Damaged(f"is a GGUF of version {version}; versions 2 and 3 can be served.")
        if not 0 < tensors <= TENSORS_MAX or pairs > PAIRS_MAX:
            raise _Damaged(f"is damaged: its header counts {tensors} tensors and {pairs} keys.")
        for _ in range(pairs):
            self._pair()
        ends = [self._tensor() for _ in range(tensors)]
        start = -(-self._at // self._alignment) * self._alignment
        if (needed := start + max(ends)) > self._size:
            raise _Damaged(
                f"is cut off: its tensors end at byte {needed}, and it has {self._size} bytes. Download it again."
            )

    def _pair(self) -> None:
        key = self._take(self._number("<Q", NAME_BYTES_MAX))
        kind = self._number("<I")
        if key == b"general.alignment" and kind == _UINT32:
            alignment = self._number("<I")
            if not 0 < alignment <= ALIGNMENT_MAX or alignment & (alignment - 1):
                raise _Damaged(f"is damaged: its alignment is {alignment}.")
            self._alignment = alignment
        else:
            self._skip_value(kind, 0)

    def _skip_value(self, kind: int, depth: int) -> None:
        if kind == _STRING:
            self._skip(self._number("<Q", STRING_BYTES_MAX))
        elif kind == _ARRAY:
            inner, count = self._number("<I"), self._number("<Q", SIZE_MAX)
            if inner in _SIZES:
                self._skip(_SIZES[inner] * count)
                return
            if depth >= DEPTH_MAX:
                raise _Damaged(f"is damaged: its header has arrays more than {DEPTH_MAX} levels deep.")
            self._items += count
            if self._items > ARRAY_ITEMS_MAX:
                raise _Damaged(f"is damaged: its arrays have {self._items} items, which is too many.")
            for _ in range(count):
                self._skip_value(inner, depth + 1)
        elif kind in _SIZES:
            self._skip(_SIZES[kind])
        else:
            raise _Damaged(f"is damaged: its header has a value of unknown type {kind}.")

    def _tensor(self) -> int:
        """Read a tensor's record. Returns where it ends, counted from the first tensor."""
        self._skip(self._number("<Q", NAME_BYTES_MAX))
        dimensions = [self._number("<Q", SIZE_MAX) for _ in range(self._number("<I", DIMENSIONS_MAX))]
        kind, offset = self._number("<I"), self._number("<Q", SIZE_MAX)
        values = 1
        for dimension in dimensions:
            values *= dimension
        if not 0 < values <= SIZE_MAX:
            raise _Damaged(f"is damaged: it has a tensor of {values} values.")
        values_per_block, block_bytes = _BLOCKS.get(kind, (1, 0))
        if dimensions and dimensions[0] % values_per_block:
            raise _Damaged(f"is damaged: it has a row of {dimensions[0]} values in blocks of {values_per_block}.")
        return offset + values // values_per_block * block_bytes

    def _number(self, layout: str, most: int | None = None) -> int:
        found: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        if most is not None and found > most:
            raise _Damaged(f"is damaged: its header has a size of {found}, which is too large.")
        return found

    def _take(self, size: int) -> bytes:
        self._claim(size)
        data = self._file.read(size)
        if len(data) != size:
            raise _Damaged("is cut off inside its header.")
        return data

    def _skip(self, size: int) -> None:
        self._claim(size)
        self._file.seek(size, 1)

    def _claim(self, size: int) -> None:
        self._at += size
        if self._at > self._size:
            raise _Damaged("is cut off inside its header. Download it again.")
