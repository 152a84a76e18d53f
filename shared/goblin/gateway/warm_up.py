"""Warm-ups: start a sleeping endpoint while another endpoint serves the request, so that later requests find it warm.

A warm-up is the smallest possible request, sent and paid for like any other: it starts every provider, and few
providers have another way to be started.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from goblin.core.endpoints import Endpoint
from goblin.core.errors import GoblinError
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, Message
from goblin.gateway.endpoint_stats import EndpointStats
from goblin.gateway.policy.continuation import AnyRequest

log = logging.getLogger(__name__)

WARM_UP_S_MAX = 600.0
"""The longest cold start that a warm-up waits for; no caller waits for it."""
WARM_UPS_MAX = 16


def warm_up_request(like: AnyRequest) -> AnyRequest:
    """Build a request of the same kind that asks for one token."""
    body: dict[str, Any] = {"model": like.model, "max_tokens": 1, "stream": True}
    if isinstance(like, ChatRequest):
        body["messages"] = [{"role": "user", "content": "."}]
        messages = (Message(role="user", content="."),)
        return ChatRequest(model=like.model, max_tokens=1, stream=True, messages=messages, body=body)
    body["prompt"] = "."
    return CompletionRequest(model=like.model, max_tokens=1, stream=True, prompt=".", body=body)


class WarmUps:
    """The warm-ups in flight: at most one per endpoint and model, and at most `WARM_UPS_MAX` in all."""

    def __init__(self, stats: EndpointStats) -> None:
        self._stats = stats
        self._going: dict[tuple[str, str], asyncio.Task[None]] = {}

    def begin(self, endpoint: Endpoint, model: str, ask: Callable[[], Awaitable[None]]) -> None:
        """Start a warm-up in the background, unless one is in flight for this endpoint and model or too many are."""
        key = (endpoint.name, model)
        if key in self._going or len(self._going) >= WARM_UPS_MAX:
            return
        self._stats.wake_begun(endpoint, model)
        self._going[key] = asyncio.create_task(self._wake(endpoint, model, ask))
        self._going[key].add_done_callback(lambda _: self._going.pop(key))

    async def _wake(self, endpoint: Endpoint, model: str, ask: Callable[[], Awaitable[None]]) -> None:
        awake = False
        try:
            await ask()
            awake = True
        except GoblinError as error:
            log.warning("Warm-up of %s failed: %s", endpoint.name, error.message)
        finally:
            self._stats.wake_ended(endpoint, model, awake=awake)
