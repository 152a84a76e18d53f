"""All errors of this project. The class says what the caller does next; the instance carries the data.

GoblinError
├─ Transient   try again: redelivered, HTTP 503 or 429
├─ Refused     the answer is no: 4xx, acknowledged
└─ Broken      a person must look: 500, dead letter
"""

from __future__ import annotations

from enum import StrEnum

from goblin.core.redaction import redact


class GoblinError(Exception):
    """Base of all errors. The class holds what a doorway needs to answer; the message is for a person.

    What it says may come from an upstream, and goes to callers, logs, receipts and documents. So it is redacted here.

    `status`, `type` and `code` are the HTTP status and the `error.type` and `error.code` of OpenAI's shape.
    """

    status = 500
    type = "api_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        message = redact(message)
        super().__init__(message)
        self.message = message
        self.param = None if param is None else redact(param)
        if code is not None:
            self.code = redact(code)

    def body(self) -> dict[str, dict[str, str | None]]:
        """Build the error in OpenAI's shape, which every client library parses."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class Transient(GoblinError):
    """An error that may pass: raise it from an event function, answer 503 from an HTTP function."""

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
    """Why an endpoint did not serve a request, when the request was not the cause. The router reads it."""

    TRANSIENT = "transient"
    """Connection refused, timeout, connection cut, 408, 5xx, or an answer that makes no sense."""
    LOADING = "loading"
    """The endpoint is up and loads its model."""
    CAPACITY = "capacity"
    """The endpoint is healthy and full."""
    RATE = "rate"
    """A rate limit was reached."""
    MONEY = "money"
    """A quota or a balance is used up; waiting a second does not help."""
    AUTH = "auth"
    """The endpoint refuses our key; a person must look."""
    MISSING = "missing"
    """The endpoint does not have this model. Its other models are not affected."""
    UNSUPPORTED = "unsupported"
    """The endpoint cannot do what this request needs. It is healthy otherwise."""


class ProviderUnavailable(Transient):
    """A provider that did not answer, or answered that it cannot serve now; `fault` says why."""

    code = "provider_unavailable"

    def __init__(self, message: str, *, fault: Fault = Fault.TRANSIENT, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.fault = fault


class StreamCut(ProviderUnavailable):
    """An answer that broke off after the caller had seen a part of it."""

    code = "stream_cut"


class RateLimited(Transient):
    """A rate limit that was reached, a provider's or ours."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class StoreUnavailable(Transient):
    """Firestore, Pub/Sub or Cloud Storage that did not answer in time; nothing was decided."""

    code = "store_unavailable"


class UnknownTopic(StoreUnavailable):
    """A topic that does not exist: it may be created later, or its name is wrong."""


class TopicForbidden(UnknownTopic):
    """A topic into which this process may not publish: a grant is missing, and a retry does not help."""


class LeaseHeld(Transient):
    """A document that another process works on now."""

    code = "lease_held"


class Refused(GoblinError):
    """A refusal that a retry does not change."""

    status = 400
    type = "invalid_request_error"


class InvalidRequest(Refused):
    """A request that cannot be understood; `param` names the field."""


class StoreRefused(Refused):
    """A request that Cloud Storage refuses, and would refuse again: what is asked for cannot be."""

    code = "store_refused"


class TooLarge(Refused):
    """A body over the limit, which the message names."""

    status = 413
    code = "request_too_large"


class Unauthenticated(Refused):
    """A request without a key, or with an unknown one."""

    status = 401
    code = "invalid_api_key"


class Forbidden(Refused):
    """A known caller without the right to do this."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class UnknownModel(Refused):
    """A model that no configured endpoint serves."""

    status = 404
    code = "model_not_found"


class NotFound(Refused):
    """A requested thing that does not exist."""

    status = 404
    code = "not_found"


class MethodNotAllowed(Refused):
    """A path that exists, with a method that it does not have."""

    status = 405
    code = "method_not_allowed"


class Conflict(Refused):
    """A thing that changed since the caller read it."""

    status = 409
    code = "conflict"


class InvalidReport(Conflict):
    """A report or upload of a host that was not true."""

    code = "untrue"


class BudgetExhausted(Refused):
    """A budget whose rest does not cover the worst case."""

    status = 402
    type = "insufficient_quota"
    code = "budget_exhausted"


class Broken(GoblinError):
    """An error that redelivery cannot fix: after its last delivery the message is a dead letter for a person."""


class MalformedEvent(Broken):
    """A message that fits no schema of ours."""

    status = 400
    code = "malformed_event"
