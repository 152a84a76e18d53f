"""The embedded cloud beside Google's own emulators, same clients, same machine, one run."""

import concurrent.futures
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from localcloud import google
from tests.bench._show import text_table
from tests.clouds import CloudProcess, environment

PUSHES = 100
TRANSACTIONS = 200
CONTENDERS = 8
CONTENDED = 5
OBJECT_MB = 256


class _Cloud:
    """Processes that are the cloud, and the environment that reaches them."""

    def __init__(self, env: dict[str, str], pids: list[int], start_s: float) -> None:
        self.env, self.pids, self.start_s = env, pids, start_s

    def rss_mib(self) -> float:
        return sum(psutil.Process(pid).memory_info().rss for pid in self.pids) / 2**20


@contextmanager
def _embedded() -> Iterator[_Cloud]:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with CloudProcess(Path(folder)) as cloud:
            assert cloud.process is not None
            yield _Cloud(environment(cloud.addresses), [cloud.process.pid], time.perf_counter() - started)


@contextmanager
def _googles(found: google.Emulators) -> Iterator[_Cloud]:
    with ExitStack() as stack:
        started = time.perf_counter()
        ports = google.free_port(), google.free_port()
        # Both at once, as a person would start them.
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            pubsub = pool.submit(stack.enter_context, google.running(google.pubsub_command(found, ports[0]), ports[0]))
            firestore = pool.submit(
                stack.enter_context, google.running(google.firestore_command(found, ports[1]), ports[1])
            )
        pids = [pubsub.result().pid, firestore.result().pid]
        env = {
            "PUBSUB_EMULATOR_HOST": f"{google.HOST}:{ports[0]}",
            "FIRESTORE_EMULATOR_HOST": f"{google.HOST}:{ports[1]}",
        }
        yield _Cloud(env, pids, time.perf_counter() - started)


@contextmanager
def _receiver() -> Iterator[tuple[str, list[float], threading.Semaphore]]:
    """An endpoint that notes when each push came."""
    seen: list[float] = []
    came = threading.Semaphore(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            seen.append(time.perf_counter())
            self.send_response(204)
            self.end_headers()
            came.release()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", seen, came
    server.shutdown()
    server.server_close()


def _push_p50_ms() -> float:
    """Publish, wait for the push, one after the other."""
    from google.cloud import pubsub_v1

    publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
    topic, name = publisher.topic_path("bench", "bench-topic"), subscriber.subscription_path("bench", "bench-push")
    with _receiver() as (url, seen, came), subscriber:
        publisher.create_topic(name=topic)
        subscriber.create_subscription(request={"name": name, "topic": topic, "push_config": {"push_endpoint": url}})
        taken = []
        for _ in range(PUSHES):
            sent = time.perf_counter()
            publisher.publish(topic, b"x").result()
            if not came.acquire(timeout=30):
                raise RuntimeError("a push did not arrive within 30 s")
            taken.append((seen[-1] - sent) * 1000)
    return statistics.median(taken)


def _tx_per_s() -> float:
    """Read-modify-write transactions on different documents, one after the other."""
    from google.cloud import firestore

    client = firestore.Client(project="bench")
    started = time.perf_counter()
    for number in range(TRANSACTIONS):
        _increment(client, f"alone/{number % 20}")
    return TRANSACTIONS / (time.perf_counter() - started)


def _contended() -> tuple[float, int]:
    """The same on one document from eight threads; how many per second went through, and how many were lost."""
    from google.cloud import firestore

    client = firestore.Client(project="bench")

    def work(_: int) -> int:
        lost = 0
        for _ in range(CONTENDED):
            try:
                _increment(client, "contended/one")
            except Exception as error:  # noqa: BLE001 - the client gives up with several classes; each is one lost
                lost += bool(str(error))
        return lost

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(CONTENDERS) as pool:
        lost = sum(pool.map(work, range(CONTENDERS)))
    taken = time.perf_counter() - started
    stored = client.document("contended/one").get().get("n")
    if stored != CONTENDERS * CONTENDED - lost:
        raise RuntimeError(f"{stored} increments stored, {lost} lost of {CONTENDERS * CONTENDED}")
    return stored / taken, lost


def _increment(client: Any, path: str) -> None:
    from google.cloud import firestore

    @firestore.transactional
    def add(transaction: Any, document: Any) -> None:
        count = (document.get(transaction=transaction).to_dict() or {}).get("n", 0)
        transaction.set(document, {"n": count + 1})

    add(client.transaction(), client.document(path))


def _object_mb_per_s() -> tuple[float, float]:
    """One large object up and down, resumable and streamed, as the client does by default."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    client = storage.Client(project="bench", credentials=AnonymousCredentials())
    blob = client.create_bucket("bench-bucket").blob("large")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        block = os.urandom(1 << 20)
        with source.open("wb") as file:
            for _ in range(OBJECT_MB):
                file.write(block)
        started = time.perf_counter()
        blob.upload_from_filename(source)
        uploaded = time.perf_counter()
        blob.download_to_filename(Path(folder, "copy"))
        done = time.perf_counter()
    return OBJECT_MB / (uploaded - started), OBJECT_MB / (done - uploaded)


def _measure(cloud: _Cloud) -> dict[str, Any]:
    with mock.patch.dict(os.environ, cloud.env):
        result: dict[str, Any] = {"start_s": cloud.start_s}
        result["push_p50_ms"] = _push_p50_ms()
        result["tx_per_s"] = _tx_per_s()
        result["contended_tx_per_s"], result["contended_lost"] = _contended()
        stored = "STORAGE_EMULATOR_HOST" in cloud.env
        result["upload_mb_per_s"], result["download_mb_per_s"] = _object_mb_per_s() if stored else (None, None)
        result["rss_mib"] = cloud.rss_mib()
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in result.items()}


def run(words: list[str]) -> dict[str, Any]:
    """Measure ours, then Google's where installed (`google` is null and `why` says what is missing elsewhere)."""
    with _embedded() as cloud:
        result: dict[str, Any] = {"localcloud": _measure(cloud), "google": None}
    found = google.find()
    if found.reason:
        return {**result, "why": found.reason}
    with _googles(found) as cloud:
        return {**result, "google": _measure(cloud)}


ROWS = {
    "start_s": "start, s",
    "rss_mib": "memory after the run, MiB",
    "push_p50_ms": "publish to push, p50 ms",
    "tx_per_s": "transactions per s, alone",
    "contended_tx_per_s": "transactions per s, 8 threads on one document",
    "contended_lost": "of 40 contended, given up by the client",
    "upload_mb_per_s": "256 MB up, MB/s",
    "download_mb_per_s": "256 MB down, MB/s",
}


def table(result: dict[str, Any]) -> str:
    """Measure by measure."""
    theirs = result["google"] or {}
    rows = [(label, result["localcloud"][name], theirs.get(name)) for name, label in ROWS.items()]
    said = text_table("The local cloud beside Google's emulators", ("", "localcloud", "google"), rows)
    return said if result["google"] else f"{said}\n{result['why']}"
