"""Routes beside chats and vectors: what OpenAI-like servers are sent as it came, and what is read of their answers.

Forms with recordings go out as they came, under the endpoint's name of the model. Source: llama.cpp
`tools/server/README.md`, vLLM's rerank route, Jina's and Cohere's references, and text-embeddings-inference's
`/rerank`, read 2026-12-01.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from goblin.gateway.domain.chat import PassedAnswer, Usage
from goblin.gateway.domain.requests import PassedRequest, RerankRequest, TranscriptionRequest
from goblin.providers.common.http import ANSWER_TIMEOUT_S, Upstream


async def pass_on(upstream: Upstream, request: PassedRequest, *, model: str, before: str = "") -> PassedAnswer:
    """Send a request to the route of the same name.

    Args:
        upstream: The endpoint.
        request: The request.
        model: The endpoint's name of the model.
        before: What the route's path begins with, where the base URL does not end in `/v1`.

    Raises:
        ProviderUnavailable, InvalidRequest: As `Upstream.json`; also when the answer is none.
    """
    if isinstance(request, TranscriptionRequest):
        form = request.form.encoded(without="goblin", model=model), request.form.media_type
        path = f"{before}/{request.path}"
        return PassedAnswer(content=await upstream.exchange("POST", path, form=form, timeout_s=ANSWER_TIMEOUT_S))
    body = {name: value for name, value in request.body.items() if name != "goblin"} | {"model": model}
    answer = await upstream.json("POST", f"{before}/{request.path}", body=body, timeout_s=ANSWER_TIMEOUT_S)
    usage = _usage(answer) if isinstance(answer, dict) else None
    if isinstance(request, RerankRequest):
        results = ranked(answer, request)
        if results is None:
            raise upstream.nonsense()
        said = answer if isinstance(answer, dict) else {}
        beside = {name: value for name, value in said.items() if name not in ("data", "results")}
        return PassedAnswer(body={**beside, "model": request.model, "results": results}, usage=usage)
    if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
        raise upstream.nonsense()
    return PassedAnswer(body=answer, usage=usage)


def ranked(answer: Any, request: RerankRequest) -> list[dict[str, Any]] | None:
    """Read the results, the best first; None if there are none to read.

    They are a list, or in `results` or `data`; a score is a `relevance_score` or a `score`.
    """
    rows = answer.get("results", answer.get("data")) if isinstance(answer, dict) else answer
    if not isinstance(rows, list):
        return None
    found: list[dict[str, Any]] = []
    for row in rows:
        if not isinstance(row, dict):
            return None
        place, score = row.get("index"), row.get("relevance_score", row.get("score"))
        if not _is_number(place) or not _is_number(score) or place != int(place):
            return None
        if not 0 <= place < len(request.documents):
            return None
        result: dict[str, Any] = {"index": int(place), "relevance_score": float(score)}
        if request.return_documents:
            document = request.documents[int(place)]
            result["document"] = {"text": document} if isinstance(document, str) else document
        found.append(result)
    found.sort(key=lambda result: -result["relevance_score"])
    return found[: request.top_n]


def _usage(answer: Mapping[str, Any]) -> Usage | None:
    """Read the tokens: `usage`, or `meta` as Cohere has it. None where none are counted."""
    said = answer.get("usage")
    meta = answer.get("meta")
    if not isinstance(said, dict) and isinstance(meta, dict):
        said = meta.get("tokens")
    if not isinstance(said, dict):
        return None
    for name in ("prompt_tokens", "input_tokens", "total_tokens"):
        if _is_number(count := said.get(name)) and count > 0:
            return Usage(prompt_tokens=int(count), total_tokens=int(count))
    return None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
