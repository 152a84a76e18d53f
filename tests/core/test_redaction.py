"""Credentials in texts: every form of those that are known, and the shapes of those that are not."""

import base64
import html
import json
from collections.abc import Callable, Iterator
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core import redaction
from goblin.core.errors import BudgetExhausted, GoblinError, InvalidRequest, ProviderUnavailable
from goblin.core.redaction import KNOWN_MAX, LENGTH_MIN, REDACTED, learn, redact

SECRETS = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=13, max_size=61).map(
    "K3y".__add__
)
"""Without a beginning of their own they could be words of ours, which hypothesis knows."""


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    redaction._known.clear()
    yield
    redaction._known.clear()


def every_percent(secret: str) -> str:
    return "".join(f"%{byte:02X}" for byte in secret.encode())


FORMS: list[Callable[[str], str]] = [
    str, str.lower, str.upper, str.swapcase, quote, quote_plus, lambda s: quote(s, safe=""), every_percent,
    lambda s: s.encode().hex(), lambda s: s.encode().hex().upper(), lambda s: json.dumps(s)[1:-1], html.escape,
    lambda s: base64.b64encode(s.encode()).decode(), lambda s: base64.urlsafe_b64encode(s.encode()).decode(),
    lambda s: s.replace("/", "\\/"), lambda s: "".join(f"\\u{ord(c):04x}" for c in s),
]  # fmt: skip


@given(SECRETS, st.sampled_from(FORMS), st.text(max_size=20), st.text(max_size=20))
def test_a_known_secret_is_found_in_every_form(
    secret: str, form: Callable[[str], str], before: str, after: str
) -> None:
    learn(secret)
    shown = redact(before + form(secret) + after)
    assert REDACTED in shown
    rest = shown.lower()
    assert secret.lower() not in rest
    core = form(secret).rstrip("=").lower()
    # Base64's last characters also hold bits of what comes next.
    assert (core[:-1] if "b64" in repr(form) else core) not in rest


@given(SECRETS, st.binary(max_size=20), st.binary(max_size=20))
def test_base64_hides_it_wherever_it_begins(secret: str, before: bytes, after: bytes) -> None:
    learn(secret)
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        whole = encode(before + secret.encode() + after).decode()
        left = redact(whole).replace(REDACTED, "", 1)
        # At most one character at each end, which also holds bits of its neighbour.
        assert len(whole) - len(left) >= len(secret) * 8 // 6 - 1
        assert REDACTED not in left


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("Incorrect API key provided: sk-proj-abcdefghijkl1234.", "abcdefghijkl1234"),
        ("Incorrect API key provided: sk-abc12***********wxyz.", "wxyz"),
        ("the token gob-attempt-Zm9vYmFyYmF6.3.job-7 is not known", "Zm9vYmFyYmF6"),
        ("key gob-abcdefghijkl", "abcdefghijkl"),
        ("gsk_abcdefghijklmnop1234", "abcdefghijklmnop1234"),
        ("Authorization: Bearer abcdefghijklmnop.qrst", "abcdefghijklmnop"),
        ("authorization=Bearer%20abcdefghijklmnopqrst", "abcdefghijklmnopqrst"),
        ("{'x-api-key': 'abcdefgh12345678'}", "abcdefgh12345678"),
        ('{"api_key":"abcdefgh12345678"}', "abcdefgh12345678"),
        ("GET https://x/y?X-Goog-Credential=me%2F1&X-Goog-Signature=0123abcd&a=1", "0123abcd"),
        ("GET https://x/y?X-Goog-Credential=me%2F1&X-Goog-Signature=0123abcd&a=1", "me%2F1"),
        ("https%3A%2F%2Fx%3Fx-goog-signature%3D0123abcd", "0123abcd"),
        ("https://x/y?token=short", "short"),
        ("http://user:pass@127.0.0.1:8080/x", "pass"),
        ("http://user@127.0.0.1:8080/x", "user"),
        ("token eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl", "c2lnbmF0dXJl"),
    ],
)
def test_what_looks_like_a_credential_is_one(text: str, hidden: str) -> None:
    assert hidden in text
    assert hidden not in redact(text)
    assert REDACTED in redact(text)
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The model `sk-tiny` does not exist.",
        "Endpoint own stopped sending data.",
        "Missing required parameter: 'messages[0].role'.",
        "Send the key as `Authorization: Bearer KEY`.",
        "gs://bucket/models/org/m/v1/model.gguf, https://example.com/a?b=c&page=2",
        "Basic authentication is not supported.",
        "job task-force-1 at 12:30",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    learn("")
    learn("x" * (LENGTH_MIN - 1))
    learn("a-real-secret-of-ours")
    assert redact(text) == text


def test_renewed_tokens_do_not_pile_up() -> None:
    learn("the-key-of-the-account")
    for number in range(KNOWN_MAX - 1):
        learn(f"token-of-hour-{number:08}")
    learn("the-key-of-the-account")  # Sent again, so it is not the oldest.
    learn("one-token-more-than-fits")
    assert redact("the-key-of-the-account token-of-hour-00000000") == f"{REDACTED} token-of-hour-00000000"
    assert len(redaction._known) == KNOWN_MAX


@given(SECRETS)
def test_no_error_of_ours_says_a_secret(secret: str) -> None:
    learn(secret)
    errors: list[GoblinError] = [
        InvalidRequest(f"no: {secret}!", param=f"a.{secret}", code=f"c_{secret}"),
        ProviderUnavailable(f"{secret} is down."),
        BudgetExhausted(f"{secret}", code=secret),
    ]
    for error in errors:
        said = json.dumps(error.body()) + str(error) + repr(error) + error.message + str(error.code)
        assert secret not in said
        assert json.dumps(secret)[1:-1] not in said
