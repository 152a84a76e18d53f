"""HTTP: inference in the shapes of OpenAI, Anthropic (`/v1`) and Ollama (`/api`); receipts, health, metrics."""

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
from goblin.gateway.domain.chat import Embeddings
from goblin.gateway.keys import check_model
from goblin.gateway.ports import ApiKey, HttpReply, Scope
from goblin.web import (
    addresses,
    anthropic_requests,
    anthropic_responses,
    asgi,
    codex_models,
    cors,
    doors,
    heartbeat,
    logs,
    metrics,
    ollama_requests,
    ollama_responses,
    openai_responses,
    responses_events,
    responses_requests,
)
from goblin.web.recent_items import RecentItems
from goblin.wiring import gateway as gateway_wiring

Q = TypeVar(
    "Q",
    requests.ChatRequest,
    requests.CompletionRequest,
    requests.EmbeddingsRequest,
    requests.RerankRequest,
    requests.ImagesRequest,
)
R = TypeVar("R")
Visit = doors.Visit[ApiKey]
Refuse = Callable[[Exception], HttpReply]
ANTHROPIC_VERSION = "anthropic-version"
"""Header that Anthropic's clients send with every request, and no other client sends."""
MODEL_IN_PATH = "goblin.model"
"""Key in an ASGI scope: the model that the caller's path named, or None."""
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


async def pass_on(call: inference.InferenceCall, asked: requests.PassedRequest, strategy: str | None) -> HttpReply:
    """Answer rerank, images and recordings with what an endpoint that has the route says.

    Callers and status codes: see `_inference`.
    """
    answer = await call.pass_on(asked, strategy=strategy)
    if answer.content is None:
        return HttpReply(content=msgspec.json.encode(answer.body))
    is_json = answer.content.lstrip()[:1] == b"{"  # The caller chose: JSON, text or subtitles.
    return HttpReply(content=answer.content, media_type="application/json" if is_json else "text/plain; charset=utf-8")


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


async def ollama_chat(call: inference.InferenceCall, asked: ollama_requests.Asked, strategy: str | None) -> HttpReply:
    """Answer `POST /api/chat` in Ollama's shape, in lines or whole.

    Callers and status codes: see `_inference`. Errors have Ollama's shape.
    """
    return await _ollama_answer(call, asked, strategy, "chat")


async def ollama_generate(
    call: inference.InferenceCall, asked: ollama_requests.Asked, strategy: str | None
) -> HttpReply:
    """Answer `POST /api/generate` in Ollama's shape, in lines or whole.

    Callers and status codes: see `_inference`. Errors have Ollama's shape.
    """
    return await _ollama_answer(call, asked, strategy, "generate")


async def _ollama_answer(
    call: inference.InferenceCall, asked: ollama_requests.Asked, strategy: str | None, kind: ollama_responses.Kind
) -> HttpReply:
    clock = call.deps.clock
    began_s = clock.monotonic()
    asked = asked.named(await call.deps.router.meant(asked.model))
    writer = ollama_responses.AnswerWriter(asked, kind, now=clock.now, monotonic=clock.monotonic, began_s=began_s)
    request = asked.request
    if asked.loads:
        await call.find_model(request)
        return HttpReply(content=ollama_responses.loaded(writer, asked.loads))
    if isinstance(request, requests.CompletionRequest):
        call.operation = "completions"
        chunks = await call.complete(request, strategy=strategy)
    elif isinstance(request, requests.ChatRequest):
        chunks = await call.chat(request, strategy=strategy)
    else:
        raise AssertionError("no other request of Ollama's is answered with a text")
    if not request.stream:
        return HttpReply(content=await ollama_responses.whole(chunks, writer))
    return HttpReply(
        content=ollama_responses.lines(chunks, writer),
        media_type=ollama_responses.MEDIA_TYPE,
        headers=asgi.UNBUFFERED,
    )


async def ollama_embed(call: inference.InferenceCall, asked: ollama_requests.Asked, strategy: str | None) -> HttpReply:
    """Answer `POST /api/embed` in Ollama's shape.

    Callers and status codes: see `_inference`. Errors have Ollama's shape.
    """
    began_s = call.deps.clock.monotonic()
    vectors = await _ollama_vectors(call, asked, strategy)
    took_s = call.deps.clock.monotonic() - began_s
    return HttpReply(content=ollama_responses.embed_answer(asked, vectors, took_s=took_s))


