"""Who is let in, and how often the store is asked."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

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
def admission() -> Door:
    return Door()


async def test_a_good_key_is_looked_up_once_a_minute(admission: Door) -> None:
    assert [(await admission.knock()).name for _ in range(3)] == ["me"] * 3
    assert admission.store.reads == 1
    admission.clock.forward(service.CACHE_TTL_S)
    await admission.knock()
    assert admission.store.reads == 2


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic c2s6", KEY, "Bearer sk-wrong", f"Bearer {'x' * 600}", "Bearer é\x00"],
)
async def test_nobody_else_is_let_in(admission: Door, header: str | None) -> None:
    with pytest.raises(Unauthenticated):
        await admission.keys.authenticate(header)


@pytest.mark.parametrize("header", [f"bearer {KEY}", f"BEARER  {KEY} "])
async def test_the_scheme_may_be_written_in_any_case(admission: Door, header: str) -> None:
    assert (await admission.keys.authenticate(header)).name == "me"


async def test_a_revoked_key_stops_within_a_minute(admission: Door) -> None:
    await admission.knock()
    admission.disable()
    admission.clock.forward(service.CACHE_TTL_S)
    with pytest.raises(Unauthenticated):
        await admission.knock()


async def test_a_new_key_works_within_seconds_of_a_first_refusal(admission: Door) -> None:
    with pytest.raises(Unauthenticated):
        await admission.knock("sk-new")
    digest = digest_of("sk-new")
    admission.store.keys[digest] = ApiKey(digest=digest, name="new", created_at=admission.clock.now())
    with pytest.raises(Unauthenticated):
        await admission.knock("sk-new")
    admission.clock.forward(service.NEGATIVE_CACHE_TTL_S)
    assert (await admission.knock("sk-new")).name == "new"


async def test_when_the_store_is_silent_only_the_known_are_let_in_and_not_for_long(admission: Door) -> None:
    await admission.knock()
    admission.store.down = True
    assert (await admission.knock()).name == "me"
    with pytest.raises(StoreUnavailable):
        await admission.knock("sk-other")
    admission.clock.forward(service.CACHE_TTL_S)
    with pytest.raises(StoreUnavailable):
        await admission.knock()


async def test_strangers_cannot_fill_the_memory(admission: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CACHED_MAX", 10)
    for number in range(100):
        with pytest.raises(Unauthenticated):
            await admission.knock(f"sk-{number}")
    assert len(admission.keys._cache) == 10


async def test_neither_key_nor_guess_is_kept(admission: Door) -> None:
    await admission.knock()
    assert KEY not in repr(admission.store.keys) + repr(admission.keys._cache)


async def test_a_key_that_ends_is_refused_from_then_on_also_when_it_is_believed(admission: Door) -> None:
    digest, until = digest_of(KEY), admission.clock.now() + timedelta(seconds=service.CACHE_TTL_S / 2)
    admission.store.keys[digest] = replace(admission.store.keys[digest], expires_at=until)
    assert (await admission.knock()).name == "me"
    admission.clock.forward(service.CACHE_TTL_S / 2)
    with pytest.raises(Unauthenticated, match="expired"):
        await admission.knock()
    assert admission.store.reads == 1


async def test_lookups_of_one_key_at_once_are_one(admission: Door) -> None:
    found = await asyncio.gather(*(admission.knock() for _ in range(20)))
    assert {key.name for key in found} == {"me"}
    assert admission.store.reads == 1


async def test_one_who_leaves_does_not_take_the_answer_from_the_others(admission: Door) -> None:
    first, second = asyncio.create_task(admission.knock()), asyncio.create_task(admission.knock())
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).name == "me"


async def test_a_revoked_key_is_dead_sixty_seconds_after_the_store_was_asked(admission: Door) -> None:
    get = admission.store.get

    async def slow(digest: str) -> ApiKey | None:
        found = await get(digest)
        admission.clock.forward(2.5)  # The answer takes its time, and is as old as the question.
        return found

    admission.store.get = slow  # type: ignore[method-assign]
    await admission.knock()
    admission.disable()
    admission.clock.forward(57.5)
    with pytest.raises(Unauthenticated):
        await admission.knock()


async def test_made_up_keys_do_not_become_a_flood_of_reads(admission: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LOOKUPS_MAX", 2)
    found = await asyncio.gather(*(admission.knock(f"sk-{n}") for n in range(5)), return_exceptions=True)
    assert [type(error) for error in found].count(RateLimited) == 3
    assert admission.store.reads == 2


@pytest.mark.parametrize(
    ("scopes", "asked", "let_in"),
    [
        (("inference",), "inference", True),
        (("inference",), "jobs", False),
        ((), "inference", False),
        (("flying",), "jobs", False),
    ],
)
async def test_a_key_is_good_for_what_it_is_for(
    admission: Door, scopes: tuple[str, ...], asked: str, let_in: bool
) -> None:
    digest = digest_of(KEY)
    admission.store.keys[digest] = replace(admission.store.keys[digest], scopes=scopes)
    try:
        await admission.keys.authenticate(f"Bearer {KEY}", Scope(asked))
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
def test_a_key_is_for_its_models(admission: Door, models: tuple[str, ...] | None, model: str, may: bool) -> None:
    key = replace(admission.store.keys[digest_of(KEY)], models=models)
    assert service.may_ask(key, model) is may


def test_a_key_without_a_tenant_shares_nothing(admission: Door) -> None:
    key = admission.store.keys[digest_of(KEY)]
    other = replace(key, digest="ab" * 32)
    assert key.owner != other.owner
    assert replace(key, tenant="t").owner == replace(other, tenant="t").owner
    # A tenant cannot be named so that it is somebody's key.
    assert replace(other, tenant=f"key:{key.digest}").owner != key.owner


ASKER = "cd" * 32


def attempts_key(door: Door, own_models: tuple[str, ...] | None = ("m", "org/x"), **asker: Any) -> None:
    """The key in the store becomes an attempt's, and another one has asked for its job."""
    digest = digest_of(KEY)
    own = door.store.keys[digest]
    door.store.keys[ASKER] = replace(own, digest=ASKER, **{"name": "ann", **asker})
    door.store.keys[digest] = replace(own, name="job:j", asker=ASKER, models=own_models, scopes=("inference",))


