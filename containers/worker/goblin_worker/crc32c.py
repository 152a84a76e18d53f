"""CRC-32C (Castagnoli), the checksum that Cloud Storage keeps of every object. RFC 3720, appendix B.4.

Where `google-crc32c` is installed it does the work, a gigabyte a second; without it this file does, some megabytes.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import suppress

_library: Callable[[int, bytes], int] | None = None
with suppress(ImportError):
    from google_crc32c import extend as _library

POLYNOMIAL = 0x82F63B78
"""Bits reversed."""


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def crc32c(data: bytes, before: int = 0) -> int:
    """The checksum of the bytes that came before, whose checksum is `before`, and these."""
    return (_library or extend)(before, data)


def extend(before: int, data: bytes) -> int:
    """The same, without a library."""
    table, checksum = _TABLE, before ^ 0xFFFFFFFF
    for byte in data:
        checksum = checksum >> 8 ^ table[(checksum ^ byte) & 0xFF]
    return checksum ^ 0xFFFFFFFF


def text(checksum: int) -> str:
    """As Cloud Storage writes it: base64 of the big-endian bytes."""
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()
