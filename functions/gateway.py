"""HTTP: inference at `/v1` in OpenAI's and Anthropic's shapes; `/requests`, `/health`, `/providers`, `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import asdict, replace
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import functions_framework.aio
import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from goblin import __version__
from goblin.core.errors import Refused
from goblin.core.money import plain_usd
from goblin.gateway import inference, receipts
from goblin.gateway.domain import requests
from goblin.gateway.keys import check_model
from goblin.gateway.ports import ApiKey, HttpReply, Scope
from goblin.web import (
    anthropic_requests,
    anthropic_responses,
    asgi,
    codex_models,
    doors,
    logs,
    metrics,
    openai_responses,
    responses_events,
    responses_requests,
)
from goblin.web.recent_items import RecentItems
from goblin.wiring import gateway as gateway_wiring

Q = TypeVar("Q", requests.ChatRequest, requests.CompletionRequest, requests.EmbeddingsRequest)
R = TypeVar("R")
Visit = doors.Visit[ApiKey]
Refuse = Callable[[Exception], HttpReply]
ANTHROPIC_VERSION = "anthropic-version"
"""Header that Anthropic's clients send with every request, and no other client sends."""
_recent_items = RecentItems()


async def chat_completions(
    call: inference.InferenceCall, asked: requests.ChatRequest, strategy: str | None
) -> HttpReply:
    """Answer `POST /v1/chat/completions` in OpenAI's shape, whole or as server-sent events.

    Callers and status codes: see `_inference`.
    """
    chunks = await call.chat(asked, strategy=strategy)
    if asked.stream:
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        return _events(openai_responses.chat_events(chunks, include_usage=usage))
    return HttpReply(content=await openai_responses.whole_chat(chunks))


async def completions(
    call: inference.InferenceCall, asked: requests.CompletionRequest, strategy: str | None
) -> HttpReply:
    """Answer `POST /v1/completions` in OpenAI's shape, whole or as server-sent events.

    Callers and status codes: see `_inference`.
    """
    chunks = await call.complete(asked, strategy=strategy)
    if asked.stream:
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        return _events(openai_responses.completion_events(chunks, include_usage=usage))
    return HttpReply(content=await openai_responses.whole_completion(chunks))


async def embeddings(
    call: inference.InferenceCall, asked: requests.EmbeddingsRequest, strategy: str | None
) -> HttpReply:
    """Answer `POST /v1/embeddings` in OpenAI's shape.

    Callers and status codes: see `_inference`.
    """
    vectors = await call.embed(asked, strategy=strategy)
    as_base64 = asked.encoding_format == "base64"
    return HttpReply(content=openai_responses.embedding_list(vectors, model=asked.model, as_base64=as_base64))


async def messages(call: inference.InferenceCall, asked: requests.ChatRequest, strategy: str | None) -> HttpReply:
    """Answer `POST /v1/messages` in Anthropic's shape, whole or as server-sent events.

    Callers and status codes: see `_inference`. Errors have Anthropic's shape, with 529 instead of 503.
    """
    chunks = await call.chat(asked, strategy=strategy)
    if asked.stream:
        return _events(anthropic_responses.message_events(chunks, asked, told=call.prompt_tokens_told))
    return HttpReply(content=await anthropic_responses.whole_message(chunks, asked))


async def responses(call: inference.InferenceCall, asked: responses_requests.Asked, strategy: str | None) -> HttpReply:
    """Answer `POST /v1/responses` in OpenAI's shape, whole or as server-sent events. Nothing is stored.

    Callers and status codes: see `_inference`.
    """
    chunks = await call.chat(asked.chat, strategy=strategy)
    now, keep = call.deps.clock.now, partial(_recent_items.keep, call.tenant)
    if asked.stream:
        return _events(responses_events.response_events(chunks, asked, now=now, keep=keep, dropped=call.dropped))
    whole = await responses_events.whole_response(chunks, asked, now=now, keep=keep, dropped=call.dropped)
    return HttpReply(content=whole)


