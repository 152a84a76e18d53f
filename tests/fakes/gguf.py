"""Small GGUF files: sound headers, one tensor, any content."""

from __future__ import annotations

import struct


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def gguf(
    content: bytes, *, kind: int = 24, shape: tuple[int, ...] | None = None, alignment: int | None = None
) -> bytes:
    """A file whose only tensor, of bytes unless told otherwise, holds the content."""
    shape = shape or (len(content),)
    pairs = [_string(b"general.architecture") + struct.pack("<I", 8) + _string(b"llama")]
    pairs.append(_string(b"tokens") + struct.pack("<IIQ", 9, 8, 2) + _string(b"a") + _string(b"bc"))
    pairs.append(_string(b"numbers") + struct.pack("<IIQ", 9, 4, 3) + struct.pack("<III", 1, 2, 3))
    if alignment is not None:
        pairs.append(_string(b"general.alignment") + struct.pack("<II", 4, alignment))
    record = _string(b"weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs) + record
    return head + b"\0" * (-len(head) % (alignment or 32)) + content
