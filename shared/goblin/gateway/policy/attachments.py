"""Attachments: about how many tokens the images and files of a request count. An estimate; `worst_case` has the bound.

By Anthropic's rules: an image counts a token for 750 pixels, after it was scaled to 1,568 pixels and 1,600 tokens at
most; each page of a PDF is read as text and as an image. Source: platform.claude.com/docs, pages on vision and PDF
support, and counts of others (2,100 to 2,350 tokens a page of text, 1,600 a scanned one), read 2026-12-01.
"""

from __future__ import annotations

import base64
import binascii
import math
import re

from goblin.gateway.domain.requests import ChatRequest, FilePart, ImagePart, InferenceRequest
from goblin.gateway.policy import tokens

IMAGE_TOKENS_MAX = 1600
IMAGE_EDGE_MAX = 1568
PIXELS_PER_TOKEN = 750
PAGE_TOKENS = 2350
PAGES_MAX = 600
"""The most pages that Anthropic takes in one request."""
_HEAD_CHARACTERS = 256 * 1024
"""How much of an image's base64 is decoded; its size is at its beginning, behind what a camera notes."""
_PAGE = re.compile(rb"/Type\s*/Page(?![a-zA-Z])")
_COUNT = re.compile(rb"/Count\s+(\d{1,6})")


def prompt_bytes(request: InferenceRequest) -> int:
    """Count what the model reads, in bytes of UTF-8; images and files as so much text."""
    return request.prompt_bytes() + attachment_tokens(request) * tokens.BYTES_PER_TOKEN


def attachment_tokens(request: InferenceRequest) -> int:
    """Estimate the tokens of all images and files of a request."""
    if not isinstance(request, ChatRequest):
        return 0
    parts = [part for m in request.messages if isinstance(m.content, tuple) for part in m.content]
    images = sum(image_tokens(part.image_url.url) for part in parts if isinstance(part, ImagePart))
    files = [part.file.get("file_data") for part in parts if isinstance(part, FilePart)]
    return images + sum(PAGE_TOKENS * pdf_pages(data if isinstance(data, str) else "") for data in files)


def image_tokens(url: str) -> int:
    """Estimate the tokens of an image by its size; the most that one counts if only its link is there."""
    size = _size(_decoded(url, _HEAD_CHARACTERS))
    if size is None:
        return IMAGE_TOKENS_MAX
    width, height = size
    scale = min(1.0, IMAGE_EDGE_MAX / max(width, height, 1))
    return max(1, min(IMAGE_TOKENS_MAX, math.ceil(width * height * scale * scale / PIXELS_PER_TOKEN)))


def pdf_pages(url: str) -> int:
    """Count the pages of a PDF, at least one: its page objects, or the count that it states where they are packed."""
    data = _decoded(url)
    stated = max((int(found) for found in _COUNT.findall(data)), default=0)
    return min(max(len(_PAGE.findall(data)), stated, 1), PAGES_MAX)


def _decoded(url: str, characters: int | None = None) -> bytes:
    head, _, data = url.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64"):
        return b""
    if characters is not None:
        data = data[:characters]
    try:
        return base64.b64decode(data[: len(data) // 4 * 4])
    except (binascii.Error, ValueError):
        return b""


def _size(data: bytes) -> tuple[int, int] | None:
    """Read width and height from the head of a PNG, GIF, WebP or JPEG."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[:4] == b"GIF8" and len(data) >= 10:
        return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[:2] == b"\xff\xd8":
        return _jpeg_size(data)
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Walk the segments of a JPEG to the one that begins the frame."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[at + 5 + i : at + 7 + i], "big") for i in (0, 2))
            return width, height
        at += 2 + max(length, 2)
    return None
