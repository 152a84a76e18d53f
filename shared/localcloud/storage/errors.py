"""What Cloud Storage answers when it says no, in the shapes of both of its APIs.

Source: https://cloud.google.com/storage/docs/json_api/v1/status-codes and
https://cloud.google.com/storage/docs/xml-api/reference-status, read 2026-11-25.
"""

from xml.sax.saxutils import escape

import msgspec


class StorageError(Exception):
    """A refusal that the client reads; never a fault of this server."""

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
        """Say no.

        Args:
            status: The HTTP status; 304 is answered without a body.
            reason: One word for the JSON API, such as `notFound`.
            message: One sentence for people.
            xml_code: One word for the XML API, such as `NoSuchKey`.
            details: What the XML API adds in `Details`; the message when left out.
            location: `(locationType, location)`, where the JSON API says which part of the request it was.
        """
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.xml_code = xml_code
        self.details = details or message
        self.location = location

    def as_json(self) -> bytes:
        """The body `{"error": {"code", "message", "errors": […]}}`."""
        error: dict[str, object] = {"message": self.message, "domain": "global", "reason": self.reason}
        if self.location is not None:
            error["locationType"], error["location"] = self.location
        return msgspec.json.encode({"error": {"code": self.status, "message": self.message, "errors": [error]}})

    def as_xml(self) -> bytes:
        """The body `<Error><Code/><Message/><Details/></Error>`."""
        return (
            "<?xml version='1.0' encoding='UTF-8'?>"
            f"<Error><Code>{escape(self.xml_code)}</Code><Message>{escape(self.message)}</Message>"
            f"<Details>{escape(self.details)}</Details></Error>"
        ).encode()


def invalid(message: str, *, xml_code: str = "InvalidArgument") -> StorageError:
    """400: the request cannot be meant."""
    return StorageError(400, "invalid", message, xml_code=xml_code)


def required(name: str) -> StorageError:
    """400: a part of the request is missing."""
    return StorageError(400, "required", f"Required parameter: {name}", location=("parameter", name))


def bad_digest(message: str) -> StorageError:
    """400: the bytes are not the ones whose checksum the client sent."""
    return StorageError(400, "invalid", message, xml_code="BadDigest")


def forbidden(message: str) -> StorageError:
    """403: the request is understood and refused."""
    return StorageError(403, "forbidden", message, xml_code="AccessDenied")


def no_such_bucket() -> StorageError:
    """404: no bucket has this name."""
    return StorageError(404, "notFound", "The specified bucket does not exist.", xml_code="NoSuchBucket")


def no_such_object(bucket: str, name: str) -> StorageError:
    """404: the bucket has no such object, or no such generation of it."""
    return StorageError(404, "notFound", f"No such object: {bucket}/{name}", xml_code="NoSuchKey")


def conflict(message: str, *, xml_code: str) -> StorageError:
    """409: what is there already is in the way."""
    return StorageError(409, "conflict", message, xml_code=xml_code)


def precondition_failed(header: str) -> StorageError:
    """412: the object or bucket is not as the client expected it."""
    return StorageError(
        412,
        "conditionNotMet",
        "At least one of the pre-conditions you specified did not hold.",
        xml_code="PreconditionFailed",
        location=("header", header),
    )


def not_modified(header: str) -> StorageError:
    """304: the client has this version already."""
    return StorageError(304, "notModified", "Not Modified", location=("header", header))


def too_large(message: str) -> StorageError:
    """413: more bytes than this server takes."""
    return StorageError(413, "uploadTooLarge", message, xml_code="EntityTooLarge")


def unkept(what: str) -> StorageError:
    """501: production has it, this server does not; saying so beats pretending."""
    return StorageError(501, "notImplemented", f"{what} is not kept by the local cloud", xml_code="NotImplemented")
