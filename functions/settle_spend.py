"""Scheduled, every hour: compare our ledger with each provider's own bill."""

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
    """Run the schedule `settle-spend` (POST, every hour): settle our ledger against the providers' bills.

    Caller: Cloud Scheduler, with Google's OIDC token of our own service account.

    Answers 200 with a report as JSON; 401 or 403 for a wrong token; 500 for an invalid configuration; 503 when
    Firestore or Google's certificates do not answer.
    """
    await process.verify_caller(request.headers.get("authorization"))
    return asgi.json_response(await settlement.settle(billing_wiring.settlement()))
