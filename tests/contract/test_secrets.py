"""Secret Manager through Google's client, over both transports. Google ships no emulator of it.

Over REST the client knows only the HTTP status: FAILED_PRECONDITION and INVALID_ARGUMENT are both `BadRequest`.
"""

from typing import Any

import google_crc32c
import pytest
from google.api_core import exceptions
from google.cloud import secretmanager_v1 as sm

AUTOMATIC = {"replication": {"automatic": {}}}


@pytest.fixture(scope="module", params=["grpc", "rest"])
def client(local_cloud: Any, request: pytest.FixtureRequest) -> Any:
    return local_cloud.secrets_client(transport=request.param)


@pytest.fixture
def parent(local_cloud: Any) -> str:
    return f"projects/{local_cloud.project()}"


def create(client: Any, parent: str, secret_id: str = "token", **fields: Any) -> Any:
    secret = {**AUTOMATIC, **fields}
    return client.create_secret(request={"parent": parent, "secret_id": secret_id, "secret": secret})


def add(client: Any, secret: Any, data: bytes) -> Any:
    return client.add_secret_version(request={"parent": secret.name, "payload": {"data": data}})


def access(client: Any, name: str) -> bytes:
    return client.access_secret_version(request={"name": name}).payload.data


def test_answers_the_payload_by_number_and_by_latest_with_its_checksum(client: Any, parent: str) -> None:
    secret = create(client, parent)
    add(client, secret, b"one")
    second = add(client, secret, b"two\x00\xff")
    assert second.name == f"{secret.name}/versions/2"
    assert second.state == sm.SecretVersion.State.ENABLED
    assert access(client, f"{secret.name}/versions/1") == b"one"
    latest = client.access_secret_version(request={"name": f"{secret.name}/versions/latest"})
    assert latest.name == second.name
    assert latest.payload.data == b"two\x00\xff"
    assert latest.payload.data_crc32c == google_crc32c.value(b"two\x00\xff")


def test_latest_is_the_newest_even_when_it_is_disabled(client: Any, parent: str) -> None:
    secret = create(client, parent)
    first, second = add(client, secret, b"one"), add(client, secret, b"two")
    client.disable_secret_version(request={"name": second.name})
    with pytest.raises(exceptions.BadRequest, match="DISABLED"):
        access(client, f"{secret.name}/versions/latest")
    assert access(client, first.name) == b"one"
    client.enable_secret_version(request={"name": second.name})
    assert access(client, f"{secret.name}/versions/latest") == b"two"


def test_a_destroyed_version_never_comes_back(client: Any, parent: str) -> None:
    secret = create(client, parent)
    version = add(client, secret, b"gone")
    destroyed = client.destroy_secret_version(request={"name": version.name})
    assert destroyed.state == sm.SecretVersion.State.DESTROYED
    assert destroyed.destroy_time is not None
    for call in (client.access_secret_version, client.enable_secret_version, client.disable_secret_version):
        with pytest.raises(exceptions.BadRequest, match="DESTROYED"):
            call(request={"name": version.name})
    assert client.get_secret_version(request={"name": version.name}).state == sm.SecretVersion.State.DESTROYED


def test_lists_versions_newest_first_with_their_states_in_pages(client: Any, parent: str) -> None:
    secret = create(client, parent)
    versions = [add(client, secret, bytes([48 + number])) for number in range(5)]
    client.disable_secret_version(request={"name": versions[1].name})
    pager = client.list_secret_versions(request={"parent": secret.name, "page_size": 2})
    listed = [(one.name.rpartition("/")[2], one.state.name) for page in pager.pages for one in page.versions]
    assert listed == [(str(n), "DISABLED" if n == 2 else "ENABLED") for n in (5, 4, 3, 2, 1)]
    disabled = client.list_secret_versions(request={"parent": secret.name, "filter": "state:DISABLED"})
    assert [one.name for one in disabled] == [versions[1].name]


def test_lists_a_projects_secrets_in_pages_and_by_filter(client: Any, parent: str) -> None:
    for number in range(5):
        create(client, parent, f"key-{number}", labels={"team": "red" if number % 2 else "blue"})
    pager = client.list_secrets(request={"parent": parent, "page_size": 2})
    assert [one.name.rpartition("/")[2] for one in pager] == [f"key-{number}" for number in range(5)]
    red = client.list_secrets(request={"parent": parent, "filter": "labels.team=red"})
    assert [one.name.rpartition("/")[2] for one in red] == ["key-1", "key-3"]
    named = client.list_secrets(request={"parent": parent, "filter": "name:key-4"})
    assert [one.name.rpartition("/")[2] for one in named] == ["key-4"]
    with pytest.raises(exceptions.MethodNotImplemented):
        client.list_secrets(request={"parent": parent, "filter": "create_time<2020"})


