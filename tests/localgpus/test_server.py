"""Both markets as they are started: a real server, real processes, and what survives its death."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import localgpus
from localgpus import server
from localgpus.machines import NoMachines

PROGRAM = """
import os, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(3)), daemon=True).start()
print(os.getpid(), os.environ["GOBLIN_URL"], "VASTAI_API_KEY" in os.environ, flush=True)
threading.Event().wait()
"""
DEADLINE_S = 20.0


def until(true: Callable[[], Any]) -> Any:
    """Wait for what other processes do; there is nothing to wait on but its effects."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


class Running:
    """`python -m localgpus`, and a client of it."""

    def __init__(self, folder: Path) -> None:
        env = {**os.environ, "PYTHONPATH": str(Path(localgpus.__file__).parents[1]), "VASTAI_API_KEY": "v"}
        words = ["--port", "0", "--data", str(folder), "--pace", "100", "--no-limits", "--"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "localgpus", *words, sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, env=env
        )
        assert self.process.stdout
        url = self.process.stdout.readline().decode().strip()
        self.http = httpx.Client(base_url=url, headers={"authorization": "Bearer v"})
        until(self._answers)

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/market").status_code == 200
        return False

    def rent(self, bid: float) -> None:
        asked = {"gpu_name": {"eq": "RTX 4090"}, "num_gpus": {"eq": 1}, "type": "bid", "order": [["dph_total", "asc"]]}
        offer = self.http.post("/api/v0/bundles/", json=asked).json()["offers"][0]
        order = {"image": "i", "label": "goblin-j-a1@p", "price": bid, "env": {"GOBLIN_URL": "http://g"}, "disk": 10}
        assert self.http.put(f"/api/v0/asks/{offer['id']}/", json=order).json()["success"]

    def instance(self) -> dict[str, Any]:
        (found,) = self.http.get("/market").json()["vastai"]["instances"]
        return dict(found)

    def pid(self) -> int:
        def told() -> list[str]:
            now = self.instance()
            return str(now["log"]).split() if now["actual_status"] == "running" else []

        words = until(told)
        assert words[-2:] == ["http://g", "False"]
        return int(words[-3])

    def pull(self, lever: str, **said: Any) -> int:
        return self.http.post(f"/market/{lever}", json=said).status_code

    def close(self) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Running]]:
    started: list[Running] = []

    def begin() -> Running:
        started.append(Running(tmp_path))
        return started[-1]

    yield begin
    for one in started:
        one.close()


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_rented_process_is_outbid_resumed_and_outlives_neither_its_market_nor_its_contract(
    start: Callable[[], Running],
) -> None:
    running = start()
    running.rent(0.3)
    pid = running.pid()
    assert running.pull("outbid", label="goblin-j-a1") == 200
    until(lambda: running.instance()["actual_status"] == "exited")
    until(lambda: not lives(pid))
    assert running.instance()["intended_status"] == "stopped"
    assert running.pull("relent", label="goblin-j-a1") == 200
    until(lambda: running.instance()["actual_status"] == "running")
    second = until(lambda: running.pid() if running.pid() != pid else None)
    assert lives(second)

    running.process.kill()
    until(lambda: not lives(second))
    again = start()
    assert (again.instance()["label"], again.instance()["actual_status"]) == ("goblin-j-a1@p", "exited")
    assert again.instance()["usd"] > 0
    number = again.instance()["id"]
    assert again.http.delete(f"/api/v0/instances/{number}/").json()["success"]
    assert again.http.get("/market").json()["vastai"]["instances"] == []


@pytest.fixture
async def client() -> Any:
    app = server.Markets(NoMachines(), limits=False).app()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:1") as made:
        yield made


async def test_both_markets_answer_on_one_port_each_to_its_own_key(client: httpx.AsyncClient) -> None:
    vast = {"authorization": "Bearer local-vast-key"}
    runpod = {"authorization": "Bearer local-runpod-key"}
    assert (await client.get("/api/v1/instances/", headers=vast)).json()["instances"] == []
    assert (await client.get("/v2/pods", headers=runpod)).json()["pods"] == []
    assert (await client.get("/api/v1/instances/", headers=runpod)).status_code == 404
    assert (await client.get("/v2/pods", headers=vast)).status_code == 401
    seen = (await client.get("/market")).json()
    assert len(seen["vastai"]["machines"]) == 12


async def test_levers_say_what_they_cannot_do(client: httpx.AsyncClient) -> None:
    assert (await client.post("/market/outbid", json={"label": "nobody"})).status_code == 404
    assert (await client.post("/market/price", json={"machine_id": 999})).status_code == 404
    assert (await client.post("/market/outbid", json={"lable": "x"})).status_code == 400
    assert (await client.post("/market/outbid", content=b"{")).status_code == 400
    assert (await client.post("/market/outbid", content=b" " * 20_000)).status_code == 413
    assert (await client.post("/market/price", json={"machine_id": 111, "floor": 0.3})).status_code == 200
    machines = (await client.get("/market")).json()["vastai"]["machines"]
    assert [machine["floor_usd_per_gpu_hour"] for machine in machines if machine["id"] == 111] == [0.3]


async def test_a_market_that_closes_has_nothing_to_rent_any_more(client: httpx.AsyncClient) -> None:
    vast = {"authorization": "Bearer local-vast-key"}
    runpod = {"authorization": "Bearer local-runpod-key"}
    ask = {"type": "bid", "limit": 64}
    gpu = {"id": "NVIDIA GeForce RTX 4090", "count": 1}
    pod = {"name": "p", "image": "i", "cloud": "SECURE", "gpu": gpu, "disk": 10}
    order = {"image": "i", "label": "goblin-j-a1@p", "price": 1.0, "env": {}, "disk": 10}
    (first, *_) = (await client.post("/api/v0/bundles/", json=ask, headers=vast)).json()["offers"]
    assert (await client.post("/v2/pods", json=pod, headers=runpod)).is_success
    assert (await client.post("/market/close", json={"within_s": 0.1})).status_code == 200
    assert (await client.post("/api/v0/bundles/", json=ask, headers=vast)).json()["offers"] == []
    late = await client.put(f"/api/v0/asks/{first['id']}/", json=order, headers=vast)
    assert (late.status_code, late.json()["error"]) == (404, "no_such_ask")
    assert (await client.post("/v2/pods", json=pod, headers=runpod)).status_code == 400
    assert len((await client.get("/v2/pods", headers=runpod)).json()["pods"]) == 1


async def test_no_page_of_a_browser_moves_the_market(client: httpx.AsyncClient) -> None:
    lever = {"label": "x"}
    assert (await client.post("/market/kill", json=lever, headers={"origin": "http://evil"})).status_code == 403
    vast, runpod = {"authorization": "Bearer local-vast-key"}, {"authorization": "Bearer local-runpod-key"}
    for path, known in (("/market", {}), ("/api/v0/instances/", vast), ("/v2/pods", runpod), ("/no/such", {})):
        rebound = await client.get(path, headers={**known, "host": "evil.example"})
        assert (rebound.status_code, rebound.json().keys()) == (421, {"error"}), path
        for page in ({"origin": "http://evil"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
            assert (await client.get(path, headers={**known, **page})).status_code == 403, path


def test_it_listens_on_loopback_and_nowhere_else() -> None:
    with server.listen(0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
