"""HTTP routes in the shapes of OpenAI and llama-server: read, check, run the model, answer."""

import asyncio
import base64
import hmac
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from httpguard import Guard, Limits, Refusal, check_json, read_body

from . import __version__, schema
from .answers import Answer, ChatAnswer, Frame, TextAnswer, new_id
from .embedder import NotWanted
from .errors import ApiError, queue_full
from .exchange import EventStream, Exchange, Mailbox, error_response, on_disconnect
from .fetch import FetchFailed
from .loaded import LoadedModel
from .places import Places
from .prompts import (
    Prepared,
    check_specials,
    check_tokens,
    embedding_inputs,
    prepare_chat,
    prepare_completion,
    to_generations,
)
from .serving import LoadRefused, Serving
from .source import ModelSource

log = logging.getLogger(__name__)

PUBLIC = {"/health", "/v1/health", "/health/live", "/health/ready"}
"""Paths that need no API key, because probes have none."""
BODY_READ_S = 30.0

Body = TypeVar("Body")
Result = TypeVar("Result")
Asked = TypeVar("Asked", schema.ChatRequest, schema.CompletionRequest)


NOWHERE = Places(addresses=())


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of the HTTP routes."""

    api_keys: tuple[str, ...] = ()
    """Accepted keys. If empty, requests need no key."""
    body_bytes_max: int = 4 * 2**20
    hosts: frozenset[str] | None = None
    """Names by which the server is called, where it listens on this machine only. None: any."""
    shows_slots: bool = False
    allows_load: bool = False
    places: Places = NOWHERE
    """Where `/models/load` may load from."""


class Server:
    """Request handlers over one `Serving`."""

    def __init__(self, serving: Serving, settings: ServerSettings) -> None:
        self.serving = serving
        self.settings = settings
        # Rendering and tokenising run off the event loop. More than two at a time gain nothing.
        self._workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="prepare")
        self._embedders = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed")
        self._embedding = 0
        """Number of embedding requests that run or wait."""

    # Probes and state.

    async def health(self, _request: Request) -> Response:
        """Answer as llama-server: 503 `Loading model` while loading, 200 after."""
        self.serving.current()
        return JSONResponse({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        self.serving.current()
        return JSONResponse({"status": "ok"})

    async def live(self, _request: Request) -> Response:
        if not self.serving.is_alive:
            raise ApiError(
                503, "The engine stopped or is stalled. Restart it.", type="unavailable_error", code="engine_dead"
            )
        return JSONResponse({"status": "ok", "state": self.serving.state})

    async def models(self, _request: Request) -> Response:
        loaded = self.serving.current()
        entries = [
            {
                "id": name,
                "object": "model",
                "created": int(loaded.loaded_at),
                "owned_by": "llamacpp",
                "meta": loaded.describe(),
            }
            for name in self.serving.names
        ]
        return JSONResponse({"object": "list", "data": entries})

    async def model(self, request: Request) -> Response:
        loaded = self.serving.current(request.path_params["model"])
        return JSONResponse(
            {
                "id": request.path_params["model"],
                "object": "model",
                "created": int(loaded.loaded_at),
                "owned_by": "llamacpp",
                "meta": loaded.describe(),
            }
        )

    async def props(self, _request: Request) -> Response:
        loaded = self.serving.current()
        sizes = loaded.engine.settings
        return JSONResponse(
            {
                "default_generation_settings": {"n_ctx": sizes.ctx},
                "total_slots": sizes.slots,
                "model_alias": loaded.alias,
                "model_path": loaded.model.path.name,
                "model_sha256": loaded.sha256,
                "chat_template": loaded.template.source,
                "build_info": f"goblin-llamacpp {__version__}",
            }
        )

    async def slots(self, request: Request) -> Response:
        if not self.settings.shows_slots:
            raise ApiError(
                501,
                "Slots are hidden. Start the server with --slots-endpoint on.",
                type="not_supported_error",
                code=501,
            )
        slots = self.serving.current().engine.describe_slots()
        if request.query_params.get("fail_on_no_slot") and all(slot["is_processing"] for slot in slots):
            raise ApiError(503, "No slot available", type="unavailable_error", code=503, retry_after_s=1)
        return JSONResponse(slots)

    async def metrics(self, _request: Request) -> Response:
        text = self.serving.meters.render(processing=self.serving.processing, deferred=self.serving.deferred)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    # Answers.

    async def chat(self, request: Request) -> Response:
        body = await self._read(request, schema.ChatRequest)
        loaded = self.serving.current(body.model)
        prepared = await self._prepare(prepare_chat, body, loaded)

        def answer(frame: Frame, index: int) -> Answer:
            return ChatAnswer(frame, index, reads_tools=prepared.reads_tools)

        return await self._answer(request, body, loaded, prepared, answer, "chatcmpl-", "chat.completion")

    async def completion(self, request: Request) -> Response:
        body = await self._read(request, schema.CompletionRequest)
        loaded = self.serving.current(body.model)
        prepared = await self._prepare(prepare_completion, body, loaded)

        def answer(frame: Frame, index: int) -> Answer:
            return TextAnswer(frame, index, with_logprobs=body.logprobs is not None)

        return await self._answer(request, body, loaded, prepared, answer, "cmpl-", "text_completion")

    async def _answer(
        self,
        request: Request,
        body: schema.Common,
        loaded: LoadedModel,
        prepared: Prepared,
        answer: Callable[[Frame, int], Answer],
        prefix: str,
        kind: str,
    ) -> Response:
        frame = Frame(body.model or loaded.alias, loaded.model, loaded.fingerprint, new_id(prefix))
        mailbox = Mailbox()
        client = request.client.host if request.client else ""
        generations = to_generations(prepared, body, mailbox.put, client=client)
        answers = [answer(frame, generation.index) for generation in generations]
        exchange = Exchange(loaded.engine, mailbox, generations, frame, answers)
        exchange.submit()
        if not body.stream:
            return await exchange.collect(request.receive, kind)
        chunk_kind = "chat.completion.chunk" if kind == "chat.completion" else kind
        return EventStream(exchange, chunk_kind, wants_usage=body.wants_usage)

    async def embeddings(self, request: Request) -> Response:
        body = await self._read(request, schema.EmbeddingRequest)
        loaded = self.serving.current(body.model)
        inputs = await self._off_loop(embedding_inputs, body, loaded)
        vectors = await self._embed(request, loaded, inputs)
        as_base64 = body.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if as_base64 else row.tolist(),
            }
            for index, row in enumerate(vectors)
        ]
        tokens = sum(map(len, inputs))
        return JSONResponse(
            {
                "object": "list",
                "data": data,
                "model": body.model or loaded.alias,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    async def _embed(self, request: Request, loaded: LoadedModel, inputs: list[list[int]]) -> Any:
        """Embed in a thread of its own, so that a long request does not delay the preparation of others."""
        if self._embedding >= loaded.engine.settings.queue:
            self.serving.meters.refused += 1
            raise queue_full(retry_after_s=1)
        left = threading.Event()
        watch = asyncio.create_task(on_disconnect(request.receive, left.set))
        self._embedding += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._embedders, loaded.embedder.embed, inputs, lambda: not left.is_set())
        except NotWanted:
            raise ClientDisconnect from None
        finally:
            left.set()
            watch.cancel()
            self._embedding -= 1

    async def tokenize(self, request: Request) -> Response:
        body = await self._read(request, schema.TokenizeRequest)
        loaded = self.serving.current()
        model = loaded.model
        check_specials(body.content, loaded)

        def work() -> list[Any]:
            tokens = model.tokenize(body.content, add_special=body.add_special, parse_special=body.parse_special)
            if not body.with_pieces:
                return tokens
            return [
                {"id": token, "piece": model.piece(token, special=True).decode("utf-8", "replace")} for token in tokens
            ]

        return JSONResponse({"tokens": await self._off_loop(work)})

    async def detokenize(self, request: Request) -> Response:
        body = await self._read(request, schema.DetokenizeRequest)
        loaded = self.serving.current()
        tokens = check_tokens(body.tokens, loaded, param="tokens") if body.tokens else []
        return JSONResponse({"content": loaded.model.detokenize(tokens)})

    async def load(self, request: Request) -> Response:
        """Replace the model. Running answers finish on the old one."""
        if not self.settings.allows_load:
            raise ApiError(501, "Loading is disabled. Start the server with --allow-load.", type="not_supported_error")
        if not self.settings.api_keys:
            raise ApiError(403, "Without an API key, no model is loaded.", type="permission_error")
        body = await self._read(request, schema.LoadRequest)
        places = self.settings.places
        where = places.check_path(body.path) if body.path is not None else places.check_url(body.url or "")
        source = ModelSource(where, body.sha256, from_caller=True)
        try:
            loaded = await self.serving.replace(source, body.alias or source.stem)
        except FetchFailed as error:
            # The download failed, not the model: the client may try again.
            raise ApiError(502, str(error), type="unavailable_error", code="fetch_failed") from error
        except LoadRefused as error:
            raise ApiError(400, f"The model was refused: {error}", code="model_refused") from error
        return JSONResponse({"model": loaded.alias, "sha256": loaded.sha256, "meta": loaded.describe()})

    # Helpers.

    async def _read(self, request: Request, type: type[Body]) -> Body:  # noqa: A002
        """Read and check a body, within limits on its size and time."""
        self.serving.current()  # Refuse before reading a body that would be thrown away.
        limits = Limits(body_bytes=self.settings.body_bytes_max, body_s=BODY_READ_S)
        try:
            body = await read_body(request.headers, request.receive, limits)
            check_json(body)
        except Refusal as refusal:
            raise ApiError(refusal.status, refusal.message, code=refusal.code) from None
        return schema.parse(body, type)

    async def _prepare(
        self, work: Callable[[Asked, LoadedModel], Prepared], body: Asked, loaded: LoadedModel
    ) -> Prepared:
        """Prepare a request: a short prompt on the event loop, because switching threads takes longer than the work."""
        if schema.is_light(body):
            return work(body, loaded)
        return await self._off_loop(work, body, loaded)

    async def _off_loop(self, work: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._workers, work, *arguments)

    def app(self, **lifespan: Any) -> Starlette:
        """Build the ASGI application."""
        get, post = ["GET"], ["POST"]
        routes = [
            Route("/health", self.health, methods=get),
            Route("/v1/health", self.health, methods=get),
            Route("/health/live", self.live, methods=get),
            Route("/health/ready", self.ready, methods=get),
            Route("/metrics", self.metrics, methods=get),
            Route("/slots", self.slots, methods=get),
            Route("/props", self.props, methods=get),
            Route("/models", self.models, methods=get),
            Route("/v1/models", self.models, methods=get),
            Route("/v1/models/{model:path}", self.model, methods=get),
            Route("/v1/chat/completions", self.chat, methods=post),
            Route("/chat/completions", self.chat, methods=post),
            Route("/v1/completions", self.completion, methods=post),
            Route("/v1/embeddings", self.embeddings, methods=post),
            Route("/embeddings", self.embeddings, methods=post),
            Route("/tokenize", self.tokenize, methods=post),
            Route("/detokenize", self.detokenize, methods=post),
            Route("/models/load", self.load, methods=post),
        ]
        app = Starlette(
            routes=routes,
            exception_handlers={
                ApiError: _on_api_error,
                HTTPException: _on_http_exception,
                ClientDisconnect: _on_disconnect,
                Exception: _on_bug,
            },
            **lifespan,
        )
        app.add_middleware(KeyCheck, keys=self.settings.api_keys)
        # Before the key is looked at: a page in a browser on the same machine may be where no key is asked for.
        app.add_middleware(Guard, hosts=self.settings.hosts)
        return app


class KeyCheck:
    """Middleware that answers 401 without a valid key in `Authorization: Bearer` or `X-Api-Key`."""

    def __init__(self, app: Callable[..., Awaitable[None]], keys: tuple[str, ...]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and self._keys and scope["path"] not in PUBLIC and not self._knows(scope):
            error = ApiError(401, "Invalid API Key", type="authentication_error", code="invalid_api_key")
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Any) -> bool:
        headers = dict(scope["headers"])
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        # Every key is compared in full, so that the time reveals nothing.
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0


async def _on_api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - registered for this type.
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this type.
    message = f"{request.method} {request.url.path}: {error.detail}"
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    return error_response(ApiError(error.status_code, message, type=kind))


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # The client is gone, so no one reads it.


async def _on_bug(_request: Request, error: Exception) -> Response:
    log.error("A request failed because of a bug.", exc_info=error)
    return error_response(
        ApiError(500, "Internal error. See the server's log.", type="server_error", code="internal_server_error")
    )
