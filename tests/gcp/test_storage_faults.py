"""What Cloud Storage answers when it does not do it: what may pass is asked again, what cannot be is an end."""

from unittest import mock

import pytest
from google.api_core.exceptions import from_http_status
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from goblin.core.errors import GoblinError, StoreRefused, StoreUnavailable
from goblin.gcp.storage import GcsObjects
from tests.fakes.serving import serve

MAY_PASS = [401, 403, 408, 409, 425, 429, 500, 501, 502, 503, 504, 507]
FOR_GOOD = [400, 405, 410, 411, 413, 414, 416, 422, 451]


@pytest.mark.parametrize("status", MAY_PASS + FOR_GOOD)
async def test_a_status_says_whether_the_bucket_is_asked_again(status: int) -> None:
    client = mock.Mock()
    client.bucket().blob().reload.side_effect = from_http_status(status, "no")
    client.list_blobs.side_effect = from_http_status(status, "no")
    objects = GcsObjects(client)
    wanted: type[GoblinError] = StoreUnavailable if status in MAY_PASS else StoreRefused
    with pytest.raises(wanted):
        await objects.stat("gs://bkt/a")
    with pytest.raises(wanted):
        await objects.list_from("gs://bkt/a", "gs://bkt/a")


@pytest.mark.parametrize("status", [400, 403])
async def test_the_real_client_brings_the_status(status: int) -> None:
    body = {"error": {"code": status, "message": "Invalid argument.", "errors": []}}
    app = Starlette(routes=[Route("/{rest:path}", lambda _: JSONResponse(body, status))])
    with serve(app) as url:
        client = storage.Client(project="p", credentials=AnonymousCredentials(), client_options={"api_endpoint": url})
        with pytest.raises(StoreUnavailable if status == 403 else StoreRefused, match="Invalid argument"):
            await GcsObjects(client).stat("gs://bkt/a")
