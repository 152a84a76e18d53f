"""A fuzzer with a seed and bounds on time and memory: requests, events, tokens, heads and GGUF headers.

The processes that read them are watched: no answer is a 5xx, no traceback is written, a probe is answered meanwhile; at
the end they hold about as much memory, and as many connections and threads, as before.
`GOBLIN_FUZZ_S=3600 GOBLIN_FUZZ_SEED=7` runs longer, or again.
"""

from __future__ import annotations

import base64
import json
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import goblin_llamacpp
from tests.security import attacks, judge, tokens
from tests.security.stand import EMAIL, ROOT, Door, Server, Stand
from tests.security.wire import connected, head, read_all, request, send

BUDGET_S = float(os.environ.get("GOBLIN_FUZZ_S", "6"))
SEED = int(os.environ.get("GOBLIN_FUZZ_SEED", "20261201"))
GROWTH_MIB_MAX = 96
"""Of a process over the whole run. Caches fill up: keys, answers, receipts; and allocators keep what they had."""
pytestmark = [pytest.mark.xdist_group("fuzz"), pytest.mark.timeout(max(300, BUDGET_S * 3))]
WATCHED = ("functions", "front end", "llamacpp", "localcloud", "localgpus")
PROBES = {"functions": "/health", "llamacpp": "/health", "localcloud": "/localcloud", "localgpus": "/market"}
MODEL = Path(goblin_llamacpp.__file__).parent / "models" / "goblin-tiny.gguf"
SPICES: tuple[bytes, ...] = (
    b"\x00",
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\r\n",
    b"\n",
    b"\x1b[2J",
    b'"',
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"[",
    b"]" * 40,
    b"[" * 40,
    b'{"a":' * 40,
    b"9" * 400,
    b"-",
    b"1e999",
    b"NaN",
    b"null",
    b"%00",
    b"%0a",
    b"../",
    b"%2e%2e/",
    b",",
    b":",
    b" ",
    b"\t",
    b"\xe2\x80\xae",
    b"__proto__",
    b"gs://",
    b"http://127.0.0.1:1/",
    b"chunked",
    b"0\r\n\r\n",
)


