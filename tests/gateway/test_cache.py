"""Answers given before: when they come, to whom, and what they cost."""

from __future__ import annotations

from typing import Any

import pytest

from goblin.core.errors import ProviderUnavailable
from goblin.gateway.cache import MEMORY_S, AnswerCache
from goblin.gateway.domain.chat import Usage
from goblin.gateway.keys import digest_of
from goblin.gateway.ports import ApiKey, CachedAnswer
from tests.fakes.inference import USAGE, FakeClock, ScriptedProvider, Words, World, says, world
from tests.fakes.stores import MemoryAnswers
from tests.gateway.test_inference import Heard, ask, asked, scripted
from tests.gateway.test_streams import CALL, TOOLS

COLD: dict[str, Any] = {"temperature": 0}


def receipts(here: World) -> list[Any]:
    return list(here.receipts.records.values())


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
async def test_a_hit_says_the_same_as_a_stream_or_whole(first: bool, second: bool) -> None:
    here = world(a=ScriptedProvider())
    one, two = await ask(here, asked(stream=first, **COLD)), await ask(here, asked(stream=second, **COLD))
    assert here.providers["a"].requests == 1
    assert (two.text, two.usage, two.error) == (one.text, one.usage, None)
    assert [c.choices[0].finish_reason for c in two.chunks if c.choices][-1] == "stop"
    assert two.chunks[0].id != one.chunks[0].id
    made, hit = receipts(here)
    assert (hit.provider, hit.outcome, hit.attempts) == ("cache", "ok", ())
    assert made.provider == "a"
    assert here.meter.requests == {("a", "m", "ok"): 1, ("cache", "m", "ok"): 1}


async def test_another_key_has_another_cache_and_a_tenants_keys_share_one() -> None:
    here = world(a=ScriptedProvider())
    for name, tenant in (("x", ""), ("y", "t"), ("z", "t")):
        digest = digest_of(name)
        key = ApiKey(digest=digest, name=name, created_at=here.clock.now(), tenant=tenant)
        here.keys.keys[digest] = key
    counts = []
    for name in ("x", "y", "z", "x"):
        await ask_as(here, name)
        counts.append(here.providers["a"].requests)
    assert counts == [1, 2, 2, 2]


async def ask_as(here: World, key: str) -> Heard:
    from goblin.gateway import inference

    call, heard = inference.InferenceCall(here.deps, "chat"), Heard()
    await call.authenticate(f"Bearer {key}")
    heard.chunks = [chunk async for chunk in await call.chat(asked(**COLD))]
    await call.settle()
    return heard


@pytest.mark.parametrize(
    ("provider", "more"),
    [
        (ScriptedProvider(), {}),
        (ScriptedProvider(), COLD | {"goblin": {"cache": False}}),
        (scripted(CALL, *says(finish="tool_calls")), COLD | TOOLS),
        (scripted(*says("x", finish="content_filter")), COLD),
        (scripted(Words("Hel"), ProviderUnavailable("no")), COLD),
        (scripted(ProviderUnavailable("no")), COLD),
    ],
    ids=["chance", "not wanted", "tool call", "filtered", "cut", "error"],
)
async def test_what_must_not_be_given_again_is_not(provider: ScriptedProvider, more: dict[str, Any]) -> None:
    here = world(a=provider)
    await ask(here, asked(**more))
    before = provider.requests
    here.clock.forward(1000)
    await ask(here, asked(**more))
    assert provider.requests > before
    assert here.answers.answers == {}


async def test_an_answer_ages() -> None:
    here = world(a=ScriptedProvider())
    await ask(here, asked(**COLD))
    here.clock.forward(MEMORY_S + 1)
    await ask(here, asked(**COLD))
    assert here.providers["a"].requests == 2


async def test_the_shared_store_is_asked_only_for_those_who_asked_for_the_cache() -> None:
    here = world(a=ScriptedProvider())
    await ask(here, asked(**COLD))
    assert (here.answers.reads, here.answers.answers) == (0, {})
    await ask(here, asked(goblin={"cache": True}))
    assert (here.answers.reads, len(here.answers.answers)) == (1, 1)
    elsewhere = world(a=ScriptedProvider())
    elsewhere.answers.answers = here.answers.answers
    assert (await ask(elsewhere, asked(goblin={"cache": True}))).text == "Hello"
    assert elsewhere.providers["a"].requests == 0


async def test_a_store_that_fails_is_a_miss() -> None:
    here = world(a=ScriptedProvider())
    here.answers.down = True
    heard = await ask(here, asked(goblin={"cache": True}))
    assert (heard.text, heard.error) == ("Hello", None)


async def test_memory_is_bounded_and_the_least_used_goes_first() -> None:
    cache = AnswerCache(MemoryAnswers(), FakeClock(), bytes_max=8 * 1024)
    for name in "abcdefgh":
        await cache.keep(name, "x" * 500, "stop", USAGE, shared=False)
    await cache.find("a", shared=False)
    for name in "ijkl":
        await cache.keep(name, "x" * 500, "stop", USAGE, shared=False)
    assert cache._held <= 8 * 1024
    assert await cache.find("a", shared=False)
    assert await cache.find("b", shared=False) is None
    await cache.keep("big", "x" * 8000, "stop", USAGE, shared=False)
    assert await cache.find("big", shared=False) is None


async def test_what_is_over_in_the_store_is_not_given() -> None:
    clock, store = FakeClock(), MemoryAnswers()
    usage = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
    store.answers["k"] = CachedAnswer(text="x", finish_reason="stop", usage=usage, expires_at=clock.now())
    assert await AnswerCache(store, clock).find("k", shared=True) is None
