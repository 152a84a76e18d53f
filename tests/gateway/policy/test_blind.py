"""What a model that cannot see is told instead of pictures and files."""

from __future__ import annotations

import json
from typing import Any

from goblin.core.endpoints import Capability
from goblin.gateway.domain import requests
from goblin.gateway.policy.blind import without_pictures
from goblin.web import anthropic_requests

PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}}
PLAIN = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "abc"}}
CALL = {"type": "tool_use", "id": "t", "name": "n", "input": {"content": [PNG]}}


def asked(*blocks: Any) -> requests.ChatRequest:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [CALL]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": list(blocks)}, *blocks]},
    ]
    return anthropic_requests.parse(json.dumps({"model": "m", "max_tokens": 9, "messages": turns}).encode())


def test_files_go_first_and_then_images() -> None:
    request = asked(PNG, PDF, PLAIN)
    blinder, blind = without_pictures(request)
    assert blinder.needs() == {Capability.CHAT, Capability.VISION}
    assert blind.needs() == {Capability.CHAT}
    assert (blinder.left_out, blind.left_out) == (("files",), ("files", "images"))
    said = json.dumps(blind.body)
    assert "iVBOR" not in json.dumps(blind.body["messages"][3:])
    assert "JVBE" not in said
    assert "cannot see images" in said
    assert "cannot read PDF" in said
    assert blind.original is not None
    sent = blind.original.body["messages"]
    assert sent[1]["content"] == [CALL]
    for content in (sent[2]["content"][0]["content"], sent[2]["content"][1:]):
        assert [block["type"] for block in content] == ["text", "text", "document"]
        assert content[2] == PLAIN
    assert request == asked(PNG, PDF, PLAIN)


def test_nothing_is_left_out_of_what_has_no_pictures_or_came_in_openais_wire() -> None:
    assert list(without_pictures(asked(PLAIN))) == []
    part = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    body = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
    assert list(without_pictures(requests.parse(requests.ChatRequest, json.dumps(body).encode()))) == []
