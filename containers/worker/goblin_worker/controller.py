"""The controller, as an attempt sees it. It may be away for a while; it is asked again."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import httpx

TRIES_S_MAX = 120.0
"""How long to ask again before giving up; the lease has run out by then."""
BACKOFF_S_MAX = 5.0
TIMEOUT_S = 150.0
"""A commit reads the whole part again, a finish puts the output together."""
OVER = frozenset({401, 403, 404, 409, 410})
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class Over(Exception):
    """This attempt is not the current one any more: whatever it does is in vain."""


class Unreachable(Exception):
    """The controller did not answer for too long."""


class Rejected(Exception):
    """The controller does not take what was sent; sending it again changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Grant:
    """One request that needs no key."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done; see the controller's `Assignment`."""

    job_id: str
    attempt: int
    kind: str
    step: int
    total: int
    checkpoint_every: int
    heartbeat_s: float
    dataset: Grant
    dataset_offset: int
    model: str | None
    parameters: dict[str, Any]


class Controller:
    """Speaks for one attempt."""

    def __init__(self, http: httpx.AsyncClient, *, url: str, token: str, tries_s_max: float = TRIES_S_MAX) -> None:
        self._http = http
        # The token says which job it is for: `PREFIX-SECRET.ATTEMPT.JOB`.
        self.job_id = token.split(".", 2)[-1]
        self._base = f"{url.rstrip('/')}/jobs/{self.job_id}"
        self._headers = {"authorization": f"Bearer {token}"}
        self.tries_s_max = tries_s_max

    async def claim(self) -> Work:
        said = await self.ask("claim", {})
        return Work(**{**said, "dataset": _grant(said["dataset"])})

    async def dataset(self) -> Grant:
        """The dataset's grant again: grants expire."""
        return _grant(await self.ask("inputs", {}))

    async def heartbeat(self, step: int) -> None:
        await self.ask("heartbeat", {"step": step})

    async def begin_checkpoint(self, step: int, files: list[dict[str, Any]]) -> tuple[str, dict[str, Grant]]:
        said = await self.ask("checkpoints", {"step": step, "files": files})
        return said["upload_id"], {name: _grant(grant) for name, grant in said["grants"].items()}

    async def commit_checkpoint(
        self, step: int, previous_step: int, upload_id: str, files: list[dict[str, Any]]
    ) -> None:
        body = {"previous_step": previous_step, "upload_id": upload_id, "files": files}
        await self.ask(f"checkpoints/{step}/commit", body)

    async def finish(self) -> None:
        await self.ask("finish", {})

    async def withdraw(self, reason: str, *, step: int = 0) -> None:
        """Give the job back; `step` is what was committed last."""
        await self.ask("withdraw", {"reason": reason, "step": step})

    async def fail(self, reason: str) -> None:
        await self.ask("fail", {"reason": reason})

    async def ask(self, path: str, body: dict[str, Any]) -> Any:
        """Post, again and again while the controller is away.

        Raises:
            Over: Stop.
            Rejected: It was understood and not taken.
            Unreachable: It stayed away.
        """
        clock = asyncio.get_running_loop().time
        until, tries = clock() + self.tries_s_max, 0
        while True:
            tries += 1
            why = ""
            try:
                answer = await self._http.post(
                    f"{self._base}/{path}", json=body, headers=self._headers, timeout=TIMEOUT_S
                )
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {error}"
            else:
                if answer.is_success:
                    return answer.json()
                why = f"{answer.status_code}: {answer.text[:300]}"
                if answer.status_code in OVER:
                    raise Over(why)
                if answer.status_code not in RETRIED:
                    raise Rejected(why)
            if clock() >= until:
                raise Unreachable(why)
            await asyncio.sleep(random.uniform(0.5, 1) * min(BACKOFF_S_MAX, 0.2 * 2**tries))


def _grant(said: dict[str, Any]) -> Grant:
    return Grant(url=said["url"], headers=said["headers"])
