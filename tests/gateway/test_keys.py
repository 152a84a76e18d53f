"""Who is let in, and how often the store is asked."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from goblin.core.errors import Forbidden, RateLimited, StoreUnavailable, Unauthenticated
from goblin.gateway import keys as service
from goblin.gateway.keys import Keys, digest_of
from goblin.gateway.ports import ApiKey, Scope
from tests.fakes.inference import FakeClock
from tests.fakes.stores import MemoryKeys

KEY = "sk-secret"


class Door:
    def __init__(self) -> None:
        self.clock, self.store = FakeClock(), MemoryKeys()
        self.keys = Keys(self.store, self.clock)
        digest = digest_of(KEY)
        self.store.keys[digest] = ApiKey(digest=digest, name="me", created_at=self.clock.now())

    async def knock(self, key: str = KEY) -> ApiKey:
        return await self.keys.authenticate(f"Bearer {key}")

    def disable(self) -> None:
        digest = digest_of(KEY)
        self.store.keys[digest] = replace(self.store.keys[digest], disabled=True)


@pytest.fixture
def door() -> Door:
    return Door()


async def test_a_good_key_is_looked_up_once_a_minute(door: Door) -> None:
    assert [(await door.knock()).name for _ in range(3)] == ["me"] * 3
    assert door.store.reads == 1
    door.clock.forward(service.BELIEVED_S)
    await door.knock()
    assert door.store.reads == 2


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic c2s6", KEY, "Bearer sk-wrong", f"Bearer {'x' * 600}", "Bearer é\x00"],
)
async def test_nobody_else_is_let_in(door: Door, header: str | None) -> None:
    with pytest.raises(Unauthenticated):
        await door.keys.authenticate(header)


@pytest.mark.parametrize("header", [f"bearer {KEY}", f"BEARER  {KEY} "])
async def test_the_scheme_may_be_written_in_any_case(door: Door, header: str) -> None:
    assert (await door.keys.authenticate(header)).name == "me"


async def test_a_revoked_key_stops_within_a_minute(door: Door) -> None:
    await door.knock()
    door.disable()
    door.clock.forward(service.BELIEVED_S)
    with pytest.raises(Unauthenticated):
        await door.knock()


async def test_a_new_key_works_within_seconds_of_a_first_refusal(door: Door) -> None:
    with pytest.raises(Unauthenticated):
        await door.knock("sk-new")
    digest = digest_of("sk-new")
    door.store.keys[digest] = ApiKey(digest=digest, name="new", created_at=door.clock.now())
    with pytest.raises(Unauthenticated):
        await door.knock("sk-new")
    door.clock.forward(service.DISBELIEVED_S)
    assert (await door.knock("sk-new")).name == "new"


async def test_when_the_store_is_silent_only_the_known_are_let_in_and_not_for_long(door: Door) -> None:
    await door.knock()
    door.store.down = True
    assert (await door.knock()).name == "me"
    with pytest.raises(StoreUnavailable):
        await door.knock("sk-other")
    door.clock.forward(service.BELIEVED_S)
    with pytest.raises(StoreUnavailable):
        await door.knock()


async def test_strangers_cannot_fill_the_memory(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CACHED_MAX", 10)
    for number in range(100):
        with pytest.raises(Unauthenticated):
            await door.knock(f"sk-{number}")
    assert len(door.keys._cache) == 10


async def test_neither_key_nor_guess_is_kept(door: Door) -> None:
    await door.knock()
    assert KEY not in repr(door.store.keys) + repr(door.keys._cache)


async def test_a_key_that_ends_is_refused_from_then_on_also_when_it_is_believed(door: Door) -> None:
    digest, until = digest_of(KEY), door.clock.now() + timedelta(seconds=service.BELIEVED_S / 2)
    door.store.keys[digest] = replace(door.store.keys[digest], expires_at=until)
    assert (await door.knock()).name == "me"
    door.clock.forward(service.BELIEVED_S / 2)
    with pytest.raises(Unauthenticated, match="expired"):
        await door.knock()
    assert door.store.reads == 1


async def test_lookups_of_one_key_at_once_are_one(door: Door) -> None:
    found = await asyncio.gather(*(door.knock() for _ in range(20)))
    assert {key.name for key in found} == {"me"}
    assert door.store.reads == 1


async def test_one_who_leaves_does_not_take_the_answer_from_the_others(door: Door) -> None:
    first, second = asyncio.create_task(door.knock()), asyncio.create_task(door.knock())
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).name == "me"


async def test_a_revoked_key_is_dead_sixty_seconds_after_the_store_was_asked(door: Door) -> None:
    get = door.store.get

    async def slow(digest: str) -> ApiKey | None:
        found = await get(digest)
        door.clock.forward(2.5)  # The answer takes its time, and is as old as the question.
        return found

    door.store.get = slow  # type: ignore[method-assign]
    await door.knock()
    door.disable()
    door.clock.forward(57.5)
    with pytest.raises(Unauthenticated):
        await door.knock()


async def test_made_up_keys_do_not_become_a_flood_of_reads(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LOOKUPS_MAX", 2)
    found = await asyncio.gather(*(door.knock(f"sk-{n}") for n in range(5)), return_exceptions=True)
    assert [type(error) for error in found].count(RateLimited) == 3
    assert door.store.reads == 2


@pytest.mark.parametrize(
    ("scopes", "asked", "let_in"),
    [
        (("inference",), "inference", True),
        (("inference",), "jobs", False),
        ((), "inference", False),
        (("flying",), "jobs", False),
    ],
)
async def test_a_key_is_good_for_what_it_is_for(door: Door, scopes: tuple[str, ...], asked: str, let_in: bool) -> None:
    digest = digest_of(KEY)
    door.store.keys[digest] = replace(door.store.keys[digest], scopes=scopes)
    try:
        await door.keys.authenticate(f"Bearer {KEY}", Scope(asked))
    except Forbidden:
        assert not let_in
    else:
        assert let_in


@pytest.mark.parametrize(
    ("models", "model", "may"),
    [
        (None, "m", True),
        (("m",), "m", True),
        (("m",), "m2", False),
        (("org/*",), "org/big", True),
        (("org/*",), "organ", False),
        ((), "m", False),
        (("*",), "m", True),
    ],
)
def test_a_key_is_for_its_models(door: Door, models: tuple[str, ...] | None, model: str, may: bool) -> None:
    key = replace(door.store.keys[digest_of(KEY)], models=models)
    assert service.may_ask(key, model) is may


def test_a_key_without_a_tenant_shares_nothing(door: Door) -> None:
    key = door.store.keys[digest_of(KEY)]
    other = replace(key, digest="ab" * 32)
    assert key.owner != other.owner
    assert replace(key, tenant="t").owner == replace(other, tenant="t").owner
    # A tenant cannot be named so that it is somebody's key.
    assert replace(other, tenant=f"key:{key.digest}").owner != key.owner
