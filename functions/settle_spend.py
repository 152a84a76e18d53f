"""Scheduled, every hour: our ledger against each provider's own bill."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin import model_wiring, wiring
from goblin.adapters import asgi
from goblin.services import settling


@functions_framework.aio.http
@asgi.answers_errors
async def settle_spend(request: Request) -> Response:
    await wiring.verify_caller(request.headers.get("authorization"))
    return asgi.json_response(await settling.settle(model_wiring.settlement()))
