"""Refusals of every shape: the message that the caller is told, the code, whose fault it is, and how long to wait."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from goblin.core.errors import Fault, InvalidRequest, ProviderUnavailable
from goblin.providers.common.error_words import WAIT_S_MAX, retry_after_s, status_of, wait_in_words_s
from goblin.providers.common.refusals import TEXT_MAX, ErrorDetail, detail_of, error_detail, fault_of, refusal

SAID = "The words of the upstream."


def refused(status: int, body: Any, **headers: str) -> InvalidRequest | ProviderUnavailable:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = refusal("e", httpx.Response(status, headers=headers), data, fault_of)
    assert isinstance(found, InvalidRequest | ProviderUnavailable)
    return found


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": SAID, "type": "invalid_request_error", "param": None, "code": None}},
        {"error": SAID},
        {"error": {"message": SAID, "code": 400}},
        {"error": {"error": {"message": SAID}}},
        {"error": [{"message": SAID}]},
        {"error": [SAID]},
        {"error": "bad_request", "message": SAID},
        {"error": "Bad Request", "message": SAID, "statusCode": 400},
        {"error": "Bad Request", "message": [SAID], "statusCode": 400},
        {"error": "slug", "msg": SAID},
        {"error": "slug", "detail": SAID},
        {"error": SAID, "error_type": "validation"},
        {"error": {"message": json.dumps({"error": {"message": SAID}})}},
        {"error": {"message": {"detail": SAID}}},
        {"error": {"message": "Provider returned error", "metadata": {"raw": json.dumps({"error": SAID})}}},
        {"error": {"code": 400, "message": SAID, "status": "INVALID_ARGUMENT", "details": [{"@type": "x"}]}},
        [{"error": {"code": 400, "message": SAID, "status": "INVALID_ARGUMENT"}}],
        {"object": "error", "message": SAID, "type": "BadRequestError", "param": None, "code": 400},
        {"object": "error", "message": {"detail": [{"type": "x", "loc": [], "msg": SAID}]}},
        {"type": "error", "error": {"type": "invalid_request_error", "message": SAID}},
        {"detail": SAID},
        {"detail": {"message": SAID}},
        {"detail": {"error": {"message": SAID}}},
        {"detail": [{"msg": SAID, "type": "value_error"}]},
        {"title": "Bad Request", "status": 400, "detail": SAID},
        {"message": SAID},
        {"message": SAID, "code": 400},
        {"msg": SAID},
        {"Message": SAID},
        {"errors": [{"code": 7003, "message": SAID}], "success": False, "result": None},
        {"errors": [SAID]},
        {"error_message": SAID},
        {"code": "InvalidParameter", "message": SAID, "request_id": "r"},
        {"fault": {"faultstring": SAID, "detail": {"errorcode": "x"}}},
        SAID.encode(),
        json.dumps(SAID).encode(),
        f"<html><head><title>{SAID}</title></head><body>nginx</body></html>".encode(),
        f"<!DOCTYPE html>\n<H1 class='x'>\n {SAID}\n</H1>".encode(),
    ],
    ids=lambda body: (body if isinstance(body, bytes) else json.dumps(body).encode())[:60].decode(),
)  # fmt: skip
def test_an_error_body_of_any_shape_keeps_its_words(body: Any) -> None:
    error = refused(400, body)
    assert isinstance(error, InvalidRequest)
    assert error.message == SAID
    assert error.code in (None, "bad_request", "slug", "InvalidParameter", "INVALID_ARGUMENT", "7003")


def test_every_complaint_about_a_field_is_told_with_the_field() -> None:
    rows = [
        {"type": "int_parsing", "loc": ["body", "max_tokens"], "msg": "Input should be a valid integer", "input": "x"},
        {"type": "missing", "loc": ["body", "messages", 0, "role"], "msg": "Field required"},
    ]
    error = refused(422, {"detail": rows})
    assert error.message == "max_tokens: Input should be a valid integer; messages.0.role: Field required"
    assert error.param == "max_tokens"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[", b"null", b"7", b"[]", b"{}", b"<html>", b'{"error": {}}', b'{"error": null}', b"\xff\xfe"]
)
def test_a_body_without_words_is_a_refusal_all_the_same(body: bytes) -> None:
    error = refused(400, body)
    assert error.message
    assert isinstance(error, InvalidRequest)


def test_a_long_or_deep_body_is_bounded() -> None:
    for body in ({"error": {"message": "x" * 10**5}}, {"detail": [{"msg": "x" * 999}] * 99}, "x" * 10**5):
        assert len(error_detail(json.dumps(body).encode()).message) <= TEXT_MAX
    deep: Any = SAID
    for _ in range(50):
        deep = {"error": deep}
    assert detail_of(deep) == ErrorDetail()
    assert error_detail(b"[" * 10**5).message == ""


TOO_LONG = [
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the messages, 1000"
    " in the completion). Please reduce the length of the messages or completion.",
    "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens.",
    "Your input exceeds the context window of this model. Please adjust your input and try again.",
    "Input length (265330) exceeds model's maximum context length (262144).",
    "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
    "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length is 4096 tokens and"
    " your request has 10 input tokens",
    "the request exceeds the available context size. try increasing the context size or enable context shift",
    "request (66202 tokens) exceeds the available context size (65536 tokens), try increasing it",
    "the input length exceeds the context length",
    "input length exceeds maximum context length",
    "prompt too long; exceeded max context length by 4 tokens",
    "Please reduce the length of the messages or completion.",
    "prompt is too long: 213462 tokens > 200000 maximum",
    "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000, decrease input length",
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens",
    "`inputs` must have less than 1024 tokens. Given: 2000",
    "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
    "Requested token count exceeds the model's maximum context length of 8192 tokens.",
    "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
    "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
    "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000.",
    "Input is too long for requested model.",
    "The prompt is too long: 40000, model maximum context length: 32768",
    "This model's maximum prompt length is 131072 but the request contains 200000 tokens.",
    "This endpoint's maximum context length is 32768 tokens. However, you requested about 40000 tokens",
    "Trying to keep the first 9000 tokens when context the overflows. However, the model is loaded with context length",
    "The number of tokens to keep from the initial prompt is greater than the context length",
    "Invalid request: Your request exceeded model token limit: 8192",
    "Range of input length should be [1, 30720]",
    "Input length 131393 exceeds the maximum allowed input length of 131040 tokens.",
    "Prompt too long: 5152 tokens exceeds max_seq_len 2048 (leave room for output tokens)",
    "invalid params, context window exceeds limit (2013)",
    "the number of input tokens 9000 cannot exceed the total tokens limit 8192 for this model",
]
"""What vendors and servers say when a prompt does not fit."""


@pytest.mark.parametrize("message", TOO_LONG)
@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_a_prompt_that_is_too_long_is_told_in_openais_code(message: str, status: int) -> None:
    for body in (
        {"error": {"message": message, "code": status}},
        {"object": "error", "message": message},
        message.encode(),
    ):
        error = refused(status, body)
        assert isinstance(error, InvalidRequest)
        assert (error.code, error.message) == ("context_length_exceeded", message)


@pytest.mark.parametrize("name", ["exceed_context_size_error", "context_length_exceeded", "tokens_limit_reached"])
def test_a_code_or_a_type_says_it_too(name: str) -> None:
    assert refused(400, {"error": {"message": "x", "code": name}}).code == "context_length_exceeded"
    assert refused(400, {"error": {"message": "x", "type": name}}).code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (429, {"message": "Too many tokens, please wait before trying again."}, Fault.RATE),
        (400, {"message": "Too many tokens per minute, please wait before trying again."}, None),
        (
            400,
            {"error": {"message": "max_tokens is too large: 9. This model supports at most 4 completion tokens"}},
            None,
        ),
        (400, {"error": {"message": "Invalid image: the image is too large"}}, None),
        (400, {"error": {"message": "'stop' must be a list of at most 4 sequences"}}, None),
        (400, {"error": {"message": "Unknown parameter: context_length"}}, None),
    ],
)
def test_other_limits_are_not_the_context(status: int, body: Any, fault: Fault | None) -> None:
    error = refused(status, body)
    assert getattr(error, "fault", None) is fault
    assert error.code != "context_length_exceeded"


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (400, [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}], Fault.AUTH),
        (400, {"code": "InvalidApiKey", "message": "Invalid API-key provided."}, Fault.AUTH),
        (400, {"code": "Arrearage", "message": "Access denied, check your account."}, Fault.MONEY),
        (400, {"error": {"message": "Insufficient Balance", "type": "unknown_error"}}, Fault.MONEY),
        (403, {"error": {"message": "x", "code": "insufficient_quota"}}, Fault.MONEY),
        (400, {"error": {"message": "The model `x` has gone", "code": "model_decommissioned"}}, Fault.MISSING),
        (400, {"error": {"message": "x is not a valid model ID", "code": 400}}, Fault.MISSING),
        (400, {"object": "error", "message": "The model `x` does not exist.", "type": "NotFoundError"}, Fault.MISSING),
        (500, {"error": {"message": "Rate limit reached", "type": "rate_limit_error"}}, Fault.RATE),
        (503, {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}, Fault.CAPACITY),
        (500, {"error": {"message": "Overloaded"}}, Fault.CAPACITY),
        (503, {"error": "Model x is currently loading", "estimated_time": 20.0}, Fault.LOADING),
        (413, {"error": {"message": "Request too large for model `x` on tokens per minute (TPM): Limit 6000",
                         "type": "tokens", "code": "rate_limit_exceeded"}}, Fault.UNSUPPORTED),
        (502, b"<html><title>502 Bad Gateway</title></html>", Fault.TRANSIENT),
        (500, b"Internal Server Error", Fault.TRANSIENT),
    ],
)  # fmt: skip
def test_words_say_whose_fault_it_is_where_the_status_does_not(status: int, body: Any, fault: Fault) -> None:
    error = refused(status, body)
    assert isinstance(error, ProviderUnavailable)
    assert error.fault is fault


NOW = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)
SOON = NOW + timedelta(seconds=30)
ZULU = "2026-12-01T12:00:30Z"


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "7.5"}, 7.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "7s"}, 7.0),
        ({"retry-after": "1m30s"}, 90.0),
        ({"retry-after": "2 minutes"}, 120.0),
        ({"retry-after": format_datetime(SOON, usegmt=True)}, 30.0),
        ({"retry-after": SOON.strftime("%A, %d-%b-%y %H:%M:%S GMT")}, 30.0),
        ({"retry-after": SOON.isoformat()}, 30.0),
        ({"retry-after": format_datetime(NOW - timedelta(hours=1), usegmt=True)}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"x-ms-retry-after-ms": "1500"}, 1.5),
        ({"x-ratelimit-reset-after": "3.5"}, 3.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m30s"}, 90.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2m59.56s"}, 179.56),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "1m30s"}, None),
        ({"x-ratelimit-reset-requests": "1m30s"}, 90.0),
        ({"x-ratelimit-reset-tokens": "250ms", "x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(SOON.timestamp()))}, 30.0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(SOON.timestamp() * 1000))}, 30.0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "12"}, 12.0),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "12"}, 12.0),
        ({"ratelimit": '"minute";r=0;t=12, "hour";r=2800;t=1812'}, 12.0),
        ({"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": SOON.isoformat()}, 30.0),
        ({"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": ZULU}, 30.0),
        ({"anthropic-ratelimit-input-tokens-remaining": "9", "anthropic-ratelimit-input-tokens-reset": ZULU}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e300"}, WAIT_S_MAX),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_every_form_of_a_wait_is_read(headers: dict[str, str], wait_s: float | None) -> None:
    found = retry_after_s({"date": format_datetime(NOW, usegmt=True), **headers}, limited=True)
    assert found == (None if wait_s is None else pytest.approx(wait_s))


def test_a_date_counts_from_our_own_clock_where_the_provider_has_none() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < (retry_after_s({"retry-after": later}) or 0) <= 100


@pytest.mark.parametrize(
    ("message", "wait_s"),
    [
        (
            "Rate limit reached for model `x`: Limit 6000, Used 5900, Requested 400. Please try again in 7.66s. Visit",
            7.66,
        ),
        ("Please try again in 1m30.5s.", 90.5),
        ("Please try again in 250ms.", 0.25),
        ("Please try again in 6m0s. Visit https://x/7", 360.0),
        ("Please try again in 20s. Contact us", 20.0),
        ("Requests have exceeded the rate limit. Please retry after 20 seconds. Please go here", 20.0),
        ("Please retry in 37.54s.", 37.54),
        ("Try again in 2 minutes", 120.0),
        ("Please wait 1 hour 5 minutes", 3900.0),
        ("Try again later.", None),
        ("You have used 7s of your time.", None),
        ("Please try again with 5 messages", None),
    ],
)
def test_a_wait_in_words_is_read(message: str, wait_s: float | None) -> None:
    assert wait_in_words_s(message) == (None if wait_s is None else pytest.approx(wait_s))
    error = refused(429, {"error": {"message": message}})
    assert isinstance(error, ProviderUnavailable)
    assert (error.fault, error.retry_after_s) == (Fault.RATE, None if wait_s is None else pytest.approx(wait_s))


@pytest.mark.parametrize(
    ("body", "wait_s"),
    [
        ([{"error": {"code": 429, "message": "x", "details": [{"@type": "t/RetryInfo", "retryDelay": "37s"}]}}], 37.0),
        ({"error": {"message": "x", "retry_after": 12}}, 12.0),
        ({"retry_after_ms": 1500, "message": "x"}, 1.5),
        ({"error": {"message": "x", "metadata": {"headers": {
            "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int((NOW.timestamp() + 5000) * 1000))}}}}, 5000.0),
    ],
)  # fmt: skip
def test_a_wait_in_the_body_is_read(monkeypatch: pytest.MonkeyPatch, body: Any, wait_s: float) -> None:
    monkeypatch.setattr(time, "time", NOW.timestamp)
    assert refused(429, body).retry_after_s == pytest.approx(wait_s)  # type: ignore[union-attr]
    assert refused(429, body, **{"retry-after": "3"}).retry_after_s == 3.0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"error": {"code": 429}}, 429),
        ({"error": {"code": "503"}}, 503),
        ({"error": {"message": "x"}, "status": 422}, 422),
        ({"error": {"type": "rate_limit_error"}}, 429),
        ({"error": {"type": "overloaded_error"}}, 529),
        ({"error": {"type": "authentication_error"}}, 401),
        ({"error": {"type": "permission_error"}}, 403),
        ({"error": {"type": "not_found_error"}}, 404),
        ({"error": {"type": "invalid_request_error"}}, 400),
        ({"error": {"code": "rate_limit_exceeded"}}, 429),
        ({"error": "server busy, please try again"}, 529),
        ({"error": "model 'x' not found"}, 404),
        ({"error": "llama runner process has terminated: CUDA error"}, 500),
        ({"error": {"code": 0, "message": "x"}}, 500),
    ],
)
def test_an_error_without_a_status_has_the_one_that_it_means(body: Any, status: int) -> None:
    assert status_of(body, detail_of(body)) == status
