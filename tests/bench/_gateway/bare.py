"""The yardstick: a function as anybody would write it first, functions-framework and plain httpx, passing through."""

import os

import functions_framework.aio
import httpx
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

client = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None))


@functions_framework.aio.http
async def bare(request: Request) -> Response:
    asked = client.build_request(
        "POST", os.environ["UPSTREAM_URL"] + "/v1/chat/completions", content=await request.body(),
        headers={"content-type": "application/json"},
    )  # fmt: skip
    answer = await client.send(asked, stream=True)
    if answer.headers["content-type"].startswith("text/event-stream"):
        return StreamingResponse(answer.aiter_bytes(), answer.status_code, media_type="text/event-stream")
    return Response(await answer.aread(), answer.status_code, media_type="application/json")
