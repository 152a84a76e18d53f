"""Buckets and object versions, and their JSON."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

PRODUCTION_ENDPOINT = "https://www.googleapis.com"

WRITABLE_OBJECT_FIELDS = frozenset(
    {
        "acl",
        "cacheControl",
        "contentDisposition",
        "contentEncoding",
        "contentLanguage",
        "contentType",
        "contexts",
        "customTime",
        "eventBasedHold",
        "metadata",
        "retention",
        "temporaryHold",
    }
)
"""The fields that a client may set on an object; the server sets all others."""

READ_ONLY_BUCKET_FIELDS = frozenset(
    {
        "etag",
        "generation",
        "id",
        "kind",
        "metageneration",
        "name",
        "projectNumber",
        "selfLink",
        "timeCreated",
        "updated",
    }
)

Fields = Mapping[str, Any]
"""JSON members as the client sent them, without nulls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """Size and checksums of stored bytes."""

    size: int
    """Bytes."""
    crc32c: str
    """Base64 of the big-endian checksum, as in both APIs."""
    md5: str | None
    """Base64; None for composed and multipart objects, as in production."""
    components: int | None = None
    """How many uploads a composed object was made of; None when it was uploaded whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """One bucket; names are global, as in production."""

    name: str
    project: str
    metageneration: int
    created_us: int
    updated_us: int
    fields: Fields

    @property
    def keeps_versions(self) -> bool:
        """Whether replaced and deleted objects stay as noncurrent versions."""
        versioning = self.fields.get("versioning")
        return isinstance(versioning, Mapping) and versioning.get("enabled") is True

    @property
    def storage_class(self) -> str:
        """The storage class of objects that name none."""
        return str(self.fields.get("storageClass", "STANDARD"))

    def as_json(self, endpoint: str) -> dict[str, Any]:
        """Return the resource `storage#bucket`, with links under `endpoint`."""
        return {
            "location": "US",
            "locationType": "multi-region",
            "storageClass": "STANDARD",
            **self.fields,
            "kind": "storage#bucket",
            "id": self.name,
            "name": self.name,
            "selfLink": f"{endpoint}/storage/v1/b/{self.name}",
            "projectNumber": project_number(self.project),
            "metageneration": str(self.metageneration),
            "etag": etag(self.metageneration),
            "timeCreated": rfc3339(self.created_us),
            "updated": rfc3339(self.updated_us),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredObject:
    """One version of one object. Its bytes never change, its fields may."""

    bucket: str
    name: str
    generation: int
    """Microseconds since 1970, strictly increasing over the whole store; names the data file."""
    metageneration: int
    content: Content
    storage_class: str
    created_us: int
    updated_us: int
    deleted_us: int | None
    """When it became noncurrent; None while it is the live version."""
    fields: Fields

    @property
    def etag(self) -> str:
        """Generation and metageneration, packed as production packs them."""
        return etag(self.generation, self.metageneration)

    @property
    def xml_etag(self) -> str:
        """The etag of the XML API: the MD5 in hexadecimal where there is one."""
        if self.content.md5 is None:
            return f"-{self.etag}"
        return base64.b64decode(self.content.md5).hex()

    @property
    def content_type(self) -> str:
        """The content type, never empty."""
        return str(self.fields.get("contentType") or "application/octet-stream")

    @property
    def hashes(self) -> str:
        """The value of the header `x-goog-hash`."""
        md5 = f",md5={self.content.md5}" if self.content.md5 else ""
        return f"crc32c={self.content.crc32c}{md5}"

    def as_json(self, endpoint: str) -> dict[str, Any]:
        """Return the resource `storage#object`, with links under `endpoint`."""
        path = f"/storage/v1/b/{self.bucket}/o/{quote(self.name, safe='')}"
        resource: dict[str, Any] = {
            **self.fields,
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "selfLink": endpoint + path,
            "mediaLink": f"{endpoint}/download{path}?generation={self.generation}&alt=media",
            "bucket": self.bucket,
            "name": self.name,
            "generation": str(self.generation),
            "metageneration": str(self.metageneration),
            "size": str(self.content.size),
            "crc32c": self.content.crc32c,
            "etag": self.etag,
            "storageClass": self.storage_class,
            "timeCreated": rfc3339(self.created_us),
            "timeFinalized": rfc3339(self.created_us),
            "timeStorageClassUpdated": rfc3339(self.created_us),
            "updated": rfc3339(self.updated_us),
        }
        if self.content.md5 is not None:
            resource["md5Hash"] = self.content.md5
        if self.content.components is not None:
            resource["componentCount"] = self.content.components
        if self.deleted_us is not None:
            resource["timeDeleted"] = rfc3339(self.deleted_us)
        return resource


def etag(*numbers: int) -> str:
    """Return base64 of a protobuf message whose first fields are `numbers`, as production's etags are."""
    packed = bytearray()
    for field, number in enumerate(numbers, start=1):
        packed.append(field << 3)
        rest = number
        while rest > 0x7F:
            packed.append(rest & 0x7F | 0x80)
            rest >>= 7
        packed.append(rest)
    return base64.b64encode(packed).decode()


def rfc3339(instant_us: int) -> str:
    """Format an instant as production prints it, with milliseconds."""
    instant = datetime.fromtimestamp(instant_us // 1_000_000, UTC).replace(microsecond=instant_us % 1_000_000)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def project_number(project: str) -> str:
    """Return twelve digits that are always the same for one project id."""
    return str(100_000_000_000 + binascii.crc32(project.encode()))
