"""One item of a batch: sent to the gateway with retries, its answer written in OpenAI's output format."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from dataclasses import dataclass
from typing import Any

import httpx

from goblin_worker.retries import LOST, may_pass, retry_after_s

TRIES = 10
BACKOFF_S_MAX = 30.0
TIMEOUT = httpx.Timeout(600.0, connect=10.0)
ANSWER_BYTES_MAX = 3 * 1024 * 1024
IN_PROGRESS = 409
"""A request with the same key is under way at the gateway."""


class KeyRefused(Exception):
    """The gateway refuses the attempt's key: no item can run."""


@dataclass(frozen=True)
class Gateway:
    """The gateway that runs the items."""

    http: httpx.AsyncClient
    url: str
    token: str
    model: str | None
    """The model for items that name none."""
    tries: int = TRIES

    async def run(self, line: bytes) -> bytes:
        """Run one line of the dataset and return its line of output. An item's own error goes into its output.

        Raises:
            KeyRefused: The gateway refuses the attempt's key.
            ValueError: The line is no item, which the controller's validation rules out.
        """
        item = json.loads(line)
        custom_id, body = item["custom_id"], dict(item["body"])
        if self.model is not None:
            body.setdefault("model", self.model)
        response, error = await self._ask(item["url"], body)
        result = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
        return json.dumps(result, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"

    async def _ask(self, path: str, body: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
        headers = {"authorization": f"Bearer {self.token}"}
        response: dict[str, Any] | None = None
        error: dict[str, str] | None = None
        for tries in range(1, self.tries + 1):
            wait_s = random.uniform(0.5, 1) * min(BACKOFF_S_MAX, 0.5 * 2**tries)
            try:
                answer = await self.http.post(f"{self.url}{path}", json=body, headers=headers, timeout=TIMEOUT)
            except LOST as failed:
                response, error = None, {"code": "unreachable", "message": f"{type(failed).__name__}: {failed}"}
            else:
                response, error = _response(answer), None
                if answer.status_code == 401:
                    # A gateway that looked the key up before it was written refuses it for a moment: retry.
                    if tries == self.tries:
                        raise KeyRefused(answer.text[:200])
                elif answer.status_code != IN_PROGRESS and not may_pass(answer.status_code):
                    return response, None
                wait_s = retry_after_s(answer, BACKOFF_S_MAX) or wait_s
            if tries < self.tries:
                await asyncio.sleep(wait_s)
        return response, error


def _response(answer: httpx.Response) -> dict[str, Any]:
    """Build OpenAI's `response` object. Its body is an object, whatever the status."""
    request_id = answer.headers.get("x-goblin-request-id") or answer.headers.get("x-request-id") or ""
    status, body = answer.status_code, _body(answer)
    return {"status_code": status, "request_id": request_id, "body": body}


def _body(answer: httpx.Response) -> dict[str, Any]:
    if len(answer.content) > ANSWER_BYTES_MAX:
        return _made_up(f"the answer has {len(answer.content)} bytes; the limit is {ANSWER_BYTES_MAX}")
    try:
        body = answer.json()
    except ValueError:
        return _made_up(answer.text[:500])
    return body if isinstance(body, dict) else _made_up("the answer is no object")


def _made_up(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "api_error", "param": None, "code": None}}
