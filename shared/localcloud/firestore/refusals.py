"""How a request is refused: with the status code that production gives."""

import logging
from typing import NoReturn

import grpc

log = logging.getLogger(__name__)


class Refused(Exception):
    """The request is answered with a status other than OK."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message: str) -> Refused:
    """The request is wrong whatever the state."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


def aborted(message: str) -> Refused:
    """The transaction lost a race; the client may try again."""
    return Refused(grpc.StatusCode.ABORTED, message)


def failed_precondition(message: str) -> Refused:
    """The state is not what the request asks for."""
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, message)


def not_found(name: str) -> Refused:
    """No document has this name."""
    return Refused(grpc.StatusCode.NOT_FOUND, f"No document to update: {name}")


def refuse_unsupported(what: str) -> NoReturn:
    """Say what this server does not do, instead of doing something else."""
    log.warning("a client asked for %s, which is not implemented here", what)
    raise Refused(grpc.StatusCode.UNIMPLEMENTED, f"localcloud's Firestore does not support {what}")
