"""What Google's clients in Python, Node and the CLI send by default, byte for byte, without the clients.

Recorded 2026-12-01 from gcloud 528.0.0, gcsfs 2026.10.1 and @google-cloud/storage 7.22.0.
"""

import gzip
import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from tests.localcloud.storage_server import StorageThread

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EMAIL = "signer@local.iam.gserviceaccount.com"
NOW = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)

GCLOUD_TYPE = "multipart/related; boundary='===============6726861738909364304=='"
GCLOUD_BODY = (
    b'--===============6726861738909364304==\nContent-Type: application/json\nMIME-Version: 1.0\n\n{"bucket": "bucket",'
    b' "contentType": "text/plain", "name": "one"}\n--===============6726861738909364304==\nContent-Type: text/plain\n'
    b"MIME-Version: 1.0\nContent-Transfer-Encoding: binary\n\nhello\n\n--===============6726861738909364304==--\n"
)
GCSFS_TYPE = 'multipart/related; boundary="==0=="'
GCSFS_BODY = (
    b'--==0==\nContent-Type: application/json; charset=UTF-8\n\n{"name": "one"}\n--==0==\n'
    b"Content-Type: application/octet-stream\n\nhello\n\n--==0==--"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageThread]:
    folder = tmp_path_factory.mktemp("storage")
    with StorageThread(folder, clock=lambda: NOW, signers={EMAIL: KEY.public_key()}) as started:
        yield started


@pytest.fixture(scope="module")
def http(server: StorageThread) -> Iterator[httpx.Client]:
    # Like `curl`: nothing but what a test says, and no gzip.
    with httpx.Client(base_url=server.url, headers={"accept-encoding": "identity"}) as client:
        assert client.post("/storage/v1/b?project=p", json={"name": "bucket"}).status_code == 200
        yield client


def stored(http: httpx.Client, name: str) -> bytes:
    """The stored bytes, whatever they are."""
    with http.stream("GET", f"/storage/v1/b/bucket/o/{name}?alt=media", headers={"accept-encoding": "gzip"}) as answer:
        assert answer.status_code == 200
        return b"".join(answer.iter_raw())


def begin(http: httpx.Client, name: str, path: str = "/upload/storage/v1", **metadata: str) -> str:
    answer = http.post(f"{path}/b/bucket/o?alt=json&uploadType=resumable", json={"name": name, **metadata})
    assert answer.status_code == 200
    return answer.headers["location"]


