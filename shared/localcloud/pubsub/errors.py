"""How a request is refused: a gRPC code, a sentence and, for acknowledgements, one reason per ack id."""

from collections.abc import Mapping

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

STATUS_KEY = "grpc-status-details-bin"


class Refused(Exception):
    """The answer is no; the handler turns it into a gRPC status."""

    def __init__(self, code: grpc.StatusCode, message: str, reasons: Mapping[str, str] | None = None) -> None:
        """Say no.

        Args:
            code: What the client's library maps to its exception.
            message: For a person.
            reasons: What `ErrorInfo.metadata` carries: ack id → reason, with exactly-once delivery.
        """
        super().__init__(message)
        self.code = code
        self.message = message
        self.reasons = dict(reasons or {})

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """The rich status that client libraries unpack; empty when the code says it all."""
        if not self.reasons:
            return ()
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason="ACK_FAILED", domain="pubsub", metadata=self.reasons))
        status = status_pb2.Status(code=self.code.value[0], message=self.message, details=[detail])
        return ((STATUS_KEY, status.SerializeToString()),)


def invalid(message: str) -> Refused:
    """The request can never succeed."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(kind: str, name: str) -> Refused:
    """No such topic, subscription or snapshot."""
    return Refused(grpc.StatusCode.NOT_FOUND, f"{kind} not found (resource={name.rpartition('/')[2]}).")


def exists(kind: str, name: str) -> Refused:
    """Names are taken for ever, even by an equal resource."""
    resource = name.rpartition("/")[2]
    return Refused(grpc.StatusCode.ALREADY_EXISTS, f"{kind} already exists (resource={resource}).")


def unsupported(what: str) -> Refused:
    """Production can, we cannot: said loudly instead of ignored."""
    return Refused(grpc.StatusCode.UNIMPLEMENTED, f"localcloud does not implement {what}.")
