"""Uploads in pieces, many at once, and batches, through Google's client."""

import base64
import os
import uuid
from pathlib import Path
from typing import Any

import google_crc32c
import httpx
import pytest
from google.api_core import exceptions
from google.cloud.storage import transfer_manager

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def bucket(local_cloud: Any) -> Any:
    return local_cloud.storage_client().create_bucket(f"bucket-{uuid.uuid4().hex}")


def put(url: str, data: bytes, content_range: str, **headers: str) -> httpx.Response:
    return httpx.put(url, content=data, headers={"content-range": content_range, **headers})


def test_a_resumable_upload_says_what_it_has_and_goes_on_from_there(bucket: Any) -> None:
    data = os.urandom(700 * KIB)
    blob = bucket.blob("r")
    blob.metadata = {"k": "v"}
    url = blob.create_resumable_upload_session(content_type="text/x", size=len(data))
    assert put(url, b"", "bytes */*").headers.get("range") is None
    first = put(url, data[: 256 * KIB], f"bytes 0-{256 * KIB - 1}/{len(data)}")
    assert (first.status_code, first.headers["range"]) == (308, f"bytes=0-{256 * KIB - 1}")
    # The same bytes again, and some more: what is there already is skipped.
    more = put(url, data[: 512 * KIB], f"bytes 0-{512 * KIB - 1}/*")
    assert more.headers["range"] == f"bytes=0-{512 * KIB - 1}"
    gap = put(url, data[600 * KIB :], f"bytes {600 * KIB}-{len(data) - 1}/{len(data)}")
    assert gap.status_code == 503
    status = put(url, b"", f"bytes */{len(data)}")
    assert (status.status_code, status.headers["range"]) == (308, f"bytes=0-{512 * KIB - 1}")
    assert not bucket.blob("r").exists()
    last = put(url, data[512 * KIB :], f"bytes {512 * KIB}-{len(data) - 1}/{len(data)}")
    assert last.status_code == 200
    again = put(url, b"", f"bytes */{len(data)}")
    assert (again.status_code, again.json()) == (200, last.json())
    found = bucket.get_blob("r")
    assert (found.metadata, found.content_type) == ({"k": "v"}, "text/x")
    assert found.download_as_bytes() == data


def test_a_resumable_upload_can_be_sent_whole(bucket: Any) -> None:
    url = bucket.blob("w").create_resumable_upload_session()
    assert httpx.put(url, content=b"all at once").json()["size"] == "11"
    assert bucket.blob("w").download_as_bytes() == b"all at once"


def test_a_cancelled_upload_is_gone(bucket: Any) -> None:
    url = bucket.blob("c").create_resumable_upload_session()
    assert put(url, b"x" * 256 * KIB, f"bytes 0-{256 * KIB - 1}/*").status_code == 308
    assert httpx.delete(url).status_code == 499
    assert put(url, b"", "bytes */*").status_code == 404
    assert httpx.delete(url).status_code == 404


@pytest.mark.parametrize(
    ("data", "content_range"),
    [
        (b"x" * 100, "bytes 0-99/*"),  # Too small for a chunk that is not the last.
        (b"x" * 100, "bytes 0-49/50"),  # More than it says.
        (b"x", "bytes 5-3/9"),
        (b"x", "bytes 0-9/5"),
        (b"x", "pages 1-2/3"),
        (b"x" * 10, "bytes 0-9/10"),  # The upload was begun with 50 bytes.
    ],
)
def test_chunks_that_contradict_themselves_are_refused(bucket: Any, data: bytes, content_range: str) -> None:
    url = bucket.blob("bad").create_resumable_upload_session(size=50)
    assert put(url, data, content_range).status_code == 400
    assert not bucket.blob("bad").exists()


def test_the_last_chunks_checksum_is_for_the_whole(bucket: Any) -> None:
    url = bucket.blob("sum").create_resumable_upload_session()
    data = os.urandom(300 * KIB)
    put(url, data[: 256 * KIB], f"bytes 0-{256 * KIB - 1}/*")
    rest = (data[256 * KIB :], f"bytes {256 * KIB}-{len(data) - 1}/{len(data)}")
    wrong = base64.b64encode(google_crc32c.value(b"other").to_bytes(4, "big")).decode()
    assert put(url, *rest, **{"x-goog-hash": f"crc32c={wrong}"}).status_code == 400
    assert not bucket.blob("sum").exists()
    assert put(url, b"", "bytes */*").status_code == 404  # A torn upload is over.


def test_a_file_goes_up_in_parallel_parts_and_comes_down_in_parallel_ranges(bucket: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "up", tmp_path / "down"
    source.write_bytes(os.urandom(17 * MIB + 3))
    blob = bucket.blob("parts/ünï code")
    blob.metadata = {"k": "v"}
    blob.content_language = "de"
    transfer_manager.upload_chunks_concurrently(
        str(source), blob, content_type="text/x", chunk_size=5 * MIB, max_workers=4, worker_type="thread"
    )
    found = bucket.get_blob(blob.name)
    assert found.metadata == {"k": "v"}
    assert (found.content_type, found.content_language, found.md5_hash) == ("text/x", "de", None)
    assert base64.b64decode(found.crc32c) == google_crc32c.value(source.read_bytes()).to_bytes(4, "big")
    transfer_manager.download_chunks_concurrently(
        found, str(target), chunk_size=4 * MIB, max_workers=4, worker_type="thread"
    )
    assert target.read_bytes() == source.read_bytes()


def test_many_files_go_up_and_come_down(bucket: Any, tmp_path: Path) -> None:
    up, down = tmp_path / "up", tmp_path / "down"
    names = [f"d{number % 3}/f{number}" for number in range(12)]
    for name in names:
        path = up / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1000))
    results = transfer_manager.upload_many_from_filenames(
        bucket, names, source_directory=str(up), worker_type="thread", raise_exception=True
    )
    assert results == [None] * 12
    transfer_manager.download_many_to_path(
        bucket, names, destination_directory=str(down), worker_type="thread", raise_exception=True
    )
    assert all((down / name).read_bytes() == (up / name).read_bytes() for name in names)
    skipped = transfer_manager.upload_many_from_filenames(
        bucket, names[:2], source_directory=str(up), worker_type="thread", skip_if_exists=True
    )
    assert [type(one) for one in skipped] == [exceptions.PreconditionFailed] * 2


