"""HTTP: inference at `/v1` in OpenAI's words and in Anthropic's, and what operators read: `/health` and the like."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import asdict, replace

import functions_framework.aio
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from goblin import __version__
from goblin.core.money import plain_usd
from goblin.gateway import inference, receipts
from goblin.gateway.domain import requests
from goblin.gateway.keys import check_model, may_ask
from goblin.gateway.ports import ApiKey, HttpReply, Scope
from goblin.web import anthropic_requests, anthropic_responses, asgi, metrics, openai_responses
from goblin.wiring import gateway as gateway_wiring

Work = Callable[[inference.InferenceCall, bytes, str | None], Awaitable[HttpReply]]
Refuse = Callable[[Exception], HttpReply]
ANTHROPIC_VERSION = "anthropic-version"
"""Sent by Anthropic's clients with every request, and by nobody else."""


async def chat_completions(call: inference.InferenceCall, body: bytes, strategy: str | None) -> HttpReply:
    asked = requests.parse(requests.ChatRequest, body)
    chunks = await call.chat(asked, strategy=strategy)
    if asked.stream:
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        return _events(openai_responses.chat_events(chunks, include_usage=usage))
    return HttpReply(content=await openai_responses.whole_chat(chunks))


async def completions(call: inference.InferenceCall, body: bytes, strategy: str | None) -> HttpReply:
    asked = requests.parse(requests.CompletionRequest, body)
    chunks = await call.complete(asked, strategy=strategy)
    if asked.stream:
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        return _events(openai_responses.completion_events(chunks, include_usage=usage))
    return HttpReply(content=await openai_responses.whole_completion(chunks))


async def embeddings(call: inference.InferenceCall, body: bytes, strategy: str | None) -> HttpReply:
    asked = requests.parse(requests.EmbeddingsRequest, body)
    vectors = await call.embed(asked, strategy=strategy)
    as_base64 = asked.encoding_format == "base64"
    return HttpReply(content=openai_responses.embedding_list(vectors, model=asked.model, as_base64=as_base64))


async def messages(call: inference.InferenceCall, body: bytes, strategy: str | None) -> HttpReply:
    asked = anthropic_requests.parse(body)
    chunks = await call.chat(asked, strategy=strategy)
    if asked.stream:
        return _events(anthropic_responses.message_events(chunks, asked))
    return HttpReply(content=await anthropic_responses.whole_message(chunks, asked))


def _inference(
    operation: str, work: Work, refuse: Refuse = asgi.error_answer
) -> Callable[[Request], Awaitable[Response]]:
    """A route that is authenticated, metered and settled, and stops when the caller hangs up."""

    async def route(request: Request) -> Response:
        call = inference.InferenceCall(
            gateway_wiring.gateway(), operation, traceparent=request.headers.get("traceparent")
        )
        heard = asyncio.Event()

        async def produce() -> HttpReply:
            try:
                await call.authenticate(_authorization(request))
                body = await asgi.read_body(request)
                heard.set()
                if (key := request.headers.get("idempotency-key")) is not None:
                    return await call.once(request.url.path, key, body, lambda: answer(body))
            except Exception as error:  # noqa: BLE001  Errors carry the explanation too.
                return refused(error)
            return await answer(body)

        async def answer(body: bytes) -> HttpReply:
            try:
                made = await work(call, body, request.headers.get("x-goblin-strategy"))
            except Exception as error:  # noqa: BLE001  As above.
                return refused(error)
            return asgi.with_headers(made, _explanation(call))

        def refused(error: Exception) -> HttpReply:
            call.failed(error)
            return asgi.with_headers(refuse(error), _explanation(call))

        return asgi.HttpDelivery(produce, call.leave, heard=heard)

    return route


def _authorization(request: Request) -> str | None:
    """The caller's key, in either of the headers that clients use; as at Anthropic, `x-api-key` wins."""
    key = request.headers.get("x-api-key")
    return f"Bearer {key}" if key else request.headers.get("authorization")


def _refused_in_anthropics_words(error: Exception) -> HttpReply:
    status, content = anthropic_responses.refusal(error)
    return replace(asgi.error_answer(error), status=status, content=content)


def _explanation(call: inference.InferenceCall) -> dict[str, str]:
    """Why this answer: who gave it, after how many attempts, and where the time went."""
    phases = ", ".join(f"{phase};dur={spent_ms:.1f}" for phase, spent_ms in call.timings_ms.items())
    headers = {
        "x-goblin-request-id": call.request_id,
        "request-id": call.request_id,  # Where Anthropic's clients look for it.
        "x-goblin-attempts": str(len(call.attempts)),
        "x-goblin-cache": call.cache,
        "server-timing": phases,
    }
    if call.provider is not None:
        headers["x-goblin-provider"] = call.provider
    if call.whole:  # What a stream costs is known when it is over, and is in the receipt.
        headers["x-goblin-cost-usd"] = plain_usd(call.cost_usd_micros())
    return headers


