"""Who is let in, and how often the store is asked."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from goblin.errors import StoreUnavailable, Unauthenticated
from goblin.ports import ApiKey
from goblin.services import keys as service
from goblin.services.keys import Keys, digest_of
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
