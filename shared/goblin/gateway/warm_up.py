"""Starting what sleeps, beside a request that is served elsewhere: the next ones find it awake.

The nudge is the smallest request there is, sent and paid for like any other: every provider starts for one, and
few have another way to be started.
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
"""The longest cold start that is waited for; nobody else waits."""
WARM_UPS_MAX = 16


def warm_up_request(like: AnyRequest) -> AnyRequest:
    """A request of the same kind that asks for one token."""
    body: dict[str, Any] = {"model": like.model, "max_tokens": 1, "stream": True}
    if isinstance(like, ChatRequest):
        body["messages"] = [{"role": "user", "content": "."}]
        messages = (Message(role="user", content="."),)
        return ChatRequest(model=like.model, max_tokens=1, stream=True, messages=messages, body=body)
    body["prompt"] = "."
    return CompletionRequest(model=like.model, max_tokens=1, stream=True, prompt=".", body=body)


class WarmUps:
    """The starts under way: one for each endpoint and model, and not too many."""

    def __init__(self, stats: EndpointStats) -> None:
        self._stats = stats
        self._going: dict[tuple[str, str], asyncio.Task[None]] = {}

    def begin(self, endpoint: Endpoint, model: str, ask: Callable[[], Awaitable[None]]) -> None:
        """Wake an endpoint by asking it something, unless that is being done already. Returns at once."""
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
            log.warning("%s was not woken: %s", endpoint.name, error.message)
        finally:
            self._stats.wake_ended(endpoint, model, awake=awake)
