"""Clients that cost little: HTTP/1.1 over bare asyncio, kept connections, a fixed number of requests between them."""

import asyncio
import json
import time
from dataclasses import dataclass, field

BODY = {"model": "bench", "messages": [{"role": "user", "content": "Say sixteen words, please."}]}


@dataclass
class Result:
    """What the clients saw."""

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def _read(reader: asyncio.StreamReader) -> int:
    """Read one answer to its end; its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        while True:
            size = int(await reader.readuntil(b"\r\n"), 16)
            await reader.readexactly(size + 2)
            if size == 0:
                break
    else:
        await reader.readexactly(int(lower.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    return int(head[9:12])


def _request(port: int, key: str, *, stream: bool, long: bool = False) -> bytes:
    body = json.dumps({**BODY, "stream": stream, **({"max_tokens": 1000} if long else {})}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def run(port: int, key: str, *, clients: int, requests: int, abort_every: int = 0, long: bool = False) -> Result:
    """Send the requests, every other one a stream.

    Args:
        port: On loopback.
        key: Sent as bearer.
        clients: At once, each on its own connection.
        requests: In all.
        abort_every: Every so many requests one hangs up in the middle of its stream; 0 for never.
        long: Whether every request is a stream of a thousand chunks.

    Raises:
        RuntimeError: An answer was not 200.
    """
    result, turns = Result(), iter(range(requests))
    started = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in turns:
            aborted = abort_every and number % abort_every == 0
            begun = time.perf_counter()
            writer.write(_request(port, key, stream=long or bool(aborted) or number % 2 == 1, long=long))
            if aborted:
                await reader.readuntil(b"data: ")
                writer.transport.abort()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                continue
            if (status := await _read(reader)) != 200:
                raise RuntimeError(f"answered {status}")
            result.latencies_ms.append((time.perf_counter() - begun) * 1000)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    result.seconds = time.perf_counter() - started
    return result
