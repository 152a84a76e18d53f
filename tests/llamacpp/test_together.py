"""Many requests at once: all correct, none stalled, the queue bounded and fair, cancelled when the client leaves."""

import asyncio
import contextlib
import time

import httpx
import openai
import pytest

from .conftest import Running, Start

QUESTIONS = [
    "What is Goblin?",
    "What is 12 + 7?",
    "Count from 1 to 9",
    "What is the capital of France?",
    "Who are you?",
    "What is a token?",
    "Say hello in Japanese",
    "How does failover work?",
]


def body(text: str, **options) -> dict:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "stream": True} | options


def endless(text: str = "Tell me a story", **options) -> dict:
    """An answer that goes on until the context is full."""
    return body(text, ignore_eos=True, temperature=1, **options)


def async_client(server: Running) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30)


async def say(client: openai.AsyncOpenAI, text: str) -> str:
    stream = await client.chat.completions.create(
        model="goblin-tiny", messages=[{"role": "user", "content": text}], temperature=0, stream=True
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def test_eight_streams_at_once_say_what_each_says_alone(server: Running):
    """Greedy. Sums of floats in another order may turn a near tie; these answers have none."""
    async with async_client(server) as client:
        alone = [await say(client, question) for question in QUESTIONS]
        before = server.metric("n_decode_total"), server.metric("tokens_predicted_total")
        together = await asyncio.gather(*(say(client, question) for question in QUESTIONS))
        after = server.metric("n_decode_total"), server.metric("tokens_predicted_total")
    assert together == alone
    # They were decoded together, not in turns.
    assert after[0] - before[0] < 0.6 * (after[1] - before[1])


async def test_batched_logprobs_differ_by_rounding_only(server: Running):
    async def logprobs(client, text):
        answer = await client.chat.completions.create(
            model="goblin-tiny", messages=[{"role": "user", "content": text}], temperature=0, logprobs=True
        )
        return [entry.logprob for entry in answer.choices[0].logprobs.content]

    async with async_client(server) as client:
        alone = [await logprobs(client, question) for question in QUESTIONS]
        together = await asyncio.gather(*(logprobs(client, question) for question in QUESTIONS))
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, abs=0.1)


async def test_more_requests_than_slots_are_all_answered(start: Start):
    with start("--slots", "2") as server:
        async with async_client(server) as client:
            answers = await asyncio.gather(*(say(client, QUESTIONS[i % 8]) for i in range(24)))
    assert answers[:8] == answers[8:16] == answers[16:]


async def test_a_long_prompt_does_not_stall_running_streams(start: Start):
    """While 900 tokens are read in pieces, the running stream gets a token with every piece."""
    with start("--slots", "2", "--prefill", "32") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            events: list[str] = []
            running = asyncio.Event()

            async def follow():
                request = endless(max_tokens=900)
                async with http.stream("POST", "/v1/chat/completions", json=request) as response:
                    async for line in response.aiter_lines():
                        if line.startswith("data: {"):
                            events.append("token")
                            running.set()

            following = asyncio.create_task(follow())
            await running.wait()
            started = len(events)
            answer = await http.post("/v1/chat/completions", json=body("owl " * 440, max_tokens=1, stream=False))
            meanwhile = len(events) - started
            prompt_n = answer.json()["timings"]["prompt_n"]
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
    assert prompt_n > 400
    assert meanwhile >= prompt_n / 32 / 2


async def test_a_client_that_leaves_frees_its_slot(start: Start):
    with start("--slots", "1") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            async with http.stream("POST", "/v1/chat/completions", json=endless()) as response:
                await anext(response.aiter_lines())
            server.wait_until(lambda: server.metric("requests_cancelled_total") == 1)
            server.wait_until(lambda: server.metric("requests_processing") == 0)
            assert server.metric("tokens_predicted_total") < 1000


async def test_a_client_that_leaves_a_whole_answer_or_the_queue_is_noticed_too(start: Start):
    with start("--slots", "1", "--ctx", "100000", "--cells", "100000") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            requests = [
                asyncio.create_task(http.post("/v1/chat/completions", json=endless(stream=False))) for _ in range(3)
            ]
            await asyncio.to_thread(
                server.wait_until,
                lambda: (server.metric("requests_processing"), server.metric("requests_deferred")) == (1, 2),
            )
            for request in reversed(requests):
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
            await asyncio.to_thread(server.wait_until, lambda: server.metric("requests_cancelled_total") == 3)
            assert server.metric("requests_deferred") == 0


async def test_beyond_the_queue_requests_are_told_when_to_come_back(start: Start):
    with start("--slots", "1", "--queue", "2", "--ctx", "100000") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            waiting = [
                asyncio.create_task(http.post("/v1/chat/completions", json=endless(stream=False))) for _ in range(3)
            ]
            await asyncio.to_thread(
                server.wait_until,
                lambda: (server.metric("requests_processing"), server.metric("requests_deferred")) == (1, 2),
            )
            refused = await http.post("/v1/chat/completions", json=endless())
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) >= 1
            assert refused.json()["error"]["code"] == "queue_full"
            full = await http.get("/slots", params={"fail_on_no_slot": 1})
            assert full.status_code == 503
            async with async_client(server) as client:
                with pytest.raises(openai.RateLimitError):
                    await say(client, "Hello")
            for request in waiting:
                request.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


async def test_clients_take_turns(start: Start):
    """One user with many requests does not keep another's single one waiting for all of them."""
    with start("--slots", "1") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            order: list[str] = []

            async def ask(user: str):
                await http.post("/v1/chat/completions", json=endless(user=user, max_tokens=400, stream=False))
                order.append(user)

            greedy = [asyncio.create_task(ask("greedy")) for _ in range(6)]
            await asyncio.to_thread(server.wait_until, lambda: server.metric("requests_deferred") == 5)
            await asyncio.gather(ask("modest"), *greedy)
    assert order.index("modest") <= 3


async def test_a_small_pool_is_shared_without_loss(start: Start):
    """Four slots of 1024 on 1500 cells: requests wait for room, caches are given up, all are answered."""
    with start("--slots", "4", "--cells", "1536") as server:
        async with async_client(server) as client:
            answers = await asyncio.gather(*(say(client, QUESTIONS[i % 8]) for i in range(16)))
            assert answers[:8] == answers[8:]
        assert server.metric("requests_failed_total") == 0


async def test_grammars_of_a_batch_do_not_mix(server: Running):
    async def choose(http: httpx.AsyncClient, words: list[str]) -> str:
        grammar = "root ::= " + " | ".join(f'"{word}"' for word in words)
        answer = await http.post("/v1/chat/completions", json=body("Hello", grammar=grammar, stream=False))
        return answer.json()["choices"][0]["message"]["content"]

    async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
        sets = [["red", "blue"], ["cat", "dog"], ["one", "two"], ["yes", "no"]] * 2
        answers = await asyncio.gather(*(choose(http, words) for words in sets))
    assert all(answer in words for answer, words in zip(answers, sets, strict=True))


async def test_the_event_loop_answers_probes_under_load(server: Running):
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
        load = [asyncio.create_task(http.post("/v1/chat/completions", json=endless(stream=False))) for _ in range(8)]
        await asyncio.to_thread(server.wait_until, lambda: server.metric("requests_processing") == 8)
        started = time.monotonic()
        assert (await http.get("/health/live")).status_code == 200
        assert time.monotonic() - started < 2
        for request in load:
            request.cancel()
        await asyncio.gather(*load, return_exceptions=True)