@asgi.answers_errors
async def refuse_websocket(request: Request) -> Response:
    """Answer `GET /v1/responses`, where OpenAI opens a WebSocket.

    Caller: anyone. Answers 426 to a WebSocket, at which clients such as Codex CLI go over to HTTP at once, and else
    405.
    """
    if request.headers.get("upgrade", "").lower() != "websocket":
        raise HTTPException(405, headers={"Allow": "POST"})
    refused = asgi.error_response(WebSocketRefused("Responses come over HTTP only. Send POST /v1/responses."))
    refused.headers.update({"upgrade": "HTTP/1.1", "connection": "Upgrade"})
    return refused


class WebSocketRefused(Refused):
    """A request to speak a protocol that is not spoken here."""

    status = 426
    code = "upgrade_required"


def _parser(kind: type[Q]) -> Callable[[bytes, inference.InferenceCall], Q]:
    return lambda body, _call: requests.parse(kind, body)


def _message_request(body: bytes, call: inference.InferenceCall) -> requests.ChatRequest:
    return anthropic_requests.parse(body, call.headers)


def _response_request(body: bytes, call: inference.InferenceCall) -> responses_requests.Asked:
    return responses_requests.parse(body, partial(_recent_items.find, call.tenant))


def _itself(asked: Any) -> requests.InferenceRequest:
    found: requests.InferenceRequest = asked
    return found


def _inference(
    operation: str,
    parse: Callable[[bytes, inference.InferenceCall], R],
    work: Callable[[inference.InferenceCall, R, str | None], Awaitable[HttpReply]],
    refuse: Refuse = asgi.error_answer,
    *,
    request_of: Callable[[R], requests.InferenceRequest] = _itself,
) -> doors.Handler:
    """Build an inference route: authenticated, metered, settled, and cancelled when the caller hangs up.

    It takes the steps of `web.doors` by itself, because an answer outlives the call that begins it.

    Caller: an API key with scope `inference`, or an attempt token of a batch job, as `Authorization: Bearer` or
    `x-api-key`.

    Answers 200; 400 for an invalid request; 401 without a valid key; 402 when a budget does not cover the request; 403
    for a key without the scope or the model; 404 for an unknown model; 409 for an `Idempotency-Key` in use; 413 for a
    too large body; 429 over a rate limit; 500 for an internal error; 503 when no endpoint or store can answer.
    """

    async def route(request: Request) -> Response:
        call = inference.InferenceCall(
            gateway_wiring.gateway(),
            operation,
            traceparent=request.headers.get("traceparent"),
            headers=request.headers,
        )
        heard = asyncio.Event()

        async def produce() -> HttpReply:
            try:
                await call.authenticate(_authorization(request))
                body = await asgi.read_body(request)
                heard.set()
                await call.admit()
                asked = parse(body, call)
                if (key := request.headers.get("idempotency-key")) is not None:
                    call.check(request_of(asked))
                    return await call.once(request.url.path, key, body, lambda: answer(asked))
            except Exception as error:  # noqa: BLE001  Error answers carry the explanation headers too.
                return refused(error)
            return await answer(asked)

        async def answer(asked: R) -> HttpReply:
            try:
                made = await work(call, asked, request.headers.get("x-goblin-strategy"))
            except Exception as error:  # noqa: BLE001  As above.
                return refused(error)
            return asgi.with_headers(made, _explanation(call))

        def refused(error: Exception) -> HttpReply:
            call.failed(error)
            return asgi.with_headers(refuse(error), _explanation(call))

        return asgi.HttpDelivery(produce, call.leave, heard=heard)

    return doors.declare("an API key with scope `inference`, or an attempt token", route)


def _authorization(request: Request) -> str | None:
    """Return the caller's key as an `Authorization` value; as at Anthropic, `x-api-key` wins over `Authorization`."""
    key = request.headers.get("x-api-key")
    return f"Bearer {key}" if key else request.headers.get("authorization")


def _refused_in_anthropics_words(error: Exception) -> HttpReply:
    status, content = anthropic_responses.refusal(error)
    return replace(asgi.error_answer(error), status=status, content=content)


