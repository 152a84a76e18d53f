"""Objects through Google's client: up, down, checksums, metadata."""

import base64
import gzip
import hashlib
import io
import os
import uuid
from typing import Any

import google_crc32c
import httpx
import pytest
from google.api_core import exceptions

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def bucket(local_cloud: Any) -> Any:
    return local_cloud.storage_client().create_bucket(f"bucket-{uuid.uuid4().hex}")


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


@pytest.mark.parametrize("size", [0, 1, 256 * KIB, 3 * MIB + 7])
def test_what_goes_up_comes_down_with_its_checksums(bucket: Any, size: int) -> None:
    data = os.urandom(size)
    blob = bucket.blob("some/thing")
    blob.upload_from_string(data, content_type="application/x-thing")
    assert (blob.size, blob.crc32c, blob.md5_hash) == (size, crc32c(data), md5(data))
    assert blob.content_type == "application/x-thing"
    fresh = bucket.blob("some/thing")
    assert fresh.download_as_bytes() == data
    fresh.reload()
    assert fresh.generation == blob.generation
    assert fresh.metageneration == 1
    assert fresh.etag == blob.etag
    assert fresh.storage_class == "STANDARD"


@pytest.mark.parametrize(
    "name",
    ["a b/c", "../../etc/passwd", "ünïcødé/日本語", "q?x=1&y#z", "%2F", "a//b/", "+plus", "..", "x" * 1024, "😀"],
)
def test_any_name_is_just_a_name(bucket: Any, name: str) -> None:
    if name == "..":
        with pytest.raises((exceptions.BadRequest, exceptions.GoogleAPICallError)):
            bucket.blob(name).upload_from_string(b"no")
        return
    bucket.blob(name).upload_from_string(name.encode())
    assert [blob.name for blob in bucket.list_blobs()] == [name]
    assert bucket.blob(name).download_as_bytes() == name.encode()
    bucket.blob(name).delete()
    assert not bucket.blob(name).exists()


def test_a_name_longer_than_a_kilobyte_is_refused(bucket: Any) -> None:
    with pytest.raises(exceptions.BadRequest):
        bucket.blob("é" * 513).upload_from_string(b"x")


def test_a_range_is_only_that_range(bucket: Any) -> None:
    data = bytes(range(256)) * 20
    blob = bucket.blob("ranged")
    blob.upload_from_string(data)
    assert blob.download_as_bytes(start=10, end=19) == data[10:20]
    assert blob.download_as_bytes(start=5000) == data[5000:]
    assert blob.download_as_bytes(start=-100) == data[-100:]
    assert blob.download_as_bytes(start=5100, end=999_999) == data[5100:]
    with pytest.raises(exceptions.RequestRangeNotSatisfiable):
        blob.download_as_bytes(start=len(data))


def test_a_big_object_comes_in_chunks_and_as_a_file(bucket: Any) -> None:
    data = os.urandom(3 * MIB)
    bucket.blob("big").upload_from_file(io.BytesIO(data))
    chunked = bucket.blob("big", chunk_size=MIB)
    into = io.BytesIO()
    chunked.download_to_file(into)
    assert into.getvalue() == data
    with bucket.blob("big").open("rb", chunk_size=256 * KIB) as file:
        file.seek(MIB)
        assert file.read(10) == data[MIB : MIB + 10]
        file.seek(-5, os.SEEK_END)
        assert file.read() == data[-5:]


def test_a_file_is_written_without_knowing_its_size(bucket: Any) -> None:
    data = os.urandom(MIB + 12345)
    with bucket.blob("written").open("wb", chunk_size=256 * KIB) as file:
        for at in range(0, len(data), 100_000):
            file.write(data[at : at + 100_000])
    assert bucket.blob("written").download_as_bytes() == data
    with bucket.blob("empty").open("wb"):
        pass
    assert bucket.get_blob("empty").size == 0
    with bucket.blob("text").open("w") as file:
        file.write("ä\n")
    assert bucket.blob("text").open("r").read() == "ä\n"


def test_metadata_travels_and_null_removes_a_key(bucket: Any) -> None:
    blob = bucket.blob("m")
    blob.metadata = {"step": "7", "job": "j"}
    blob.cache_control = "no-store"
    blob.content_disposition = "attachment"
    blob.content_language = "de"
    blob.upload_from_string("text", content_type="text/plain")
    found = bucket.get_blob("m")
    assert found.metadata == {"step": "7", "job": "j"}
    assert (found.cache_control, found.content_disposition, found.content_language) == ("no-store", "attachment", "de")
    found.metadata = {"step": None, "job": "k", "new": "1"}
    found.content_disposition = None
    found.patch()
    again = bucket.get_blob("m")
    assert again.metadata == {"job": "k", "new": "1"}
    assert again.content_disposition is None
    assert again.cache_control == "no-store"
    assert (again.generation, again.metageneration) == (blob.generation, 2)
    assert again.updated > again.time_created


def test_update_replaces_all_fields(bucket: Any) -> None:
    blob = bucket.blob("u")
    blob.metadata = {"a": "1"}
    blob.upload_from_string("x", content_type="text/plain")
    blob.cache_control = "no-store"
    blob.metadata = {"b": "2"}
    blob.update()
    found = bucket.get_blob("u")
    assert (found.metadata, found.cache_control) == ({"b": "2"}, "no-store")


def test_custom_metadata_has_a_limit(bucket: Any) -> None:
    blob = bucket.blob("m")
    blob.metadata = {"k": "v" * 8192}
    with pytest.raises(exceptions.BadRequest, match="8192"):
        blob.upload_from_string("x")
    assert not blob.exists()


