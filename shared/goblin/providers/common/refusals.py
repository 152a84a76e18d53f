"""Interprets a provider's error response: its body, of any shape, and the fault behind its status."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import msgspec

from goblin.core import decoding
from goblin.core.errors import Fault, GoblinError, InvalidRequest, ProviderUnavailable
from goblin.core.redaction import redact
from httpguard.text import is_bounded

log = logging.getLogger(__name__)

TEXT_MAX = 1024
"""Characters of a message that are read and passed on."""
WAIT_S_MAX = 86400.0
"""The longest wait that a provider may ask for."""
WORD_MAX = 128
"""Characters of a type, a code or the name of a parameter."""


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """A provider's error body, in OpenAI's fields."""

    message: str = ""
    type: str = ""
    code: str = ""
    param: str | None = None


Judge = Callable[[int, ErrorDetail], Fault | None]
"""Finds the fault behind a status and a body; None when the request itself is to blame."""


def refusal(name: str, response: httpx.Response, data: bytes, judge: Judge) -> GoblinError:
    """Turn a response other than 200 into the error for the caller (`InvalidRequest`) or the router.

    Args:
        name: The endpoint's name, for messages.
        response: Its status and headers.
        data: Its body.
        judge: Finds the fault behind the status.
    """
    detail = error_detail(data)
    status = response.status_code
    # Never log the message: providers quote keys and prompts there. Type and code are enough to find the cause.
    log.warning("%s answered %d (type %.80r, code %.80r).", name, status, detail.type, detail.code)
    fault = judge(status, detail)
    if fault is None:
        return InvalidRequest(
            detail.message or f"{name} refused the request with status {status}.",
            param=detail.param,
            code=_caller_code(detail),
        )
    return ProviderUnavailable(
        f"{name} answered {status} ({fault}).", fault=fault, retry_after_s=retry_after_s(response.headers)
    )


# They come with 429 and look like a rate limit, but waiting does not help. Source: help.openai.com 5955604, OpenAI's
# API reference and anthropic-python 2.12, read 2026-11-23.
_MONEY_CODES = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_usage_limit_exceeded",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "billing_not_active",
        "billing_hard_limit_reached",
        "billing_error",
        "enforced_spend_limit_reached",
        "contract_spend_limit_reached",
        "linked_organization_spend_limit_reached",
    }
)


def fault_of(status: int, detail: ErrorDetail) -> Fault | None:
    """Find the fault behind a status; None when the request itself is to blame."""
    if status == 402 or detail.code in _MONEY_CODES or detail.type in _MONEY_CODES:
        return Fault.MONEY
    match status:
        case 401 | 403:
            return Fault.AUTH
        case 404 | 410:
            return Fault.MISSING
        case 405 | 501:
            return Fault.UNSUPPORTED
        case 408:
            return Fault.TRANSIENT
        case 429:
            return Fault.RATE
        case 503 if "loading" in detail.message.lower():
            return Fault.LOADING
        case 503 if "busy" in detail.message.lower() or "overloaded" in detail.message.lower():
            return Fault.CAPACITY
        case 498 | 529:
            return Fault.CAPACITY
    if 400 <= status < 500:
        return None
    return Fault.TRANSIENT


# How providers' messages say that no machine is free, with statuses from 400 to 503. Source: the errors that
# skypilot 0.14, dstack 0.22 and flyctl look for, read 2026-11-23.
_CAPACITY_TEXT = re.compile(
    r"no (longer any )?(instances?|gpus?|capacity|hosts?|machines?|resources)\b.{0,40}\b(available|found)"
    r"|(not|in)[ -]?(enough|sufficient) (capacity|resources|memory|gpus?)"
    r"|resources? (are|is) (currently )?unavailable|over the allowed quota|out of (stock|capacity)|no_such_ask"
    r"|could not reserve|no capacity",
    re.IGNORECASE,
)


def says_no_capacity(detail: ErrorDetail) -> bool:
    """Tell whether a refusal's message is about capacity, whatever its status is."""
    return bool(_CAPACITY_TEXT.search(detail.message) or _CAPACITY_TEXT.search(detail.code))


def judge_gpu_host(status: int, detail: ErrorDetail) -> Fault | None:
    """Find the fault like `fault_of`, for providers that say `no machine is free` with any status, even 400."""
    if status not in (401, 402, 403, 429) and says_no_capacity(detail):
        return Fault.CAPACITY
    return fault_of(status, detail)