def test_updates_what_the_mask_names_and_nothing_else(client: Any, parent: str) -> None:
    secret = create(client, parent, labels={"a": "1"}, annotations={"note": "kept"})
    changed = client.update_secret(
        request={
            "secret": {"name": secret.name, "labels": {"b": "2"}, "annotations": {"note": "ignored"}},
            "update_mask": {"paths": ["labels"]},
        }
    )
    assert dict(changed.labels) == {"b": "2"}
    assert dict(changed.annotations) == {"note": "kept"}
    assert changed.etag != secret.etag
    assert client.get_secret(request={"name": secret.name}) == changed


def test_refuses_a_change_or_a_deletion_with_an_old_etag(client: Any, parent: str) -> None:
    secret = create(client, parent)
    fresh = client.update_secret(
        request={"secret": {"name": secret.name, "labels": {"x": "y"}}, "update_mask": {"paths": ["labels"]}}
    )
    stale = {"secret": {"name": secret.name, "etag": secret.etag}, "update_mask": {"paths": ["labels"]}}
    with pytest.raises(exceptions.BadRequest):
        client.update_secret(request=stale)
    with pytest.raises(exceptions.BadRequest):
        client.delete_secret(request={"name": secret.name, "etag": secret.etag})
    assert dict(client.get_secret(request={"name": secret.name}).labels) == {"x": "y"}
    version = add(client, secret, b"v")
    client.disable_secret_version(request={"name": version.name, "etag": version.etag})
    with pytest.raises(exceptions.BadRequest):
        client.enable_secret_version(request={"name": version.name, "etag": version.etag})
    client.delete_secret(request={"name": secret.name, "etag": fresh.etag})
    with pytest.raises(exceptions.NotFound):
        client.get_secret(request={"name": secret.name})


def test_an_alias_names_a_version(client: Any, parent: str) -> None:
    secret = create(client, parent)
    add(client, secret, b"one")
    add(client, secret, b"two")
    request = {
        "secret": {"name": secret.name, "version_aliases": {"live": 1}},
        "update_mask": {"paths": ["version_aliases"]},
    }
    client.update_secret(request=request)
    assert access(client, f"{secret.name}/versions/live") == b"one"
    request["secret"]["version_aliases"] = {"live": 9}  # type: ignore[index]
    with pytest.raises(exceptions.BadRequest):
        client.update_secret(request=request)


def test_verifies_the_checksum_that_comes_with_a_payload(client: Any, parent: str) -> None:
    secret = create(client, parent)
    payload = {"data": b"value", "data_crc32c": google_crc32c.value(b"value")}
    version = client.add_secret_version(request={"parent": secret.name, "payload": payload})
    assert version.client_specified_payload_checksum
    payload["data_crc32c"] = google_crc32c.value(b"other")
    with pytest.raises(exceptions.BadRequest, match="crc32c"):
        client.add_secret_version(request={"parent": secret.name, "payload": payload})
    assert len(list(client.list_secret_versions(request={"parent": secret.name}))) == 1


def test_takes_64_kib_and_not_one_byte_more(client: Any, parent: str) -> None:
    secret = create(client, parent)
    version = add(client, secret, b"x" * 65536)
    assert access(client, version.name) == b"x" * 65536
    with pytest.raises(exceptions.BadRequest):
        add(client, secret, b"x" * 65537)
    with pytest.raises(exceptions.BadRequest):
        add(client, secret, b"")


def test_refuses_names_and_secrets_that_production_refuses(client: Any, parent: str) -> None:
    create(client, parent)
    with pytest.raises(exceptions.Conflict):
        create(client, parent)
    with pytest.raises(exceptions.BadRequest):
        create(client, parent, "no spaces")
    with pytest.raises(exceptions.BadRequest, match="replication"):
        client.create_secret(request={"parent": parent, "secret_id": "bare", "secret": {}})
    with pytest.raises(exceptions.BadRequest):
        create(client, parent, "past", expire_time="2020-01-01T00:00:00Z")
    with pytest.raises(exceptions.NotFound):
        client.get_secret(request={"name": f"{parent}/secrets/none"})
    for version in ("7", "latest", "alias"):
        with pytest.raises(exceptions.NotFound):
            access(client, f"{parent}/secrets/token/versions/{version}")


def test_says_unimplemented_about_what_it_does_not_keep(client: Any, parent: str) -> None:
    secret = create(client, parent)
    with pytest.raises((exceptions.MethodNotImplemented, exceptions.ServerError)) as caught:
        client.get_iam_policy(request={"resource": secret.name})
    assert caught.value.code == 501
