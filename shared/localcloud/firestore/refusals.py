"""Refusals with the status code that production answers."""

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
    """Refuse a request that is wrong in any state."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


def aborted(message: str) -> Refused:
    """Abort a transaction that lost a race; the client may try again."""
    return Refused(grpc.StatusCode.ABORTED, message)


def failed_precondition(message: str) -> Refused:
    """Refuse what the present state does not allow."""
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, message)


def not_found(name: str) -> Refused:
    """Refuse the name of a document that does not exist."""
    return Refused(grpc.StatusCode.NOT_FOUND, f"No document to update: {name}")


def refuse_unsupported(what: str) -> NoReturn:
    """Refuse what this server does not support, instead of ignoring it."""
    log.warning("A client asked for %s, which is not implemented here.", what)
    raise Refused(grpc.StatusCode.UNIMPLEMENTED, f"localcloud's Firestore does not support {what}")
