"""A running `goblin up` on a laptop with a browser, other users and a shell full of secrets."""

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.flows.conftest import Running

pytestmark = pytest.mark.xdist_group("flows")

SECRETS = dict.fromkeys(("AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "MY_OWN_KEY", "SSH_AUTH_SOCK"), "secret-of-a-person")
PROVIDERS = dict.fromkeys(("GROQ_API_KEY", "OPENAI_ADMIN_KEY", "FLY_API_TOKEN", "VASTAI_API_KEY"), "key-of-a-provider")
NAMES = {
    "goblin.cli.host": "functions", "goblin_llamacpp": "llamacpp", "localgpus": "localgpus", "localcloud": "localcloud",
}  # fmt: skip
PATHS = (
    "/",
    "/health",
    "/v1/models",
    "/market",
    "/localcloud",
    "/storage/v1/b",
    "/models/load",
    "/props",
    "/v2/pods",
    "/fn/jobs/",
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """All processes that there are, in a folder that an earlier run, or a person, left open to everyone."""
    data = tmp_path_factory.mktemp("laptop") / "data"
    for file in (data / "logs" / "functions.log", data / "cloud" / "firestore.db", data / "cloud" / "storage" / "x"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for path in [data, *data.rglob("*")]:
        path.chmod(0o777)
    old = os.umask(0)
    one = Running(data, "--fakes", env={**SECRETS, **PROVIDERS})
    try:
        one.start()
        os.umask(old)
        yield one
    finally:
        os.umask(old)
        one.close()


def children(running: Running) -> dict[str, list[psutil.Process]]:
    """The processes below the command, by what they run."""
    found: dict[str, list[psutil.Process]] = {}
    for process in running.tree()[1:]:
        words = process.cmdline()
        module = next((word for word in words if word in NAMES), "")
        found.setdefault(NAMES.get(module, " ".join(words)), []).append(process)
    return found


def ports(running: Running) -> dict[int, str]:
    """Every port that listens, with the process behind it."""
    found = {}
    for name, processes in children(running).items():
        for process in processes:
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    assert one.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1"), f"{name} listens on {one.laddr.ip}"
                    found[one.laddr.port] = name
    return found


def status(port: int, method: str, path: str, headers: dict[str, str]) -> int | None:
    """Send a request as it is written; None from a server that does not speak HTTP/1.1."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall("\r\n".join([*lines, "content-length: 0", "connection: close", "", ""]).encode())
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(65536):
                answer += piece
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else None


def test_no_page_in_a_browser_gets_an_answer_from_any_port(running: Running) -> None:
    found = ports(running)
    assert set(found.values()) == {"functions", "llamacpp", "localgpus", "localcloud"}
    grpc = {int(running.variables[f"{name}_EMULATOR_HOST"].rpartition(":")[2]) for name in ("PUBSUB", "FIRESTORE")}
    for port, name in found.items():
        own = {"host": f"127.0.0.1:{port}"}
        attacks = [
            {"host": f"evil.example:{port}"}, {"host": "localhost."}, {**own, "origin": "https://evil.example"},
            {**own, "origin": "null"}, {**own, "origin": "http://localhost:3000"},
            {**own, "sec-fetch-site": "cross-site"},
        ]  # fmt: skip
        for path in PATHS:
            for attack in attacks:
                for method in ("GET", "POST"):
                    answered = status(port, method, path, attack)
                    wanted = {None} if port in grpc else {403, 421}
                    assert answered in wanted, f"{name} on {port}: {method} {path} {attack}"


def test_the_model_server_asks_for_its_key_and_fetches_nothing_else(running: Running) -> None:
    (port,) = [port for port, name in ports(running).items() if name == "llamacpp"]
    url, key = f"http://127.0.0.1:{port}", (running.data / "llamacpp-key").read_text()
    assert key not in str(running.variables)
    storage = running.variables["STORAGE_EMULATOR_HOST"]
    elsewhere = [
        {"path": "/etc/hostname"}, {"path": "/no/such/file"}, {"path": str(running.data / "api-key")},
        {"path": "../api-key"}, {"url": "http://127.0.0.1:1/x"}, {"url": f"{storage}/v1/projects/goblin-local/secrets"},
        {"url": f"{storage}/other-bucket/models/m.gguf"}, {"url": "http://169.254.169.254/"},
        {"url": "gs://other/m.gguf"},
    ]  # fmt: skip
    for one in elsewhere:
        body = {**one, "sha256": "0" * 64}
        assert httpx.post(f"{url}/models/load", json=body, timeout=30).status_code == 401
        refused = httpx.post(f"{url}/models/load", json=body, headers={"x-api-key": key}, timeout=30)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(one))), one
    for path in ("/props", "/v1/models", "/metrics", "/slots"):
        assert httpx.get(f"{url}{path}").status_code == 401


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc shows the environment of a process")
def test_each_process_has_the_variables_that_it_needs_and_no_others(running: Running) -> None:
    found = children(running)
    for name, processes in found.items():
        for process in processes:
            block = Path(f"/proc/{process.pid}/environ").read_bytes().decode()
            env = dict(line.partition("=")[::2] for line in block.split("\0") if line)
            assert not SECRETS.keys() & env.keys(), name
            assert "secret-of-a-person" not in block, name
            if name == "functions":
                assert env["GROQ_API_KEY"] == "key-of-a-provider"
                assert env["VASTAI_API_KEY"].startswith("local-")
            else:
                assert "key-of-a-provider" not in block, name
            assert ("LLAMACPP_API_KEY" in env) == (name == "functions"), name
            assert "PATH" in env


def test_every_file_is_its_owners_whatever_the_folder_was(running: Running) -> None:
    paths = [running.data, *running.data.rglob("*")]
    assert len(paths) > 20
    modes = {str(path): stat.S_IMODE(path.lstat().st_mode) for path in paths}
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}