class Multipart:
    """The XML requests, one by one."""

    def __init__(self, url: str) -> None:
        self.url = url
        answer = httpx.post(url + "?uploads", headers={"content-type": "text/x"})
        self.upload_id = answer.text.partition("<UploadId>")[2].partition("<")[0]

    def put(self, number: int, data: bytes, **headers: str) -> httpx.Response:
        return httpx.put(
            self.url, params={"partNumber": number, "uploadId": self.upload_id}, content=data, headers=headers
        )

    def complete(self, *parts: tuple[int, str]) -> httpx.Response:
        rows = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>" for n, etag in parts)
        body = f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>"
        return httpx.post(self.url, params={"uploadId": self.upload_id}, content=body)


@pytest.fixture
def upload(bucket: Any, local_cloud: Any) -> Multipart:
    return Multipart(f"{local_cloud.storage_url}/{bucket.name}/parts")


def test_parts_are_invisible_until_they_are_completed(bucket: Any, upload: Multipart) -> None:
    one, two = os.urandom(5 * MIB), os.urandom(10)
    second = upload.put(2, two).headers["etag"]
    upload.put(1, b"replaced")
    first = upload.put(1, one).headers["etag"]
    listed = httpx.get(upload.url, params={"uploadId": upload.upload_id}).text
    assert listed.count("<Part>") == 2
    assert f"<Size>{5 * MIB}</Size>" in listed
    assert not bucket.blob("parts").exists()
    assert upload.complete((1, first), (2, second)).status_code == 200
    assert upload.complete((1, first), (2, second)).status_code == 200  # The client may not have heard.
    assert bucket.blob("parts").download_as_bytes() == one + two


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([(2, "b"), (1, "a")], "InvalidPartOrder"),
        ([(1, "nonsense")], "InvalidPart"),
        ([(3, "a")], "InvalidPart"),
        ([(1, "a"), (2, "b")], "EntityTooSmall"),
        ([], "MalformedXML"),
    ],
)
def test_wrong_lists_of_parts_are_refused(
    bucket: Any, upload: Multipart, parts: list[tuple[int, str]], code: str
) -> None:
    etags = {"a": upload.put(1, b"1").headers["etag"], "b": upload.put(2, b"2").headers["etag"]}
    answer = upload.complete(*[(number, etags.get(etag, etag)) for number, etag in parts])
    assert (answer.status_code, f"<Code>{code}</Code>" in answer.text) == (400, True)
    assert not bucket.blob("parts").exists()


def test_a_part_with_a_wrong_checksum_is_refused(upload: Multipart) -> None:
    wrong = base64.b64encode(google_crc32c.value(b"other").to_bytes(4, "big")).decode()
    answer = upload.put(1, b"data", **{"x-goog-hash": f"crc32c={wrong}"})
    assert answer.status_code == 400
    assert "<Code>BadDigest</Code>" in answer.text
    assert "<Details>" in answer.text


def test_an_aborted_multipart_upload_is_gone(upload: Multipart) -> None:
    etag = upload.put(1, b"1").headers["etag"]
    assert httpx.delete(upload.url, params={"uploadId": upload.upload_id}).status_code == 204
    assert upload.put(2, b"2").status_code == 404
    assert upload.complete((1, etag)).status_code == 404


def test_entities_in_xml_are_refused(upload: Multipart) -> None:
    body = '<!DOCTYPE x [<!ENTITY e "boom">]><CompleteMultipartUpload>&e;</CompleteMultipartUpload>'
    answer = httpx.post(upload.url, params={"uploadId": upload.upload_id}, content=body)
    assert answer.status_code == 400


def test_a_batch_does_all_its_calls_and_says_which_failed(bucket: Any) -> None:
    for name in ("a", "b", "c d/é"):
        bucket.blob(name).upload_from_string(name)
    client = bucket.client
    with client.batch():
        changed = bucket.blob("a")
        changed.metadata = {"k": "v"}
        changed.patch()
        bucket.blob("b").delete()
        bucket.blob("c d/é").delete()
    assert changed.metageneration == 2
    assert [blob.name for blob in bucket.list_blobs()] == ["a"]
    assert bucket.get_blob("a").metadata == {"k": "v"}
    batch = client.batch(raise_exception=False)
    with batch:
        bucket.blob("missing").delete()
        bucket.blob("a").delete(if_generation_match=1)
        bucket.blob("a").reload()
    assert [response.status_code for response in batch._responses] == [404, 412, 200]
    batch = client.batch()
    batch.__enter__()
    bucket.blob("missing").delete()
    bucket.blob("a").delete()
    with pytest.raises(exceptions.NotFound):
        batch.__exit__(None, None, None)
    assert not bucket.blob("a").exists()
