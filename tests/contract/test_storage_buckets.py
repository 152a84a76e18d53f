"""Buckets through Google's client."""

import uuid
from typing import Any

import pytest
from google.api_core import exceptions


@pytest.fixture
def client(local_cloud: Any) -> Any:
    return local_cloud.storage_client()


@pytest.fixture
def name() -> str:
    return f"bucket-{uuid.uuid4().hex}"


def test_a_bucket_is_created_found_changed_and_deleted(client: Any, name: str) -> None:
    bucket = client.bucket(name)
    bucket.storage_class = "NEARLINE"
    bucket.labels = {"team": "red", "tier": "1"}
    bucket.create(location="us-east1")
    found = client.get_bucket(name)
    assert (found.location, found.storage_class, found.labels) == ("US-EAST1", "NEARLINE", bucket.labels)
    assert found.metageneration == 1
    assert found.time_created is not None
    assert found.project_number == client.bucket(name).client.get_bucket(name).project_number
    found.labels = {"tier": "2"}  # The client sends null for the label that went.
    found.versioning_enabled = True
    found.add_lifecycle_delete_rule(age=7)
    found.patch()
    again = client.get_bucket(name)
    assert again.labels == {"tier": "2"}
    assert again.versioning_enabled
    assert [rule["condition"] for rule in again.lifecycle_rules] == [{"age": 7}]
    assert again.metageneration == 2
    assert again.location == "US-EAST1"
    again.delete()
    assert not client.bucket(name).exists()


def test_a_project_lists_its_own_buckets_only_in_pages(client: Any, local_cloud: Any) -> None:
    run = uuid.uuid4().hex
    names = sorted(f"{prefix}-{run}-{number}" for prefix in ("aa", "bb") for number in range(3))
    for name in names:
        client.create_bucket(name)
    local_cloud.storage_client().create_bucket(f"other-{run}")
    assert [bucket.name for bucket in client.list_buckets()] == names
    pages = list(client.list_buckets(page_size=4).pages)
    assert [len(list(page)) for page in pages] == [4, 2]
    assert [bucket.name for bucket in client.list_buckets(prefix="bb")] == names[3:]


def test_a_name_can_be_taken_once(client: Any, name: str) -> None:
    client.create_bucket(name)
    with pytest.raises(exceptions.Conflict) as caught:
        client.create_bucket(name)
    assert caught.value.errors[0]["reason"] == "conflict"


@pytest.mark.parametrize("bad", ["ab", "UPPER-case", "-starts", "a..b", "x" * 64, "has space", "goog-mine"])
def test_refuses_names_that_production_refuses(client: Any, bad: str) -> None:
    with pytest.raises((exceptions.BadRequest, ValueError)):
        client.create_bucket(bad)


def test_a_bucket_with_objects_is_not_deleted(client: Any, name: str) -> None:
    bucket = client.create_bucket(name)
    bucket.blob("one").upload_from_string(b"1")
    with pytest.raises(exceptions.Conflict, match="not empty"):
        bucket.delete()
    bucket.delete(force=True)
    with pytest.raises(exceptions.NotFound):
        client.get_bucket(name)


def test_a_bucket_changes_only_at_the_metageneration_that_was_seen(client: Any, name: str) -> None:
    bucket = client.create_bucket(name)
    bucket.labels = {"a": "b"}
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.patch(if_metageneration_match=7)
    bucket.patch(if_metageneration_match=1)
    with pytest.raises(exceptions.NotModified):
        client.get_bucket(name, if_metageneration_not_match=2)
    with pytest.raises(exceptions.PreconditionFailed):
        client.get_bucket(name, if_metageneration_match=1)


def test_errors_have_googles_shape(local_cloud: Any, name: str) -> None:
    import httpx

    response = httpx.get(f"{local_cloud.storage_url}/storage/v1/b/{name}")
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["code"] == 404
    assert error["message"] == "The specified bucket does not exist."
    assert error["errors"] == [{"message": error["message"], "domain": "global", "reason": "notFound"}]


@pytest.mark.parametrize(
    "path", ["/storage/v1/b/x/acl", "/storage/v1/b/x/o/y/acl", "/storage/v1/b/x/iam", "/storage/v2"]
)
def test_what_is_not_kept_is_refused_loudly(local_cloud: Any, path: str, caplog: pytest.LogCaptureFixture) -> None:
    import httpx

    response = httpx.get(local_cloud.storage_url + path)
    assert response.status_code == 400
    assert response.json()["error"]["errors"][0]["reason"] == "notImplemented"
    assert path in caplog.text
