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
from goblin.providers.common.error_words import (
    caller_code,
    fault_said,
    retry_after_s,
    says_too_long,
    wait_in_body_s,
    wait_in_words_s,
)
from httpguard.text import is_bounded

log = logging.getLogger(__name__)

TEXT_MAX = 1024
"""Characters of a message that are read and passed on."""
WORD_MAX = 128
"""Characters of a type, a code or the name of a parameter."""


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """A provider's error body, in OpenAI's fields."""

    message: str = ""
    type: str = ""
    code: str = ""
    param: str | None = None
    wait_s: float | None = None
    """How long the body asks us to wait."""


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
            code=caller_code(detail),
        )
    waits = fault in (Fault.RATE, Fault.CAPACITY, Fault.LOADING)
    wait_s = retry_after_s(response.headers, limited=fault is Fault.RATE)
    if wait_s is None and waits:
        wait_s = wait_said_s(detail)
    return ProviderUnavailable(f"{name} answered {status} ({fault}).", fault=fault, retry_after_s=wait_s)


def wait_said_s(detail: ErrorDetail) -> float | None:
    """Read how many seconds an error asks us to wait, in its fields or in its message; None when it does not say."""
    return detail.wait_s if detail.wait_s is not None else wait_in_words_s(detail.message)


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
    if status not in (401, 403, 429) and says_too_long(detail):
        return None  # Some servers say it with 500.
    match status:
        case 413 if fault_said(detail) is Fault.RATE:
            return Fault.UNSUPPORTED  # Groq: the request alone is above the limit per minute; waiting does not help.
        case 400 | 409 | 422 | 424 | 500 | 503 if (said := fault_said(detail)) is not None and not loading(detail):
            return said
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
        case 503 if loading(detail):
            return Fault.LOADING
        case 503 if "busy" in detail.message.lower() or "overloaded" in detail.message.lower():
            return Fault.CAPACITY
        case 498 | 529:
            return Fault.CAPACITY
    if 400 <= status < 500:
        return None
    return Fault.TRANSIENT


def loading(detail: ErrorDetail) -> bool:
    """Tell whether an error says that the model is being loaded."""
    return "loading" in detail.message.lower()


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
    """Parse an error body: the shapes that `detail_of` knows, a line of text, or the title of an HTML page."""
    try:
        body = msgspec.json.decode(data) if is_bounded(data) else None
    except decoding.UNREADABLE:
        text = data.decode("utf-8", "replace").strip()
        if text[:1] == "<":
            return ErrorDetail(message=_text(_title(text)))
        return ErrorDetail() if text[:1] in ("{", "[") else ErrorDetail(message=_text(text))
    return detail_of(body)


def detail_of(body: Any) -> ErrorDetail:
    """Read the error detail from parsed JSON.

    `{"error": {…}}` is OpenAI's and, with `details`, Anthropic's; Google puts it into a list. `{"error": "…"}` is
    Ollama's, Fly's and RunPod's workers', with `error_type` TGI's; `{"error": SLUG, "msg": "…"}` is Vast's.
    `{"detail": "…"}` is a problem document's, and FastAPI's, where it may be a list of `{"loc": […], "msg": "…"}`.
    `{"object": "error", "message": "…"}` is vLLM's, `{"message": "…"}` Cohere's and many gateways'.
    """
    found = _detail(body, 0)
    wait_s = wait_in_body_s(body)
    return found if wait_s is None else msgspec.structs.replace(found, wait_s=wait_s)


_DEPTH_MAX = 6
_MESSAGES = (
    *("message", "msg", "detail", "Message", "error_message", "errorMessage", "error_description", "error_msg"),
    *("faultstring", "reason", "title"),
)
_SLUG = re.compile(r"[A-Za-z0-9_.-]{1,80}")


def _detail(body: Any, depth: int) -> ErrorDetail:
    if isinstance(body, str):
        return _in_text(body, depth)
    if isinstance(body, list):
        rows = [found for row in body[:16] if (found := _detail(row, depth + 1)).message] if depth < _DEPTH_MAX else []
        if not rows:
            return ErrorDetail()
        return msgspec.structs.replace(rows[0], message=_text("; ".join(row.message for row in rows)))
    if not isinstance(body, dict) or depth >= _DEPTH_MAX:
        return ErrorDetail()
    said = next((found for name in _MESSAGES if (found := _detail(body.get(name), depth + 1)).message), ErrorDetail())
    error = next((body[name] for name in ("error", "errors", "fault") if body.get(name)), None)
    if isinstance(error, str):
        slug = bool(_SLUG.fullmatch(error))
        beside = said.message if body.get("msg") or body.get("message") or slug else ""
        code = _text(error, WORD_MAX) if slug else ""
        inner = ErrorDetail(message=beside, code=code) if beside else _in_text(error, depth)
    else:
        inner = _detail(error, depth + 1)
    param, details, metadata = body.get("param"), body.get("details"), body.get("metadata")
    finer = details.get("error_code") if isinstance(details, dict) else None
    # OpenRouter says "Provider returned error", and has the provider's own words here.
    raw = _detail(metadata.get("raw"), depth + 1) if isinstance(metadata, dict) else ErrorDetail()
    where = [str(step) for step in body["loc"][:16] if step != "body"] if isinstance(body.get("loc"), list) else []
    place = _text(".".join(where), WORD_MAX)
    message = raw.message or inner.message or said.message
    return ErrorDetail(
        message=_text(f"{place}: {message}" if place and message else message),
        type=inner.type or said.type or _word(body, "type", "error_type", "status", "__type"),
        code=_text(finer, WORD_MAX) or inner.code or _word(body, "code", "error_code") or said.code,
        param=inner.param or (_text(param, WORD_MAX) if isinstance(param, str) else place or said.param),
    )


def _in_text(text: str, depth: int) -> ErrorDetail:
    """Read a message, which may be the JSON of another error."""
    if text[:1] == "{" and depth < _DEPTH_MAX and len(text) <= 4 * TEXT_MAX:
        try:
            inner = _detail(decoding.parse(text), depth + 1)
        except decoding.UNREADABLE:
            return ErrorDetail(message=_text(text))
        return inner if inner.message else ErrorDetail(message=_text(text))
    return ErrorDetail(message=_text(text))


def _word(body: Mapping[str, Any], *names: str) -> str:
    values = (body.get(name) for name in names)
    return next(
        (_text(value, WORD_MAX) for value in values if isinstance(value, str | int) and value not in ("", False)), ""
    )


_TITLE = re.compile(r"<(title|h1)\b[^>]{0,200}>([^<]{1,300})</", re.IGNORECASE)


def _title(page: str) -> str:
    """Find the title of an HTML page, which is all that a proxy's error page says."""
    found = _TITLE.search(page)
    return " ".join(found[2].split()) if found else ""


def _text(value: object, most: int = TEXT_MAX) -> str:
    """Return a text without credentials and then cut, because half a credential would not be found."""
    return "" if value is None else redact(str(value))[:most]
