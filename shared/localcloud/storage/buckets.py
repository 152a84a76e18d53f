"""Handlers for `/storage/v1/b`: buckets and their notifications."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from localcloud.storage import preconditions
from localcloud.storage.catalog import Catalog
from localcloud.storage.errors import conflict, invalid, required
from localcloud.storage.listing import page_size
from localcloud.storage.notifications import Notifications
from localcloud.storage.objects import merge
from localcloud.storage.records import READ_ONLY_BUCKET_FIELDS, Bucket, project_number
from localcloud.storage.requests import endpoint, read_json
from localcloud.storage.uploads import json_response

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{1,220}[a-z0-9]")
_LABELS_MAX = 64


class Buckets:
    """The handlers; each takes the request and the names in its path."""

    def __init__(self, catalog: Catalog, notifications: Notifications) -> None:
        """Use a catalog and its notifications."""
        self._catalog = catalog
        self._notifications = notifications

    async def insert(self, request: Request) -> Response:
        """POST `/b?project=P`."""
        project = request.query_params.get("project")
        if not project:
            raise required("project")
        fields = await read_json(request)
        name = check_bucket_name(fields.get("name"))
        with self._catalog.transaction():
            if self._catalog.find_bucket(name) is not None:
                raise conflict(
                    "Your previous request to create the named bucket succeeded and you already own it.",
                    xml_code="BucketAlreadyOwnedByYou",
                )
            now_us = self._catalog.now_us()
            bucket = Bucket(
                name=name,
                project=project,
                metageneration=1,
                created_us=now_us,
                updated_us=now_us,
                fields=_settings(merge({}, fields)),
            )
            self._catalog.save_bucket(bucket)
        return _answer(request, bucket)

    async def list(self, request: Request) -> Response:
        """GET `/b?project=P`."""
        query = request.query_params
        if not query.get("project"):
            raise required("project")
        size = page_size(query)
        found = self._catalog.buckets(
            query["project"], prefix=query.get("prefix", ""), after=query.get("pageToken", ""), limit=size + 1
        )
        page: dict[str, Any] = {"kind": "storage#buckets"}
        if found:
            page["items"] = [bucket.as_json(endpoint(request)) for bucket in found[:size]]
        if len(found) > size:
            page["nextPageToken"] = found[size - 1].name
        return json_response(page)

    async def get(self, request: Request, bucket: str) -> Response:
        """GET `/b/B`."""
        found = self._catalog.bucket(bucket)
        wanted = preconditions.from_query(request.query_params)
        wanted.check_numbers(0, found.metageneration, reading=True)
        return _answer(request, found)

    async def patch(self, request: Request, bucket: str) -> Response:
        """PATCH `/b/B`: merge the fields; null removes one."""
        return self._change(request, bucket, await read_json(request), whole=False)

    async def update(self, request: Request, bucket: str) -> Response:
        """PUT `/b/B`: replace all fields."""
        return self._change(request, bucket, await read_json(request), whole=True)

    async def delete(self, request: Request, bucket: str) -> Response:
        """DELETE `/b/B`; the bucket must be empty."""
        with self._catalog.transaction():
            found = self._catalog.bucket(bucket)
            preconditions.from_query(request.query_params).check_numbers(0, found.metageneration)
            if not self._catalog.is_empty(bucket):
                raise conflict("The bucket you tried to delete is not empty.", xml_code="BucketNotEmpty")
            self._catalog.delete_bucket(bucket)
        return Response(status_code=204)

    async def layout(self, request: Request, bucket: str) -> Response:
        """GET `/b/B/storageLayout`: that names are flat, without folders. `gcloud storage` asks before `rm -r`."""
        resource = self._catalog.bucket(bucket).as_json(endpoint(request))
        answer = {name: resource[name] for name in ("location", "locationType")}
        flat = {"hierarchicalNamespace": {"enabled": False}}
        return json_response({"kind": "storage#storageLayout", "bucket": bucket, **answer, **flat})

    async def list_managed_folders(self, request: Request, bucket: str) -> Response:
        """GET `/b/B/managedFolders`: none, ever. `gcloud storage rm -r` deletes them before the bucket."""
        del request
        self._catalog.bucket(bucket)
        return json_response({"kind": "storage#managedFolders"})

    async def service_account(self, request: Request, project: str) -> Response:
        """GET `/projects/P/serviceAccount`: the account that publishes notifications."""
        del request
        email = f"service-{project_number(project)}@gs-project-accounts.iam.gserviceaccount.com"
        return json_response({"kind": "storage#serviceAccount", "email_address": email})

    async def insert_notification(self, request: Request, bucket: str) -> Response:
        """POST `/b/B/notificationConfigs`."""
        return json_response(self._notifications.create(bucket, await read_json(request)))

    async def list_notifications(self, request: Request, bucket: str) -> Response:
        """GET `/b/B/notificationConfigs`."""
        del request
        items = self._notifications.all(bucket)
        return json_response({"kind": "storage#notifications", **({"items": items} if items else {})})

    async def get_notification(self, request: Request, bucket: str, number: str) -> Response:
        """GET `/b/B/notificationConfigs/N`."""
        del request
        return json_response(self._notifications.get(bucket, number))

    async def delete_notification(self, request: Request, bucket: str, number: str) -> Response:
        """DELETE `/b/B/notificationConfigs/N`."""
        del request
        self._notifications.delete(bucket, number)
        return Response(status_code=204)

    def _change(self, request: Request, name: str, changes: Mapping[str, Any], *, whole: bool) -> Response:
        with self._catalog.transaction():
            bucket = self._catalog.bucket(name)
            preconditions.from_query(request.query_params).check_numbers(0, bucket.metageneration)
            fixed = {key: bucket.fields[key] for key in ("location", "locationType") if key in bucket.fields}
            changed = replace(
                bucket,
                fields=_settings({**merge({} if whole else bucket.fields, changes), **fixed}),
                metageneration=bucket.metageneration + 1,
                updated_us=self._catalog.now_us(),
            )
            self._catalog.save_bucket(changed)
        return _answer(request, changed)


def check_bucket_name(name: object) -> str:
    """Return a valid bucket name; raises 400 for a name that production refuses."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid(f"Invalid bucket name: '{name}'", xml_code="InvalidBucketName")
    too_long = any(len(part) > 63 for part in name.split("."))
    if too_long or ".." in name or name.startswith("goog") or "google" in name:
        raise invalid(f"Invalid bucket name: '{name}'", xml_code="InvalidBucketName")
    return name


def _settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a client may set on a bucket."""
    settings = {key: value for key, value in fields.items() if key not in READ_ONLY_BUCKET_FIELDS}
    labels = settings.get("labels", {})
    if not isinstance(labels, Mapping) or not all(isinstance(value, str) for value in labels.values()):
        raise invalid("labels must be strings")
    if len(labels) > _LABELS_MAX:
        raise invalid(f"A bucket has at most {_LABELS_MAX} labels")
    if "location" in settings:
        settings["location"] = str(settings["location"]).upper()
    return settings


def _answer(request: Request, bucket: Bucket) -> Response:
    resource = bucket.as_json(endpoint(request))
    return json_response(resource, etag=resource["etag"])
