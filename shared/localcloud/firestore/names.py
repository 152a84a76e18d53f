"""Resource names, and paths as bytes that sort as Firestore sorts documents.

A path is the segments below `documents`: (`jobs`, `j1`) is a document, (`jobs`,) a collection. As bytes, each
segment has a terminator, so a path's descendants are exactly the byte strings that start with it.
Source: https://cloud.google.com/firestore/quotas, read 2026-11-25.
"""

import re
from functools import lru_cache

from localcloud.firestore.refusals import invalid

SEGMENT_BYTES_MAX = 1500
PATH_DEPTH_MAX = 100
"""Most collections in a document's path."""

AFTER_DESCENDANTS = b"\xff"
"""A suffix: a path with it sorts after all descendants of the path."""

_NAME = re.compile(r"(projects/[^/]+/databases/[^/]+)/documents(?:/(.*))?", re.DOTALL)
_DATABASE = re.compile(r"projects/[^/]+/databases/[^/]+")
_RESERVED = re.compile(r"__.*__", re.DOTALL)
_NUMERIC_ID = re.compile(r"__id(-?\d{1,19})__")

_NUMERIC, _TEXT = b"\x01", b"\x02"
_END = b"\x00\x01"


@lru_cache(maxsize=16_384)
def split(name: str) -> tuple[str, tuple[str, ...]]:
    """Split a resource name.

    Returns:
        The database's name and the segments below `documents`; no segments for the root.

    Raises:
        Refused: The name is not of this shape.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise invalid(f'Document name "{name}" lacks "projects/*/databases/*/documents" at its start.')
    segments = tuple(match[2].split("/")) if match[2] else ()
    if "" in segments:
        raise invalid(f'Document name "{name}" has an empty segment.')
    return match[1], segments


def check_database(name: str) -> str:
    """Return the database's name; a malformed one is refused."""
    if not _DATABASE.fullmatch(name):
        raise invalid(f'Invalid database name: "{name}".')
    return name


def parent_segments(name: str) -> tuple[str, tuple[str, ...]]:
    """Split the name of a document, or of the root, as `split` does."""
    database, segments = split(name)
    if len(segments) % 2:
        raise invalid(f'The parent "{name}" is not a document.')
    return database, segments


def document_segments(database: str, name: str) -> tuple[str, ...]:
    """Return the segments of a document of this database."""
    owner, segments = split(name)
    if owner != database:
        raise invalid(f'Document "{name}" is not in database "{database}".')
    if not segments or len(segments) % 2:
        raise invalid(f'Document name "{name}" does not name a document.')
    return segments


def document_path(database: str, name: str) -> bytes:
    """Return the path of a document of this database."""
    return encode(document_segments(database, name))


def check_writable(name: str) -> None:
    """Refuse a document name that production would not store."""
    _, segments = split(name)
    if len(segments) > 2 * PATH_DEPTH_MAX:
        raise invalid(f"Document paths pass through at most {PATH_DEPTH_MAX} collections.")
    for segment in segments:
        if len(segment.encode()) > SEGMENT_BYTES_MAX:
            raise invalid(f"A path segment is longer than {SEGMENT_BYTES_MAX} bytes.")
        if segment in {".", ".."}:
            raise invalid(f'Resource id "{segment}" is invalid: "." and ".." are not allowed.')
        if _RESERVED.fullmatch(segment):
            raise invalid(f'Resource id "{segment}" is invalid because it is reserved.')


def encode_text(text: bytes) -> bytes:
    """Encode bytes so that they sort like `text` and end with a terminator."""
    return text.replace(b"\x00", b"\x00\xff") + _END


@lru_cache(maxsize=16_384)
def encode(segments: tuple[str, ...]) -> bytes:
    """Encode a path as bytes that sort as Firestore sorts it."""
    return b"".join(map(_encode_segment, segments))


def _encode_segment(segment: str) -> bytes:
    if numeric := _NUMERIC_ID.fullmatch(segment):
        number = int(numeric[1])
        if -(1 << 63) <= number < 1 << 63:
            return _NUMERIC + (number + (1 << 63)).to_bytes(8, "big")
    return _TEXT + encode_text(segment.encode())


def decode(path: bytes) -> tuple[str, ...]:
    """Decode a path's bytes into segments."""
    segments = []
    at = 0
    while at < len(path):
        kind, at = path[at : at + 1], at + 1
        if kind == _NUMERIC:
            segments.append(f"__id{int.from_bytes(path[at : at + 8], 'big') - (1 << 63)}__")
            at += 8
        else:
            end = path.index(_END, at)
            segments.append(path[at:end].replace(b"\x00\xff", b"\x00").decode())
            at = end + len(_END)
    return tuple(segments)


def join(database: str, segments: tuple[str, ...]) -> str:
    """Build a resource name."""
    return "/".join((database, "documents", *segments))
