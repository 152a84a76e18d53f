"""JSON from outside: bounded nesting and valid UTF-8, checked before any parser recurses."""

from __future__ import annotations

from httpguard.limits import DEFAULT
from httpguard.refusal import Refusal

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
    if is_deeper(data, depth):
        raise Refusal(
            400, "nested_too_deeply", f"The JSON is nested more than {depth} levels deep. Send a flatter one."
        )


def whole_number(text: str, most: int) -> int | None:
    """Parse a whole number from outside: ASCII digits, up to `most`. None for any other text, however long."""
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)):
        return None  # Python refuses to parse thousands of digits, and reads digits of other scripts.
    number = int(text)
    return number if number <= most else None


def is_deeper(data: bytes, depth: int) -> bool:
    """Return whether arrays and objects are nested in more than `depth` levels. Takes time linear in the text."""
    if data.count(b"{") + data.count(b"[") <= depth:
        return False
    unescaped = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Every other piece between quotation marks is the inside of a string.
    left = b"".join(unescaped.translate(_BRACKETS, _OTHERS).split(b'"')[::2])
    if b"(" * (depth + 1) in left:
        return True
    for _ in range(depth):
        # Without its innermost pairs the text is one level flatter.
        flatter = left.replace(b"()", b"")
        if len(flatter) == len(left):
            break
        left = flatter
    return b"()" in left or left.count(b"(") > depth
