"""About how many tokens images and files count."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.gateway.domain import requests
from goblin.gateway.policy import attachments


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\2\0\0\0"


GIF = b"GIF89a" + (300).to_bytes(2, "little") + (250).to_bytes(2, "little") + b"\0" * 10
WEBP = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (299).to_bytes(3, "little") + (249).to_bytes(3, "little")
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF" + b"\0" * 10 + b"\xff\xc0\x00\x11\x08\x00\xfa\x01\x2c\x03" + b"\0" * 10


@pytest.mark.parametrize(
    ("image", "tokens"),
    [
        (url(png(300, 250)), 100),
        (url(GIF), 100),
        (url(WEBP), 100),
        (url(JPEG), 100),
        (url(png(1, 1)), 1),
        (url(png(1000, 1000)), 1334),
        (url(png(4032, 3024)), 1600),
        (url(png(8000, 100)), 41),
        ("https://host/a.png", 1600),
        (url(b"what is this"), 1600),
        ("data:image/png;base64,***", 1600),
    ],
)
def test_an_image_counts_by_its_size(image: str, tokens: int) -> None:
    assert attachments.image_tokens(image) == tokens


@pytest.mark.parametrize(
    ("data", "pages"),
    [
        (b"%PDF-1.4 <</Type/Pages/Count 2>> <</Type/Page>> <</Type /Page /Parent 2 0 R>>", 2),
        (b"%PDF-1.5 <</Type /Pages /Count 37 /Kids []>> stream", 37),
        (b"%PDF-1.5 all packed", 1),
        (b"/Count 999999", 600),
        (b"", 1),
    ],
)
def test_a_pdf_counts_by_its_pages(data: bytes, pages: int) -> None:
    assert attachments.pdf_pages(url(data, "application/pdf")) == pages


@given(st.binary(max_size=200))
def test_any_bytes_are_counted(data: bytes) -> None:
    for head in (b"", b"\xff\xd8", b"GIF8", b"RIFF0000WEBPVP8X", b"\x89PNG\r\n\x1a\n"):
        assert 1 <= attachments.image_tokens(url(head + data)) <= attachments.IMAGE_TOKENS_MAX
    assert attachments.pdf_pages(url(data)) >= 1


def test_a_request_counts_all_of_them() -> None:
    parts: list[Any] = [
        {"type": "text", "text": "x"},
        {"type": "image_url", "image_url": {"url": url(png(300, 250))}},
        {"type": "file", "file": {"file_data": url(b"%PDF /Type/Page", "application/pdf")}},
        {"type": "file", "file": {"file_id": "f"}},
    ]
    body = {"model": "m", "messages": [{"role": "user", "content": parts}, {"role": "user", "content": "Hi"}]}
    found = requests.parse(requests.ChatRequest, json.dumps(body).encode())
    assert attachments.attachment_tokens(found) == 100 + 2 * attachments.PAGE_TOKENS
