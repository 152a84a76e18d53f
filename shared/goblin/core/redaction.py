"""Redaction: credentials never leave in a text, whoever wrote it.

A provider's error may quote the key that it refuses, and an exception the URL that it failed at. Every error of ours
and every log line passes `redact`. It knows the secrets that this process uses, because each is passed to `learn` where
it is read or sent, and the shapes of those that it was never told: a caller's key, a job's token, a signature.

The text of a model's answer does not pass here: it is the caller's, and a credential in it came with the prompt.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections import OrderedDict
from urllib.parse import quote

REDACTED = "[redacted]"
LENGTH_MIN = 8
"""A shorter text is no secret: replacing it would eat ordinary words."""
KNOWN_MAX = 512
"""The most secrets that are known at once. Identity tokens are renewed each hour; the oldest are forgotten."""


class _Forms:
    """One secret in every form in which it may be quoted."""

    __slots__ = ("needles", "pattern")

    def __init__(self, secret: str) -> None:
        forms = sorted(_forms_of(secret), key=len, reverse=True)
        self.needles = tuple({form.lower() for form in forms})
        # In the longest form first, so that nothing of it is left.
        self.pattern = re.compile("|".join(re.escape(form) for form in forms), re.IGNORECASE)


def _forms_of(secret: str) -> set[str]:
    data = secret.encode("utf-8", "surrogatepass")
    forms = {
        secret,
        quote(secret, errors="replace"),
        quote(secret, safe="", errors="replace"),
        "".join(f"%{byte:02x}" for byte in data),
        json.dumps(secret)[1:-1],
        "".join(f"\\u{ord(character):04x}" for character in secret),
        secret.replace("/", "\\/"),
        html.escape(secret),
        data.hex(),
    }
    for before in range(3):
        # What base64 makes of it depends on how many bytes come before; the ends also depend on its neighbours.
        whole = base64.b64encode(bytes(before) + data).decode().rstrip("=")
        first, last = -(-before * 8 // 6), (before + len(data)) * 8 // 6
        inner = whole[first:last]
        forms |= {inner, inner.replace("+", "-").replace("/", "_")}
    return {form for form in forms if len(form) >= LENGTH_MIN}


_known: OrderedDict[str, _Forms] = OrderedDict()

# What follows a name is a credential; the name stays.
_AFTER_NAME = re.compile(
    r"(?P<kept>\b(?:bearer|basic)(?:\s|%20|\+){1,4})[A-Za-z0-9._~+/=%-]{16,}"
    r"|(?P<kept2>\b(?:proxy-)?(?:authorization|x-api-key|api[-_]?key|access[-_]token|client[-_]secret)"
    r"[\"']?\s{0,4}[:=]\s{0,4}[\"']?)(?!\[redacted\]|bearer\b|basic\b)[^\s\"',;&<>{}]{8,}"
    r"|(?P<kept3>(?:[?&]|%3F|%26)(?:x-(?:goog|amz)-(?:signature|credential|security-token)|signature|sig|token|key)"
    r"(?:=|%3D))(?!\[redacted\])[^\s\"'<>&]{1,4096}",
    re.IGNORECASE,
)
_SHAPES = re.compile(
    r"\bgob-[A-Za-z0-9_.~-]{8,}|\bsk-[A-Za-z0-9_*.-]{16,}"
    r"|\b(?:gsk|hf|rpa|fm[12]|fo1|ghp|github_pat)_[A-Za-z0-9_*.=+/-]{16,}"
    r"|\bAIza[0-9A-Za-z_-]{20,}|\bya29\.[0-9A-Za-z._-]{8,}"
    r"|\bey[A-Za-z0-9_-]{8,}\.ey[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"(?<=://)[^/\s@\"'<>]{1,512}@")


def learn(secret: str) -> None:
    """Remember a secret of this process, so that `redact` knows it in any form. Too short a text is ignored."""
    if secret in _known:
        _known.move_to_end(secret)
        return
    if len(secret) < LENGTH_MIN:
        return
    _known[secret] = _Forms(secret)
    while len(_known) > KNOWN_MAX:
        _known.popitem(last=False)


def redact(text: str) -> str:
    """Replace every credential in a text: those that were learned, in any form, and what looks like one."""
    if not text:
        return text
    lowered = text.lower()
    for forms in list(_known.values()):
        if any(needle in lowered for needle in forms.needles):
            text = forms.pattern.sub(REDACTED, text)
    text = _USERINFO.sub(f"{REDACTED}@", text)
    text = _AFTER_NAME.sub(_keep_name, text)
    return _SHAPES.sub(REDACTED, text)


def _keep_name(found: re.Match[str]) -> str:
    return next(kept for kept in found.groups() if kept) + REDACTED