def error_detail(data: bytes) -> ErrorDetail:
    """Parse an error body: the shapes that `detail_of` knows, or a line of text. An HTML page yields nothing."""
    try:
        body = msgspec.json.decode(data) if is_bounded(data) else None
    except decoding.UNREADABLE:
        text = data.decode("utf-8", "replace").strip()
        return ErrorDetail() if text[:1] in ("<", "{", "[") else ErrorDetail(message=_text(text))
    return detail_of(body)


def detail_of(body: Any) -> ErrorDetail:
    """Read the error detail from parsed JSON.

    `{"error": {…}}` is OpenAI's and, with `details`, Anthropic's; `{"error": "…"}` is Ollama's, Fly's and RunPod's
    workers'; `{"error": SLUG, "msg": "…"}` is Vast's; `{"detail": "…"}` is a problem document's, and FastAPI's.
    """
    if not isinstance(body, dict):
        return ErrorDetail()
    error = body.get("error", body.get("detail"))
    if isinstance(error, str):
        said = body.get("msg")
        if isinstance(said, str):
            return ErrorDetail(message=_text(said), code=_text(error, WORD_MAX))
        return ErrorDetail(message=_text(error))
    if not isinstance(error, dict):
        return ErrorDetail()
    param, details = error.get("param"), error.get("details")
    finer = details.get("error_code") if isinstance(details, dict) else None
    return ErrorDetail(
        message=_text(error.get("message")),
        type=_text(error.get("type"), WORD_MAX),
        code=_text(finer or error.get("code"), WORD_MAX),
        param=_text(param, WORD_MAX) if isinstance(param, str) else None,
    )


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read how many seconds the provider asks us to wait; None when it does not say.

    In this order: `retry-after-ms`, `Retry-After` in seconds, the refill time of a rate limit that is used up. A
    `Retry-After` that is a date is ignored: reading it would need a clock here.
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            value = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue
        if 0 <= value < float("inf"):
            return min(value, WAIT_S_MAX)
    waits = [*_empty_buckets(headers), *_empty_policies(headers.get("ratelimit", ""))]
    return min(max(waits), WAIT_S_MAX) if waits else None


def _empty_buckets(headers: Mapping[str, str]) -> list[float]:
    """Read OpenAI's and Groq's `x-ratelimit-remaining-tokens: 0` and `x-ratelimit-reset-tokens: 2m59.56s`."""
    waits = []
    for what in ("requests", "tokens"):
        if headers.get(f"x-ratelimit-remaining-{what}") == "0":
            wait_s = _duration_s(headers.get(f"x-ratelimit-reset-{what}", ""))
            waits += [] if wait_s is None else [wait_s]
    return waits


_POLICY = re.compile(r'"[a-z]+";r=(\d+);t=(\d+)')


def _empty_policies(header: str) -> list[float]:
    """Read RunPod's `RateLimit: "minute";r=0;t=12, "hour";r=2800;t=1812`: `r` remains, `t` seconds until it refills."""
    return [float(seconds) for left, seconds in _POLICY.findall(header[:TEXT_MAX]) if int(left) == 0]


_DURATION = re.compile(
    r"(?:(\d{1,4})h)?(?:(\d{1,4})m(?!s))?(?:(\d{1,6}(?:\.\d{1,9})?)s)?(?:(\d{1,6}(?:\.\d{1,9})?)ms)?"
)


def _duration_s(text: str) -> float | None:
    """Parse a duration as Go writes it: `6m0s`, `2m59.56s`, `250ms`."""
    found = _DURATION.fullmatch(text)
    if not text or found is None:
        return None
    hours, minutes, seconds, millis = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds + millis / 1000


def _caller_code(detail: ErrorDetail) -> str | None:
    if detail.type == "exceed_context_size_error" or "prompt is too long" in detail.message:
        return "context_length_exceeded"
    # llama-server repeats the status as the code.
    return detail.code if detail.code and not detail.code.isdigit() else None


def _text(value: object, most: int = TEXT_MAX) -> str:
    """Return a text without credentials and then cut, because half a credential would not be found."""
    return "" if value is None else redact(str(value))[:most]
