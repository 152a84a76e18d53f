"""Scheduled, every hour: our ledger against each provider's own bill."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.billing import settlement as settling
from goblin.web import asgi
from goblin.wiring import models as model_wiring
from goblin.wiring import process as wiring


@functions_framework.aio.http
@asgi.answers_errors
async def settle_spend(request: Request) -> Response:
    await wiring.verify_caller(request.headers.get("authorization"))
    return asgi.json_response(await settling.settle(model_wiring.settlement()))
