"""Values: their order across types, their size, and the paths of fields.

An order key is a byte string. Comparing keys compares values as production does, equal keys are equal values
(1 and 1.0, 0.0 and -0.0), and no key is a prefix of another, so keys can be joined and inverted.
Order and sizes: https://firebase.google.com/docs/firestore/manage-data/data-types and
https://cloud.google.com/firestore/docs/storage-size, read 2026-11-25.
"""

import math
import re
import struct
from collections.abc import Mapping
from functools import lru_cache

from localcloud.firestore import names
from localcloud.firestore.protos import Pb
from localcloud.firestore.refusals import invalid

DEPTH_MAX = 20
"""Most levels of maps and arrays inside one another."""
FIELD_BYTES_MAX = 1_048_487
DOCUMENT_BYTES_MAX = 1 << 20
FIELD_NAME_BYTES_MAX = 1500
_YEAR_1_S, _YEAR_10000_S = -62_135_596_800, 253_402_300_800
"""The seconds between which timestamps must lie."""

NULL, BOOLEAN, NAN, NUMBER, TIMESTAMP, STRING = 0x10, 0x18, 0x20, 0x21, 0x28, 0x30
BYTES, REFERENCE, GEO_POINT, ARRAY, VECTOR, MAP = 0x38, 0x40, 0x48, 0x50, 0x58, 0x60
_END = b"\x01"

_INVERT = bytes(255 - byte for byte in range(256))

NULL_KEY = bytes([NULL])
NAN_KEY = bytes([NAN])

FieldPath = tuple[str, ...]
NAME: FieldPath = ("__name__",)


def order_key(value: Pb) -> bytes:
    """Return the bytes that sort as the value does."""
    kind = value.WhichOneof("value_type")
    match kind:
        case "string_value":
            return bytes([STRING]) + names.encode_text(value.string_value.encode())
        case "integer_value":
            return _number_key(value.integer_value)
        case "double_value":
            return _number_key(value.double_value)
        case "boolean_value":
            return bytes([BOOLEAN, value.boolean_value])
        case "timestamp_value":
            stamp = value.timestamp_value
            return bytes([TIMESTAMP]) + struct.pack(">QI", stamp.seconds + (1 << 63), stamp.nanos + (1 << 31))
        case "reference_value":
            return reference_key(value.reference_value)
        case "array_value":
            return bytes([ARRAY]) + b"".join(map(order_key, value.array_value.values)) + _END
        case "map_value":
            return _map_key(value.map_value.fields)
        case "bytes_value":
            return bytes([BYTES]) + names.encode_text(value.bytes_value)
        case "geo_point_value":
            point = value.geo_point_value
            return bytes([GEO_POINT]) + _double_bytes(point.latitude) + _double_bytes(point.longitude)
        case "null_value" | None:
            return NULL_KEY
    raise invalid(f"A {kind} cannot be stored or compared.")


def reference_key(name: str) -> bytes:
    """Return the order key of a reference to a document."""
    database, segments = names.split(name)
    owner = b"".join(names.encode_text(part.encode()) for part in database.split("/"))
    return bytes([REFERENCE]) + owner + names.encode(segments) + b"\x00"


def invert(key: bytes) -> bytes:
    """Invert a key, so that keys sort in reverse."""
    return key.translate(_INVERT)


def comparable(left: bytes, right: bytes) -> bool:
    """Return whether two order keys are of types that `<` compares; NaN compares with nothing."""
    return left[0] == right[0]


def _number_key(number: int | float) -> bytes:
    # An integer beyond 2**53 shares its nearest double with others; the difference follows as further bytes.
    if isinstance(number, float) and math.isnan(number):
        return NAN_KEY
    double = float(number)
    lost = number - int(double) if isinstance(number, int) else 0
    return bytes([NUMBER]) + _double_bytes(double) + struct.pack(">H", lost + 32_768)


def _double_bytes(double: float) -> bytes:
    bits: int = struct.unpack(">Q", struct.pack(">d", double + 0.0))[0]
    return struct.pack(">Q", bits ^ 0xFFFF_FFFF_FFFF_FFFF if bits >> 63 else bits | 1 << 63)


def _map_key(fields: Mapping[str, Pb]) -> bytes:
    if is_vector(fields):
        elements = fields["value"].array_value.values
        return bytes([VECTOR]) + struct.pack(">I", len(elements)) + b"".join(map(order_key, elements)) + _END
    entries = sorted((name.encode(), value) for name, value in fields.items())
    return (
        bytes([MAP]) + b"".join(b"\x02" + names.encode_text(name) + order_key(value) for name, value in entries) + _END
    )


def is_vector(fields: Mapping[str, Pb]) -> bool:
    """Return whether a map is the representation of a vector."""
    return "__type__" in fields and fields["__type__"].string_value == "__vector__" and "value" in fields


# Field paths.

_PATH_PART = re.compile(r"`((?:[^`\\]|\\.)+)`|([^`.\\]+)", re.DOTALL)
_SIMPLE_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@lru_cache(maxsize=4096)
def parse_path(text: str) -> FieldPath:
    """Split a field path: dots separate, backticks quote.

    Raises:
        Refused: It is not a field path.
    """
    parts = []
    at = 0
    while True:
        match = _PATH_PART.match(text, at)
        if match is None or not (match[1] or _SIMPLE_NAME.fullmatch(match[2])):
            raise invalid(f'Invalid property path "{text}".')
        parts.append(_ESCAPED.sub(r"\1", match[1]) if match[1] else match[2])
        at = match.end()
        if at == len(text):
            return tuple(parts)
        if text[at] != ".":
            raise invalid(f'Invalid property path "{text}".')
        at += 1