async def ollama_embeddings(
    call: inference.InferenceCall, asked: ollama_requests.Asked, strategy: str | None
) -> HttpReply:
    """Answer `POST /api/embeddings`, Ollama's older route for one text.

    Callers and status codes: see `_inference`. Errors have Ollama's shape.
    """
    return HttpReply(content=ollama_responses.embeddings_answer(await _ollama_vectors(call, asked, strategy)))


async def _ollama_vectors(
    call: inference.InferenceCall, asked: ollama_requests.Asked, strategy: str | None
) -> Embeddings:
    request = asked.named(await call.deps.router.meant(asked.model)).request
    assert isinstance(request, requests.EmbeddingsRequest)  # noqa: S101  As the parsers of both routes make it.
    return await call.embed(request, strategy=strategy)


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


def _form_parser(path: str) -> Callable[[bytes, inference.InferenceCall], requests.TranscriptionRequest]:
    return lambda body, _call: requests.parse_transcription(body, path)


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
    words: heartbeat.StreamWords | None = heartbeat.OPENAI,
    is_json: bool = True,
    request_of: Callable[[R], requests.InferenceRequest] = _itself,
) -> doors.Handler:
    """Build an inference route: authenticated, metered, settled, and cancelled when the caller hangs up.

    It takes the steps of `web.doors` by itself, because an answer outlives the call that begins it.

    Caller: an API key with scope `inference`, or an attempt token of a batch job, as `Authorization: Bearer`,
    `x-api-key` or `api-key`. With `x-goblin-heartbeat`, status 200 goes out before a slow stream's first token, and an
    error after it is an event.

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
                body = await asgi.read_body(request, is_json=is_json)
                heard.set()
                await call.admit()
                if (model := request.scope.get(MODEL_IN_PATH)) is not None:
                    body = addresses.with_model(body, model)
                asked = parse(body, call)
                if words is not None and _streams(request_of(asked)):
                    beat = heartbeat.chosen(request.headers.get(heartbeat.HEADER), words)
                    delivery.expect_stream(beat, lambda: _explanation(call))
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

        delivery = asgi.HttpDelivery(produce, call.leave, heard=heard)
        return delivery

    return doors.declare("an API key with scope `inference`, or an attempt token", route)


def _streams(asked: requests.InferenceRequest) -> bool:
    return not isinstance(asked, requests.WholeRequest) and bool(asked.stream)


def _authorization(request: Request) -> str | None:
    """Return the caller's key as an `Authorization` value.

    As at Anthropic, `x-api-key` wins over `Authorization`, and so does Azure's `api-key`.
    """
    key = request.headers.get("x-api-key") or request.headers.get("api-key")
    return f"Bearer {key}" if key else request.headers.get("authorization")


def _refused_in_anthropics_words(error: Exception) -> HttpReply:
    status, content = anthropic_responses.refusal(error)
    return replace(asgi.error_answer(error), status=status, content=content)


def _refused_in_ollamas_words(error: Exception) -> HttpReply:
    status, content = ollama_responses.refusal(error)
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
    return HttpReply(content=parts, media_type=asgi.EVENTS, headers=asgi.UNBUFFERED)


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


async def list_ollama_models(visit: Visit) -> Response:
    """Answer `GET /api/tags` with the models that the key may use, in Ollama's shape.

    Callers and status codes: as `list_models`. Errors have Ollama's shape.
    """
    return asgi.json_response(ollama_responses.model_list(await gateway_wiring.gateway().router.models(visit.caller)))


async def list_loaded_models(visit: Visit) -> Response:
    """Answer `GET /api/ps` with the models that an endpoint has in memory, in Ollama's shape.

    Callers and status codes: as `list_models`. Errors have Ollama's shape.
    """
    return asgi.json_response(ollama_responses.loaded_list(await gateway_wiring.gateway().router.models(visit.caller)))


async def show_ollama_model(visit: Visit) -> Response:
    """Answer `POST /api/show` with one model, in Ollama's shape.

    Callers and status codes: as `show_model`, and 400 for an invalid body. Errors have Ollama's shape.
    """
    router = gateway_wiring.gateway().router
    model = await router.meant(ollama_requests.parse_show(visit.body))
    return asgi.json_response(ollama_responses.model_details(await router.model(model, visit.caller)))


async def show_ollama_version(request: Request) -> Response:
    """Answer `GET /api/version` with the version of Ollama whose API this is.

    Caller: anyone. Answers 200.
    """
    return asgi.json_response({"version": ollama_responses.API_VERSION})


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
_show = _caller(show_ollama_model, body_bytes_max=asgi.BODY_BYTES_MAX, refuse=_refused_in_ollamas_words)
_chat = _inference("chat", _parser(requests.ChatRequest), chat_completions)
_complete = _inference("completions", _parser(requests.CompletionRequest), completions)
_embed = _inference("embeddings", _parser(requests.EmbeddingsRequest), embeddings)
_rerank = _inference("rerank", _parser(requests.RerankRequest), pass_on)
_make_images = _inference("images", _parser(requests.ImagesRequest), pass_on)
_transcribe = _inference("transcriptions", _form_parser("audio/transcriptions"), pass_on, is_json=False)
_translate = _inference("transcriptions", _form_parser("audio/translations"), pass_on, is_json=False)
_message = _inference("chat", _message_request, messages, _refused_in_anthropics_words, words=heartbeat.ANTHROPIC)
_respond = _inference("chat", _response_request, responses, words=heartbeat.RESPONSES, request_of=attrgetter("chat"))
_ollama = partial(_inference, refuse=_refused_in_ollamas_words, words=None, request_of=attrgetter("request"))
_ollama_chat = _ollama("chat", lambda body, _call: ollama_requests.parse_chat(body), ollama_chat)
_ollama_generate = _ollama("chat", lambda body, _call: ollama_requests.parse_generate(body), ollama_generate)
_ollama_embed = _ollama("embeddings", lambda body, _call: ollama_requests.parse_embed(body), ollama_embed)
_ollama_embed_one = _ollama("embeddings", lambda body, _call: ollama_requests.parse_embeddings(body), ollama_embeddings)
_router = doors.routed(
    [
        Route("/v1/chat/completions", _chat, methods=["POST"]),
        Route("/v1/completions", _complete, methods=["POST"]),
        Route("/v1/embeddings", _embed, methods=["POST"]),
        Route("/v1/rerank", _rerank, methods=["POST"]),
        Route("/v1/images/generations", _make_images, methods=["POST"]),
        Route("/v1/audio/transcriptions", _transcribe, methods=["POST"]),
        Route("/v1/audio/translations", _translate, methods=["POST"]),
        Route("/v1/responses", _respond, methods=["POST"]),
        Route("/v1/responses", doors.declare("anyone", refuse_websocket), methods=["GET"]),
        Route("/v1/messages", _message, methods=["POST"]),
        Route("/v1/messages/count_tokens", _count, methods=["POST"]),
        Route("/v1/models", _caller(list_models)),
        Route("/v1/models/{model_id:path}", _caller(show_model)),
        Route("/api/chat", _ollama_chat, methods=["POST"]),
        Route("/api/generate", _ollama_generate, methods=["POST"]),
        Route("/api/embed", _ollama_embed, methods=["POST"]),
        Route("/api/embeddings", _ollama_embed_one, methods=["POST"]),
        Route("/api/tags", _caller(list_ollama_models, refuse=_refused_in_ollamas_words)),
        Route("/api/ps", _caller(list_loaded_models, refuse=_refused_in_ollamas_words)),
        Route("/api/show", _show, methods=["POST"]),
        Route("/api/version", doors.declare("anyone", show_ollama_version)),
        Route("/requests/{request_id}", _caller(show_receipt)),
        Route("/health", doors.declare("anyone", show_health)),
        Route("/providers", _operator(show_providers)),
        Route("/metrics", _operator(show_metrics)),
    ],
)


_addresses = addresses.Addresses(route.path for route in _router.routes if isinstance(route, Route))


@functions_framework.aio.http
async def gateway(request: Request) -> Response:
    """Route a request to `/v1/…`, `/api/…`, `/requests/…`, `/health`, `/providers` or `/metrics`.

    Paths as other base URLs make them, such as `/chat/completions`, `/v1/v1/models` and Azure's, lead to the same
    routes. Pages of the origins in `GOBLIN_CORS_ORIGINS` may read the answers.

    Caller: as each route says. Answers 404 for an unknown path and 405 for a wrong method, else as the route says.
    """
    return await cors.served(request, gateway_wiring.origins, _answer)


async def _answer(request: Request) -> Response:
    logs.follow(request.scope)
    scope = request.scope
    if scope["path"] == "/v1/chat/completions" and request.method == "POST":
        return await _chat(request)  # Nearly all requests: skip the router, which would take as long as the route.
    scope["path"], scope[MODEL_IN_PATH] = _addresses.find(scope["path"])
    return asgi.Delegated(_router)
