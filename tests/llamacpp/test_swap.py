"""Replacing the model under load: nobody is cut off, nothing unverified is loaded."""

import asyncio
import hashlib
import json

import httpx
import pytest

from .conftest import MODEL, Running, Start
from .test_together import endless


@pytest.fixture
def successor(tmp_path):
    """The same weights under another name in the header: another file, another digest."""
    path = tmp_path / "models" / "tina.gguf"
    path.parent.mkdir()
    path.write_bytes(MODEL.read_bytes().replace(b"Goblin Tiny", b"Goblin Tina", 1))
    return path


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(server: Running, **body) -> httpx.Response:
    return httpx.post(f"{server.url}/models/load", json=body, timeout=60)


async def test_running_streams_end_on_the_old_model_and_the_next_request_meets_the_new(start: Start, successor):
    with start("--slots", "8", "--queue", "64", "--allow-load") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=80)) as http:

            async def follow():
                request = endless(max_tokens=60)
                async with http.stream("POST", "/v1/chat/completions", json=request) as response:
                    return [line async for line in response.aiter_lines() if line]

            streams = [asyncio.create_task(follow()) for _ in range(50)]
            await asyncio.to_thread(server.wait_until, lambda: server.metric("requests_deferred") > 0)
            answer = await http.post(
                "/models/load", json={"path": str(successor), "sha256": digest(successor), "alias": "tina"}
            )
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == "tina"
            new = await http.post("/v1/chat/completions", json=endless(model="tina", max_tokens=3, stream=False))
            ends = await asyncio.gather(*streams)
        fingerprints = {json.loads(lines[0].removeprefix("data: "))["system_fingerprint"] for lines in ends}
        for lines in ends:
            assert lines[-1] == "data: [DONE]"
            assert json.loads(lines[-2].removeprefix("data: "))["timings"]["predicted_n"] == 60
        assert len(fingerprints) == 1
        assert new.json()["system_fingerprint"] not in fingerprints
        assert digest(successor)[:16] in new.json()["system_fingerprint"]
        with server.http() as http:
            assert http.get("/props").json()["model_sha256"] == digest(successor)
            names = [model["id"] for model in http.get("/v1/models").json()["data"]]
        # The name it was started under still finds the current model.
        assert names == ["tina", "goblin-tiny"]
        assert server.metric("requests_failed_total") == 0
        assert server.stop() == 0


def test_a_forged_or_torn_file_is_refused_and_the_old_model_goes_on(start: Start, successor, tmp_path):
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(successor.read_bytes()[:1_000_000])
    noise = tmp_path / "noise.gguf"
    noise.write_bytes(b"GGUF" + b"\xff" * 1000)
    with start("--allow-load") as server:
        for path, sha256 in [
            (successor, "0" * 64),
            (torn, digest(torn)),
            (noise, digest(noise)),
            (tmp_path / "missing.gguf", "0" * 64),
        ]:
            answer = load(server, path=str(path), sha256=sha256)
            assert answer.status_code == 400, path
            assert answer.json()["error"]["code"] == "model_refused"
        chat = {"messages": [{"role": "user", "content": "What is Goblin?"}], "temperature": 0}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=chat, timeout=30)
        assert "Goblin" in answer.json()["choices"][0]["message"]["content"]


def test_loading_is_guarded(start: Start, successor, tmp_path):
    body = {"path": str(successor), "sha256": digest(successor)}
    with start() as server:
        assert load(server, **body).status_code == 501
    keys = tmp_path / "keys"
    keys.write_text("secret")
    with start("--allow-load", "--api-key-file", str(keys), "--models-dir", str(tmp_path / "elsewhere")) as server:
        assert load(server, **body).status_code == 401
        allowed = {"Authorization": "Bearer secret"}
        answer = httpx.post(f"{server.url}/models/load", json=body, headers=allowed)
        assert answer.json()["error"]["param"] == "path"
        answer = httpx.post(f"{server.url}/models/load", json=body | {"url": "https://x"}, headers=allowed)
        assert answer.status_code == 400


def test_a_model_is_fetched_from_an_address(start: Start, successor):
    """Another server of ours can not hand out files, so Python's own does; it knows no ranges."""
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Folder(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(successor.parent))

        def log_message(self, *arguments):
            pass

    files = ThreadingHTTPServer(("127.0.0.1", 0), Folder)
    thread = Thread(target=files.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{files.server_port}/tina.gguf"
        with start("--allow-load", "--models-dir", str(successor.parent / "cache")) as server:
            assert load(server, url=url, sha256="f" * 64).json()["error"]["code"] == "model_refused"
            answer = load(server, url=url, sha256=digest(successor))
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == "tina"
        # What was downloaded is in memory now, and gone from the disk.
        assert list((successor.parent / "cache").iterdir()) == []
    finally:
        files.shutdown()
        thread.join()
        files.server_close()