def _explanation(call: inference.InferenceCall) -> dict[str, str]:
    """Build the headers that explain an answer: provider, attempts, cache, time by phase, cost."""
    phases = ", ".join(f"{phase};dur={spent_ms:.1f}" for phase, spent_ms in call.timings_ms.items())
    headers = {
        "x-goblin-request-id": call.request_id,
        "request-id": call.request_id,  # The name that Anthropic's clients read.
        "x-goblin-attempts": str(len(call.attempts)),
        "x-goblin-cache": call.cache,
        "server-timing": phases,
    }
    if call.provider is not None:
        headers["x-goblin-provider"] = call.provider
    if call.dropped:
        headers["x-goblin-dropped"] = ", ".join(call.dropped)
    if call.whole:  # The cost of a stream is known only at its end; the receipt has it.
        headers["x-goblin-cost-usd"] = plain_usd(call.cost_usd_micros())
    return headers


def _events(parts: AsyncGenerator[bytes, None]) -> HttpReply:
    # A proxy that buffers would turn the stream into one late answer.
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return HttpReply(content=parts, media_type="text/event-stream; charset=utf-8", headers=headers)


async def count_message_tokens(visit: Visit) -> Response:
    """Answer `POST /v1/messages/count_tokens` with an estimate of the request's input tokens.

    Caller: an API key with scope `inference`. Answers 200; 400, 401, 403, 413, 429, 500 as for inference, and 529 when
    Firestore does not answer, all in Anthropic's shape.
    """
    asked = anthropic_requests.parse_to_count(visit.body)
    check_model(visit.caller, asked.model)
    return asgi.json_response({"input_tokens": anthropic_responses.count_tokens(asked)})


async def list_models(visit: Visit) -> Response:
    """Answer `GET /v1/models` with the models that the key may use; in Anthropic's shape for Anthropic's clients.

    With `client_version`, which Codex CLI sends, the list is there in Codex's shape, too.

    Caller: an API key with scope `inference`. Answers 200; 401 without a valid key; 403 for a key without the scope;
    429 over the key's rate, or while too many requests are under way; 503 when Firestore does not answer.
    """
    models = await gateway_wiring.gateway().router.models(visit.caller)
    if ANTHROPIC_VERSION in visit.request.headers:
        return asgi.json_response(anthropic_responses.model_list(models))
    found = [openai_responses.model_object(m.id, ", ".join(m.endpoints)) for m in models]
    listed: dict[str, object] = {"object": "list", "data": found}
    if "client_version" in visit.request.query_params:
        listed["models"] = codex_models.model_list(models)
    return asgi.json_response(listed)


async def show_model(visit: Visit) -> Response:
    """Answer `GET /v1/models/{model_id}` with one model; in Anthropic's shape for Anthropic's clients.

    Caller: an API key with scope `inference`. Answers 200; 401 without a valid key; 403 for a key without the scope or
    the model; 404 for an unknown model; 429 and 503 as `list_models`.
    """
    found = await gateway_wiring.gateway().router.model(visit.request.path_params["model_id"], visit.caller)
    if ANTHROPIC_VERSION in visit.request.headers:
        return asgi.json_response(anthropic_responses.model_object(found))
    return asgi.json_response(openai_responses.model_object(found.id, ", ".join(found.endpoints)))


async def show_receipt(visit: Visit) -> Response:
    """Answer `GET /requests/{request_id}` with the receipt of a request.

    Caller: the API key that sent the request, with scope `inference`. Answers 200; 401 without a valid key; 403 for a
    key without the scope; 404 for an unknown receipt; 429 and 503 as `list_models`.
    """
    store = gateway_wiring.gateway().receipts
    receipt = await receipts.find(store, visit.caller, visit.request.path_params["request_id"])
    fields = msgspec.to_builtins(receipt)
    fields.pop("key_digest")
    return asgi.json_response(fields)


