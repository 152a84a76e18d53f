"""JSON from outside, decoded so that one error comes out and no other: the error that the caller chooses.

A decoder raises more than its own error: bytes that are not UTF-8, nesting that exhausts the stack, numbers beyond 64
bits and instants beyond the calendar each have an exception of Python's. Whatever reads bytes that a caller, a host, a
provider or a bucket sent calls `decode`, so that one of them can end nothing but its own reading.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar

import msgspec

from httpguard.text import is_bounded

DEPTH_MAX = 32
"""Levels of nesting: more than any document of ours has, and far fewer than any reader's stack."""
INT_MIN, INT_MAX = -(2**63), 2**63 - 1
"""Integers that Firestore can store."""
EXPONENT_MAX = 30
"""Highest power of ten in an amount; beyond it a conversion to whole micro-dollars takes minutes."""
UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, RecursionError, ArithmeticError)
"""Exceptions that mean that a document cannot be read. `UnicodeError` is a `ValueError`, `OverflowError` arithmetic."""

_BOM = b"\xef\xbb\xbf"
# A string that does not end takes the rest, so that the time stays proportional to the length.
_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[{\[]|[}\]]', re.DOTALL)

T = TypeVar("T")


def decode(data: bytes | str, kind: type[T], refuse: Callable[[str], Exception]) -> T:
    """Decode a JSON document.

    Args:
        data: The whole document: UTF-8, at most `DEPTH_MAX` levels deep, also in parts that `kind` does not have.
        kind: Type of the result. Its own integers have 64 bits, and its instants are between the years 1 and 9999 in
            UTC, so that every store takes them.
        refuse: Builds the error to raise from the reason, which names the field and ends without a full stop.

    Raises:
        Exception: What `refuse` built, and nothing else.
    """
    try:
        found = data.encode() if isinstance(data, str) else data
        check_text(found)
        value = msgspec.json.decode(found, type=kind)
        check_values(value)
        return value
    except UNREADABLE as error:
        raise refuse(reason(error)) from error


def parse(data: bytes | str) -> Any:
    """Parse a JSON document of any shape. Raises one of `UNREADABLE`."""
    found = data.encode() if isinstance(data, str) else data
    check_text(found)
    return msgspec.json.decode(found)


def check_text(data: bytes) -> None:
    """Check encoding and nesting of a JSON document. Raises `ValueError`."""
    if data.startswith(_BOM):
        raise ValueError("it begins with a byte order mark; save it as UTF-8 without one")
    if not data.isascii():
        data.decode()
    if not is_bounded(data, DEPTH_MAX):
        raise ValueError(f"it is nested more than {DEPTH_MAX} levels deep{_at(data)}")


def _at(data: bytes) -> str:
    """Name the field that a document is nested too deeply in; empty where it is no object."""
    depth, name = 0, b""
    for token in _TOKENS.finditer(data):
        match data[token.start()]:
            case 0x7B | 0x5B:  # { or [
                depth += 1
                if depth > DEPTH_MAX:
                    break
            case 0x7D | 0x5D:  # } or ]
                depth -= 1
            case _ if depth == 1:
                # Before a value that is not a string, the last string at this level is its field's name.
                name = token[0]
    field = name.strip(b'"').decode(errors="replace")
    return f" - at `$.{field}`" if data.lstrip().startswith(b"{") and field.isidentifier() else ""


def check_values(value: Any, where: str = "$") -> None:
    """Check that a store takes the numbers and instants of a decoded noun; dictionaries are not looked into.

    Raises:
        ValueError: One does not fit; the message names the field.
    """
    match value:
        case list() | tuple():
            for number, one in enumerate(value):
                check_values(one, f"{where}[{number}]")
        case msgspec.Struct():
            for name, said in zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True):
                check_values(getattr(value, name), f"{where}.{said}")
        case _ if is_dataclass(value):
            for field in fields(value):
                check_values(getattr(value, field.name), f"{where}.{field.name}")
        case _ if (wanted := _misfit(value)) is not None:
            raise ValueError(f"{wanted} - at `{where}`")


def _misfit(value: Any) -> str | None:
    """Say what was expected in the place of a single value; None: it fits."""
    match value:
        case int() if not INT_MIN <= value <= INT_MAX:
            return "Expected `int` of at most 64 bits"
        case datetime() if value.tzinfo is not None and not _has_utc(value):
            return "Expected an instant between the years 1 and 9999 in UTC"
        case Decimal() if not value.is_finite() or value.adjusted() > EXPONENT_MAX:
            return f"Expected a finite amount below 10^{EXPONENT_MAX + 1}"
        case msgspec.Raw():
            # Text that is kept as it came: only its numbers are not checked yet.
            try:
                msgspec.json.decode(value)
            except msgspec.DecodeError as error:
                return str(error).partition(" - at ")[0]
    return None


def _has_utc(instant: datetime) -> bool:
    try:
        instant.astimezone(UTC)
    except OverflowError:
        return False
    return True


def reason(error: Exception) -> str:
    """Say why a document cannot be read, for a person, without a full stop."""
    match error:
        case UnicodeDecodeError():
            return f"byte {error.start + 1} is 0x{error.object[error.start]:02x}, which is not UTF-8"
        case UnicodeError():
            return "it has a character that UTF-8 does not have"
        case RecursionError():
            return f"it is nested more than {DEPTH_MAX} levels deep"
        case KeyError():
            return f"it has no {error.args[0]}"
    return str(error).rstrip(".") or type(error).__name__
