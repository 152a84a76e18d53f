"""Our llama.cpp server beside others on the same file: tokens per second and time to the first token.

Tokens per CPU second say how much of a busy machine an answer takes; wall figures need a quiet one.
The others run in another Python, which has them installed (`--yardstick-python PATH`); without it, only ours runs.
Each is asked by 1, 2, 4 and 8 clients at once; the best of some rounds counts, as the machine may be busy.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import goblin_llamacpp
from tests.bench._show import text_table

PACKAGE = Path(goblin_llamacpp.__file__).parent
CLIENTS = (1, 2, 4, 8)
SERVERS = ("ours", "llama_cpp_server", "xllamacpp")
START_S = 120.0
TITLES = {
    "tokens_per_s": "Tokens per second, all clients",
    "tokens_per_cpu_s": "Tokens per CPU second of the server",
    "ttft_ms": "First token, median ms",
}
WORDS = re.compile(rb'"content":\s*"(?!")')
"""A piece of an answer that is not empty: with these models and prompts, one token."""

XLLAMACPP = """\
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_parallel = 8
params.n_ctx = 8192
params.port = int(sys.argv[2])
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[3])
server = xllamacpp.Server(params)
threading.Event().wait()
"""


@dataclass(frozen=True)
class Options:
    yardstick: Path | None
    model: Path
    threads: int
    rounds: int


def run(words: Sequence[str]) -> dict[str, Any]:
    """Measure every server that is there.

    They run side by side and are asked in turns, so that what else the machine does hits all of them alike.
    `tokens_per_s` sums over the clients; `ttft_ms` is their median. A server that is not installed is null.
    """
    options = parse(words)
    figures: dict[str, dict[str, Any]] = {key: dict.fromkeys(SERVERS) for key in TITLES}
    with contextlib.ExitStack() as stack:
        contestants = {}
        for name in SERVERS:
            port = free_port()
            command = command_of(name, options, port)
            if command is not None:
                process = stack.enter_context(running(command))
                contestants[name] = Contestant(port, psutil.Process(process.pid))
        asyncio.run(contest(list(contestants.values()), options.rounds))
        for name, contestant in contestants.items():
            for key, values in contestant.figures().items():
                figures[key][name] = values
    return {"model": options.model.name, "threads": options.threads, **figures}


def table(result: dict[str, Any]) -> str:
    """A row per server, a column per number of clients."""
    parts = []
    for key, title in TITLES.items():
        rows = [
            (name, *(figures and figures[str(n)] for n in CLIENTS)) for name, figures in result[key].items() if figures
        ]
        parts.append(text_table(f"{title} ({result['model']})", ("server", *(f"{n} at once" for n in CLIENTS)), rows))
    return "\n".join(parts)


def parse(words: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="bench llamacpp", description=__doc__)
    parser.add_argument("--yardstick-python", type=Path, help="a Python with llama_cpp.server and xllamacpp")
    parser.add_argument("--model", type=Path, default=PACKAGE / "models" / "goblin-tiny.gguf")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(list(words))
    return Options(given.yardstick_python, given.model, given.threads, given.rounds)


def command_of(name: str, options: Options, port: int) -> list[str] | None:
    model, threads = str(options.model), str(options.threads)
    if name == "ours":
        return [sys.executable, "-m", "goblin_llamacpp", "--model", model, "--port", str(port), "--threads", threads]
    module = {"llama_cpp_server": "llama_cpp.server", "xllamacpp": "xllamacpp"}[name]
    if options.yardstick is None or not is_installed(options.yardstick, module):
        return None
    python = str(options.yardstick)
    if name == "xllamacpp":
        return [python, "-c", XLLAMACPP, model, str(port), threads]
    arguments = ["--model", model, "--port", str(port), "--n_threads", threads, "--n_threads_batch", threads]
    # By default a second request would break off the first.
    return [
        python,
        "-m",
        module,
        *arguments,
        "--n_ctx",
        "1024",
        "--interrupt_requests",
        "false",
        "--logits_all",
        "false",
    ]


def is_installed(python: Path, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=PACKAGE.parent, env=environment, **quiet)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def wait_until_it_answers(port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError, ConnectionError):
            if (await ask(port, "Hello"))[1]:
                return
        if time.monotonic() > deadline:
            raise TimeoutError("a server did not start")
        await asyncio.sleep(0.2)


@dataclass
class Contestant:
    """A running server and its best so far, by number of clients."""

    port: int
    process: psutil.Process
    speeds: dict[int, float] = field(default_factory=dict)
    firsts: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    cpu: dict[int, float] = field(default_factory=dict)

    async def serve(self, clients: int) -> None:
        """One round."""
        cpu_before, started = self.cpu_s(), time.perf_counter()
        answers = await asyncio.gather(*(ask(self.port, f"Count from {1 + i} to 40") for i in range(clients)))
        tokens = sum(count for _, count in answers)
        speed = tokens / (time.perf_counter() - started)
        if speed > self.speeds.get(clients, 0):
            self.speeds[clients] = speed
            self.firsts[clients] = statistics.median(first for first, _ in answers) * 1000
        self.tokens[clients] = self.tokens.get(clients, 0) + tokens
        self.cpu[clients] = self.cpu.get(clients, 0) + self.cpu_s() - cpu_before

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def figures(self) -> dict[str, dict[str, float]]:
        thrift = {clients: self.tokens[clients] / max(self.cpu[clients], 0.01) for clients in CLIENTS}
        parts = {"tokens_per_s": self.speeds, "tokens_per_cpu_s": thrift, "ttft_ms": self.firsts}
        return {key: {str(n): round(value, 1) for n, value in values.items()} for key, values in parts.items()}


async def contest(contestants: Sequence[Contestant], rounds: int) -> None:
    for contestant in contestants:
        await wait_until_it_answers(contestant.port)
    for clients in CLIENTS:
        for _ in range(rounds):
            for contestant in contestants:
                await contestant.serve(clients)


async def ask(port: int, text: str) -> tuple[float, int]:
    """One streamed answer over a bare socket, as a client library would cost more than a small model.

    Returns:
        Seconds to the first token, and the number of tokens.
    """
    body = json.dumps(
        {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 200, "stream": True}
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    first, tokens = 0.0, 0
    try:
        writer.write(head.encode() + body)
        while line := await reader.readline():
            if WORDS.search(line):
                first = first or time.perf_counter() - started
                tokens += 1
            elif line.startswith(b"data: [DONE]"):
                break
    finally:
        writer.close()
    return first, tokens


if __name__ == "__main__":
    outcome = run(sys.argv[1:])
    print(table(outcome))
    print(json.dumps(outcome))
