"""Refusals as gRPC codes, for both transports."""

import grpc


class SecretError(Exception):
    """The request is refused; `code` is the gRPC code."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        """Create a refusal. `message` is one sentence for people and never holds a payload."""
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message: str) -> SecretError:
    """Refuse a request that can never succeed."""
    return SecretError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(name: str) -> SecretError:
    """Refuse a name that does not exist."""
    return SecretError(grpc.StatusCode.NOT_FOUND, f"[{name}] not found.")


def failed_precondition(message: str) -> SecretError:
    """Refuse what the present state forbids."""
    return SecretError(grpc.StatusCode.FAILED_PRECONDITION, message)


def unkept(what: str) -> SecretError:
    """Refuse what production supports and localcloud does not."""
    return SecretError(grpc.StatusCode.UNIMPLEMENTED, f"{what} is not supported by localcloud.")
