"""Compose, rewrite, copy, rename and old versions through Google's client."""

import base64
import os
import uuid
from typing import Any

import google_crc32c
import pytest
from google.api_core import exceptions


@pytest.fixture
def bucket(local_cloud: Any) -> Any:
    return local_cloud.storage_client().create_bucket(f"bucket-{uuid.uuid4().hex}")


@pytest.fixture
def versioned(local_cloud: Any) -> Any:
    bucket = local_cloud.storage_client().bucket(f"bucket-{uuid.uuid4().hex}")
    bucket.versioning_enabled = True
    bucket.create()
    return bucket


def make(bucket: Any, name: str, data: bytes, **fields: Any) -> Any:
    blob = bucket.blob(name)
    for key, value in fields.items():
        setattr(blob, key, value)
    blob.upload_from_string(data, content_type="text/plain")
    return blob


def test_composing_concatenates_and_has_a_crc32c_but_no_md5(bucket: Any) -> None:
    parts = [os.urandom(1000 + number) for number in range(4)]
    blobs = [make(bucket, f"part-{number}", data) for number, data in enumerate(parts)]
    whole = bucket.blob("whole")
    whole.content_type = "application/x-whole"
    whole.metadata = {"made": "of parts"}
    whole.compose(blobs[:2])
    assert (whole.component_count, whole.md5_hash, whole.size) == (2, None, 2001)
    whole.compose([whole, *blobs[2:]])
    found = bucket.get_blob("whole")
    assert found.component_count == 4
    assert found.content_type == "application/x-whole"
    assert found.metadata == {"made": "of parts"}
    assert int.from_bytes(base64.b64decode(found.crc32c), "big") == google_crc32c.value(b"".join(parts))
    assert found.download_as_bytes() == b"".join(parts)


def test_at_most_32_parts_and_each_must_be_there(bucket: Any) -> None:
    blob = make(bucket, "p", b"x")
    whole = bucket.blob("w")
    whole.compose([blob] * 32)
    assert whole.size == 32
    with pytest.raises(exceptions.BadRequest, match="33"):
        whole.compose([blob] * 33)
    with pytest.raises(exceptions.NotFound):
        whole.compose([blob, bucket.blob("missing")])
    with pytest.raises(exceptions.BadRequest):
        bucket.client._post_resource(f"{whole.path}/compose", {"sourceObjects": []})


def test_a_copy_keeps_everything_but_its_name_and_outlives_its_source(bucket: Any, local_cloud: Any) -> None:
    other = local_cloud.storage_client().create_bucket(f"bucket-{uuid.uuid4().hex}")
    source = make(bucket, "a/b", b"data", metadata={"k": "v"}, cache_control="no-store")
    copy = bucket.copy_blob(source, other, "c/d")
    source.delete()
    found = other.get_blob("c/d")
    assert found.generation == copy.generation > source.generation
    assert (found.metadata, found.cache_control, found.content_type) == ({"k": "v"}, "no-store", "text/plain")
    assert (found.crc32c, found.md5_hash) == (source.crc32c, source.md5_hash)
    assert found.download_as_bytes() == b"data"


def test_a_rewrite_in_steps_says_how_far_it_is(bucket: Any) -> None:
    source = make(bucket, "s", os.urandom((5 << 20) + 1))
    path = f"{source.path}/rewriteTo{bucket.path}/o/t"
    params: dict[str, Any] = {"maxBytesRewrittenPerCall": 2 << 20}
    seen = []
    while True:
        answer = bucket.client._post_resource(path, None, query_params=params)
        seen.append(int(answer["totalBytesRewritten"]))
        if answer["done"]:
            break
        assert not bucket.blob("t").exists()
        params["rewriteToken"] = answer["rewriteToken"]
    assert seen == [2 << 20, 4 << 20, (5 << 20) + 1]
    assert bucket.get_blob("t").crc32c == source.crc32c
    with pytest.raises(exceptions.BadRequest):
        bucket.client._post_resource(f"{source.path}/rewriteTo{bucket.path}/o/other", None, query_params=params)


def test_a_rewrite_can_change_metadata_and_class(bucket: Any) -> None:
    source = make(bucket, "s", b"data", metadata={"old": "1"})
    target = bucket.blob("t")
    target.metadata = {"new": "2"}
    assert target.rewrite(source) == (None, 4, 4)
    assert bucket.get_blob("t").metadata == {"new": "2"}
    source.update_storage_class("COLDLINE")
    found = bucket.get_blob("s")
    assert (found.storage_class, found.metadata, found.content_type) == ("COLDLINE", {"old": "1"}, "text/plain")
    assert found.download_as_bytes() == b"data"


def test_renaming_and_moving_leave_nothing_behind(bucket: Any) -> None:
    blob = make(bucket, "one", b"data", metadata={"k": "v"})
    renamed = bucket.rename_blob(blob, "two")
    moved = bucket.move_blob(renamed, "three")
    assert moved.generation > renamed.generation
    assert [found.name for found in bucket.list_blobs()] == ["three"]
    assert bucket.get_blob("three").metadata == {"k": "v"}
    assert bucket.blob("three").download_as_bytes() == b"data"


def test_old_versions_stay_readable_until_they_are_deleted(versioned: Any) -> None:
    generations = [make(versioned, "v", str(number).encode()).generation for number in range(3)]
    for number, generation in enumerate(generations):
        assert versioned.blob("v", generation=generation).download_as_bytes() == str(number).encode()
    versioned.blob("v").delete()
    assert not versioned.blob("v").exists()
    listed = list(versioned.list_blobs(versions=True))
    assert [blob.generation for blob in listed] == generations
    assert all(blob.time_deleted is not None for blob in listed)
    restored = versioned.copy_blob(listed[1], versioned, "v", source_generation=generations[1])
    assert versioned.blob("v").download_as_bytes() == b"1"
    versioned.blob("v", generation=generations[0]).delete()
    with pytest.raises(exceptions.NotFound):
        versioned.blob("v", generation=generations[0]).download_as_bytes()
    assert versioned.get_blob("v").generation == restored.generation


def test_an_old_versions_metadata_can_be_changed_alone(versioned: Any) -> None:
    first = make(versioned, "v", b"1")
    second = make(versioned, "v", b"2")
    old = versioned.blob("v", generation=first.generation)
    old.metadata = {"verdict": "bad"}
    old.patch()
    assert versioned.get_blob("v", generation=first.generation).metadata == {"verdict": "bad"}
    assert versioned.get_blob("v").metadata is None
    assert versioned.get_blob("v").generation == second.generation


def test_without_versioning_the_old_generation_is_gone(bucket: Any) -> None:
    first = make(bucket, "v", b"1")
    make(bucket, "v", b"2")
    with pytest.raises(exceptions.NotFound):
        bucket.blob("v", generation=first.generation).download_as_bytes()
