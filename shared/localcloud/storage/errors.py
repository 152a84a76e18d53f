"""Refusals of Cloud Storage, in the shapes of both of its APIs.

Source: https://cloud.google.com/storage/docs/json_api/v1/status-codes and
https://cloud.google.com/storage/docs/xml-api/reference-status, read 2026-11-25.
"""

from xml.sax.saxutils import escape

import msgspec

NOT_IMPLEMENTED = "notImplemented"
"""The reason of a refusal that is localcloud's limit, not the client's fault."""


class StorageError(Exception):
    """The request is refused; never a fault of this server."""

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        xml_code: str = "InvalidArgument",
        details: str = "",
        location: tuple[str, str] | None = None,
    ) -> None:
        """Create a refusal.

        Args:
            status: The HTTP status; 304 is answered without a body.
            reason: One word for the JSON API, such as `notFound`.
            message: One sentence for people.
            xml_code: One word for the XML API, such as `NoSuchKey`.
            details: The text of `Details` in the XML API; the message when left out.
            location: `(locationType, location)`: the part of the request that is wrong, in the JSON API.
        """
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.xml_code = xml_code
        self.details = details or message
        self.location = location

    def as_json(self) -> bytes:
        """Return the body `{"error": {"code", "message", "errors": […]}}`."""
        error: dict[str, object] = {"message": self.message, "domain": "global", "reason": self.reason}
        if self.location is not None:
            error["locationType"], error["location"] = self.location
        return msgspec.json.encode({"error": {"code": self.status, "message": self.message, "errors": [error]}})

    def as_xml(self) -> bytes:
        """Return the body `<Error><Code/><Message/><Details/></Error>`."""
        return (
            "<?xml version='1.0' encoding='UTF-8'?>"
            f"<Error><Code>{escape(self.xml_code)}</Code><Message>{escape(self.message)}</Message>"
            f"<Details>{escape(self.details)}</Details></Error>"
        ).encode()


def invalid(message: str, *, xml_code: str = "InvalidArgument") -> StorageError:
    """Refuse with 400: the request can never succeed."""
    return StorageError(400, "invalid", message, xml_code=xml_code)


def required(name: str) -> StorageError:
    """Refuse with 400: a part of the request is missing."""
    return StorageError(400, "required", f"Required parameter: {name}", location=("parameter", name))


def bad_digest(message: str) -> StorageError:
    """Refuse with 400: the bytes do not have the checksum that the client sent."""
    return StorageError(400, "invalid", message, xml_code="BadDigest")


def forbidden(message: str) -> StorageError:
    """Refuse with 403: the request is valid but not allowed."""
    return StorageError(403, "forbidden", message, xml_code="AccessDenied")


def no_such_bucket() -> StorageError:
    """Refuse with 404: no bucket has this name."""
    return StorageError(404, "notFound", "The specified bucket does not exist.", xml_code="NoSuchBucket")


def no_such_object(bucket: str, name: str) -> StorageError:
    """Refuse with 404: the bucket has no such object, or no such generation of it."""
    return StorageError(404, "notFound", f"No such object: {bucket}/{name}", xml_code="NoSuchKey")


def conflict(message: str, *, xml_code: str) -> StorageError:
    """Refuse with 409: the request conflicts with the present state."""
    return StorageError(409, "conflict", message, xml_code=xml_code)


def precondition_failed(header: str) -> StorageError:
    """Refuse with 412: the object or bucket is not what the client expected."""
    return StorageError(
        412,
        "conditionNotMet",
        "At least one of the pre-conditions you specified did not hold.",
        xml_code="PreconditionFailed",
        location=("header", header),
    )


def not_modified(header: str) -> StorageError:
    """Answer 304: the client has this version already."""
    return StorageError(304, "notModified", "Not Modified", location=("header", header))


def too_large(message: str) -> StorageError:
    """Refuse with 413: the body is larger than this server accepts."""
    return StorageError(413, "uploadTooLarge", message, xml_code="EntityTooLarge")


def unkept(what: str) -> StorageError:
    """Refuse with 400: production supports it, localcloud does not.

    The fitting status would be 501, but `gcloud storage` repeats every 5xx for a minute and more before it shows it.
    """
    return StorageError(400, NOT_IMPLEMENTED, f"{what} is not supported by localcloud.", xml_code="NotImplemented")
