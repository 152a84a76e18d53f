"""Names of objects that Cloud Storage accepts, and that a signed request reaches.

Source: cloud.google.com/storage/docs/objects#naming, read 2026-11-23.
"""

from __future__ import annotations

BYTES_MAX = 1024
"""Bytes of UTF-8, not characters."""
RESERVED = ".well-known/acme-challenge/"
SHOWN_MAX = 40


def why_refused(name: str, *, room: int = 0) -> str | None:
    """Explain why there can be no object of this name; None if there can.

    Args:
        name: Name of the object, without its bucket.
        room: Bytes to keep free for what is appended to the name.
    """
    if not name:
        return "it has no name after the bucket"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "it has a character that UTF-8 does not have"
    if size > BYTES_MAX - room:
        return f"its name has {size} bytes of UTF-8; the most are {BYTES_MAX - room}"
    if "\r" in name or "\n" in name:
        return "its name has a line break"
    if name.startswith(RESERVED):
        return f"no object may be below {RESERVED}"
    # Cloud Storage refuses the whole name `.` or `..`. As a part of the path it vanishes from the URL of a signed
    # request in every HTTP client, so that the signature does not fit.
    if any(part in (".", "..") for part in name.split("/")):
        return "no part of its path may be `.` or `..`"
    return None
