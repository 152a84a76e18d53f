"""A fake of RunPod's APIs on one server: jobs and streams, the OpenAI route, a load balancer, and management.

/v2/ep1/{run,stream,status,cancel,health}   the jobs API of one endpoint
/v2/ep1/openai/v1/…                         the OpenAI route of that endpoint
/v1/…                                       the API of a load-balancing endpoint
/management/v2/serverless/ep1/workers       the management API; /management/v1 no longer exists
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from tests.fakes.openai_like import FakeOpenAI
from tests.fakes.serving import run

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
HOLD_S = 10.0


class Job:
    """One job, with the output of its worker that no client has fetched yet."""

    def __init__(self, number: int) -> None:
        self.id = f"00000000-0000-0000-0000-{number:012d}-u1"
        self.status = "IN_QUEUE"
        self.waiting: list[Any] = []
        self.output: list[Any] = []
        self.broken = False
        self.news = asyncio.Condition()
        self.work: asyncio.Task[None] | None = None

    async def write(self, output: Any) -> None:
        async with self.news:
            self.waiting.append(output)
            self.output.append(output)
            self.news.notify_all()

    async def become(self, status: str, *, broken: bool = False) -> None:
        async with self.news:
            if self.status not in OVER:
                self.status, self.broken = status, broken
            self.news.notify_all()


@dataclass
class FakeRunPod(FakeOpenAI):
    owner: str = "vllm"
    path = "/v2/ep1"
    shape: str = "events"
    """What the worker writes: `events`, `chunks`, `tokens`, `text`, `whole` (nothing until the end)."""
    bare: bool = False
    """`/stream` answers as in the documentation's example, the list alone."""
    fails: str | None = None
    """The status a job ends with instead of COMPLETED."""
    workers: dict[str, int] = field(default_factory=lambda: {"idle": 1, "running": 0})
    submitted: list[dict[str, Any]] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    lose: bool = False
    """Jobs are forgotten once they are taken."""
    slow_to_take: threading.Event | None = None
    """`/run` answers when it is set."""
    taken: threading.Event = field(default_factory=threading.Event)
    """A job has come."""
    says: list[Any] | None = None
    """The worker's outputs, to the letter."""
    cancelled: list[str] = field(default_factory=list)
    poll_refusals: list[Response] = field(default_factory=list)
    """What the next looks at a stream are answered instead."""

    @property
    def app(self) -> Starlette:
        inference = [
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
        ]
        jobs = [
            Route("/health", self._workers),
            Route("/run", self._run, methods=["POST"]),
            Route("/stream/{id}", self._stream),
            Route("/status/{id}", self._status),
            Route("/cancel/{id}", self._cancel, methods=["POST"]),
            Mount("/openai", routes=inference),
        ]
        return Starlette(
            routes=[
                Mount("/v2/ep1", routes=jobs),
                Route("/management/v2/serverless/ep1/workers", self._list_workers),
                Route("/management/v1/{rest:path}", self._ended),
                *inference,
            ]
        )

    def _stranger(self, request: Request) -> Response | None:
        self.paths.append(request.url.path)
        sent = request.headers.get("authorization", "")
        if not sent.startswith("Bearer ") or (self.api_key is not None and sent != f"Bearer {self.api_key}"):
            return Response("Unauthorized", 401)
        return None

    async def _ended(self, request: Request) -> Response:
        return problem(410, "Gone", "REST API v1 has been sunset")

    async def _workers(self, request: Request) -> Response:
        if (refused := self._stranger(request)) is not None:
            return refused
        counts = {"completed": 1, "failed": 0, "inProgress": 0, "inQueue": 0, "retried": 0}
        return JSONResponse({"jobs": counts, "workers": self.workers})

    async def _list_workers(self, request: Request) -> Response:
        if (refused := self._stranger(request)) is not None:
            return refused
        summary = {**self.workers, "total": sum(self.workers.values())}
        return JSONResponse({"workers": [{"id": "w1", "status": "IDLE"}], "summary": summary, "endpointVersion": 3})

    async def _run(self, request: Request) -> Response:
        if (refused := self._stranger(request)) is not None:
            return refused
        body = await request.json()
        self.submitted.append(body)
        if self.script.status is not None:
            return JSONResponse(self.script.error, self.script.status, headers=self.script.headers)
        asked = body["input"].get("openai_input", body["input"])
        self.asked.append(asked)
        job = Job(len(self.jobs) + 1)
        if not self.lose:
            self.jobs[job.id] = job
        job.work = asyncio.create_task(self._work(job, body["input"].get("openai_route", ""), asked))
        self.taken.set()
        if self.slow_to_take is not None:
            await asyncio.to_thread(self.slow_to_take.wait, 10)
        return JSONResponse({"id": job.id, "status": "IN_QUEUE"})

    async def _work(self, job: Job, route: str, asked: dict[str, Any]) -> None:
        """The worker: it is fed OpenAI's request and writes in its shape."""
        await job.become("IN_PROGRESS")
        if self.says is not None:
            for output in self.says:
                await job.write(output)
            await job.become(self.fails or "COMPLETED")
            return
        completes = route == "/v1/completions" or "prompt" in asked
        events = self._text_events(asked) if completes else self._chat_events(asked)
        try:
            async for event in events:
                for output in self._shaped(event):
                    await job.write(output)
        except ConnectionError:
            await job.become("IN_PROGRESS", broken=True)
            return
        if self.shape == "whole":
            choice = {"index": 0, "finish_reason": self.script.finish}
            said = {"content": "".join(self.script.words)} if self.script.words else {}
            job.output = [{"choices": [{**choice, "message": {"role": "assistant", **said}}]}]
        await job.become(self.fails or "COMPLETED")

    def _shaped(self, event: str) -> list[Any]:
        if self.shape == "events":
            return [event]
        data = event.removeprefix("data: ").strip()
        chunk = {"choices": []} if data == "[DONE]" else json.loads(data)
        if self.shape == "chunks" or "error" in chunk:
            return [chunk] if chunk != {"choices": []} else []
        words = [choice.get("delta", {}).get("content") for choice in chunk["choices"]]
        if self.shape == "whole" or not any(words):
            return []
        if self.shape == "text":
            return ["".join(word or "" for word in words)]
        usage = {"input": 11, "output": 1 + len([1 for job in self.jobs.values() for _ in job.output])}
        return [{"choices": [{"tokens": [word or ""]} for word in words], "usage": usage}]

    async def _stream(self, request: Request) -> Response:
        if (refused := self._stranger(request)) is not None:
            return refused
        if self.poll_refusals:
            return self.poll_refusals.pop(0)
        job = self.jobs.get(request.path_params["id"])
        if job is None:
            return JSONResponse({"error": "job not found"}, 404)
        async with job.news:
            try:
                async with asyncio.timeout(HOLD_S):
                    await job.news.wait_for(lambda: job.waiting or job.status in OVER or job.broken)
            except TimeoutError:
                pass
            pieces, job.waiting = [{"output": output} for output in job.waiting], []
            if job.broken and not pieces:
                return StreamingResponse(_breaks_off())
            return JSONResponse(pieces if self.bare else {"status": job.status, "stream": pieces})

    async def _status(self, request: Request) -> Response:
        if (refused := self._stranger(request)) is not None:
            return refused
        job = self.jobs.get(request.path_params["id"])
        if job is None:
            return JSONResponse({"error": "job not found"}, 404)
        done = {"delayTime": 1, "executionTime": 2, "output": job.output, "workerId": "w1"}
        return JSONResponse({"id": job.id, "status": job.status} | (done if job.status == "COMPLETED" else {}))

    async def _cancel(self, request: Request) -> Response:
        if (refused := self._stranger(request)) is not None:
            return refused
        job = self.jobs.get(request.path_params["id"])
        if job is None:
            return JSONResponse({"error": "job not found"}, 404)
        self.cancelled.append(job.id)
        if job.work is not None:
            job.work.cancel()
        await job.become("CANCELLED")
        self.left.set()
        return JSONResponse({"id": job.id, "status": job.status})


async def _breaks_off() -> AsyncIterator[bytes]:
    yield b'{"status": "IN_'
    raise ConnectionError("the fake breaks off")


def problem(status: int, title: str, detail: str) -> Response:
    """The management API's errors."""
    body = {"title": title, "status": status, "detail": detail}
    return JSONResponse(body, status, media_type="application/problem+json")


if __name__ == "__main__":
    run(FakeRunPod())
