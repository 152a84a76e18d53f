"""The gateway function as production serves it, one worker, beside a bare passthrough and a direct call.

CPU of the serving process per request is the figure that noise does not touch; half the requests are streams.
"""

import asyncio
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from goblin.cli import paths
from localcloud.google import HOST, free_port
from tests.bench._gateway import clients
from tests.bench._gateway.upstream import GAP_S, LONG_DELTAS
from tests.bench._show import text_table
from tests.clouds import CloudProcess, environment

LOADS = (1, 16, 64)
REQUESTS = {1: 400, 16: 1600, 64: 1600}
WARM = 200
LONG = int(os.environ.get("GOBLIN_BENCH_LONG", "20000"))
ABORT_EVERY = 50
KEY = "gob-bench-key"

CATALOG = """
[[endpoints]]
name = "bench"
provider = "openai"
url = "${OPENAI_BASE_URL}"
models = ["bench"]
parallel = 256
price_input_usd_micros_per_mtok = 0
price_output_usd_micros_per_mtok = 0
"""


@contextmanager
def _process(command: list[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out, subprocess.Popen(command, env={**os.environ, **env}, stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            process.terminate()


def _wait_port(port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            asyncio.run(_touch(port))
        except OSError:
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing listens:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.05)
        else:
            return


async def _touch(port: int) -> None:
    _, writer = await asyncio.open_connection(HOST, port)
    writer.close()


@contextmanager
def _function(name: str, source: Path, env: Mapping[str, str], folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A function under functions-framework's production server; its port and its one worker."""
    port = free_port()
    command = [sys.executable, "-m", "functions_framework", f"--target={name}", f"--source={source}", f"--port={port}"]
    log = folder / f"{name}.log"
    with _process(command, {**env, "WORKERS": "1"}, log) as process:
        _wait_port(port, log)
        yield port, _worker(psutil.Process(process.pid))


def _worker(arbiter: psutil.Process) -> psutil.Process:
    """The one worker; the arbiter listens before it has one."""
    deadline = time.monotonic() + 60
    while not (children := arbiter.children()):
        if time.monotonic() > deadline:
            raise RuntimeError("no worker was started within 60 s")
        time.sleep(0.02)
    return children[0]


def _load(port: int, clients_at_once: int, requests: int, **words: Any) -> clients.Result:
    return asyncio.run(clients.run(port, KEY, clients=clients_at_once, requests=requests, **words))


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _measure(port: int, worker: psutil.Process | None) -> dict[str, dict[str, Any]]:
    """Each load once; CPU is the worker's."""
    _load(port, 8, WARM)
    found = {}
    for load in LOADS:
        before = _cpu_s(worker) if worker else 0.0
        seen = _load(port, load, REQUESTS[load])
        spent = (_cpu_s(worker) - before) if worker else 0.0
        found[str(load)] = {
            "cpu_ms": spent * 1000 / REQUESTS[load],
            "p50": seen.percentile(0.5),
            "p99": seen.percentile(0.99),
            "per_s": REQUESTS[load] / seen.seconds,
        }
    return found


def _measure_streams(port: int, worker: psutil.Process) -> dict[str, float]:
    """Microseconds of the worker's CPU per chunk, with so many streams at once."""
    found = {}
    for load in LOADS:
        before = _cpu_s(worker)
        _load(port, load, load, long=True)
        found[str(load)] = round((_cpu_s(worker) - before) * 1e6 / (load * LONG_DELTAS), 1)
    return found


def _let_in(env: Mapping[str, str]) -> None:
    from google.cloud import firestore

    with mock.patch.dict(os.environ, env):
        keys = firestore.Client(project="bench").collection("keys")
        now = datetime.now(UTC)
        keys.document(hashlib.sha256(KEY.encode()).hexdigest()).set(
            {"name": "bench", "disabled": False, "created_at": now}
        )


def run(words: list[str]) -> dict[str, Any]:
    """Direct, bare and ours, one after the other, over one upstream."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port_file = folder / "port"
        command = [sys.executable, "-m", "tests.bench._gateway.upstream", str(port_file)]
        root = paths.checkout()
        stack.enter_context(_process(command, {"PYTHONPATH": str(root)}, folder / "upstream.log"))
        while not port_file.exists() or not port_file.read_text():
            time.sleep(0.02)
        upstream = int(port_file.read_text())
        cloud = stack.enter_context(CloudProcess(folder / "cloud"))
        (folder / "goblin.toml").write_text(CATALOG)
        env = {
            **environment(cloud.addresses),
            "GOOGLE_CLOUD_PROJECT": "bench",
            "OPENAI_BASE_URL": f"http://{HOST}:{upstream}/v1",
            "OPENAI_API_KEY": "unused",
            "GOBLIN_CONFIG": str(folder / "goblin.toml"),
            "UPSTREAM_URL": f"http://{HOST}:{upstream}",
        }
        _let_in(env)
        direct = _measure(upstream, None)
        # As `pip install functions-framework httpx` gives it: h11 and the default event loop.
        plain = folder / "plain"
        plain.mkdir()
        for absent in ("uvloop", "httptools"):
            (plain / f"{absent}.py").write_text("raise ImportError('not part of a bare installation')")
        bare_source = Path(__file__).parent / "_gateway" / "bare.py"
        with _function("bare", bare_source, {**env, "PYTHONPATH": str(plain)}, folder) as (port, worker):
            bare = _measure(port, worker)
            bare_chunks = _measure_streams(port, worker)
        with _function("gateway", paths.functions_folder() / "gateway.py", env, folder) as (port, worker):
            ours = _measure(port, worker)
            our_chunks = _measure_streams(port, worker)
            before = worker.memory_info().rss / 2**20
            _load(port, 16, LONG, abort_every=ABORT_EVERY)
            after = worker.memory_info().rss / 2**20
    both = {"ours": ours, "bare": bare}
    return {
        "cpu_ms_per_request": {
            who: {n: round(one["cpu_ms"], 3) for n, one in seen.items()} for who, seen in both.items()
        },
        "cpu_us_per_chunk": {"ours": our_chunks, "bare": bare_chunks},
        "added_ms": {
            who: {n: {p: round(one[p] - direct[n][p], 3) for p in ("p50", "p99")} for n, one in seen.items()}
            for who, seen in both.items()
        },
        "requests_per_s": {
            who: {n: round(one["per_s"], 1) for n, one in seen.items()}
            for who, seen in {**both, "direct": direct}.items()
        },
        "rss_mib": {"before": round(before, 1), "after": round(after, 1)},
    }


def table(result: dict[str, Any]) -> str:
    """Load by load."""
    rows = []
    for who in ("ours", "bare"):
        for load in map(str, LOADS):
            added = result["added_ms"][who][load]
            cpu, rate = result["cpu_ms_per_request"][who][load], result["requests_per_s"][who][load]
            rows.append((f"{who}, {load} at once", cpu, added["p50"], added["p99"], rate))
    said = text_table(
        "A gateway function, one worker, half of the requests streams",
        ("", "CPU ms/request", "added p50 ms", "added p99 ms", "requests/s"),
        rows,
    )
    rss = result["rss_mib"]
    chunks = result["cpu_us_per_chunk"]
    rows = [
        (f"{load} at once", chunks["ours"][load], chunks["bare"][load], chunks["ours"][load] / chunks["bare"][load])
        for load in map(str, LOADS)
    ]
    said += "\n" + text_table(
        f"Streams of {LONG_DELTAS} chunks, {GAP_S * 1000:.0f} ms apart: CPU per chunk",
        ("", "ours us", "bare us", "ratio"),
        rows,
    )
    return f"{said}\nmemory: {rss['before']} MiB, after {LONG} more requests {rss['after']} MiB"