class Fuzzer:
    """What is sent next, from one seed."""

    def __init__(self, stand: Stand, seed: int) -> None:
        self.rng = random.Random(seed)
        self._doors = [door for name in WATCHED for door in stand.doors(name)]
        self._stand = stand
        self._tokens = [
            token if isinstance(token, bytes) else token.encode()
            for _, token in tokens.bad_tokens(stand.identity, audience="https://functions.example", email=EMAIL)
        ]

    def value(self, depth: int = 0) -> Any:
        """Any JSON value, odd ones more often than others."""
        rng = self.rng
        match rng.randrange(11 if depth < 5 else 8):
            case 0:
                return rng.choice((None, True, False))
            case 1:
                return rng.choice((0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**30, rng.randrange(10**6)))
            case 2:
                return rng.choice((0.0, -0.0, 1e308, 5e-324, 0.1, rng.random() * 1e6))
            case 3 | 4:
                return "".join(rng.choice("aé\x00\x1b\u202e\ud800😀/.%{}'\"\\ \n") for _ in range(rng.randrange(12)))
            case 5:
                return rng.choice(("tiny", "j", "user", "gs://doors-bucket/x", "2026-12-01T00:00:00Z", "batch", "text"))
            case 6:
                return "x" * rng.choice((0, 1, 255, 5000))
            case 7:
                return rng.choice(([], {}, [[]], [{}], {"": None}))
            case 8 | 9:
                return {self.name(): self.value(depth + 1) for _ in range(rng.randrange(4))}
            case _:
                return [self.value(depth + 1) for _ in range(rng.randrange(4))]

    def name(self) -> str:
        return self.rng.choice(
            ("type", "text", "content", "role", "id", "name", "function", "image_url", "step", "size")
        )

    def body(self, door: Door) -> bytes:
        """A plausible body with some of its values replaced, then perhaps some of its bytes."""
        fields = json.loads(json.dumps(attacks.body_for(door.path)))
        for _ in range(self.rng.randrange(1, 4)):
            self._replace(fields)
        data = json.dumps(fields, ensure_ascii=self.rng.random() < 0.5).encode("utf-8", "surrogatepass")
        return self.spiced(data) if self.rng.random() < 0.4 else data

    def _replace(self, fields: Any) -> None:
        """Put another value somewhere into a document."""
        at = fields
        while True:
            keys: Any = list(at) if isinstance(at, dict) else range(len(at))
            if not keys:
                return
            key = self.rng.choice(keys)
            if not isinstance(at[key], dict | list) or not at[key] or self.rng.random() < 0.5:
                at[key] = self.value()
                return
            at = at[key]

    def spiced(self, data: bytes) -> bytes:
        """Cut, double or spice some bytes."""
        for _ in range(self.rng.randrange(1, 5)):
            at = self.rng.randrange(len(data) + 1)
            match self.rng.randrange(4):
                case 0:
                    data = data[:at] + self.rng.choice(SPICES) + data[at:]
                case 1:
                    data = data[:at] + data[at + self.rng.randrange(20) :]
                case 2:
                    data = data[:at] + bytes([self.rng.randrange(256)]) + data[at + 1 :]
                case _:
                    data = data[:at] + data[max(0, at - 30) : at] + data[at:]
        return data

    def request(self) -> tuple[Server, Door, bytes, bool]:
        """One request as bytes, and whether its head is damaged."""
        rng, door = self.rng, self.rng.choice(self._doors)
        server = self._stand.servers[door.server]
        body = self.body(door) if door.method in ("POST", "PUT", "PATCH") or rng.random() < 0.1 else b""
        if door.server == "functions" and door.path.count("/") == 3 and rng.random() < 0.7:
            body = self.event(door)
        headers: dict[str, str | bytes] = {
            "host": f"127.0.0.1:{server.port}",
            "connection": "close",
            "content-type": "application/json",
            **door.signed(body),
            "content-length": str(len(body)),
        }
        if rng.random() < 0.15:
            headers["authorization"] = b"Bearer " + rng.choice(self._tokens)
        if rng.random() < 0.2:
            name, more = rng.choice(list(attacks.ODD_HEADERS.items()))
            headers |= more if name not in ("an upgrade", "a websocket") else {}
        if rng.random() < 0.1:
            headers["idempotency-key"] = rng.choice(list(attacks.ODD_IDEMPOTENCY_KEYS.values()))
        chosen = rng.choice(list(attacks.ODD_PATHS.values())) if rng.random() < 0.3 else None
        query = rng.choice(list(attacks.ODD_QUERIES.values())) if rng.random() < 0.1 and "?" not in door.path else ""
        start = head(door.method, door.target(chosen) + query, headers)
        if damaged := rng.random() < 0.15:
            start = self.spiced(start)
        return server, door, start + body, damaged

    def event(self, door: Door) -> bytes:
        """A push whose payload is odd."""
        function = door.path.split("/")[2]
        payload = self.body(Door(server="", method="POST", path="/jobs" if function == "job_requested" else "/fn/"))
        message = {"data": base64.b64encode(payload).decode(), "messageId": str(self.rng.randrange(10**9))}
        data = json.dumps({"message": message, "subscription": "s", "deliveryAttempt": 1}).encode()
        return self.spiced(data) if self.rng.random() < 0.2 else data


def held(server: Server) -> tuple[int, int]:
    """How many connections and threads a process has."""
    established = [one for one in server.process.net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED]
    mine = [one for one in established if one.laddr and one.laddr.port == server.port]
    return len(mine), server.process.num_threads()


def test_requests_of_every_kind(stand: Stand) -> None:
    fuzzer, found, sent = Fuzzer(stand, SEED), [], 0
    for _ in range(300):  # So that what a process keeps anyway is there before it is measured.
        server, _, data, damaged = fuzzer.request()
        send(server.address, data, leaves=damaged)
    before = {name: (stand.servers[name].rss_mib(), held(stand.servers[name])) for name in WATCHED}
    logged = {name: len(stand.servers[name].said()) for name in WATCHED}
    until = time.monotonic() + BUDGET_S
    while time.monotonic() < until:
        server, door, data, damaged = fuzzer.request()
        reply = send(server.address, data, leaves=damaged)
        sent += 1
        if wrong := judge.complaint(server.name, reply, path=door.path, method=door.method):
            found.append(f"{door} after {sent} requests of seed {SEED}: {wrong}: {data[:600]!r}")
        if sent % 200 == 0:
            for name, path in PROBES.items():
                probe = request(stand.servers[name].address, "GET", path, {})
                assert probe.status == 200, f"{name} does not answer its probe after {sent} requests of seed {SEED}"
    for name in WATCHED:
        server = stand.servers[name]
        found += list(judge.in_the_log(server, logged[name]))
        rss, (connections, threads) = before[name]
        now = held(server)
        if server.rss_mib() > rss + GROWTH_MIB_MAX:
            found.append(f"{name} grew from {rss:.0f} to {server.rss_mib():.0f} MiB over {sent} requests")
        if now[0] > connections + 8 or now[1] > threads + 8:
            found.append(f"{name} holds {now} connections and threads, {(connections, threads)} before")
    assert not found, f"{len(found)} of {sent}\n" + "\n".join(found[:20])
    assert sent >= 50, "a request takes milliseconds, so this was no fuzzing"


