"""Errors inside an answer of status 200: how to know one, and what it means before and after the first word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goblin.core.errors import Fault, GoblinError, InvalidRequest, ProviderUnavailable
from goblin.providers.common.error_words import caller_code, status_of
from goblin.providers.common.http import Upstream
from goblin.providers.common.reading import count_of
from goblin.providers.common.refusals import detail_of, wait_said_s


def is_error(value: Mapping[str, Any], event: str = "message") -> bool:
    """Tell whether parsed JSON of an answer is an error.

    `{"error": …}` is OpenAI's, `{"object": "error"}` vLLM's, `{"type": "error"}` Anthropic's, `{"detail": …}`
    FastAPI's, `{"code": 429, "message": …}` a gateway's. An `error` that is empty, or whose code is 0 or 200, is none.
    """
    if event == "error" or value.get("object") == "error" or value.get("type") == "error":
        return True
    if error := value.get("error"):
        return not (isinstance(error, dict) and count_of(error.get("code")) in (0, 200))
    groq = value.get("x_groq")
    if isinstance(groq, dict) and groq.get("error"):
        return True
    if value.get("choices"):
        return False
    if value.get("detail") or value.get("errors"):
        return True
    codes = [count_of(value.get(name)) or 0 for name in ("code", "status", "status_code", "statusCode")]
    return isinstance(value.get("message"), str) and max(codes) >= 400


def answer_error(upstream: Upstream, value: Any, *, said: bool) -> GoblinError:
    """Build the error for an answer that turned into one.

    Args:
        upstream: Whose answer it is.
        value: The parsed error, or its text.
        said: Whether the answer had begun. Before that an error is a refusal like any other; after it even a 4xx is the
            endpoint's failure, because it had accepted the request.
    """
    if isinstance(value, dict) and not value.get("error") and isinstance(groq := value.get("x_groq"), dict):
        value = groq
    detail = detail_of(value)
    fault = upstream.judge(status_of(value, detail), detail)
    if fault is None and not said:
        return InvalidRequest(
            detail.message or f"{upstream.name} refused the request.", param=detail.param, code=caller_code(detail)
        )
    return ProviderUnavailable(
        f"{upstream.name} sent an error in the stream.",
        fault=fault or Fault.TRANSIENT,
        retry_after_s=wait_said_s(detail) if fault in (Fault.RATE, Fault.CAPACITY, Fault.LOADING) else None,
    )
