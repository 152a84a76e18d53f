"""Replacing the model under load: nobody is cut off, nothing unverified is loaded."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys

import httpx
import pytest

from goblin_llamacpp.errors import ApiError
from goblin_llamacpp.places import GOOGLE, Places

from .conftest import MODEL, Running, Start
from .test_together import endless


@pytest.fixture
def successor(tmp_path):
    """The same weights under another name in the header: another file, another digest."""
    path = tmp_path / "models" / "tina.gguf"
    path.parent.mkdir()
    path.write_bytes(MODEL.read_bytes().replace(b"Goblin Tiny", b"Goblin Tina", 1))
    return path


ALLOWED = Places(addresses=(GOOGLE, "http://127.0.0.1:4443/ours/", "gs://ours"))
KEY = "the-key"
AUTH = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def guarded(tmp_path):
    """Options of a server that may load with `KEY`, from the folder of `successor`."""
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    return ("--allow-load", "--api-key-file", str(keys), "--models-dir", str(tmp_path / "models"))


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(server: Running, **body) -> httpx.Response:
    return httpx.post(f"{server.url}/models/load", json=body, headers=AUTH, timeout=60)


async def test_running_streams_end_on_the_old_model_and_the_next_request_meets_the_new(
    start: Start, successor, guarded
):
    with start("--slots", "8", "--queue", "64", *guarded, key=KEY) as server:
        limits = httpx.Limits(max_connections=80)
        async with httpx.AsyncClient(base_url=server.url, headers=AUTH, timeout=60, limits=limits) as http:

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


def test_a_forged_or_torn_file_is_refused_and_the_old_model_goes_on(start: Start, successor, guarded):
    folder = successor.parent
    torn = folder / "torn.gguf"
    torn.write_bytes(successor.read_bytes()[:1_000_000])
    noise = folder / "noise.gguf"
    noise.write_bytes(b"GGUF" + b"\xff" * 1000)
    os.mkfifo(folder / "pipe.gguf")
    with start(*guarded, key=KEY) as server:
        for path, sha256 in [
            (successor, "0" * 64),
            (torn, digest(torn)),
            (noise, digest(noise)),
            (folder / "missing.gguf", "0" * 64),
            (folder / "pipe.gguf", "0" * 64),
            (folder, "0" * 64),
        ]:
            answer = load(server, path=str(path), sha256=sha256)
            assert answer.status_code == 400, path
            assert answer.json()["error"]["code"] == "model_refused"
            # Whoever guesses a digest learns only whether the guess was right.
            assert digest(successor) not in answer.text
        chat = {"messages": [{"role": "user", "content": "What is Goblin?"}], "temperature": 0}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=chat, headers=AUTH, timeout=30)
        assert "Goblin" in answer.json()["choices"][0]["message"]["content"]


def test_loading_is_guarded(start: Start, successor, guarded):
    body = {"path": str(successor), "sha256": digest(successor)}
    with start() as server:
        assert load(server, **body).status_code == 501
    elsewhere = (*guarded[:-1], str(successor.parent / "elsewhere"))
    with start(*elsewhere, key=KEY) as server:
        assert httpx.post(f"{server.url}/models/load", json=body).status_code == 401
        assert load(server, **body).json()["error"]["param"] == "path"
        assert load(server, **body, url="https://x").status_code == 400
        url = f"http://127.0.0.1:{server.url.rpartition(':')[2]}/health"
        refused = load(server, url=url, sha256="0" * 64)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "url")


def test_a_server_that_anyone_could_load_a_model_into_does_not_start():
    done = subprocess.run(
        [sys.executable, "-m", "goblin_llamacpp", f"--model={MODEL}", "--port=0", "--allow-load"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--api-key-file" in done.stderr


@pytest.mark.parametrize("makes", ["a link out", "a link to a folder out", "a loop"])
def test_a_link_leads_nowhere_else(tmp_path, makes: str):
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.gguf").write_bytes(b"GGUF")
    target = {"a link out": tmp_path / "secret.gguf", "a link to a folder out": tmp_path, "a loop": folder / "m"}[makes]
    (folder / "m").symlink_to(target)
    named = "m/secret.gguf" if makes == "a link to a folder out" else "m"
    with pytest.raises(ApiError) as refused:
        Places(folder).check_path(named)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "given",
    [
        "/etc/passwd", "../secret.gguf", "a/../../secret.gguf", "a/../m.gguf", "m\0.gguf", "/proc/self/environ",
        "{folder}/../secret.gguf", "{folder}-other/m.gguf", "../models/m.gguf", "/no/such.gguf",
    ],
)  # fmt: skip
def test_a_path_elsewhere_is_refused_whether_or_not_there_is_a_file(tmp_path, given: str):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "secret.gguf").write_bytes(b"GGUF")
    with pytest.raises(ApiError) as refused:
        Places(folder).check_path(given.format(folder=folder))
    assert refused.value.message == "`path` is outside the folder of --models-dir."


def test_a_path_inside_is_found_by_its_name_and_in_full(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    for top in (folder, tmp_path / "link"):
        assert Places(top).check_path("m.gguf") == str(folder / "m.gguf")
        assert Places(top).check_path(str(top / "org" / "m.gguf")) == str(folder / "org" / "m.gguf")
    with pytest.raises(ApiError):
        Places(None).check_path(str(folder / "m.gguf"))


@pytest.mark.parametrize(
    "url",
    [
        "https://storage.googleapis.com/b/m.gguf?X-Goog-Signature=ab", "https://storage.googleapis.com:443/b/m.gguf",
        "http://127.0.0.1:4443/ours/models/m.gguf?x=..", "gs://ours/models/m.gguf",
        "HTTPS://STORAGE.googleapis.com/b/a%20b",
    ],
)  # fmt: skip
def test_what_lies_at_an_allowed_address_may_be_fetched(url: str):
    assert ALLOWED.check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:4443/v1/projects/p/secrets/s/versions/1:access", "http://127.0.0.1:4443/oursandmore/x",
        "http://127.0.0.1:4443/ours/../v1/secrets", "http://127.0.0.1:4443/ours/%2e%2e/v1",
        "http://127.0.0.1:4443/ours/..%2fv1", "http://127.0.0.1:4444/ours/x", "https://127.0.0.1:4443/ours/x",
        "http://localhost:4443/ours/x", "http://user@127.0.0.1:4443/ours/x", "http://127.0.0.1:4443\\@evil/ours/x",
        "https://storage.googleapis.com@evil/x", "https://storage.googleapis.com.evil/x", "https://evil/ours/",
        "http://storage.googleapis.com/b/m", "https://storage.googleapis.com:8443/b/m", "gs://other/m", "gs://ours@x/m",
        "gs://ours/../other/m", "file:///etc/passwd", "http://169.254.169.254/computeMetadata/v1/",
        "http://metadata.google.internal/", "http://[::1]:4443/ours/x", "http://[::1", "ftp://127.0.0.1/ours/",
        "http://127.0.0.1:4443/ours/\r\nHost: evil", "https://storage.googleapis.com/b/m#@evil", "", "m.gguf",
        "//x/ours", "http://2130706433:4443/ours/x", "http://127.1:4443/ours/x",
    ],
)  # fmt: skip
def test_no_other_address_is_fetched(url: str):
    with pytest.raises(ApiError) as refused:
        ALLOWED.check_url(url)
    assert (refused.value.status, refused.value.param) == (400, "url")


def test_a_model_is_fetched_from_an_address(start: Start, successor, guarded):
    """Another server of ours can not hand out files, so Python's own does; it knows no ranges."""
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Folder(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(successor.parent))

        def log_message(self, *arguments):
            pass

        def do_GET(self):
            if self.path == "/elsewhere":
                self.send_response(302)
                self.send_header("Location", "/tina.gguf")
                self.end_headers()
            else:
                super().do_GET()

    files = ThreadingHTTPServer(("127.0.0.1", 0), Folder)
    thread = Thread(target=files.serve_forever)
    thread.start()
    try:
        top = f"http://127.0.0.1:{files.server_port}/"
        cache = str(successor.parent / "cache")
        with start(*guarded[:-1], cache, "--load-from", top, key=KEY) as server:
            url = f"{top}tina.gguf"
            assert load(server, url=url, sha256="f" * 64).json()["error"]["code"] == "model_refused"
            # Not even to the same server.
            elsewhere = load(server, url=f"{top}elsewhere", sha256=digest(successor))
            assert (elsewhere.status_code, elsewhere.json()["error"]["code"]) == (502, "fetch_failed")
            answer = load(server, url=url, sha256=digest(successor))
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == "tina"
        # What was downloaded is in memory now, and gone from the disk.
        assert list((successor.parent / "cache").iterdir()) == []
    finally:
        files.shutdown()
        thread.join()
        files.server_close()
