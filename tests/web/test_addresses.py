"""Paths as clients' base URLs make them, and the route that each means."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.web.addresses import Address, Addresses, with_model

PATHS = [
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens",
    "/v1/models", "/v1/models/{model_id:path}", "/api/chat", "/api/embeddings", "/requests/{request_id}", "/health",
]  # fmt: skip
KNOWN = Addresses(PATHS)


@pytest.mark.parametrize(
    "before", ["", "/v1", "/v1/v1", "/openai/v1", "/openai", "/api/v1", "/v1/openai", "//v1", "/v1/"]
)
@pytest.mark.parametrize(
    "operation", ["chat/completions", "completions", "messages", "messages/count_tokens", "models"]
)
@pytest.mark.parametrize("after", ["", "/", "//"])
def test_a_base_url_with_v1_without_it_or_with_it_twice(before: str, operation: str, after: str) -> None:
    assert KNOWN.find(f"{before}/{operation}{after}") == Address(f"/v1/{operation}")


@pytest.mark.parametrize(
    ("path", "means"),
    [
        ("/v1/models/org/big:q4", "/v1/models/org/big:q4"),
        ("/models/v1/openai", "/v1/models/v1/openai"),
        ("/v1/models/tiny/", "/v1/models/tiny"),
        ("/anthropic/v1/messages", "/v1/messages"),
        ("/api/chat", "/api/chat"),
        ("/api/chat/", "/api/chat"),
        ("/v1/api/chat", "/api/chat"),
        ("/ollama/api/chat", "/api/chat"),
        ("/api/chat/completions", "/v1/chat/completions"),
        ("/api/embeddings", "/api/embeddings"),
        ("/embeddings", "/v1/embeddings"),
        ("/v1/health", "/health"),
        ("/health/", "/health"),
        ("/requests/abc", "/requests/abc"),
        ("/v1/requests/abc", "/requests/abc"),
    ],
)
def test_other_prefixes(path: str, means: str) -> None:
    assert KNOWN.find(path) == Address(means)


@pytest.mark.parametrize(
    ("path", "means"),
    [
        ("/openai/deployments/tiny/chat/completions", Address("/v1/chat/completions", "tiny")),
        ("/openai/deployments/tiny/completions/", Address("/v1/completions", "tiny")),
        ("/openai/deployments/org/big:q4/embeddings", Address("/v1/embeddings", "org/big:q4")),
        ("/openai/deployments/chat/completions", Address("/v1/completions", "chat")),
        ("/deployments/chat/chat/completions", Address("/v1/chat/completions", "chat")),
        ("/v1/engines/tiny/completions", Address("/v1/completions", "tiny")),
    ],
)
def test_azures_paths_name_the_model(path: str, means: Address) -> None:
    assert KNOWN.find(path) == means


@pytest.mark.parametrize(
    "path",
    [
        "/", "", "/v1", "/v1/", "/openai/v1", "/v2/chat/completions", "/x/chat/completions", "/chat", "/v1/chat",
        "/v1/images/edits", "/openai/deployments/tiny", "/openai/deployments/chat/completions/x", "/deployments",
        "/requests", "/requests/a/b", "/v1/chat/completions/chat/completions", "/chat/api/completions",
    ],
)  # fmt: skip
def test_an_unknown_path_stays_as_it_is(path: str) -> None:
    assert KNOWN.find(path) == Address(path)


@given(st.text(alphabet=st.sampled_from("/v1aopendmlsct{}.*%\x00 ü"), max_size=60))
def test_whatever_is_found_is_a_route_or_the_path_itself(path: str) -> None:
    found, model = KNOWN.find(path)
    assert found == path or found in PATHS or found.startswith(("/v1/models/", "/requests/"))
    assert model is None or found in PATHS
    assert KNOWN.find(found)[0] == found


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (b'{"messages":[]}', {"messages": [], "model": "tiny"}),
        (b'{"model":"gpt-4o","n":1}', {"model": "tiny", "n": 1}),
    ],
)
def test_the_model_in_the_path_is_the_one_that_is_asked(body: bytes, after: Any) -> None:
    assert json.loads(with_model(body, "tiny")) == after


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_left_to_the_parser(body: bytes) -> None:
    assert with_model(body, "tiny") == body


def test_near_routes() -> None:
    assert KNOWN.near("/v1/chat/completion")[0] == "/v1/chat/completions"
    assert KNOWN.near("/v2/chat/completions")[0] == "/v1/chat/completions"
    assert KNOWN.near("/v1/audio/speech") == []
    assert KNOWN.near("/v1/" + "x" * 100_000) == []
