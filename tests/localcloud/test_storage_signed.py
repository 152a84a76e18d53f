"""V4 signed URLs, made by Google's client and used by a plain HTTP client that has nothing else."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import google_crc32c
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from google.auth import credentials, crypt

from tests.localcloud.storage_server import StorageThread

EMAIL = "signer@goblin-local.iam.gserviceaccount.com"


@cache
def key(name: str) -> rsa.RSAPrivateKey:
    del name
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Signer(crypt.Signer):
    def __init__(self, name: str) -> None:
        self._name = name

    key_id = None

    def sign(self, message: bytes | str) -> bytes:
        data = message.encode() if isinstance(message, str) else message
        return key(self._name).sign(data, padding.PKCS1v15(), SHA256())


class Credentials(credentials.Signing):
    def __init__(self, name: str = "ours", email: str = EMAIL) -> None:
        self.signer, self.signer_email = Signer(name), email

    signer = None
    signer_email = ""

    def sign_bytes(self, message: bytes) -> bytes:
        return self.signer.sign(message)


class Clock:
    shift = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.shift


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bucket(tmp_path: Path, clock: Clock) -> Iterator[Any]:
    with StorageThread(tmp_path, clock=clock, signers={EMAIL: key("ours").public_key()}) as server:
        yield server.client().create_bucket("signed-bucket")


def sign(blob: Any, method: str = "GET", *, who: Any = None, **options: Any) -> str:
    options.setdefault("expiration", timedelta(hours=1))
    url: str = blob.generate_signed_url(version="v4", method=method, credentials=who or Credentials(), **options)
    return url


def refused(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, f"<Code>{code}</Code>" in response.text) == (status, True), response.text
    assert response.headers["content-type"].startswith("application/xml")
    assert "<Message>" in response.text
    assert "<Details>" in response.text


@pytest.mark.parametrize("name", ["plain", "a/b c/ü~!*'()&=+?#%.bin", "😀"])
def test_a_signed_url_puts_and_gets_one_object(bucket: Any, name: str) -> None:
    blob = bucket.blob(name)
    url = sign(blob, "PUT", content_type="text/x", headers={"x-goog-meta-k": "v"})
    made = httpx.put(url, content=b"data", headers={"content-type": "text/x", "x-goog-meta-k": "v"})
    assert made.status_code == 200, made.text
    assert "x-goog-generation" in made.headers
    got = httpx.get(sign(blob), headers={"range": "bytes=1-2"})
    assert (got.status_code, got.content, got.headers["content-type"]) == (206, b"at", "text/x")
    blob.reload()
    assert blob.metadata == {"k": "v"}
    head = httpx.head(sign(blob, "HEAD"))
    assert (head.status_code, head.headers["content-length"]) == (200, "4")
    assert httpx.delete(sign(blob, "DELETE")).status_code == 204
    assert not blob.exists()


def test_the_answers_type_and_generation_can_be_signed_in(bucket: Any) -> None:
    bucket.versioning_enabled = True
    bucket.patch()
    blob = bucket.blob("x")
    blob.upload_from_string("old")
    old = blob.generation
    blob.upload_from_string("new")
    url = sign(blob, generation=old, response_type="text/special", response_disposition='attachment; filename="f"')
    got = httpx.get(url)
    assert got.text == "old"
    assert got.headers["content-type"] == "text/special"
    assert got.headers["content-disposition"] == 'attachment; filename="f"'


def test_a_changed_url_is_refused(bucket: Any) -> None:
    for name in ("x", "y"):
        bucket.blob(name).upload_from_string(name)
    url = sign(bucket.blob("x"))
    assert httpx.get(url).text == "x"
    refused(httpx.get(url.replace("/x?", "/y?")), 403, "SignatureDoesNotMatch")
    refused(httpx.get(url.replace("X-Goog-Expires=3600", "X-Goog-Expires=7200")), 403, "SignatureDoesNotMatch")
    refused(httpx.get(url + "&generation=1"), 403, "SignatureDoesNotMatch")
    refused(httpx.delete(url), 403, "SignatureDoesNotMatch")
    refused(httpx.put(url, content=b"evil"), 403, "SignatureDoesNotMatch")
    refused(httpx.get(url[:-2] + ("00" if url[-2:] != "00" else "11")), 403, "SignatureDoesNotMatch")
    refused(httpx.get(url[:-2] + "zz"), 403, "SignatureDoesNotMatch")
    refused(httpx.get(url, headers={"host": "elsewhere"}), 403, "SignatureDoesNotMatch")
    assert bucket.blob("x").download_as_bytes() == b"x"


def test_a_url_that_claims_half_a_signature_is_refused(bucket: Any) -> None:
    bucket.blob("x").upload_from_string("x")
    url = sign(bucket.blob("x"))
    assert httpx.get(url.partition("&X-Goog-Signature")[0]).status_code == 400
    assert httpx.get(url + "&X-Goog-Signature=00").status_code == 400
    v2 = bucket.blob("x").generate_signed_url(version="v2", expiration=timedelta(hours=1), credentials=Credentials())
    assert httpx.get(v2).status_code == 400


def test_another_key_and_another_account_are_refused(bucket: Any) -> None:
    bucket.blob("x").upload_from_string("x")
    refused(httpx.get(sign(bucket.blob("x"), who=Credentials("theirs"))), 403, "SignatureDoesNotMatch")
    stranger = Credentials("ours", "stranger@x.iam.gserviceaccount.com")
    refused(httpx.get(sign(bucket.blob("x"), who=stranger)), 403, "SignatureDoesNotMatch")


def test_time_passes(bucket: Any, clock: Clock) -> None:
    bucket.blob("x").upload_from_string("x")
    url = sign(bucket.blob("x"), expiration=timedelta(minutes=10))
    clock.shift = timedelta(minutes=9)
    assert httpx.get(url).status_code == 200
    clock.shift = timedelta(minutes=11)
    refused(httpx.get(url), 400, "ExpiredToken")
    clock.shift = -timedelta(minutes=20)
    refused(httpx.get(url), 400, "InvalidArgument")


def test_a_signed_header_must_come_and_an_unsigned_one_must_not(bucket: Any) -> None:
    url = sign(bucket.blob("x"), "PUT", headers={"x-goog-if-generation-match": "0"})
    refused(httpx.put(url, content=b"1"), 403, "SignatureDoesNotMatch")
    once = {"x-goog-if-generation-match": "0"}
    refused(httpx.put(url, content=b"1", headers={**once, "x-goog-meta-more": "1"}), 400, "MalformedSecurityHeader")
    assert httpx.put(url, content=b"1", headers=once).status_code == 200
    refused(httpx.put(url, content=b"2", headers=once), 412, "PreconditionFailed")
    assert bucket.blob("x").download_as_bytes() == b"1"


def test_the_size_can_be_bounded(bucket: Any) -> None:
    bounds = {"x-goog-content-length-range": "2,4"}
    url = sign(bucket.blob("x"), "PUT", headers=bounds)
    refused(httpx.put(url, content=b"12345", headers=bounds), 400, "EntityTooLarge")
    refused(httpx.put(url, content=b"1", headers=bounds), 400, "EntityTooSmall")
    assert not bucket.blob("x").exists()
    assert httpx.put(url, content=b"1234", headers=bounds).status_code == 200


def test_the_checksum_can_be_signed_in(bucket: Any) -> None:
    hashes = {"x-goog-hash": "crc32c=" + base64.b64encode(google_crc32c.value(b"data").to_bytes(4, "big")).decode()}
    url = sign(bucket.blob("x"), "PUT", headers=hashes)
    refused(httpx.put(url, content=b"evil", headers=hashes), 400, "BadDigest")
    assert httpx.put(url, content=b"data", headers=hashes).status_code == 200


def test_a_resumable_upload_begins_with_a_signed_post(bucket: Any) -> None:
    url = sign(bucket.blob("r"), "RESUMABLE", content_type="text/x")
    begun = httpx.post(url, headers={"x-goog-resumable": "start", "content-type": "text/x"})
    assert begun.status_code == 201
    session = begun.headers["location"]
    chunk = b"x" * (256 << 10)
    first = httpx.put(session, content=chunk, headers={"content-range": f"bytes 0-{len(chunk) - 1}/*"})
    assert (first.status_code, first.headers["range"]) == (308, f"bytes=0-{len(chunk) - 1}")
    end = f"bytes {len(chunk)}-{len(chunk)}/{len(chunk) + 1}"
    assert httpx.put(session, content=b"y", headers={"content-range": end}).status_code == 200
    assert bucket.get_blob("r").size == len(chunk) + 1


def test_parts_can_be_signed_one_by_one(bucket: Any) -> None:
    blob = bucket.blob("p")
    begun = httpx.post(sign(blob, "POST", query_parameters={"uploads": None}))
    upload_id = begun.text.partition("<UploadId>")[2].partition("<")[0]
    part = sign(blob, "PUT", query_parameters={"partNumber": "1", "uploadId": upload_id})
    etag = httpx.put(part, content=b"data").headers["etag"]
    refused(httpx.put(part.replace("partNumber=1", "partNumber=2"), content=b"x"), 403, "SignatureDoesNotMatch")
    body = (
        f"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    )
    done = httpx.post(sign(blob, "POST", query_parameters={"uploadId": upload_id}), content=body)
    assert done.status_code == 200
    assert blob.download_as_bytes() == b"data"


def test_a_missing_object_is_said_in_xml(bucket: Any) -> None:
    refused(httpx.get(sign(bucket.blob("none"))), 404, "NoSuchKey")