@pytest.mark.parametrize(
    ("content_type", "body"), [(GCLOUD_TYPE, GCLOUD_BODY), (GCSFS_TYPE, GCSFS_BODY)], ids=["gcloud", "gcsfs"]
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip in flight"])
def test_multipart_with_bare_line_feeds(http: httpx.Client, content_type: str, body: bytes, packed: bool) -> None:
    answer = http.post(
        "/upload/storage/v1/b/bucket/o?alt=json&uploadType=multipart",
        content=gzip.compress(body) if packed else body,
        headers={"content-type": content_type, **({"content-encoding": "gzip"} if packed else {})},
    )
    assert (answer.status_code, answer.json().get("size")) == (200, "6")
    assert stored(http, "one") == b"hello\n"


def test_data_that_ends_in_half_a_line_end_is_kept(http: httpx.Client) -> None:
    http.post(
        "/upload/storage/v1/b/bucket/o?uploadType=multipart",
        content=GCSFS_BODY.replace(b"hello\n", b"a\r\n--=\r"),
        headers={"content-type": GCSFS_TYPE},
    )
    assert stored(http, "one") == b"a\r\n--=\r"


def test_multipart_in_base64_is_refused_not_stored_as_text(http: httpx.Client) -> None:
    body = GCLOUD_BODY.replace(b"binary", b"base64").replace(b'"one"', b'"text"')
    answer = http.post(
        "/upload/storage/v1/b/bucket/o?uploadType=multipart", content=body, headers={"content-type": GCLOUD_TYPE}
    )
    assert answer.status_code == 400
    assert "Content-Transfer-Encoding base64" in answer.json()["error"]["message"]
    assert http.get("/b/bucket/o/text").status_code == 404


@pytest.mark.parametrize("content_range", ["bytes 0-*/*", "bytes 0-*/600000"])
def test_nodes_resumable_upload_goes_to_wherever_the_body_ends(http: httpx.Client, content_range: str) -> None:
    data = os.urandom(600_000)
    url = begin(http, "node")
    answer = http.put(url, content=iter([data[:9], data[9:]]), headers={"content-range": content_range})
    assert answer.status_code == 200
    assert stored(http, "node") == data


def test_nodes_resumable_upload_goes_on_in_the_middle(http: httpx.Client) -> None:
    data = os.urandom(300_000)
    url = begin(http, "node-2")
    first = http.put(url, content=data[: 256 << 10], headers={"content-range": f"bytes 0-{(256 << 10) - 1}/*"})
    assert first.status_code == 308
    rest = http.put(url, content=iter([data[256 << 10 :]]), headers={"content-range": f"bytes {256 << 10}-*/*"})
    assert rest.status_code == 200
    assert stored(http, "node-2") == data
    short = begin(http, "node-3")
    answer = http.put(short, content=iter([b"abc"]), headers={"content-range": "bytes 0-*/9"})
    assert (answer.status_code, answer.headers["range"]) == (308, "bytes=0-2")


def test_an_upload_without_its_type_says_what_to_send(http: httpx.Client) -> None:
    for query, said in (("", "The parameter uploadType is missing."), ("&uploadType=x", "Unknown uploadType: x.")):
        answer = http.post(f"/upload/storage/v1/b/bucket/o?name=typeless{query}", content=b"x")
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == f'{said} Set it to "media", "multipart" or "resumable".'


def test_nodes_paths_lack_the_version(http: httpx.Client) -> None:
    assert http.post("/b?project=p", json={"name": "bare"}).json()["name"] == "bare"
    assert http.post("/upload/b/bare/o?uploadType=media&name=d/a", content=b"x").status_code == 200
    assert http.get("/b/bare/o/d%2Fa").json()["size"] == "1"
    assert http.get("/download/b/bare/o/d%2Fa?alt=media").content == b"x"
    assert http.post("/b/bare/o/d%2Fa/copyTo/b/bare/o/c", content=b"").status_code == 200
    assert [one["name"] for one in http.get("/b/bare/o").json()["items"]] == ["c", "d/a"]
    assert http.patch("/b/bare/o/c", json={"metadata": {"k": "v"}}).json()["metadata"] == {"k": "v"}
    assert http.delete("/b/bare/o/c").status_code == 204
    assert http.get("/projects/p/serviceAccount").json()["kind"] == "storage#serviceAccount"
    missing = http.get("/b/bare/o/none")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, 404)
    assert "bare" in [one["name"] for one in http.get("/b?project=p").json()["items"]]


def test_gclouds_resumable_uploads_have_a_path_of_their_own(http: httpx.Client) -> None:
    url = begin(http, "big", "/resumable/upload/storage/v1")
    data = b"\0" * 9_000_000
    answer = http.put(
        url,
        content=gzip.compress(data),
        headers={"content-encoding": "gzip", "content-range": "bytes 0-8999999/9000000"},
    )
    assert (answer.status_code, answer.json()["size"]) == (200, "9000000")
    assert stored(http, "big") == data


def test_a_packed_resumable_upload_without_a_range_is_unpacked(http: httpx.Client) -> None:
    data = b"text " * 1000
    http.put(begin(http, "whole"), content=gzip.compress(data), headers={"content-encoding": "gzip"})
    assert stored(http, "whole") == data


def test_gcloud_asks_for_the_layout_and_managed_folders_before_it_removes_a_bucket(http: httpx.Client) -> None:
    layout = http.get("/storage/v1/b/bucket/storageLayout").json()
    assert layout["hierarchicalNamespace"] == {"enabled": False}
    assert (layout["bucket"], layout["location"]) == ("bucket", "US")
    folders = http.get("/storage/v1/b/bucket/managedFolders?alt=json&maxResults=200")
    assert folders.json() == {"kind": "storage#managedFolders"}
    assert http.get("/storage/v1/b/none/storageLayout").status_code == 404
    assert http.get("/storage/v1/b/none/managedFolders").status_code == 404


def test_what_is_not_supported_is_refused_with_a_status_that_no_client_repeats(http: httpx.Client) -> None:
    for path in ("/storage/v1/b/bucket/iam", "/b/bucket/o/one/acl", "/storage/v2"):
        answer = http.get(path)
        assert answer.status_code == 400
        assert answer.json()["error"]["errors"][0]["reason"] == "notImplemented"
        assert "is not supported by localcloud" in answer.json()["error"]["message"]


