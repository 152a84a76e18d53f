"""CRC-32C (Castagnoli), the checksum that Cloud Storage keeps of every object. RFC 3720, appendix B.4."""

from __future__ import annotations

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


def crc32c(data: bytes) -> int:
    """The checksum of the bytes, some megabytes a second: parts are small."""
    table, checksum = _TABLE, 0xFFFFFFFF
    for byte in data:
        checksum = checksum >> 8 ^ table[(checksum ^ byte) & 0xFF]
    return checksum ^ 0xFFFFFFFF