def _events(parts: AsyncGenerator[bytes, None]) -> HttpReply:
    # Proxies that buffer would turn a stream into one late answer.
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return HttpReply(content=parts, media_type="text/event-stream; charset=utf-8", headers=headers)


async def count_message_tokens(request: Request) -> Response:
    try:
        await _authenticated(request)
        asked = anthropic_requests.parse_to_count(await asgi.read_body(request))
    except Exception as error:  # noqa: BLE001  As in asgi.answers_errors.
        return asgi.respond(_refused_in_anthropics_words(error))
    return asgi.json_response({"input_tokens": anthropic_responses.count_tokens(asked)})


@asgi.answers_errors
async def list_models(request: Request) -> Response:
    deps, key = await _authenticated(request)
    models = [model for model in await deps.router.models() if may_ask(key, model.id)]
    if ANTHROPIC_VERSION in request.headers:
        return asgi.json_response(anthropic_responses.model_list([model.id for model in models]))
    found = [openai_responses.model_object(m.id, ", ".join(m.endpoints)) for m in models]
    return asgi.json_response({"object": "list", "data": found})


@asgi.answers_errors
async def show_model(request: Request) -> Response:
    deps, key = await _authenticated(request)
    check_model(key, request.path_params["model_id"])
    found = await deps.router.model(request.path_params["model_id"])
    if ANTHROPIC_VERSION in request.headers:
        return asgi.json_response(anthropic_responses.model_object(found.id))
    return asgi.json_response(openai_responses.model_object(found.id, ", ".join(found.endpoints)))


@asgi.answers_errors
async def show_receipt(request: Request) -> Response:
    deps, key = await _authenticated(request)
    receipt = await receipts.find(deps.receipts, key, request.path_params["request_id"])
    fields = msgspec.to_builtins(receipt)
    fields.pop("key_digest")
    return asgi.json_response(fields)


async def show_health(request: Request) -> Response:
    fault = gateway_wiring.configuration_fault()
    return asgi.json_response({"status": "ok", "version": __version__, "configuration": "old" if fault else "ok"})


@asgi.answers_errors
async def show_providers(request: Request) -> Response:
    deps, _ = await _authenticated(request, Scope.OPERATE)
    router = deps.router
    believed = await router.health.fresh()
    await router.freezes.refresh()
    frozen = {endpoint.name: router.freezes.why_frozen(endpoint) for endpoint in router.catalog.endpoints}
    told = asgi.json_response({name: {**asdict(health), "frozen": frozen[name]} for name, health in believed.items()})
    if fault := gateway_wiring.configuration_fault():
        told.headers["x-goblin-configuration"] = " ".join(fault.encode("ascii", "replace").decode().split())[:500]
    return told


@asgi.answers_errors
async def show_metrics(request: Request) -> Response:
    await _authenticated(request, Scope.OPERATE)
    return Response(gateway_wiring.meter().text(), media_type=metrics.MEDIA_TYPE)


async def _authenticated(request: Request, scope: Scope = Scope.INFERENCE) -> tuple[inference.InferenceDeps, ApiKey]:
    deps = gateway_wiring.gateway()
    return deps, await deps.keys.authenticate(_authorization(request), scope)


_chat = _inference("chat", chat_completions)
_router = Starlette(
    routes=[
        Route("/v1/chat/completions", _chat, methods=["POST"]),
        Route("/v1/completions", _inference("completions", completions), methods=["POST"]),
        Route("/v1/embeddings", _inference("embeddings", embeddings), methods=["POST"]),
        Route("/v1/messages", _inference("chat", messages, _refused_in_anthropics_words), methods=["POST"]),
        Route("/v1/messages/count_tokens", count_message_tokens, methods=["POST"]),
        Route("/v1/models", list_models),
        Route("/v1/models/{model_id:path}", show_model),
        Route("/requests/{request_id}", show_receipt),
        Route("/health", show_health),
        Route("/providers", show_providers),
        Route("/metrics", show_metrics),
    ],
    exception_handlers={HTTPException: asgi.on_http_error},
)


@functions_framework.aio.http
async def gateway(request: Request) -> Response:
    if request.scope["path"] == "/v1/chat/completions" and request.method == "POST":
        return await _chat(request)  # Nearly all requests; the router's wrappers would cost as much as the route.
    return asgi.Delegated(_router)
