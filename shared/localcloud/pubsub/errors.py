"""Refusals: a gRPC code, a message and, for acknowledgements, one reason per ack id."""

from collections.abc import Mapping

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

STATUS_KEY = "grpc-status-details-bin"


class Refused(Exception):
    """The request is refused; the handler turns this into a gRPC status."""

    def __init__(self, code: grpc.StatusCode, message: str, reasons: Mapping[str, str] | None = None) -> None:
        """Create a refusal.

        Args:
            code: The gRPC code, which the client library maps to its exception.
            message: The text for people.
            reasons: Ack id → reason, sent in `ErrorInfo.metadata` with exactly-once delivery.
        """
        super().__init__(message)
        self.code = code
        self.message = message
        self.reasons = dict(reasons or {})

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """Return the rich status that client libraries unpack; empty when the code is enough."""
        if not self.reasons:
            return ()
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason="ACK_FAILED", domain="pubsub", metadata=self.reasons))
        status = status_pb2.Status(code=self.code.value[0], message=self.message, details=[detail])
        return ((STATUS_KEY, status.SerializeToString()),)


def invalid(message: str) -> Refused:
    """Refuse a request that can never succeed."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(kind: str, name: str) -> Refused:
    """Refuse the name of a topic, subscription or snapshot that does not exist."""
    return Refused(grpc.StatusCode.NOT_FOUND, f"{kind} not found (resource={name.rpartition('/')[2]}).")


def exists(kind: str, name: str) -> Refused:
    """Refuse to create a resource whose name is taken, even when the resources are equal."""
    resource = name.rpartition("/")[2]
    return Refused(grpc.StatusCode.ALREADY_EXISTS, f"{kind} already exists (resource={resource}).")


def unsupported(what: str) -> Refused:
    """Refuse what production supports and localcloud does not: an error instead of ignoring it."""
    return Refused(grpc.StatusCode.UNIMPLEMENTED, f"localcloud does not implement {what}.")
