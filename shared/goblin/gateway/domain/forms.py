"""Forms with files (`multipart/form-data`), as SDKs send recordings: fields are read, the rest is kept.

Source: RFC 7578.
"""

from __future__ import annotations

import re

from msgspec import Struct

from goblin.core.errors import InvalidRequest

PARTS_MAX = 64
BOUNDARY_CHARACTERS_MAX = 70
TEXT_BYTES_MAX = 64 * 1024
"""A longer field, and one with a file name, is a file."""
_NAME = re.compile(rb'(?:^|[;\s])name=(?:"([^"\r\n]*)"|([^;\s"]+))', re.IGNORECASE)
_FILE_NAME = re.compile(rb"(?:^|[;\s])filename\*?=", re.IGNORECASE)
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{1,70}")


class Part(Struct, frozen=True):
    """One field."""

    name: str
    head: bytes
    """Its headers, as they came."""
    content: bytes

    @property
    def text(self) -> str | None:
        """The field's text; None for a file."""
        if _FILE_NAME.search(self.head) or len(self.content) > TEXT_BYTES_MAX:
            return None
        return self.content.decode("utf-8", "replace")


class Form(Struct, frozen=True):
    """The fields, in order."""

    boundary: str
    parts: tuple[Part, ...]

    @property
    def media_type(self) -> str:
        return f'multipart/form-data; boundary="{self.boundary}"'

    def text(self, name: str) -> str | None:
        """Return the first text of that name."""
        return next((part.text for part in self.parts if part.name == name), None)

    def encoded(self, *, without: str, **instead: str) -> bytes:
        """Return the form's bytes, without one field, and with other texts in place of some."""
        line = b"--" + self.boundary.encode()
        made = bytearray()
        for part in self.parts:
            if part.name != without:
                content = instead[part.name].encode() if part.name in instead else part.content
                made += b"\r\n".join((line, part.head, b"", content)) + b"\r\n"
        return bytes(made + line + b"--\r\n")


def parse_form(data: bytes) -> Form:
    """Read a form; its boundary is its first line. Raises `InvalidRequest`."""
    first, _, _ = data[: BOUNDARY_CHARACTERS_MAX + 4].partition(b"\r\n")
    boundary = first[2:]
    if not first.startswith(b"--") or not _BOUNDARY.fullmatch(boundary):
        raise InvalidRequest("The body is not a form. Send it as multipart/form-data.")
    before, *pieces = (b"\r\n" + data).split(b"\r\n--" + boundary, PARTS_MAX + 2)
    if before or not pieces or len(pieces) > PARTS_MAX + 1 or not pieces[-1].startswith(b"--"):
        raise InvalidRequest(f"The form is not whole, or has more than {PARTS_MAX} fields. Send it again.")
    parts = []
    for piece in pieces[:-1]:
        head, found, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if not piece.startswith(b"\r\n") or not found or name is None:
            raise InvalidRequest("A field of the form has no name.")
        parts.append(Part((name[1] or name[2] or b"").decode("utf-8", "replace"), head, content))
    return Form(boundary.decode(), tuple(parts))
