"""JSON from outside: bounded nesting and valid UTF-8, checked before any parser recurses."""

from __future__ import annotations

from httpguard.limits import DEFAULT
from httpguard.refusal import Refusal

BRACKETS_MAX = 500_000
"""Most arrays and objects of one text: each takes a hundred bytes of memory, and may be written in two."""
_BRACKETS = bytes.maketrans(b"{[}]", b"(())")
_OTHERS = bytes(sorted(set(range(256)) - set(b'{[}]"')))


def check_json(data: bytes, *, depth: int = DEFAULT.depth) -> None:
    """Check bytes that a JSON parser will read; whether they are JSON is the parser's to say.

    Args:
        data: The whole text.
        depth: The most levels of nested arrays and objects.

    Raises:
        Refusal: 400; the text is not UTF-8, or it is nested more deeply.
    """
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise Refusal(400, "invalid_utf8", f"The body is not UTF-8 at byte {error.start}. Send UTF-8.") from None
    if not is_bounded(data, depth):
        raise Refusal(
            400,
            "nested_too_deeply",
            f"The JSON is nested more than {depth} levels deep, or has over {BRACKETS_MAX:,} arrays and objects. "
            "Send a flatter one.",
        )


def whole_number(text: str, most: int) -> int | None:
    """Parse a whole number from outside: ASCII digits, up to `most`. None for any other text, however long."""
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)):
        return None  # Python refuses to parse thousands of digits, and reads digits of other scripts.
    number = int(text)
    return number if number <= most else None


def is_bounded(data: bytes, depth: int = DEFAULT.depth) -> bool:
    """Return whether arrays and objects are nested in at most `depth` levels, and are at most `BRACKETS_MAX`.

    Nearly all texts have so few brackets that counting them is enough. Each step takes time linear in the text.
    """
    brackets = data.count(b"{") + data.count(b"[")
    if brackets <= depth:
        return True
    if brackets > BRACKETS_MAX:
        return False
    unescaped = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Every other piece between quotation marks is the inside of a string.
    left = b"".join(unescaped.translate(_BRACKETS, _OTHERS).split(b'"')[::2])
    if b"(" * (depth + 1) in left:
        return False
    for _ in range(depth):
        # Without its innermost pairs the text is one level flatter.
        flatter = left.replace(b"()", b"")
        if len(flatter) == len(left):
            break
        left = flatter
    return b"()" not in left and left.count(b"(") <= depth
