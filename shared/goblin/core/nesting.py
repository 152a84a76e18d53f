"""Nesting: how deep JSON may go that was written elsewhere, checked before it is parsed."""

from __future__ import annotations

NESTING_MAX = 32
"""Levels of objects and lists. Parsing, printing and encoding recurse, and what one of them takes another may not."""
BRACKETS_MAX = 500_000
"""Most objects and lists in one text: each takes a hundred bytes of memory and may be written in two."""
_BUT_BRACKETS = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_ONE_KIND = bytes.maketrans(b"{}", b"[]")


def is_bounded(data: bytes) -> bool:
    """Tell whether a JSON text nests no deeper than `NESTING_MAX`, nor has more than `BRACKETS_MAX` objects and lists.

    Nearly all texts have so few brackets that counting them is enough. The others are reduced to their brackets, and
    the innermost pairs removed level by level. Each step runs at the speed of memory, whatever the text.
    """
    brackets = data.count(b"{") + data.count(b"[")
    if brackets <= NESTING_MAX:
        return True
    if brackets > BRACKETS_MAX:
        return False
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _BUT_BRACKETS)
    left = b"".join(bare.split(b'"')[::2]).translate(_ONE_KIND)
    for _ in range(NESTING_MAX):
        before, left = len(left), left.replace(b"[]", b"")
        if len(left) == before:
            break
    return not left
