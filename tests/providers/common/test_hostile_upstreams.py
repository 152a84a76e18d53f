"""Upstreams that send too much, too deep, too slowly, or our own credentials: raw bytes on a socket, every reader."""

import asyncio
import gzip
import json
import logging
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goblin.core import redaction
from goblin.core.endpoints import Endpoint
from goblin.core.errors import GoblinError, InvalidRequest, ProviderUnavailable
from goblin.gateway.domain import requests
from goblin.gateway.domain.endpoint_health import Finding
from goblin.providers.anthropic import inference as anthropic
from goblin.providers.common import bills, http, kept_connections, rental_http, sse
from goblin.providers.common.error_words import WAIT_S_MAX
from goblin.providers.common.http import Upstream
from goblin.providers.common.kept_connections import KeptConnections, PlainClient
from goblin.providers.common.probes import MODELS_MAX
from goblin.providers.common.refusals import TEXT_MAX
from goblin.providers.llamacpp.control import LlamaCppControl
from goblin.providers.ollama import inference as ollama
from goblin.providers.openai import inference as openai
from goblin.providers.runpod import inference as runpod
from goblin.providers.runpod.api import Pods, RunPodApi
from goblin.providers.vastai.api import RequestLine, VastApi
from goblin.web import asgi, logs

KEY = "sk-the/key+of our=account"[:24].replace(" ", "_")


class Hostile:
    """A server that answers every request with the same bytes, and then waits."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                await reader.readexactly(length)
                for part in self.parts:
                    writer.write(part)
                    await writer.drain()
        writer.close()

    def says(self, body: bytes, *, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.parts = ["\r\n".join(lines).encode() + b"\r\n\r\n", body]


@asynccontextmanager
async def hostile() -> AsyncIterator[tuple[Hostile, httpx.AsyncClient]]:
    here = Hostile()
    server = await asyncio.start_server(here.answer, "127.0.0.1", 0)
    here.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    transport = KeptConnections(tls=ssl.create_default_context(), most=8, kept=4)
    async with asyncio.timeout(30), PlainClient(transport) as client:
        yield here, client
    server.close()


def chat() -> requests.ChatRequest:
    return requests.parse(requests.ChatRequest, b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}')


def endpoint(url: str, provider: str = "openai", **more: Any) -> Endpoint:
    return Endpoint(name="e", provider=provider, url=url, api_key=KEY, models=("m",), **more)


async def read(chunks: AsyncIterator[Any]) -> None:
    async for _ in chunks:
        pass


async def no_sleep(_: float) -> None:
    pass


async def embed(url: str, client: httpx.AsyncClient) -> None:
    body = b'{"model":"m","input":"a"}'
    await openai.connect(endpoint(url), client).embed(requests.parse(requests.EmbeddingsRequest, body), model="m")


async def probe(url: str, client: httpx.AsyncClient) -> None:
    found = await openai.connect(endpoint(url), client).probe()
    assert found.finding is not Finding.OK
    raise ProviderUnavailable(found.reason)


async def vast(url: str, client: httpx.AsyncClient) -> None:
    api = VastApi("vastai", url, KEY, client, RequestLine(sleep=no_sleep))
    api.parse(await api.ask("instances", "GET", "/api/v0/instances/"), dict[str, Any])


async def pods(url: str, client: httpx.AsyncClient) -> None:
    api = RunPodApi("runpod", url, KEY, client, sleep=no_sleep)
    api.parse(await api.ask("GET", "/pods"), Pods)


async def bill(url: str, client: httpx.AsyncClient) -> None:
    await bills.BillingApi("openai", url, client, no_sleep).get("/x", headers={"x-api-key": KEY}, params={})


READERS: dict[str, Callable[[str, httpx.AsyncClient], Awaitable[Any]]] = {
    "openai": lambda url, client: read(openai.connect(endpoint(url), client).chat(chat(), model="m")),
    "anthropic": lambda url, client: read(
        anthropic.connect(endpoint(url, "anthropic"), client).chat(chat(), model="m")
    ),
    "ollama": lambda url, client: read(ollama.connect(endpoint(url, "ollama"), client).chat(chat(), model="m")),
    "runpod queue": lambda url, client: read(
        runpod.connect(endpoint(url, "runpod", options={"route": "queue"}), client).chat(chat(), model="m")
    ),
    "embeddings": embed,
    "probe": probe,
    "vast": vast,
    "runpod pods": pods,
    "bill": bill,
    "model server": lambda url, client: LlamaCppControl(endpoint(url), client).loaded(),
    "model load": lambda url, client: LlamaCppControl(endpoint(url), client).load("u", sha256="s", alias="a"),
}
DEEP = {
    "lists": b"[" * 100_000 + b"]" * 100_000,
    "just parsable": b'{"error":' + b"[" * 600 + b"]" * 600 + b"}",
    "in a message": b'{"error":{"message":' + b'{"a":' * 600 + b"1" + b"}" * 600 + b"}}",
    "in a field": b'{"choices":[{"logprobs":' + b'{"a":' * 600 + b"1" + b"}" * 600 + b"}]}",
    "many": b'{"data":[' + b"{}," * 600_000 + b"{}]}",
    "no UTF-8": b'{"a":"\xff"}',
    "not JSON": b"\x00" * 1000,
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limits that a test reaches."""
    monkeypatch.setattr(kept_connections, "BODY_BYTES_MAX", 4 << 20)
    monkeypatch.setattr(http, "JSON_BYTES_MAX", 4 << 20)
    monkeypatch.setattr(rental_http, "BYTES_MAX", 4 << 20)
    monkeypatch.setattr(sse, "LINE_BYTES_MAX", 1 << 20)
    yield
    redaction._known.clear()


