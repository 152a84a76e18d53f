"""RunPod's queue as a stream, its workers' dialects, and what its free signals say."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse

from goblin.core.endpoints import Endpoint
from goblin.core.errors import Broken, Fault, InvalidRequest, ProviderUnavailable
from goblin.gateway.domain import requests
from goblin.gateway.domain.chat import ChatChunk, Usage
from goblin.gateway.domain.endpoint_health import Finding, Warmth
from goblin.gateway.ports import ChatProvider
from goblin.providers.runpod import queue as runpod_queue
from goblin.wiring import endpoints
from tests.fakes.openai_like import Script
from tests.fakes.runpod import FakeRunPod
from tests.fakes.serving import serve

FAKE = FakeRunPod()
Connect = Callable[..., ChatProvider]


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with serve(FAKE.app) as base:
        yield base


@pytest.fixture
def fake() -> FakeRunPod:
    FAKE.__dict__.update(FakeRunPod().__dict__)
    return FAKE


@pytest.fixture
async def connect(fake: FakeRunPod, base: str) -> AsyncIterator[Connect]:
    async with httpx.AsyncClient() as client:

        def connecting(**options: str) -> ChatProvider:
            url = f"{base}/v2/ep1" if options.get("route") != "balancer" else base
            endpoint = Endpoint(
                name="rp",
                provider="runpod",
                url=url,
                api_key="k",
                models=("tiny",),
                options={"route": "queue", **options},
            )
            return endpoints.connect(endpoint, client)[1]

        yield connecting


async def answer(provider: ChatProvider, **more: Any) -> list[ChatChunk]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **more}
    asked = requests.parse(requests.ChatRequest, json.dumps(body).encode())
    return [chunk async for chunk in provider.chat(asked, model="tiny")]


def text(chunks: list[ChatChunk]) -> str:
    return "".join(c.delta.text for chunk in chunks for c in chunk.choices)


def finish(chunks: list[ChatChunk]) -> list[str]:
    return [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]


@pytest.mark.parametrize("shape", ["events", "chunks", "tokens", "text", "whole"])
@pytest.mark.parametrize("bare", [False, True], ids=["with status", "the list alone"])
async def test_dialects_of_workers(
    fake: FakeRunPod, connect: Connect, shape: str, bare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runpod_queue, "PAUSE_S", 0.0)
    fake.shape, fake.bare = shape, bare
    chunks = await answer(connect())
    assert text(chunks) == "Hello, Wörld 🌍"
    assert finish(chunks) == ["stop"]
    usage = [chunk.usage for chunk in chunks if isinstance(chunk.usage, Usage)]
    assert bool(usage) == (shape in ("events", "chunks", "tokens"))
    assert fake.cancelled == []


async def test_a_job_that_is_paid_by_the_second_runs_no_longer_than_was_paid_for(fake: FakeRunPod, base: str) -> None:
    async with httpx.AsyncClient() as client:
        endpoint = Endpoint(
            name="rp", provider="runpod", url=f"{base}/v2/ep1", api_key="k", models=("tiny",),
            options={"route": "queue"}, price_usd_micros_per_hour=1, sleeps_after_s=5, request_s_max=90.0,
        )  # fmt: skip
        await answer(endpoints.connect(endpoint, client)[1])
    assert fake.submitted[-1]["policy"]["executionTimeout"] == 90_000


async def test_a_job_says_how_long_it_may_live_and_what_to_run(fake: FakeRunPod, connect: Connect) -> None:
    await answer(connect(execution_s="60"), temperature=0.5)
    (sent,) = fake.submitted
    assert sent["policy"] == {"executionTimeout": 60_000, "ttl": 360_000}
    assert sent["input"]["openai_route"] == "/v1/chat/completions"
    assert sent["input"]["openai_input"]["temperature"] == 0.5
    fake.shape = "chunks"
    await answer(connect(worker="plain"))
    assert fake.submitted[-1]["input"]["messages"] == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED", "TIMED_OUT"])
@pytest.mark.parametrize("shape", ["text", "whole"])
async def test_a_job_that_ends_badly_is_not_an_answer(
    fake: FakeRunPod, connect: Connect, status: str, shape: str
) -> None:
    fake.fails, fake.shape = status, shape
    with pytest.raises(ProviderUnavailable, match=status) as caught:
        await answer(connect())
    assert caught.value.fault is Fault.TRANSIENT
    assert fake.cancelled == []


async def test_whoever_leaves_takes_the_job_along(fake: FakeRunPod, connect: Connect) -> None:
    fake.script = Script(silent_after=2)
    provider = connect()
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}'
    stream = provider.chat(requests.parse(requests.ChatRequest, body), model="tiny")
    heard = asyncio.Event()

    async def listen() -> None:
        async with aclosing(stream):
            async for chunk in stream:
                if chunk.starts_answer:
                    heard.set()

    listening = asyncio.create_task(listen())
    await asyncio.wait_for(heard.wait(), 5)
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening
    assert await asyncio.to_thread(fake.left.wait, 5), "the job still runs"


async def test_a_job_whose_id_comes_too_late_is_cancelled_all_the_same(fake: FakeRunPod, connect: Connect) -> None:
    fake.script = Script(silent_after=0)
    fake.slow_to_take = threading.Event()
    asking = asyncio.create_task(answer(connect()))
    assert await asyncio.to_thread(fake.taken.wait, 5)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    fake.slow_to_take.set()
    assert await asyncio.to_thread(fake.left.wait, 5), "the job still runs"


async def test_a_job_that_was_lost_is_not_a_model_that_is_missing(fake: FakeRunPod, connect: Connect) -> None:
    fake.lose = True
    with pytest.raises(ProviderUnavailable, match="lost the job") as caught:
        await answer(connect())
    assert caught.value.fault is Fault.TRANSIENT


async def test_a_limit_on_looking_does_not_end_the_job(fake: FakeRunPod, connect: Connect) -> None:
    fake.poll_refusals = [JSONResponse({"error": "slow down"}, 429, {"retry-after": "0"})]
    assert text(await answer(connect())) == "Hello, Wörld 🌍"


async def test_text_that_was_lost_on_its_way_is_never_skipped(fake: FakeRunPod, connect: Connect) -> None:
    fake.poll_refusals = [JSONResponse({"error": "oops"}, 502)]
    with pytest.raises(ProviderUnavailable):
        await answer(connect())
    assert len(fake.cancelled) == 1


REFUSAL = {"object": "error", "message": "max_tokens is too large", "type": "BadRequestError", "code": 400}


@pytest.mark.parametrize(
    "output",
    [REFUSAL, {"error": REFUSAL}, f"data: {json.dumps({'error': REFUSAL})}\n\n"],
    ids=["bare", "wrapped", "event"],
)
async def test_what_the_worker_refuses_is_the_callers_to_mend(fake: FakeRunPod, connect: Connect, output: Any) -> None:
    fake.says = [output]
    with pytest.raises(InvalidRequest, match="max_tokens is too large"):
        await answer(connect())
    fake.says = ["Hel", output]
    with pytest.raises(ProviderUnavailable):
        await answer(connect())


@pytest.mark.parametrize("says", [[7], [{"unknown": 1}], ["data: {not json\n\n"], [{"choices": [{"index": "x"}]}], []])
async def test_what_nobody_can_read_is_not_an_answer(fake: FakeRunPod, connect: Connect, says: list[Any]) -> None:
    fake.says = says
    with pytest.raises(ProviderUnavailable):
        await answer(connect())


@pytest.mark.parametrize(
    ("status", "body", "headers", "fault", "wait_s"),
    [
        (
            400,
            {"title": "Bad Request", "detail": "There are no longer any instances available"},
            {},
            Fault.CAPACITY,
            None,
        ),
        (400, {"error": "no GPUs available in this data center"}, {}, Fault.CAPACITY, None),
        (500, {"detail": "Could not reserve a machine: not enough resources"}, {}, Fault.CAPACITY, None),
        (402, {"detail": "balance too low"}, {}, Fault.MONEY, None),
        (403, {"detail": "scope"}, {}, Fault.AUTH, None),
        (404, {"detail": "endpoint not found"}, {}, Fault.MISSING, None),
        (429, {"detail": "quota"}, {"ratelimit": '"minute";r=0;t=12, "hour";r=2800;t=1812'}, Fault.RATE, 12.0),
        (429, {"detail": "quota"}, {"retry-after": "3", "ratelimit": '"minute";r=0;t=12'}, Fault.RATE, 3.0),
        (502, None, {}, Fault.TRANSIENT, None),
    ],
)
@pytest.mark.parametrize("route", ["queue", "openai"])
async def test_refusals(
    fake: FakeRunPod,
    connect: Connect,
    route: str,
    status: int,
    body: Any,
    headers: dict[str, str],
    fault: Fault,
    wait_s: float | None,
) -> None:
    fake.script = Script(status=status, error=body, headers=headers)
    with pytest.raises(ProviderUnavailable) as caught:
        await answer(connect(route=route))
    assert (caught.value.fault, caught.value.retry_after_s) == (fault, wait_s)


@pytest.mark.parametrize(
    ("workers", "finding", "warmth"),
    [
        ({"idle": 1, "running": 0}, Finding.OK, Warmth.WARM),
        ({"ready": 2, "throttled": 1}, Finding.OK, Warmth.WARM),
        ({"running": 3}, Finding.OK, Warmth.WARM),
        ({"initializing": 1, "throttled": 1}, Finding.OK, Warmth.STARTING),
        ({"throttled": 2}, Finding.OK, Warmth.FULL),
        ({"unhealthy": 1}, Finding.FAILED, Warmth.UNKNOWN),
        ({}, Finding.OK, Warmth.ASLEEP),
    ],
)
@pytest.mark.parametrize("route", ["openai", "queue", "balancer"])
async def test_workers_are_seen_without_waking_one(
    fake: FakeRunPod,
    connect: Connect,
    base: str,
    route: str,
    workers: dict[str, int],
    finding: Finding,
    warmth: Warmth,
) -> None:
    fake.workers = workers
    probe = await connect(route=route, endpoint_id="ep1", api=f"{base}/management/v2").probe()
    assert (probe.finding, probe.warmth, probe.models) == (finding, warmth, ("tiny",))
    assert probe.loaded == (("tiny",) if warmth is Warmth.WARM else ())
    assert len(fake.paths) == 1
    assert not [path for path in fake.paths if path.endswith("/models")]


async def test_a_balancer_without_its_id_is_not_looked_at(fake: FakeRunPod, connect: Connect) -> None:
    probe = await connect(route="balancer").probe()
    assert (probe.finding, fake.paths) == (Finding.UNCLEAR, [])


async def test_an_api_that_has_ended_says_nothing_about_the_workers(connect: Connect, base: str) -> None:
    probe = await connect(route="balancer", endpoint_id="ep1", api=f"{base}/management/v1").probe()
    assert probe.finding is Finding.UNCLEAR


@pytest.mark.parametrize("options", [{"route": "pigeon"}, {"worker": "ox"}])
async def test_an_option_that_is_none_is_refused_at_the_start(connect: Connect, options: dict[str, str]) -> None:
    with pytest.raises(Broken, match=next(iter(options))):
        connect(**options)