def render_path(path: FieldPath) -> str:
    """Format a field path so that `parse_path` reads it."""
    return ".".join(
        part if _SIMPLE_NAME.fullmatch(part) else "`" + part.replace("\\", "\\\\").replace("`", "\\`") + "`"
        for part in path
    )


def get_field(fields: Mapping[str, Pb], path: FieldPath) -> Pb | None:
    """Return the value at a path; None where there is none."""
    for part in path[:-1]:
        if part not in fields or fields[part].WhichOneof("value_type") != "map_value":
            return None
        fields = fields[part].map_value.fields
    return fields.get(path[-1])


def set_field(fields: Pb, path: FieldPath, value: Pb) -> None:
    """Set a value at a path; values that are in the way of the needed maps are replaced."""
    for part in path[:-1]:
        parent = fields[part]
        if parent.WhichOneof("value_type") != "map_value":
            parent.Clear()
            parent.map_value.SetInParent()
        fields = parent.map_value.fields
    fields[path[-1]].CopyFrom(value)


def delete_field(fields: Pb, path: FieldPath) -> None:
    """Remove the value at a path, if any; the map that held it stays, even empty."""
    for part in path[:-1]:
        if part not in fields or fields[part].WhichOneof("value_type") != "map_value":
            return
        fields = fields[part].map_value.fields
    fields.pop(path[-1], None)


# Limits.


def document_size(document: Pb) -> int:
    """Return the bytes that the document counts for against the 1 MiB limit."""
    fields = sum(_size(name) + value_size(value) for name, value in document.fields.items())
    return _name_size(document.name) + fields + 32


def value_size(value: Pb) -> int:
    """Return the bytes that a value counts for."""
    match value.WhichOneof("value_type"):
        case "string_value":
            return _size(value.string_value)
        case "bytes_value":
            return len(value.bytes_value)
        case "integer_value" | "double_value" | "timestamp_value":
            return 8
        case "geo_point_value":
            return 16
        case "reference_value":
            return _name_size(value.reference_value)
        case "array_value":
            return sum(map(value_size, value.array_value.values))
        case "map_value":
            return sum(_size(name) + value_size(inner) for name, inner in value.map_value.fields.items())
    return 1


def _size(text: str) -> int:
    return len(text.encode()) + 1


def _name_size(name: str) -> int:
    return sum(map(_size, names.split(name)[1])) + 16


def check_fields(fields: Pb, *, depth: int = 0, inside_vector: bool = False) -> None:
    """Refuse field names and values that production would not store; truncate timestamps to microseconds.

    Raises:
        Refused: The first problem found.
    """
    for name, value in fields.items():
        if not name:
            raise invalid("Field names must not be empty.")
        if len(name) > 2 and name.startswith("__") and name.endswith("__") and not inside_vector:
            raise invalid(f'Field name "{name}" is reserved.')
        if len(name.encode()) > FIELD_NAME_BYTES_MAX:
            raise invalid(f"A field name is longer than {FIELD_NAME_BYTES_MAX} bytes.")
        _check_value(name, value, depth)


def _check_value(name: str, value: Pb, depth: int) -> None:
    match value.WhichOneof("value_type"):
        case "string_value" if len(value.string_value.encode()) > FIELD_BYTES_MAX:
            raise invalid(f'The value of property "{name}" is longer than {FIELD_BYTES_MAX} bytes.')
        case "bytes_value" if len(value.bytes_value) > FIELD_BYTES_MAX:
            raise invalid(f'The value of property "{name}" is longer than {FIELD_BYTES_MAX} bytes.')
        case "timestamp_value":
            _check_timestamp(name, value.timestamp_value)
        case "reference_value":
            names.split(value.reference_value)
        case "geo_point_value":
            point = value.geo_point_value
            if not (-90 <= point.latitude <= 90 and -180 <= point.longitude <= 180):
                raise invalid("A geo point's latitude is within ±90 and its longitude within ±180.")
        case "map_value" | "array_value" if depth >= DEPTH_MAX:
            raise invalid(f'Property "{name}" is nested deeper than {DEPTH_MAX} levels.')
        case "map_value":
            inner = value.map_value.fields
            check_fields(inner, depth=depth + 1, inside_vector=is_vector(inner))
        case "array_value":
            for element in value.array_value.values:
                if element.WhichOneof("value_type") == "array_value":
                    raise invalid(f'Property "{name}" contains an array inside an array.')
                _check_value(name, element, depth + 1)
        case None:
            raise invalid(f'Property "{name}" has no value.')
        case "field_reference_value" | "variable_reference_value" | "function_value" | "pipeline_value":
            raise invalid(f'Property "{name}" holds an expression, which cannot be stored.')


def _check_timestamp(name: str, stamp: Pb) -> None:
    if not (_YEAR_1_S <= stamp.seconds < _YEAR_10000_S and 0 <= stamp.nanos < 1_000_000_000):
        raise invalid(f'The timestamp of property "{name}" is out of range.')
    stamp.nanos -= stamp.nanos % 1000
