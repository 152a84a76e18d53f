"""Cloud Scheduler on loopback: HTTP targets called by cron, as production calls them.

Source: Cloud Scheduler v1 REST and its documented request headers, read 2026-11-23. A tick whose target fails is
tried again with backoff until the next tick is due; two runs of one job never overlap.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from cronsim import CronSim
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from localcloud.clock import utc_now
from localcloud.identity import Identity

log = logging.getLogger(__name__)

BACKOFF_S_MIN = 1.0
BACKOFF_S_MAX = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """One scheduled HTTP call."""

    name: str
    cron: str
    """Five fields, UTC. A sixth field before them is seconds."""
    url: str
    audience: str
    attempt_deadline_s: float = 180.0


def next_tick(cron: str, now: datetime) -> datetime:
    """Return when a schedule is due next, strictly after `now`."""
    return next(CronSim(cron, now)).replace(tzinfo=UTC)


class Scheduler:
    """All schedules: each is called when it is due, and at once by `jobs.run`."""

    def __init__(
        self,
        schedules: Sequence[Schedule],
        *,
        identity: Identity,
        email: str,
        clock: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self._schedules = {schedule.name: schedule for schedule in schedules}
        self._identity = identity
        self._email = email
        self._clock = clock
        self._sleep = sleep
        self._http = httpx.AsyncClient(trust_env=False)
        self._tasks: list[asyncio.Task[None]] = []
        self._last: dict[str, dict[str, Any]] = {}
        self._running = {name: asyncio.Lock() for name in self._schedules}

    async def start(self) -> None:
        """Start all schedules."""
        self._tasks = [asyncio.create_task(self._tick(schedule)) for schedule in self._schedules.values()]

    async def close(self) -> None:
        """Stop all schedules; a call in flight is cancelled."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._http.aclose()

    async def _tick(self, schedule: Schedule) -> None:
        while True:
            due = next_tick(schedule.cron, self._clock())
            await self._sleep(max(0.0, (due - self._clock()).total_seconds()))
            backoff_s = BACKOFF_S_MIN
            following = next_tick(schedule.cron, due)
            while not await self._call(schedule, due) and self._clock() < following:
                await self._sleep(backoff_s)
                backoff_s = min(BACKOFF_S_MAX, backoff_s * 2)

    async def _call(self, schedule: Schedule, due: datetime) -> bool:
        """Call the target once. True when it answered 2xx."""
        token = self._identity.mint(email=self._email, audience=schedule.audience)
        headers = {
            "authorization": f"Bearer {token}",
            "content-type": "application/octet-stream",
            "user-agent": "Google-Cloud-Scheduler",
            "x-cloudscheduler": "true",
            "x-cloudscheduler-jobname": schedule.name,
            "x-cloudscheduler-scheduletime": due.isoformat(),
        }
        async with self._running[schedule.name]:
            try:
                answer = await self._http.post(schedule.url, headers=headers, timeout=schedule.attempt_deadline_s)
                code, text = answer.status_code, answer.text[:200]
            except httpx.HTTPError as error:
                code, text = 0, f"{type(error).__name__}: {error}"
        done = 200 <= code < 300
        self._last[schedule.name] = {
            "lastAttemptTime": self._clock().isoformat(),
            "status": {"code": 0 if done else 13, "message": "" if done else f"HTTP {code}: {text}"},
        }
        if not done:
            log.warning("Schedule %s failed: %s answered %s %s", schedule.name, schedule.url, code, text)
        return done

    def routes(self) -> Sequence[BaseRoute]:
        """Return the routes for `jobs.list`, `jobs.get` and `jobs.run` of Cloud Scheduler's REST API."""
        base = "/v1/projects/{project}/locations/{location}/jobs"
        return [
            Route(base, self._list),
            Route(base + "/{job}:run", self._run, methods=["POST"]),
            Route(base + "/{job}", self._get),
        ]

    def _show(self, parent: Mapping[str, str], schedule: Schedule) -> dict[str, Any]:
        name = f"projects/{parent['project']}/locations/{parent['location']}/jobs/{schedule.name}"
        return {
            "name": name,
            "schedule": schedule.cron,
            "timeZone": "UTC",
            "state": "ENABLED",
            "attemptDeadline": f"{schedule.attempt_deadline_s:g}s",
            "httpTarget": {"uri": schedule.url, "httpMethod": "POST"},
            "scheduleTime": next_tick(schedule.cron, self._clock()).isoformat(),
            **self._last.get(schedule.name, {}),
        }

    async def _list(self, request: Request) -> Response:
        return JSONResponse({"jobs": [self._show(request.path_params, s) for s in self._schedules.values()]})

    def _find(self, request: Request) -> Schedule | Response:
        schedule = self._schedules.get(request.path_params["job"])
        if schedule is None:
            error = {"code": 404, "message": "Job not found.", "status": "NOT_FOUND"}
            return JSONResponse({"error": error}, status_code=404)
        return schedule

    async def _get(self, request: Request) -> Response:
        schedule = self._find(request)
        return schedule if isinstance(schedule, Response) else JSONResponse(self._show(request.path_params, schedule))

    async def _run(self, request: Request) -> Response:
        schedule = self._find(request)
        if isinstance(schedule, Response):
            return schedule
        await self._call(schedule, self._clock())
        return JSONResponse(self._show(request.path_params, schedule))
