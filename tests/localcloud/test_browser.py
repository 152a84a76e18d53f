"""A page in this machine's browser: it reads no secret, writes nothing and is told nothing."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import secretmanager_v1

from localcloud.in_thread import CloudInThread
from localcloud.server import Options

SECRET = "projects/p/secrets/s"
PATHS = (
    "/localcloud", "/storage/v1/b", "/b", "/a-bucket/an-object", "/upload/storage/v1/b/a/o?uploadType=media&name=x",
    f"/v1/{SECRET}/versions/latest:access", "/v1/projects/p/locations/l/jobs", "/oauth2/v3/certs",
    "/.well-known/openid-configuration", "/no/such/path", "//v1/projects", "/",
)  # fmt: skip
REBOUND = (
    "evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example:{port}", "127.0.0.1@evil",
    "localhost.", "127.1", "2130706433", "0.0.0.0:{port}", "[::ffff:127.0.0.1]", "", "127.0.0.1:{port}:80",
    "127.0.0.1, evil",
)  # fmt: skip
OURS = ("127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "localhost", "[::1]:{port}")
PAGES = (
    {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://localhost:3000"},
    {"origin": "http://127.0.0.1"}, {"origin": ""}, {"origin": "file://"}, {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, {"sec-fetch-site": "CROSS-SITE"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
)  # fmt: skip


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudInThread]:
    with CloudInThread(Options(folder=tmp_path_factory.mktemp("cloud"))) as running:
        secrets = secretmanager_v1.SecretManagerServiceClient(
            transport="rest", credentials=AnonymousCredentials(),
            client_options=ClientOptions(api_endpoint=running.addresses.http),
        )  # fmt: skip
        secrets.create_secret(parent="projects/p", secret_id="s", secret={"replication": {"automatic": {}}})
        secrets.add_secret_version(parent=SECRET, payload={"data": b"hunter2"})
        yield running


def port_of(cloud: CloudInThread) -> int:
    return int(cloud.addresses.http.rpartition(":")[2])


def ask(cloud: CloudInThread, path: str, headers: dict[str, str], method: str = "GET") -> tuple[int, str]:
    """Send a request as it is written here, which no client would do for odd names."""
    port = port_of(cloud)
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value.format(port=port)}" for name, value in headers.items())]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall("\r\n".join([*lines, "content-length: 0", "connection: close", "", ""]).encode())
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


@pytest.mark.parametrize("host", REBOUND)
def test_another_name_for_this_machine_is_refused(cloud: CloudInThread, host: str) -> None:
    for path in PATHS:
        status, body = ask(cloud, path, {"host": host})
        assert status in (400, 421), path
        assert "hunter2" not in body


@pytest.mark.parametrize("page", PAGES, ids=str)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
def test_a_page_of_another_site_is_refused_in_googles_words(
    cloud: CloudInThread, page: dict[str, str], method: str
) -> None:
    for path in PATHS:
        status, body = ask(cloud, path, {"host": "127.0.0.1:{port}", **page}, method)
        assert status == 403, path
        assert json.loads(body)["error"]["code"] == 403


@pytest.mark.parametrize("host", OURS)
def test_our_own_names_are_served(cloud: CloudInThread, host: str) -> None:
    status, body = ask(cloud, f"/v1/{SECRET}/versions/latest:access", {"host": host})
    assert status == 200
    assert json.loads(body)["name"].endswith("/versions/1")


def test_a_bucket_that_a_page_asks_for_is_not_made(cloud: CloudInThread) -> None:
    evil = {"origin": "https://evil.example", "content-type": "text/plain"}
    made = httpx.post(f"{cloud.addresses.http}/storage/v1/b?project=p", content='{"name": "evil"}', headers=evil)
    assert made.status_code == 403
    assert httpx.get(f"{cloud.addresses.http}/storage/v1/b/evil").status_code == 404


@pytest.mark.parametrize("service", ["pubsub", "firestore"])
def test_grpc_answers_nobody_who_speaks_like_a_browser(cloud: CloudInThread, service: str) -> None:
    """Without TLS a browser speaks HTTP/1.1 and cannot begin HTTP/2: the server ends the connection."""
    address = {"pubsub": cloud.addresses.pubsub, "firestore": cloud.addresses.firestore}[service]
    assert address is not None
    host, _, port = address.rpartition(":")
    for method, path in (
        ("POST", "/google.pubsub.v1.Publisher/CreateTopic"), ("GET", "/"), ("OPTIONS", "/"),
        ("POST", "/google.cloud.secretmanager.v1.SecretManagerService/AccessSecretVersion"),
        ("POST", "/google.firestore.v1.Firestore/Commit"),
    ):  # fmt: skip
        with socket.create_connection((host, int(port)), timeout=20) as sock:
            upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAA\r\n"
            head = f"{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/grpc\r\n{upgrade}"
            sock.sendall(f"{head}Content-Length: 5\r\n\r\n".encode() + b"\0" * 5)
            answer = b""
            try:
                while piece := sock.recv(65536):
                    answer += piece
            except ConnectionResetError:
                pass
        assert not answer.startswith(b"HTTP/1.1 2")
        assert not answer.startswith(b"HTTP/1.1 101")


def test_state_is_its_owners_whatever_the_folder_was(tmp_path: Path) -> None:
    folder = tmp_path / "cloud"
    (folder / "storage").mkdir(parents=True)
    for name in ("pubsub.db", "firestore.db", "secrets.db", "storage/storage.db"):
        (folder / name).touch(mode=0o666)
        (folder / name).chmod(0o666)
    with CloudInThread(Options(folder=folder)) as running:
        httpx.post(f"{running.addresses.http}/storage/v1/b?project=p", json={"name": "a-bucket"}).raise_for_status()
        upload = f"{running.addresses.http}/upload/storage/v1/b/a-bucket/o?uploadType=media&name=one"
        httpx.post(upload, content=b"1").raise_for_status()
        open_to_others = [
            file.name for file in folder.rglob("*") if file.is_file() and file.stat().st_mode & 0o077
        ]  # fmt: skip
    assert open_to_others == []