def test_bytes_that_are_no_http(stand: Stand) -> None:
    """Whatever is not HTTP ends the connection, with 400 or without a word."""
    fuzzer = Fuzzer(stand, SEED + 1)
    rng = fuzzer.rng
    for name in WATCHED:
        server = stand.servers[name]
        for _ in range(60):
            data = fuzzer.spiced(rng.choice(list(attacks.ODD_LINES.values()))) + rng.randbytes(rng.randrange(200))
            with connected(server.address) as sock, suppress(OSError):
                sock.sendall(data)
                sock.shutdown(1)
                said = read_all(sock)
            assert not said.startswith(b"HTTP/1.1 5"), (name, data, said[:200])


# Headers of models, in a process with a limit on its memory.

READER = """
import sys, resource, pathlib
limit = int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from goblin_llamacpp.gguf import NotGguf, read_header
from goblin_llamacpp.memory import DoesNotFit, plan_memory
for line in sys.stdin:
    path = pathlib.Path(line.strip())
    try:
        header = read_header(path)
        header.number("context_length", 4096)
        plan_memory(header, cells=8192, slots=8, batch=512, kv_type="f16", available=2**34)
    except (NotGguf, DoesNotFit) as refused:
        print("refused", str(refused)[:80].replace("\\n", " "), flush=True)
    else:
        print("read", flush=True)
"""
READER_MIB = 1024
"""Address space of the reading process, interpreter and libraries included."""


def mutated(rng: random.Random, whole: bytes) -> bytes:
    """A header whose counts, lengths and types are changed, one or several."""
    data = bytearray(whole)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(4, min(len(data), 60_000) - 8)
        match rng.randrange(5):
            case 0:
                data[at : at + 8] = struct.pack("<Q", rng.choice((2**63, 2**62, 2**32, 2**24, 2**20, 0)))
            case 1:
                data[8:16] = struct.pack("<Q", rng.choice((1, 2**20, 2**63, rng.randrange(2**64))))
            case 2:
                data[16:24] = struct.pack("<Q", rng.choice((0, 1, 4096, 4097, 2**63)))
            case 3:
                data[at : at + 4] = struct.pack("<I", rng.randrange(16))
            case _:
                data[at : at + 4] = rng.randbytes(4)
    return bytes(data[: rng.choice((len(data), 60_000, rng.randrange(1, 60_000)))])


def headers(rng: random.Random) -> Iterator[bytes]:
    """Headers without end: damaged ones of the shipped model, and ones made of lies."""
    whole = MODEL.read_bytes()[:200_000]
    while True:
        if rng.random() < 0.7:
            yield mutated(rng, whole)
            continue
        pairs = []
        for number in range(rng.randrange(1, 8)):
            kind = rng.choice((0, 4, 8, 9, 10, 12, 13))
            key = rng.choice(
                (b"general.architecture", b"llama.block_count", b"llama.embedding_length", b"k%d" % number)
            )
            value = struct.pack("<Q", rng.choice((5, 2**31, 2**63, 0))) + b"llama" + rng.randbytes(8)
            if kind == 9:
                value = struct.pack("<IQ", rng.choice((0, 4, 8, 9)), rng.choice((2, 2**22, 2**23, 2**60))) + value
            pairs.append(struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value)
        yield b"GGUF" + struct.pack("<IQQ", rng.choice((2, 3)), 1, len(pairs)) + b"".join(pairs) + b"\0" * 64


def test_headers_of_models(tmp_path: Path) -> None:
    """Each is read or refused with a reason, in bounded memory."""
    rng = random.Random(SEED)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "containers/llamacpp"), str(ROOT / "shared")])}
    process = subprocess.Popen(
        [sys.executable, "-c", READER, str(READER_MIB)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert process.stdin
    assert process.stdout
    outcomes: set[str] = set()
    try:
        until = time.monotonic() + min(BUDGET_S, 5)
        for number, data in enumerate(headers(rng)):
            if time.monotonic() > until:
                break
            path = tmp_path / "model.gguf"
            path.write_bytes(data)
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            said = process.stdout.readline()
            if not said:
                (tmp_path / "kept.gguf").write_bytes(data)
            assert said, f"the reader ended at header {number} of seed {SEED}"
            outcomes.add(said.partition(" ")[0].strip())
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert "refused" in outcomes
