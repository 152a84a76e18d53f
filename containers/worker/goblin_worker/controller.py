"""A client of the controller for one attempt. It retries while the controller does not answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import httpx

from goblin_worker.retries import LOST, may_pass, retry_after_s, said

TRIES_S_MAX = 120.0
"""How long to retry before giving up. The attempt lease has expired by then."""
BACKOFF_S_MAX = 5.0
TIMEOUT_S = 150.0
"""Timeout of one request: a commit reads the whole part again, a finish composes the output."""
OVER = frozenset({401, 403, 404, 409, 410})
UNTRUE = "untrue"
"""The error code of an invalid report: this machine sent something that is not true."""


class Over(Exception):
    """The attempt is not the current one any more: stop working."""


class Unreachable(Exception):
    """The controller did not answer within `tries_s_max`."""


class Rejected(Exception):
    """The controller refuses the request; a retry changes nothing."""


class Disbelieved(Rejected):
    """The report is invalid: this machine lost or mixed up data. Another machine may succeed."""


@dataclass(frozen=True, kw_only=True)
class Grant:
    """A signed request: it needs no key, and expires."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of the bucket: the signed request that reads it, with its size and checksums."""

    name: str
    size: int
    crc32c: str
    sha256: str | None
    grant: Grant


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The files that a training starts from."""

    files: Sequence[File] = ()
    """The dataset."""
    checkpoint: Sequence[File] = ()
    """The checkpoint to resume from; empty: start at step 0."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The controller's assignment to an attempt; see `Assignment` in the controller."""

    job_id: str
    attempt: int
    kind: str
    step: int
    total: int | None
    checkpoint_every: int
    heartbeat_s: float
    dataset: Grant | None
    dataset_offset: int
    model: str | None
    parameters: dict[str, Any]
    task: str | None = None
    inputs: Inputs = field(default_factory=Inputs)
    checkpoint_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A heartbeat reply."""

    stop: str | None = None
    """Why the attempt must save and give the job back; None: go on."""
    checkpoint_s: float | None = None


class Controller:
    """Client of the controller with the token of one attempt."""

    def __init__(self, http: httpx.AsyncClient, *, url: str, token: str, tries_s_max: float = TRIES_S_MAX) -> None:
        self._http = http
        # The token names its job: `PREFIX-SECRET.ATTEMPT.JOB`.
        self.job_id = token.split(".", 2)[-1]
        self._base = f"{url.rstrip('/')}/jobs/{self.job_id}"
        self._headers = {"authorization": f"Bearer {token}"}
        self.tries_s_max = tries_s_max

    async def claim(self) -> Work:
        said = await self.ask("claim", {})
        # A newer controller may send fields that this version does not know: ignore them.
        known = {name.name: said[name.name] for name in fields(Work) if name.name in said}
        if known.get("dataset"):
            known["dataset"] = _grant(known["dataset"])
        return Work(**{**known, "inputs": _inputs(said.get("inputs") or {})})

    async def dataset(self) -> Grant:
        """Get a new signed request for the dataset: signed requests expire."""
        return _grant(await self.ask("inputs", {}))

    async def inputs(self) -> Inputs:
        """Get the training's input files with new signed requests."""
        return _inputs(await self.ask("inputs", {}))

    async def heartbeat(self, step: int, **told: float | None) -> Standing:
        """Send a worker report. `told` are numbers about the work; those that are None are left out."""
        body = {"step": step, **{name: value for name, value in told.items() if value is not None}}
        said = await self.ask("heartbeat", body)
        return Standing(stop=said.get("stop"), checkpoint_s=said.get("checkpoint_s"))

    async def begin_checkpoint(self, step: int, files: list[dict[str, Any]]) -> tuple[str, dict[str, Grant]]:
        said = await self.ask("checkpoints", {"step": step, "files": files})
        return said["upload_id"], {name: _grant(grant) for name, grant in said["grants"].items()}

    async def commit_checkpoint(
        self, step: int, previous_step: int, upload_id: str, files: list[dict[str, Any]], *, loss: float | None = None
    ) -> None:
        body = {"previous_step": previous_step, "upload_id": upload_id, "files": files}
        if loss is not None:
            body["loss"] = loss
        await self.ask(f"checkpoints/{step}/commit", body)

    async def log(self, number: int, size: int, crc32c: str) -> Grant:
        """Get a signed request to upload a piece of the log. Pieces count from 0."""
        return _grant(await self.ask("logs", {"number": number, "size": size, "crc32c": crc32c}))

    async def finish(self, step: int = 0) -> None:
        """Report the job as done; `step` is the last committed one."""
        await self.ask("finish", {"step": step} if step else {})

    async def withdraw(self, reason: str, *, step: int = 0) -> None:
        """Give the job back; `step` is the last committed one."""
        await self.ask("withdraw", {"reason": reason, "step": step})

    async def fail(self, reason: str) -> None:
        await self.ask("fail", {"reason": reason})

    async def ask(self, path: str, body: dict[str, Any]) -> Any:
        """Post a request, with retries while the controller does not answer.

        Raises:
            Over: The attempt is not the current one any more.
            Disbelieved: The report is invalid.
            Rejected: The controller refuses the request.
            Unreachable: The controller did not answer within `tries_s_max`.
        """
        clock = asyncio.get_running_loop().time
        until, tries = clock() + self.tries_s_max, 0
        while True:
            tries += 1
            asked_s = None
            try:
                answer = await self._http.post(
                    f"{self._base}/{path}", json=body, headers=self._headers, timeout=TIMEOUT_S
                )
            except LOST as error:
                why = said(error)
            else:
                if answer.is_success:
                    return answer.json()
                why, asked_s = said(answer), retry_after_s(answer, BACKOFF_S_MAX)
                if _code(answer) == UNTRUE:
                    raise Disbelieved(why)
                if answer.status_code in OVER:
                    raise Over(why)
                if not may_pass(answer.status_code):
                    raise Rejected(why)
            if clock() >= until:
                raise Unreachable(why)
            await asyncio.sleep(max(asked_s or 0.0, random.uniform(0.5, 1) * min(BACKOFF_S_MAX, 0.2 * 2**tries)))


def _code(answer: httpx.Response) -> str | None:
    """Return the code of an error in OpenAI's shape; None if there is none."""
    try:
        code = answer.json()["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, str) else None


def _grant(said: dict[str, Any]) -> Grant:
    return Grant(url=said["url"], headers=said["headers"])


def _inputs(said: dict[str, Any]) -> Inputs:
    return Inputs(
        files=tuple(_file(one) for one in said.get("files", ())),
        checkpoint=tuple(_file(one) for one in said.get("checkpoint", ())),
    )


def _file(said: dict[str, Any]) -> File:
    return File(
        name=said["name"], size=said["size"], crc32c=said["crc32c"], sha256=said.get("sha256"),
        grant=_grant(said["grant"]),
    )  # fmt: skip