async def fails(reader: str, here: Hostile, client: httpx.AsyncClient) -> None:
    """Whatever it sent, the next endpoint is asked: no other exception than the two that mean it."""
    with pytest.raises((ProviderUnavailable, InvalidRequest)):
        await READERS[reader](here.url, client)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("kind", DEEP)
async def test_json_that_is_too_deep_is_a_broken_answer(reader: str, kind: str, status: int) -> None:
    async with hostile() as (here, client):
        here.says(DEEP[kind], status=status)
        await fails(reader, here, client)
        here.says(b"data: " + DEEP[kind] + b"\n\n", status=status, kind="text/event-stream")
        await fails(reader, here, client)


BOMB = b'{"a":"' + b"a" * (64 << 20) + b'"}'


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(BOMB)),
        ("deflate", zlib.compress(BOMB)),
        ("gzip", b"not gzip"),
        ("br", b"\x00"),
        ("zstd", b"\x00"),
        ("gzip, gzip", gzip.compress(gzip.compress(BOMB))),
    ],
    ids=["gzip", "deflate", "damaged", "br", "zstd", "twice"],
)
async def test_what_was_not_to_be_compressed_is_not_unpacked_without_end(
    reader: str, encoding: str, body: bytes
) -> None:
    async with hostile() as (here, client):
        for kind in ("application/json", "text/event-stream"):
            here.says(body, kind=kind, content_encoding=encoding)
            await fails(reader, here, client)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity", "GZIP"])
async def test_a_compressed_answer_of_ordinary_size_is_read(encoding: str) -> None:
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding.lower(), bytes)
    body = json.dumps({"data": [{"id": f"m{number}"} for number in range(20_000)]}).encode()
    async with hostile() as (here, client):
        here.says(packed(body), content_encoding=encoding)
        found = await openai.connect(endpoint(here.url), client).probe()
        assert found.models is not None
        assert len(found.models) == MODELS_MAX


async def test_what_a_probe_lists_fits_into_a_document() -> None:
    async with hostile() as (here, client):
        rows = ["", "x" * 257, "x" * 256, *(f"{number}" * 40 for number in range(9 * MODELS_MAX))]
        here.says(json.dumps({"data": [{"id": name} for name in rows]}).encode())
        found = await openai.connect(endpoint(here.url), client).probe()
        assert found.models is not None
        assert found.models[0] == "x" * 256
        assert len(json.dumps(found.models)) < 900_000


