"""CORS: which web pages of other origins may call the API from a browser, and read its answers.

None may unless the operator lists its origin. Callers are recognised by a key in a header and never by a cookie, so
credentials are not allowed to any page. Source: fetch.spec.whatwg.org, read 2026-12-01.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from goblin.core.errors import Forbidden, GoblinError
from goblin.web import asgi

METHODS = "GET, POST, DELETE, OPTIONS"
EXPOSED = (
    "idempotent-replayed, request-id, retry-after, server-timing, www-authenticate, x-goblin-attempts, x-goblin-cache, "
    "x-goblin-configuration, x-goblin-cost-usd, x-goblin-dropped, x-goblin-provider, x-goblin-request-id"
)
"""Headers of answers that a page may read beside the ordinary ones."""
PREFLIGHT_S = 600
"""How long a browser may remember a preflight; Chromium's own limit is two hours."""
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(\s*,\s*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_HEADER_NAMES_CHARACTERS_MAX = 4096


async def served(
    request: Request, origins: Callable[[], Collection[str]], answer: Callable[[Request], Awaitable[Response]]
) -> Response:
    """Answer a request, so that pages of listed origins may read the answer.

    Args:
        request: The request.
        origins: Returns the origins whose pages may call, as browsers send them. Its errors are answered.
        answer: Answers what is no preflight.
    """
    try:
        listed = origins()
    except GoblinError as error:
        return asgi.error_response(error)
    if not listed:
        return await answer(request)
    return preflight(request, listed) or Readable(await answer(request), listed)


def preflight(request: Request, origins: Collection[str]) -> Response | None:
    """Answer a browser's preflight; None for any other request.

    Args:
        request: The request. Its route does not matter: whether there is one is said by the request that follows.
        origins: Origins whose pages may call.
    """
    asked = request.headers
    if request.method != "OPTIONS" or "origin" not in asked or "access-control-request-method" not in asked:
        return None
    if asked["origin"] not in origins:
        response = asgi.error_response(
            Forbidden(
                "Web pages of this origin may not call the API. The operator lists those that may in "
                "GOBLIN_CORS_ORIGINS.",
                code="origin_not_allowed",
            )
        )
        return Readable(response, origins)
    response = Response(status_code=204)
    response.headers["access-control-allow-methods"] = METHODS
    wanted = asked.get("access-control-request-headers", "")
    if len(wanted) <= _HEADER_NAMES_CHARACTERS_MAX and _HEADER_NAMES.fullmatch(wanted.strip()):
        # SDKs send headers of their own, and `*` does not cover `authorization`.
        response.headers["access-control-allow-headers"] = wanted.strip()
    response.headers["access-control-max-age"] = str(PREFLIGHT_S)
    if asked.get("access-control-request-private-network") == "true":
        response.headers["access-control-allow-private-network"] = "true"
    response.headers["vary"] = "Access-Control-Request-Headers"
    return Readable(response, origins)


class Readable(Response):
    """A response, whole or streamed, good or an error, that a page of a listed origin may read."""

    def __init__(self, response: Response, origins: Collection[str]) -> None:
        self._response = response
        self._origins = origins
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.add_vary_header("Origin")
                if len(sent) == 1 and sent[0] in self._origins:
                    headers["access-control-allow-origin"] = sent[0]
                    headers["access-control-expose-headers"] = EXPOSED
            await send(message)

        await self._response(scope, receive, sending)
