"""Signed URLs with the key that the local cloud hands to its functions, as a key file would be."""

import uuid
from datetime import timedelta
from typing import Any

import httpx
import pytest
from google.oauth2 import service_account


@pytest.fixture
def credentials(local_cloud: Any) -> Any:
    return service_account.Credentials.from_service_account_info(local_cloud.cloud.identity.service_account)


def test_a_host_without_an_account_uploads_and_downloads_by_url(local_cloud: Any, credentials: Any) -> None:
    blob = local_cloud.storage_client().create_bucket(f"bucket-{uuid.uuid4().hex}").blob("checkpoints/job 1/7/part")
    once = {"x-goog-if-generation-match": "0"}
    options = {"version": "v4", "expiration": timedelta(hours=1), "credentials": credentials}
    put = blob.generate_signed_url(method="PUT", headers=dict(once), **options)
    assert put.startswith(local_cloud.storage_url)
    assert httpx.put(put, content=b"weights", headers=once).status_code == 200
    assert httpx.put(put, content=b"forged!", headers=once).status_code == 412
    get = blob.generate_signed_url(method="GET", **options)
    assert httpx.get(get).content == b"weights"
    assert httpx.get(get.replace("part", "other")).status_code == 403
    assert httpx.put(get, content=b"forged!").status_code == 403
    assert blob.download_as_bytes() == b"weights"