@pytest.mark.parametrize("asked", ["1e300", "99999999999999999999", "nan", "inf", "-1", "1e400"])
async def test_a_wait_is_a_time_that_passes(asked: str) -> None:
    async with hostile() as (here, client):
        here.says(b"{}", status=429, retry_after=asked)
        with pytest.raises(ProviderUnavailable) as caught:
            await Upstream("e", here.url, KEY, client).json("GET", "/x", timeout_s=5)
        assert caught.value.retry_after_s is None or caught.value.retry_after_s <= WAIT_S_MAX
        assert len(str(asgi.error_answer(caught.value).headers.get("retry-after", ""))) < 9


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("kind", "unit"),
    [
        ("text/event-stream", b"data: " + b"x" * 65536),
        ("text/event-stream", b"data:\n" * 10_000),
        ("text/event-stream", b": ping\n" * 10_000),
        ("application/x-ndjson", b"x" * 65536),
        ("application/json", b'{"a":"' + b"x" * 65536),
    ],
    ids=["event", "empty lines", "comments", "line", "json"],
)
async def test_an_answer_without_end_ends(reader: str, kind: str, unit: bytes) -> None:
    async with hostile() as (here, client):
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n\r\n".encode()
        here.parts = [head, *([unit] * (2 + (5 << 20) // len(unit)))]
        await fails(reader, here, client)


@pytest.mark.parametrize(
    "parts",
    [
        [b"HTTP/1.1 200 OK\r\nx: ", *([b"y" * 65536] * 40)],
        [b"HTTP/1.1 200 OK\r\n", *([b"y" * 65536] * 40)],
        [b"HTTP/1.1 200 OK\r\n", *([b"x: y\r\n" * 1000] * 4), b"content-length: 2\r\n\r\n{}"],
        [b"HTTP/1.1 200 ", *([b"y" * 65536] * 40)],
        [b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000],
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nx: ", *([b"y" * 65536] * 40)],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 9\r\n\r\n{}"],
        [b"\x16\x03\x01" * 100],
    ],
    ids=["value", "name", "count", "reason", "interim", "trailer", "two lengths", "not HTTP"],
)
@pytest.mark.parametrize("reader", ["openai", "probe", "vast", "bill", "model server"])
async def test_headers_without_end_are_no_answer(reader: str, parts: list[bytes]) -> None:
    async with hostile() as (here, client):
        here.parts = parts
        await fails(reader, here, client)


async def test_a_trickle_is_a_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hostile() as (here, client):
        here.parts = [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", b"["]

        async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n")
            with suppress(ConnectionError):
                while True:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.01)

        server = await asyncio.start_server(trickle, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(ProviderUnavailable, match="in time"):
            await Upstream("e", url, KEY, client).json("GET", "/x", timeout_s=0.1)
        monkeypatch.setattr(kept_connections, "BODY_S_MAX", 0.1)
        with pytest.raises(ProviderUnavailable):
            async with Upstream("e", url, KEY, client).stream("/x", {}) as response:
                await read(http.pieces(response))
        server.close()


async def test_a_job_id_cannot_lead_to_another_path() -> None:
    async with hostile() as (here, client):
        for job_id in ("../../v2/other", "a/b", "a?b", "a\r\nb", "x" * 500, ""):
            here.says(json.dumps({"id": job_id}).encode())
            await fails("runpod queue", here, client)


def everywhere(secret: str) -> list[bytes]:
    """Bodies of errors with a secret in every field."""
    return [
        json.dumps(body).encode()
        for body in (
            {"error": {"message": secret, "type": secret, "code": secret, "param": secret}},
            {"error": {"message": f"x {secret} y" * 80, "type": "a", "code": "b", "details": {"error_code": secret}}},
            {"error": {"message": f"x {secret}", "type": "invalid_request_error", "code": secret, "param": secret}},
            {"error": secret, "msg": secret},
            {"error": secret},
            {"detail": secret},
            {"error": {"message": {"a": [secret]}, "code": [secret], "param": {"a": secret}}},
            {"error": {"message": "a" * (TEXT_MAX - 10) + secret}},
            {"detail": [{"loc": ["body", secret], "msg": secret, "type": secret}] * 3},
            {"errors": [{"message": secret, "code": secret}], "title": secret},
            {"object": "error", "message": json.dumps({"error": {"message": secret, "code": secret}})},
            {"error": {"message": "x", "metadata": {"raw": json.dumps({"error": secret}), "provider_name": secret}}},
            {"error": "x", "error_type": secret, "message": "a" * (TEXT_MAX - 10) + secret},
            [{"error": {"status": secret, "message": secret}}],
            {"error": {"message": "a" * (TEXT_MAX - 60)}, "loc": [secret] * 9},
        )
    ] + [
        f"no: {secret}".encode(),
        b"a" * (TEXT_MAX - 10) + secret.encode(),
        f"<html><head><title>{secret}</title>".encode(),
    ]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(alphabet="abcXYZ0189-_./+=~", min_size=20, max_size=50),
    st.sampled_from([str, str.upper, lambda s: httpx.QueryParams({"k": s}).__str__()[2:]]),
    st.sampled_from([400, 401, 402, 404, 429, 500, 503]),
)
async def test_our_key_comes_back_in_no_error_header_or_log_line(
    secret: str, form: Callable[[str], str], status: int
) -> None:
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(logs.JsonLine().format(record))

    handler = Kept()
    logging.getLogger("goblin").addHandler(handler)
    try:
        async with hostile() as (here, client):
            for body in everywhere(form(secret)):
                upstream = Upstream("e", here.url, secret, client)
                here.says(b"data: " + body.replace(b"\n", b" ") + b"\n\n", kind="text/event-stream")
                with pytest.raises(GoblinError) as caught:
                    await read(openai.connect(endpoint(here.url), client).chat(chat(), model="m"))
                assert secret[:12].lower() not in f"{caught.value.message} {getattr(caught.value, 'code', '')}".lower()
                here.says(body, status=status, retry_after=form(secret), x_request_id=form(secret))
                with pytest.raises(GoblinError) as caught:
                    await upstream.json("POST", "/x", body={}, timeout_s=5)
                error = caught.value
                answer = asgi.error_answer(error)
                logging.getLogger("goblin.test").error("It failed: %s", body, exc_info=error)
                said = [str(answer.content), *answer.headers.values(), *lines, error.message, str(error.code)]
                for text in said:
                    shown = text.lower()
                    assert form(secret).lower() not in shown
                    assert secret.lower() not in shown
                    # A text that is cut is cut after it was redacted: no half of the secret is left.
                    assert secret[:12].lower() not in shown
                assert len(error.message) < TEXT_MAX + 100
    finally:
        logging.getLogger("goblin").removeHandler(handler)
