"""HTTP: OpenAI-compatible inference at `/v1`, and what operators read: `/health`, `/providers`, `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import asdict

import functions_framework.aio
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from goblin import __version__, wiring
from goblin.adapters import asgi, openai_face, prometheus
from goblin.domain import requests
from goblin.services import chat

Work = Callable[[chat.Call, bytes, str | None], Awaitable[asgi.Answer]]


async def chat_completions(call: chat.Call, body: bytes, strategy: str | None) -> asgi.Answer:
    asked = requests.parse(requests.ChatRequest, body)
    chunks = await call.chat(asked, strategy=strategy)
    if asked.stream:
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        return _events(openai_face.chat_events(chunks, include_usage=usage))
    return asgi.Answer(content=await openai_face.whole_chat(chunks))


async def completions(call: chat.Call, body: bytes, strategy: str | None) -> asgi.Answer:
    asked = requests.parse(requests.CompletionRequest, body)
    chunks = await call.complete(asked, strategy=strategy)
    if asked.stream:
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        return _events(openai_face.completion_events(chunks, include_usage=usage))
    return asgi.Answer(content=await openai_face.whole_completion(chunks))


async def embeddings(call: chat.Call, body: bytes, strategy: str | None) -> asgi.Answer:
    asked = requests.parse(requests.EmbeddingsRequest, body)
    vectors = await call.embed(asked, strategy=strategy)
    as_base64 = asked.encoding_format == "base64"
    return asgi.Answer(content=openai_face.embedding_list(vectors, model=asked.model, as_base64=as_base64))


def _inference(operation: str, work: Work) -> Callable[[Request], Awaitable[Response]]:
    """A route that is authenticated, metered and settled, and stops when the caller hangs up."""

    async def route(request: Request) -> Response:
        call = chat.Call(wiring.gateway(), operation)
        heard = asyncio.Event()

        async def produce() -> asgi.Answer:
            try:
                await call.authenticate(request.headers.get("authorization"))
                body = await asgi.read_body(request)
                heard.set()
                answer = await work(call, body, request.headers.get("x-goblin-strategy"))
            except Exception as error:  # noqa: BLE001  Errors carry the explanation too.
                call.failed(error)
                answer = asgi.error_answer(error)
            return asgi.with_headers(answer, _explanation(call))

        return asgi.Delivery(produce, call.settle, heard=heard)

    return route


def _explanation(call: chat.Call) -> dict[str, str]:
    """Why this answer: who gave it, after how many attempts, and where the time went."""
    phases = ", ".join(f"{phase};dur={spent_ms:.1f}" for phase, spent_ms in call.timings_ms.items())
    headers = {
        "x-goblin-request-id": call.request_id,
        "x-goblin-attempts": str(len(call.attempts)),
        "server-timing": phases,
    }
    if call.provider is not None:
        headers["x-goblin-provider"] = call.provider
    return headers


def _events(parts: AsyncGenerator[bytes, None]) -> asgi.Answer:
    # Proxies that buffer would turn a stream into one late answer.
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return asgi.Answer(content=parts, media_type="text/event-stream; charset=utf-8", headers=headers)


@asgi.answers_errors
async def list_models(request: Request) -> Response:
    deps = await _authenticated(request)
    found = [openai_face.model_object(m.id, ", ".join(m.endpoints)) for m in await deps.router.models()]
    return asgi.json_response({"object": "list", "data": found})


@asgi.answers_errors
async def show_model(request: Request) -> Response:
    deps = await _authenticated(request)
    found = await deps.router.model(request.path_params["model_id"])
    return asgi.json_response(openai_face.model_object(found.id, ", ".join(found.endpoints)))


@asgi.answers_errors
async def show_receipt(request: Request) -> Response:
    deps = wiring.gateway()
    key = await deps.keys.authenticate(request.headers.get("authorization"))
    receipt = await chat.find_receipt(deps, key, request.path_params["request_id"])
    fields = msgspec.to_builtins(receipt)
    fields.pop("key_digest")
    return asgi.json_response(fields)


async def show_health(request: Request) -> Response:
    return asgi.json_response({"status": "ok", "version": __version__})


@asgi.answers_errors
async def show_providers(request: Request) -> Response:
    router = (await _authenticated(request)).router
    believed = await router.health.fresh()
    await router.freezes.refresh()
    frozen = {endpoint.name: router.freezes.why_frozen(endpoint) for endpoint in router.catalog.endpoints}
    return asgi.json_response({name: {**asdict(health), "frozen": frozen[name]} for name, health in believed.items()})


@asgi.answers_errors
async def show_metrics(request: Request) -> Response:
    await _authenticated(request)
    return Response(wiring.meter().text(), media_type=prometheus.MEDIA_TYPE)


async def _authenticated(request: Request) -> chat.Deps:
    deps = wiring.gateway()
    await deps.keys.authenticate(request.headers.get("authorization"))
    return deps


_router = Starlette(
    routes=[
        Route("/v1/chat/completions", _inference("chat", chat_completions), methods=["POST"]),
        Route("/v1/completions", _inference("completions", completions), methods=["POST"]),
        Route("/v1/embeddings", _inference("embeddings", embeddings), methods=["POST"]),
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
    return asgi.Delegated(_router)