async def show_health(request: Request) -> Response:
    """Answer `GET /health` with the version, and whether the current `goblin.toml` is in use (`ok`) or an older one.

    Caller: anyone. Answers 200.
    """
    fault = gateway_wiring.configuration_fault()
    return asgi.json_response({"status": "ok", "version": __version__, "configuration": "old" if fault else "ok"})


async def show_providers(visit: Visit) -> Response:
    """Answer `GET /providers` with the health of each endpoint and why it is frozen.

    An error in `goblin.toml` is in the header `x-goblin-configuration`.

    Caller: an API key with scope `operate`. Answers 200; 401 without a valid key; 403 for a key without the scope; 429
    as `list_models`; 503 when Firestore does not answer for the key.
    """
    router = gateway_wiring.gateway().router
    believed = await router.health.fresh()
    await router.freezes.refresh()
    frozen = {endpoint.name: router.freezes.why_frozen(endpoint) for endpoint in router.catalog.endpoints}
    told = asgi.json_response({name: {**asdict(health), "frozen": frozen[name]} for name, health in believed.items()})
    if fault := gateway_wiring.configuration_fault():
        told.headers["x-goblin-configuration"] = " ".join(fault.encode("ascii", "replace").decode().split())[:500]
    return told


async def show_metrics(visit: Visit) -> Response:
    """Answer `GET /metrics` with this process's metrics, in Prometheus' text format.

    Caller: an API key with scope `operate`. Answers 200; 401 without a valid key; 403 for a key without the scope; 429
    and 503 as `list_models`.
    """
    return Response(gateway_wiring.meter().text(), media_type=metrics.MEDIA_TYPE)


def _key(*scopes: Scope) -> doors.Door[ApiKey]:
    """Build the door of callers whose API key has one of the scopes."""

    async def identify(request: Request) -> ApiKey:
        return await gateway_wiring.gateway().keys.authenticate(_authorization(request), *scopes)

    return doors.Door(
        callers=f"an API key with scope {' or '.join(f'`{scope}`' for scope in scopes)}",
        identify=identify,
        admission=lambda: gateway_wiring.gateway().admission,
    )


_caller, _operator = _key(Scope.INFERENCE), _key(Scope.OPERATE)
_count = _caller(count_message_tokens, body_bytes_max=asgi.BODY_BYTES_MAX, refuse=_refused_in_anthropics_words)
_chat = _inference("chat", _parser(requests.ChatRequest), chat_completions)
_complete = _inference("completions", _parser(requests.CompletionRequest), completions)
_embed = _inference("embeddings", _parser(requests.EmbeddingsRequest), embeddings)
_message = _inference("chat", _message_request, messages, _refused_in_anthropics_words)
_respond = _inference("chat", _response_request, responses, request_of=attrgetter("chat"))
_router = doors.routed(
    [
        Route("/v1/chat/completions", _chat, methods=["POST"]),
        Route("/v1/completions", _complete, methods=["POST"]),
        Route("/v1/embeddings", _embed, methods=["POST"]),
        Route("/v1/responses", _respond, methods=["POST"]),
        Route("/v1/responses", doors.declare("anyone", refuse_websocket), methods=["GET"]),
        Route("/v1/messages", _message, methods=["POST"]),
        Route("/v1/messages/count_tokens", _count, methods=["POST"]),
        Route("/v1/models", _caller(list_models)),
        Route("/v1/models/{model_id:path}", _caller(show_model)),
        Route("/requests/{request_id}", _caller(show_receipt)),
        Route("/health", doors.declare("anyone", show_health)),
        Route("/providers", _operator(show_providers)),
        Route("/metrics", _operator(show_metrics)),
    ],
)


@functions_framework.aio.http
async def gateway(request: Request) -> Response:
    """Route a request to `/v1/…`, `/requests/…`, `/health`, `/providers` or `/metrics`.

    Caller: as each route says. Answers 404 for an unknown path and 405 for a wrong method, else as the route says.
    """
    logs.follow(request.scope)
    if request.scope["path"] == "/v1/chat/completions" and request.method == "POST":
        return await _chat(request)  # Nearly all requests: skip the router, which would take as long as the route.
    return asgi.Delegated(_router)