@pytest.mark.parametrize(
    ("own", "askers", "both"),
    [
        (("m", "org/x"), None, ("m", "org/x")),
        (("m", "org/x"), ("m",), ("m",)),
        (("m", "org/x"), ("org/*",), ("org/x",)),
        (("m", "org/x"), (), ()),
        (("m",), ("n",), ()),
        ((), None, ()),
        # Stored before attempts' keys named their models.
        (None, ("n", "org/*"), ("n", "org/*")),
        (None, None, None),
    ],
)
async def test_an_attempts_key_may_ask_what_both_may(
    admission: Door, own: tuple[str, ...] | None, askers: tuple[str, ...] | None, both: tuple[str, ...] | None
) -> None:
    attempts_key(admission, own, models=askers)
    assert (await admission.knock()).models == both


async def test_an_attempts_key_has_its_askers_limits_and_counts_with_it(admission: Door) -> None:
    attempts_key(admission, rate_per_minute=7, parallel_max=2)
    key = await admission.knock()
    assert (key.rate_per_minute, key.parallel_max, key.asker_name, key.counted_as) == (7, 2, "ann", ASKER)
    # It shares no answers with its tenant: it lies on a machine that is not ours.
    assert key.owner == f"key:{digest_of(KEY)}"


@pytest.mark.parametrize(
    "gone", [{"disabled": True}, {"expires_at": FakeClock().now()}, {"scopes": ("inference", "operate")}, None]
)
async def test_an_attempts_key_is_refused_with_its_asker(admission: Door, gone: dict[str, Any] | None) -> None:
    attempts_key(admission, **(gone or {}))
    if gone is None:
        del admission.store.keys[ASKER]
    with pytest.raises(Unauthenticated) as refused:
        await admission.knock()
    assert refused.value.code == "asker_refused"


async def test_an_asker_that_is_revoked_stops_its_attempts_within_a_minute(admission: Door) -> None:
    attempts_key(admission)
    await admission.knock()
    admission.store.keys[ASKER] = replace(admission.store.keys[ASKER], disabled=True)
    admission.clock.forward(61)
    with pytest.raises(Unauthenticated, match="asked for this job"):
        await admission.knock()


async def test_either_of_several_scopes_will_do(admission: Door) -> None:
    digest = digest_of(KEY)
    admission.store.keys[digest] = replace(admission.store.keys[digest], scopes=("operate",))
    assert (await admission.keys.authenticate(f"Bearer {KEY}", Scope.JOBS, Scope.OPERATE)).name == "me"
    with pytest.raises(Forbidden, match="`inference` or `jobs`"):
        await admission.keys.authenticate(f"Bearer {KEY}", Scope.INFERENCE, Scope.JOBS)
