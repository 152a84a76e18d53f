"""A refusal, in gRPC's words; both transports carry it."""

import grpc


class SecretError(Exception):
    """The answer is no; `code` says which no."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        """`message` is one sentence for people and never holds a payload."""
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message: str) -> SecretError:
    """The request cannot be meant."""
    return SecretError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(name: str) -> SecretError:
    """Nothing has this name."""
    return SecretError(grpc.StatusCode.NOT_FOUND, f"[{name}] not found.")


def failed_precondition(message: str) -> SecretError:
    """The state forbids it."""
    return SecretError(grpc.StatusCode.FAILED_PRECONDITION, message)


def unkept(what: str) -> SecretError:
    """Production has it, this server does not."""
    return SecretError(grpc.StatusCode.UNIMPLEMENTED, f"{what} is not kept by the local cloud")