def test_gzip_comes_as_it_is_or_unpacked_for_a_client_that_takes_none(bucket: Any, local_cloud: Any) -> None:
    plain = b"hello " * 100_000
    blob = bucket.blob("z")
    blob.content_encoding = "gzip"
    packed = gzip.compress(plain)
    blob.upload_from_string(packed, content_type="text/plain")
    assert blob.download_as_bytes() == plain
    assert blob.download_as_bytes(raw_download=True) == packed
    url = f"{local_cloud.storage_url}/{bucket.name}/z"
    unpacked = httpx.get(url, headers={"accept-encoding": "identity"})
    assert unpacked.content == plain
    assert "content-encoding" not in unpacked.headers
    assert unpacked.headers["x-goog-stored-content-encoding"] == "gzip"
    assert unpacked.headers["x-goog-stored-content-length"] == str(len(packed))


@pytest.mark.parametrize("field", ["crc32c", "md5_hash"])
@pytest.mark.parametrize("chunk_size", [None, 256 * KIB])
def test_bytes_that_are_not_the_promised_ones_are_refused(bucket: Any, field: str, chunk_size: int | None) -> None:
    blob = bucket.blob("wrong", chunk_size=chunk_size)
    data = os.urandom(300 * KIB)
    wrong = crc32c(b"other") if field == "crc32c" else md5(b"other")
    setattr(blob, field, wrong)
    with pytest.raises(exceptions.BadRequest, match="doesn't match calculated"):
        blob.upload_from_file(io.BytesIO(data), checksum=None)
    assert not bucket.blob("wrong").exists()
    setattr(blob, field, crc32c(data) if field == "crc32c" else md5(data))
    blob.upload_from_file(io.BytesIO(data), checksum=None)
    assert bucket.get_blob("wrong").size == len(data)


@pytest.mark.parametrize("header", ["x-goog-hash", "content-md5"])
def test_checksums_in_headers_count_too(bucket: Any, local_cloud: Any, header: str) -> None:
    url = f"{local_cloud.storage_url}/upload/storage/v1/b/{bucket.name}/o?uploadType=media&name=h"
    value = f"crc32c={crc32c(b'other')}" if header == "x-goog-hash" else md5(b"other")
    refused = httpx.post(url, content=b"data", headers={header: value})
    assert refused.status_code == 400
    value = f"crc32c={crc32c(b'data')},md5={md5(b'data')}" if header == "x-goog-hash" else md5(b"data")
    assert httpx.post(url, content=b"data", headers={header: value}).json()["size"] == "4"
    assert httpx.post(url, content=b"data", headers={header: "crc32c=???"}).status_code == 400


def test_a_simple_upload_and_a_download_say_what_production_says(bucket: Any, local_cloud: Any) -> None:
    url = f"{local_cloud.storage_url}/upload/storage/v1/b/{bucket.name}/o?uploadType=media&name=s"
    made = httpx.post(url, content=b"data", headers={"content-type": "text/x"}).json()
    assert made["kind"] == "storage#object"
    assert made["id"] == f"{bucket.name}/s/{made['generation']}"
    link = httpx.get(made["mediaLink"])
    assert link.content == b"data"
    assert link.headers["content-type"] == "text/x"
    assert link.headers["x-goog-generation"] == made["generation"]
    assert link.headers["x-goog-hash"] == f"crc32c={crc32c(b'data')},md5={md5(b'data')}"
    assert link.headers["x-goog-stored-content-length"] == "4"
    assert link.headers["etag"] == f'"{made["etag"]}"'
    assert httpx.get(made["selfLink"]).json() == made


def test_generations_only_grow(bucket: Any) -> None:
    generations = []
    for number in range(20):
        blob = bucket.blob(f"g{number % 3}")
        blob.upload_from_string(str(number))
        generations.append(blob.generation)
        if number % 4 == 0:
            blob.delete()
    assert generations == sorted(set(generations))


def test_deleting_twice_says_not_found(bucket: Any) -> None:
    bucket.blob("d").upload_from_string("x")
    bucket.blob("d").delete()
    with pytest.raises(exceptions.NotFound, match="No such object"):
        bucket.blob("d").delete()
    with pytest.raises(exceptions.NotFound):
        bucket.blob("d").download_as_bytes()
    assert bucket.get_blob("d") is None


def test_a_held_object_is_neither_deleted_nor_replaced(bucket: Any) -> None:
    blob = bucket.blob("held")
    blob.upload_from_string("x")
    blob.temporary_hold = True
    blob.patch()
    with pytest.raises(exceptions.Forbidden):
        blob.delete()
    with pytest.raises(exceptions.Forbidden):
        bucket.blob("held").upload_from_string("y")
    blob.temporary_hold = False
    blob.patch()
    bucket.blob("held").upload_from_string("y")
    bucket.blob("held").delete()


def test_customer_keys_are_refused_loudly(bucket: Any) -> None:
    with pytest.raises(exceptions.BadRequest, match="customer-supplied keys is not supported by localcloud"):
        bucket.blob("secret", encryption_key=b"k" * 32).upload_from_string("x")
    assert not bucket.blob("secret").exists()


def test_no_bucket_no_object(local_cloud: Any) -> None:
    with pytest.raises(exceptions.NotFound, match="bucket"):
        local_cloud.storage_client().bucket(f"none-{uuid.uuid4().hex}").blob("x").upload_from_string("x")
