"""Errors answered to clients, in OpenAI's error shape."""

from typing import Any


class ApiError(Exception):
    """An HTTP error answer: `{"error": {"message", "type", "param", "code", …}}`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - the wire's own word.
        code: str | int | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.facts = facts or {}

    def body(self) -> dict[str, Any]:
        """Return the JSON object of the answer. `facts` are numbers that a client may use, such as the context size."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error | self.facts}

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def context_exceeded(n_prompt_tokens: int, n_ctx: int) -> ApiError:
    """Return the error for a prompt that leaves no room for one generated token."""
    return ApiError(
        400,
        f"This model's context is {n_ctx} tokens per request, but the prompt has {n_prompt_tokens}; "
        "shorten the prompt so that at least one token can be generated.",
        type="exceed_context_size_error",
        code="context_length_exceeded",
        facts={"n_prompt_tokens": n_prompt_tokens, "n_ctx": n_ctx},
    )


def loading() -> ApiError:
    """Return the error while the model loads, in llama-server's exact words: probes look for them."""
    return ApiError(503, "Loading model", type="unavailable_error", code=503, retry_after_s=1)


def draining() -> ApiError:
    return ApiError(
        503, "The server is shutting down.", type="unavailable_error", code="shutting_down", retry_after_s=5
    )


def queue_full(retry_after_s: int) -> ApiError:
    return ApiError(
        429,
        f"All slots are busy and the queue is full. Retry in {retry_after_s} s.",
        type="rate_limit_error",
        code="queue_full",
        retry_after_s=retry_after_s,
    )


def broken(message: str) -> ApiError:
    return ApiError(500, message, type="server_error", code="internal_server_error")
