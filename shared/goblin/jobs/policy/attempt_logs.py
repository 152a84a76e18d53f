"""How much an attempt may write into its log, and how it is shown: bounded, whatever a host sends."""

from __future__ import annotations

import re

LARGE_PIECES = 100
PIECE_BYTES_MAX = 256 * 1024
SMALL_PIECE_BYTES_MAX = 8 * 1024
PIECES_MAX = 10_000
"""The first pieces may be large, the later ones small: 107 MB in all, and no count of them is kept anywhere."""
SHOWN_BYTES_MAX = 512 * 1024
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def piece_bytes_max(number: int) -> int:
    """How large the piece with this number may be; 0: there is no such piece."""
    if not 0 <= number < PIECES_MAX:
        return 0
    return PIECE_BYTES_MAX if number < LARGE_PIECES else SMALL_PIECE_BYTES_MAX


def readable(data: bytes) -> str:
    """A log as text that moves no cursor and rings no bell; progress bars become lines."""
    text = data.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", text)
