"""Which host names and which pages may call a server, and how large a head may be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from httpguard import LOOPBACK, Guard, Limits, Refusal, check_caller, check_head

HERE = (b"host", b"127.0.0.1:8080")
PAGE = b"http://127.0.0.1:8080"


def verdict(*headers: tuple[bytes, bytes], method: str = "POST", hosts: Any = LOOPBACK, origins: Any = ()) -> int:
    try:
        check_caller(method, headers, hosts=hosts, origins=origins)
    except Refusal as refusal:
        return refusal.status
    return 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"127.0.0.1", 200), (b"127.0.0.1:8080", 200), (b"localhost:1", 200), (b"LocalHost:8080", 200),
        (b"[::1]:80", 200), (b"[::1]", 200), (b"", 421), (b"evil.example", 421), (b"127.0.0.1.evil.example", 421),
        (b"localhost.evil", 421), (b"evil@127.0.0.1", 421), (b"127.0.0.1:80:80", 421), (b"127.0.0.1:", 421),
        (b"127.0.0.1:x", 421), (b"localhost.", 421), (b"0.0.0.0:8080", 421), (b"127.1", 421), (b"::1", 421),
        (b"[::1", 421), (b"\xff", 421), (b"127.0.0.1:8080, evil.example", 421), (b"169.254.169.254", 421),
    ],
)  # fmt: skip
def test_only_names_of_this_machine(host: bytes, status: int) -> None:
    assert verdict((b"host", host)) == status


def test_a_request_without_a_host_is_refused_and_one_with_two() -> None:
    assert verdict() == 421
    assert verdict(HERE, (b"host", b"evil.example")) == 400
    assert verdict(HERE, (b"origin", PAGE), (b"origin", b"http://evil.example")) == 400


def test_a_public_server_has_any_name() -> None:
    assert verdict((b"host", b"goblin.example"), hosts=None) == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"origin", PAGE)], 200),
        ([(b"origin", b"HTTP://127.0.0.1:8080")], 200),
        ([(b"origin", b"http://app.example")], 200),
        ([(b"origin", b"http://localhost:8080")], 403),
        ([(b"origin", b"http://127.0.0.1:3000")], 403),
        ([(b"origin", b"http://127.0.0.1")], 403),
        ([(b"origin", b"null")], 403),
        ([(b"origin", b"")], 403),
        ([(b"origin", b"http://evil.example")], 403),
        ([(b"origin", b"http://127.0.0.1:8080.evil.example")], 403),
        ([(b"sec-fetch-site", b"cross-site")], 403),
        ([(b"sec-fetch-site", b"same-site")], 403),
        ([(b"sec-fetch-site", b"same-origin")], 200),
        ([(b"sec-fetch-site", b"none")], 200),
        ([(b"sec-fetch-site", b"none"), (b"origin", b"http://evil.example")], 403),
        # A form that another page sends, by POST.
        ([(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate"), (b"sec-fetch-dest", b"document")], 403),
    ],
)  # fmt: skip
def test_pages_of_other_sites_are_refused(headers: list[tuple[bytes, bytes]], status: int) -> None:
    assert verdict(HERE, *headers, origins=["http://app.example"]) == status


def test_a_link_may_lead_here_but_an_image_or_a_frame_may_not() -> None:
    link = [HERE, (b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate")]
    assert verdict(*link, (b"sec-fetch-dest", b"document"), method="GET") == 200
    assert verdict(*link, (b"sec-fetch-dest", b"iframe"), method="GET") == 403
    image = [HERE, (b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"no-cors"), (b"sec-fetch-dest", b"image")]
    assert verdict(*image, method="GET") == 403


@pytest.mark.parametrize(
    ("headers", "ok"),
    [
        ([(b"a", b"b" * (1024 - 5))], True),
        ([(b"a", b"b" * (1024 - 4))], False),
        ([(b"a", b"b")] * 8, True),
        ([(b"a", b"b")] * 9, False),
    ],
)
def test_heads_are_bounded(headers: list[tuple[bytes, bytes]], ok: bool) -> None:
    limits = Limits(head_bytes=1024, head_lines=8)
    if ok:
        check_head(headers, limits)
        return
    with pytest.raises(Refusal) as refused:
        check_head(headers, limits)
    assert (refused.value.status, refused.value.code) == (431, "headers_too_large")


async def test_the_guard_refuses_in_the_servers_words_and_the_application_sees_nothing() -> None:
    seen, sent = [], []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope["type"])

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(app, words=lambda refusal: json.dumps({"said": refusal.code}).encode())
    scope = {
        "type": "http",
        "method": "GET",
        "headers": [(b"host", b"evil.example")],
        "raw_path": b"/",
        "query_string": b"",
    }
    await guard(scope, None, send)
    assert (sent[0]["status"], json.loads(sent[1]["body"]), seen) == (421, {"said": "wrong_host"}, [])
    await guard({"type": "websocket"}, None, send)
    await guard(scope | {"headers": [HERE]}, None, send)
    await guard({"type": "lifespan"}, None, send)
    assert (sent[2]["type"], seen) == ("websocket.close", ["http", "lifespan"])