def upload_media(http: httpx.Client, name: str, body: bytes, query: str = "", **headers: str) -> httpx.Response:
    path = f"/upload/storage/v1/b/bucket/o?uploadType=media&name={name}{query}"
    return http.post(path, content=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


def test_a_packed_request_is_stored_unpacked(http: httpx.Client) -> None:
    answer = upload_media(http, "packed", gzip.compress(b"plain"), content_encoding="gzip")
    assert (answer.json()["size"], answer.json().get("contentEncoding")) == ("5", None)
    assert stored(http, "packed") == b"plain"
    patched = http.patch(
        "/storage/v1/b/bucket/o/packed",
        content=gzip.compress(b'{"metadata": {"k": "v"}}'),
        headers={"content-encoding": "gzip", "content-type": "application/json"},
    )
    assert patched.json()["metadata"] == {"k": "v"}


def test_a_packed_object_is_stored_packed_and_served_either_way(http: httpx.Client) -> None:
    packed = gzip.compress(b"plain " * 100)
    for name, headers in (("said-once", {}), ("said-twice", {"content_encoding": "gzip"})):
        answer = upload_media(http, name, packed, "&contentEncoding=gzip", **headers)
        assert answer.json()["size"] == str(len(packed))
        assert stored(http, name) == packed
        plain = http.get(f"/storage/v1/b/bucket/o/{name}?alt=media")
        assert plain.content == b"plain " * 100
        assert "content-encoding" not in plain.headers
        assert "content-length" not in plain.headers
        assert plain.headers["x-goog-stored-content-encoding"] == "gzip"


def test_a_resumable_upload_that_says_its_coding_twice_is_stored_as_it_came(http: httpx.Client) -> None:
    for coding in ("gzip", "br"):
        http.put(begin(http, "twice", contentEncoding=coding), content=b"as is", headers={"content-encoding": coding})
        assert stored(http, "twice") == b"as is"


def test_an_object_of_several_gzip_members_is_served_whole(http: httpx.Client) -> None:
    upload_media(http, "two", gzip.compress(b"one ") + gzip.compress(b"two"), "&contentEncoding=gzip")
    assert http.get("/storage/v1/b/bucket/o/two?alt=media").content == b"one two"


def test_what_only_claims_to_be_gzip_or_must_not_be_changed_is_served_as_it_is(http: httpx.Client) -> None:
    upload_media(http, "claimed", b"plain", "&contentEncoding=gzip")
    assert stored(http, "claimed") == b"plain"
    with http.stream("GET", "/storage/v1/b/bucket/o/claimed?alt=media") as answer:
        assert b"".join(answer.iter_raw()) == b"plain"
    packed = gzip.compress(b"x")
    url = begin(http, "fixed", contentEncoding="gzip", cacheControl="no-transform")
    http.put(url, content=packed)
    with http.stream("GET", "/storage/v1/b/bucket/o/fixed?alt=media") as answer:
        assert (b"".join(answer.iter_raw()), answer.headers["content-encoding"]) == (packed, "gzip")


@pytest.mark.parametrize(
    ("coding", "body", "says"),
    [
        ("gzip", b"plain", "not valid gzip"),
        ("gzip", gzip.compress(b"x" * 1000)[:-9], "ends early"),
        ("br", b"x", "Content-Encoding br"),
    ],
    ids=["not gzip", "cut off", "another coding"],
)
def test_a_request_that_cannot_be_unpacked_is_refused(http: httpx.Client, coding: str, body: bytes, says: str) -> None:
    answer = upload_media(http, "broken", body, content_encoding=coding)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
    assert http.get("/b/bucket/o/broken").status_code == 404


def test_node_signs_the_host_without_its_port(http: httpx.Client, server: StorageThread) -> None:
    upload_media(http, "signed", b"x")
    scope = f"{NOW:%Y%m%d}/auto/storage/goog4_request"

    def sign(host: str) -> str:
        query: dict[str, Any] = {
            "X-Goog-Algorithm": "GOOG4-RSA-SHA256",
            "X-Goog-Credential": f"{EMAIL}/{scope}",
            "X-Goog-Date": f"{NOW:%Y%m%dT%H%M%SZ}",
            "X-Goog-Expires": "60",
            "X-Goog-SignedHeaders": "host",
        }
        canonical = f"GET\n/bucket/signed\n{urlencode(query)}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"GOOG4-RSA-SHA256\n{query['X-Goog-Date']}\n{scope}\n{digest}"
        query["X-Goog-Signature"] = KEY.sign(text.encode(), padding.PKCS1v15(), SHA256()).hex()
        return f"/bucket/signed?{urlencode(query)}"

    assert http.get(sign("127.0.0.1")).content == b"x"
    assert http.get(sign(server.url.removeprefix("http://"))).content == b"x"
    assert http.get(sign("127.0.0.2")).status_code == 403
