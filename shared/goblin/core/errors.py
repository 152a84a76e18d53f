"""Every error of ours. The class says what the caller does next; the instance carries the data.

GoblinError
├─ Transient   try again: redelivered, HTTP 503 or 429
├─ Refused     the answer is no: 4xx, acknowledged
└─ Broken      a person must look: 500, dead letter
"""

from __future__ import annotations

from enum import StrEnum


class GoblinError(Exception):
    """Base of all; what a doorway needs to answer is on the class, the message is for a person.

    `status`, `type` and `code` are the HTTP status and the `error.type` and `error.code` of OpenAI's shape.
    """

    status = 500
    type = "api_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error shape, as every client library parses it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class Transient(GoblinError):
    """It may work later: raise from an event function, answer 503 from an HTTP one."""

    status = 503
    type = "service_unavailable_error"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after_s = retry_after_s


class Fault(StrEnum):
    """Why an endpoint did not serve a request that was not to blame for it; the router reads it."""

    TRANSIENT = "transient"
    """Refused, timed out, cut, 408, 5xx, or an answer that makes no sense."""
    LOADING = "loading"
    """It is up and loads its model."""
    CAPACITY = "capacity"
    """It is well and full."""
    RATE = "rate"
    """A limit per time was reached."""
    MONEY = "money"
    """A quota or a balance is used up; waiting a second does not help."""
    AUTH = "auth"
    """It refuses our key; a person must look."""
    MISSING = "missing"
    """It does not have this model; its other models are not concerned."""
    UNSUPPORTED = "unsupported"
    """It cannot do what this request asks; it is well otherwise."""


class ProviderUnavailable(Transient):
    """A provider did not answer, or answered that it cannot now; `fault` says in what way."""

    code = "provider_unavailable"

    def __init__(self, message: str, *, fault: Fault = Fault.TRANSIENT, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.fault = fault


class StreamCut(ProviderUnavailable):
    """The provider broke off after the caller had seen a part of the answer."""

    code = "stream_cut"


class RateLimited(Transient):
    """A limit per time was reached, a provider's or ours."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class StoreUnavailable(Transient):
    """Firestore or Storage did not answer in time; nothing was decided."""

    code = "store_unavailable"


class UnknownTopic(StoreUnavailable):
    """There is no such topic: it may be made later, or was never meant to be."""


class LeaseHeld(Transient):
    """Somebody else works on the document now."""

    code = "lease_held"


class Refused(GoblinError):
    """The answer is no, and asking again changes nothing."""

    status = 400
    type = "invalid_request_error"


class InvalidRequest(Refused):
    """The request cannot be understood; `param` names the field."""


class TooLarge(Refused):
    """The body is over the limit, which the message names."""

    status = 413
    code = "request_too_large"


class Unauthenticated(Refused):
    """No key, or one that is not ours."""

    status = 401
    code = "invalid_api_key"


class Forbidden(Refused):
    """A known caller without the right to do this."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class UnknownModel(Refused):
    """No configured endpoint serves the model."""

    status = 404
    code = "model_not_found"


class NotFound(Refused):
    """The thing asked for does not exist."""

    status = 404
    code = "not_found"


class MethodNotAllowed(Refused):
    """The path exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class Conflict(Refused):
    """The thing changed since the caller looked at it."""

    status = 409
    code = "conflict"


class InvalidReport(Conflict):
    """What a host said or uploaded is not so."""

    code = "untrue"


class BudgetExhausted(Refused):
    """What is left of a budget does not cover the worst case."""

    status = 402
    type = "insufficient_quota"
    code = "budget_exhausted"


class Broken(GoblinError):
    """Redelivery cannot mend it: after its deliveries the message is a dead letter for a person."""


class MalformedEvent(Broken):
    """A message that no schema of ours fits."""

    status = 400
    code = "malformed_event"
