"""A mock upstream that costs next to nothing: OpenAI's chat answers over bare asyncio. `python -m … PORT_FILE`."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path

DELTAS = 16
LONG_DELTAS = 1000
"""Chunks of the answer to a request with `max_tokens`."""
GAP_S = 0.02
"""Time between two chunks of that answer: fifty tokens a second."""
_BASE = {"id": "chatcmpl-bench", "created": 1, "model": "bench", "system_fingerprint": "fp"}


def _sse(**fields: object) -> bytes:
    return b"data: " + json.dumps({**_BASE, "object": "chat.completion.chunk", **fields}).encode() + b"\n\n"


def _choice(delta: dict[str, str], finish: str | None = None) -> list[dict[str, object]]:
    return [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]


USAGE = {"prompt_tokens": 9, "completion_tokens": DELTAS, "total_tokens": 9 + DELTAS}
EVENTS = [
    _sse(choices=_choice({"role": "assistant", "content": ""})),
    *(_sse(choices=_choice({"content": f"word {n} "})) for n in range(DELTAS)),
    _sse(choices=_choice({}, "stop")),
    _sse(choices=[], usage=USAGE),
    b"data: [DONE]\n\n",
]
LONG = [*EVENTS[:1], *(_sse(choices=_choice({"content": f"word {n} "})) for n in range(LONG_DELTAS)), *EVENTS[-3:]]
MESSAGE = {"role": "assistant", "content": "".join(f"word {n} " for n in range(DELTAS)), "refusal": None}
WHOLE = json.dumps(
    {
        **_BASE,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop", "logprobs": None}],
        "usage": USAGE,
    }
).encode()
MODELS = json.dumps(
    {"object": "list", "data": [{"id": "bench", "object": "model", "created": 1, "owned_by": "x"}]}
).encode()


def _answer(body: bytes, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(body), body)


async def _stream(writer: asyncio.StreamWriter, *, long: bool) -> None:
    writer.write(STREAM)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for number, event in enumerate(LONG if long else EVENTS):
        writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        await writer.drain()
        # To a schedule, so that a busy machine does not lengthen the stream.
        await asyncio.sleep(max(begun + number * GAP_S - loop.time(), 0) if long else 0)
    writer.write(b"0\r\n\r\n")


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            body = await reader.readexactly(int(length or 0))
            if b"/chat/completions" not in head:
                writer.write(_answer(MODELS))
            elif b'"stream":true' in body.replace(b" ", b""):
                await _stream(writer, long=b'"max_tokens"' in body)
            else:
                writer.write(_answer(WHOLE))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main(told: Callable[[int], object]) -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0, backlog=1024)
    told(server.sockets[0].getsockname()[1])
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(lambda port: Path(sys.argv[1]).write_text(str(port))))
