"""Routes that are passed on: what an endpoint is sent, and every shape in which servers answer."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.endpoints import Endpoint
from goblin.core.errors import ProviderUnavailable
from goblin.gateway.domain import requests
from goblin.gateway.domain.chat import PassedAnswer
from goblin.providers.common.passing import ranked
from goblin.providers.llamacpp import inference as llamacpp
from goblin.providers.openai import inference as openai

DOCUMENTS: list[Any] = ["one", {"text": "two"}, "three"]
ROWS = [{"index": 2, "relevance_score": 0.1}, {"index": 0, "relevance_score": -3}, {"index": 1, "relevance_score": 0.9}]
BEST_FIRST = [1, 2, 0]


def rerank(**more: Any) -> requests.RerankRequest:
    body = {"model": "m", "query": "q", "documents": DOCUMENTS, **more}
    return requests.parse(requests.RerankRequest, json.dumps(body).encode())


async def asked(answer: Any, request: Any, module: Any = openai) -> tuple[PassedAnswer, httpx.Request]:
    heard = []

    def serve(sent: httpx.Request) -> httpx.Response:
        heard.append(sent)
        return httpx.Response(200, json=answer)

    root = "http://e/v1" if module is openai else "http://e"
    async with httpx.AsyncClient(transport=httpx.MockTransport(serve)) as client:
        provider: Any = module.connect(Endpoint(name="e", provider="p", url=root), client)
        return await provider.pass_on(request, model="up"), heard[0]


@pytest.mark.parametrize("module", [openai, llamacpp])
async def test_the_request_goes_out_as_it_came(module: Any) -> None:
    request = rerank(top_n=2, goblin={"strategy": "failover"}, truncate=True)
    _, sent = await asked({"results": ROWS}, request, module)
    assert sent.url == "http://e/v1/rerank"
    assert json.loads(sent.content) == {
        "model": "up", "query": "q", "documents": DOCUMENTS, "top_n": 2, "truncate": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [
        {"results": ROWS, "model": "up"},
        {"data": ROWS},
        {"results": [{"index": row["index"], "score": row["relevance_score"], "text": "x"} for row in ROWS]},
        [{"index": row["index"], "score": row["relevance_score"]} for row in ROWS],
        {"results": [{**row, "index": float(row["index"])} for row in ROWS]},
    ],
)
async def test_every_shape_becomes_one_with_the_best_first(answer: Any) -> None:
    found, _ = await asked(answer, rerank())
    assert [row["index"] for row in found.body["results"]] == BEST_FIRST
    assert [row["relevance_score"] for row in found.body["results"]] == [0.9, 0.1, -3.0]
    assert found.body["model"] == "m"
    assert "data" not in found.body


async def test_no_more_than_was_asked_for_and_with_documents_if_wanted() -> None:
    found, _ = await asked({"results": ROWS}, rerank(top_n=2, return_documents=True))
    assert [row["document"] for row in found.body["results"]] == [{"text": "two"}, {"text": "three"}]


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        ({"usage": {"prompt_tokens": 7, "total_tokens": 9}}, 7),
        ({"usage": {"total_tokens": 9}}, 9),
        ({"meta": {"tokens": {"input_tokens": 5}}}, 5),
        ({"usage": {"total_tokens": 0}}, None),
        ({"usage": {"total_tokens": "x"}}, None),
        ({"usage": None, "meta": []}, None),
        ({}, None),
    ],
)
async def test_tokens_are_counted_where_the_server_counts_them(answer: Any, counted: int | None) -> None:
    found, _ = await asked({"results": ROWS, **answer}, rerank())
    assert (None if found.usage is None else found.usage.prompt_tokens) == counted


@pytest.mark.parametrize(
    "answer",
    [
        {}, [], 7, None, {"results": None}, {"results": [7]}, {"results": [{}]}, {"results": [{"index": 0}]},
        {"results": [{"index": 3, "score": 1}]}, {"results": [{"index": -1, "score": 1}]},
        {"results": [{"index": 0.5, "score": 1}]}, {"results": [{"index": True, "score": 1}]},
        {"results": [{"index": 0, "score": "1"}]},
    ],
)  # fmt: skip
async def test_an_answer_without_scores_is_none(answer: Any) -> None:
    if answer == []:
        assert (await asked(answer, rerank()))[0].body["results"] == []
        return
    with pytest.raises(ProviderUnavailable):
        await asked(answer, rerank())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["results", "data", "index", "score", "relevance_score"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(JSON)
def test_whatever_comes_is_read_or_refused(answer: Any) -> None:
    for row in ranked(answer, rerank()) or ():
        assert 0 <= row["index"] < len(DOCUMENTS)


async def test_images_pass_as_they_come() -> None:
    request = requests.parse(requests.ImagesRequest, b'{"model":"m","prompt":"A goblin","size":"64x64"}')
    answer = {"created": 1, "data": [{"b64_json": "AA=="}]}
    found, sent = await asked(answer, request)
    assert (found.body, sent.url.path) == (answer, "/v1/images/generations")
    assert json.loads(sent.content) == {"model": "up", "prompt": "A goblin", "size": "64x64"}
    with pytest.raises(ProviderUnavailable):
        await asked({"data": None}, request)
