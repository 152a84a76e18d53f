"""HTTP `/budgets`: limits, with what is spent, what is reserved and what is frozen."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.billing import budgets as budget_service
from goblin.core.errors import MethodNotAllowed, NotFound
from goblin.gateway.ports import Scope
from goblin.web import asgi
from goblin.wiring import billing as billing_wiring
from goblin.wiring import gateway as gateway_wiring


@functions_framework.aio.http
@asgi.answers_errors
async def budgets(request: Request) -> Response:
    """Answer `GET /budgets` with every limit and its usage, as JSON.

    Caller: an API key with scope `operate`.

    Answers 200; 401 without a valid key; 403 for a key without the scope; 404 for another path; 405 for a method other
    than GET and HEAD; 429 while too many keys are looked up; 503 when Firestore does not answer.
    """
    if request.url.path.rstrip("/").rsplit("/", 1)[-1] not in ("budgets", ""):
        raise NotFound(f"Invalid URL ({request.method} {request.url.path}).")
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed("Budgets can only be read here. Set them with `goblin budget set`.")
    await gateway_wiring.gateway().keys.authenticate(request.headers.get("authorization"), Scope.OPERATE)
    return asgi.json_response(await budget_service.overview(billing_wiring.budgets()))
