"""Scheduled, every hour: our ledger against each provider's own bill."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.billing import settlement
from goblin.web import asgi
from goblin.wiring import billing as billing_wiring
from goblin.wiring import process


@functions_framework.aio.http
@asgi.answers_errors
async def settle_spend(request: Request) -> Response:
    await process.verify_caller(request.headers.get("authorization"))
    return asgi.json_response(await settlement.settle(billing_wiring.settlement()))
