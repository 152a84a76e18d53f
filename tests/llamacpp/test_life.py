"""Starting, failing to start, draining, ending."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from .conftest import MODEL, PACKAGE, Start

ENDLESS = {
    "messages": [{"role": "user", "content": "Tell me a story"}],
    "ignore_eos": True,
    "temperature": 1,
    "stream": True,
}


def test_it_listens_before_the_model_is_loaded(start: Start, tmp_path):
    """The model is a pipe that nobody writes to yet: loading waits, the server answers."""
    pipe = tmp_path / "slow.gguf"
    os.mkfifo(pipe)
    with start(model=pipe, ready=False) as server, server.http() as http:
        for path in ("/health", "/v1/health"):
            answer = http.get(path)
            assert answer.status_code == 503
            assert answer.json()["error"] | {"param": None} == {
                "code": 503,
                "message": "Loading model",
                "type": "unavailable_error",
                "param": None,
            }
        assert http.get("/health/ready").status_code == 503
        assert http.get("/health/live").status_code == 200
        assert http.post("/v1/chat/completions", json=ENDLESS).status_code == 503
        assert http.get("/v1/models").status_code == 503
        assert server.stop() == 0


def refusal(*options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "goblin_llamacpp", "--port", "0", *options]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, timeout=60)
    return ended.returncode, ended.stderr.strip().splitlines()[-1]


def test_a_model_that_can_not_be_loaded_ends_the_process_with_the_reason(tmp_path):
    torn, noise = tmp_path / "torn.gguf", tmp_path / "noise.gguf"
    torn.write_bytes(MODEL.read_bytes()[: 2**20])
    noise.write_bytes(b"noise")
    prefix = "The model could not be loaded: "
    assert refusal("--model", str(torn)) == (
        1,
        f"{prefix}llama.cpp cannot load torn.gguf. The file is damaged or needs a newer llama.cpp.",
    )
    assert refusal("--model", str(noise)) == (1, f"{prefix}The file is not a GGUF: it does not start with GGUF.")
    assert refusal("--model", str(tmp_path / "none.gguf")) == (
        1,
        f"{prefix}Cannot read none.gguf: No such file or directory.",
    )
    assert refusal("--model", "gs://bucket/x.gguf") == (1, f"{prefix}A model from a URL needs its SHA-256.")


def test_what_can_not_be_held_is_refused_with_the_arithmetic():
    code, reason = refusal("--model", str(MODEL), "--memory-mib", "40")
    assert code == 1
    assert "Not enough memory: weights 3 MiB + keys and values 16 MiB (8192 tokens x 2.0 KiB)" in reason
    assert "tokens would fit" in reason


def test_the_port_file_holds_the_bound_port(start: Start, tmp_path):
    with start("--port-file", str(tmp_path / "port")) as server:
        assert server.url.endswith(f":{(tmp_path / 'port').read_text()}")


def test_options_come_from_the_environment_too(tmp_path):
    environment = os.environ | {
        "GOBLIN_LLAMACPP_MODEL": str(MODEL),
        "GOBLIN_LLAMACPP_PORT": "0",
        "GOBLIN_LLAMACPP_ALIAS": "tiny",
        "GOBLIN_LLAMACPP_SLOTS": "none",
    }
    command = [sys.executable, "-m", "goblin_llamacpp"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert refused.returncode == 2
    assert "--slots" in refused.stderr


def test_a_taken_port_is_one_clear_line(start: Start):
    with start() as server:
        port = server.url.rsplit(":", 1)[1]
        command = [sys.executable, "-m", "goblin_llamacpp", "--model", str(MODEL), "--port", port]
        second = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert second.returncode == 1
    assert second.stderr.strip().startswith(f"Cannot listen on 127.0.0.1:{port}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once(start: Start, number):
    with start() as server:
        started = time.monotonic()
        server.process.send_signal(number)
        assert server.process.wait(timeout=10) == 0
        assert time.monotonic() - started < 3


async def test_draining_lets_answers_finish_and_refuses_new_ones(start: Start):
    with start("--slots", "1", "--ctx", "2000", "--grace-s", "60") as server:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=30) as http,
            http.stream("POST", "/v1/chat/completions", json=ENDLESS | {"max_tokens": 1500}) as response,
        ):
            lines = response.aiter_lines()
            await anext(lines)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(server.wait_until, lambda: http_status(server.url, "/health/ready") == 503)
            refused = await http.post("/v1/chat/completions", json=ENDLESS)
            assert refused.status_code == 503
            assert refused.headers["Retry-After"]
            assert refused.json()["error"]["code"] == "shutting_down"
            assert http_status(server.url, "/health/live") == 200
            rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        last = json.loads(rest[-2].removeprefix("data: "))
        assert last["choices"][0]["finish_reason"] == "length"
        assert last["timings"]["predicted_n"] == 1500
        assert server.process.wait(timeout=10) == 0


async def test_after_the_grace_streams_get_a_last_chunk_and_the_process_ends(start: Start):
    with start("--slots", "2", "--ctx", "200000", "--cells", "400000", "--grace-s", "0.5") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:

            async def follow():
                async with http.stream("POST", "/v1/chat/completions", json=ENDLESS) as response:
                    return [line async for line in response.aiter_lines() if line]

            streams = [asyncio.create_task(follow()) for _ in range(3)]
            await asyncio.to_thread(
                server.wait_until,
                lambda: (server.metric("requests_processing"), server.metric("requests_deferred")) == (2, 1),
            )
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            ends = await asyncio.gather(*streams)
        assert server.process.wait(timeout=10) == 0
        assert time.monotonic() - started < 2.5
    for lines in ends:
        assert lines[-1] == "data: [DONE]"
        last = json.loads(lines[-2].removeprefix("data: "))
        assert last["choices"][0]["finish_reason"] == "length"
        assert last["cut_short"] == "shutting_down"


def http_status(url: str, path: str) -> int:
    return httpx.get(url + path).status_code
