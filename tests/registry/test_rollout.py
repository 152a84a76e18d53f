from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from goblin.core.errors import MalformedEvent, StoreUnavailable, Transient
from goblin.gateway import health
from goblin.gateway.domain.catalog import Catalog
from goblin.registry import promotion as promotion_service
from goblin.registry import rollout
from goblin.registry.domain.versions import ModelName
from goblin.registry.policy.promotion import PromotionRequest
from tests.fakes.gguf import gguf
from tests.fakes.registry import (
    Crashed,
    FakeBus,
    FakeModelServer,
    FakeObjects,
    FakeRegistry,
    FakeServingStore,
    FixedClock,
)

NAME = ModelName("acme", "tiny")
AT = datetime(2026, 11, 25, 12, tzinfo=UTC)


class Health:
    """Counts how often the endpoints were looked at."""

    looks = 0

    async def all(self) -> dict[str, Any]:
        self.looks += 1
        return {}


class World:
    """A registry, one model server, and what connects them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry, self.bus, self.store = FakeRegistry(), FakeBus(), FakeServingStore()
        self.server, self.clock, self.health = FakeModelServer(self.registry), FixedClock(AT), Health()
        self.models = promotion_service.PromotionDeps(registry=self.registry, bus=self.bus, clock=self.clock)
        self.deps = rollout.RolloutDeps(
            models=self.models,
            objects=FakeObjects(self.registry),  # type: ignore[arg-type]
            servers={"llm": rollout.ModelServerTarget(takes="*", control=self.server)},
            store=self.store,
            health=health.HealthDeps(catalog=Catalog(), providers={}, store=self.health, clock=self.clock),  # type: ignore[arg-type]
        )

    async def promote(self, version: str, name: ModelName = NAME) -> Any:
        """Register and promote; the event of it."""
        self.clock.at += timedelta(minutes=1)
        file = self.folder / "m.gguf"
        file.write_bytes(gguf(f"{name} {version}".encode()))
        await promotion_service.register(name, version, file, actor="ann", progress=lambda _: None, deps=self.models)
        request = PromotionRequest(event_id=f"{name}-{version}", actor="ann", reason="", at=self.clock.at)
        await promotion_service.promote(name, version, expected=None, request=request, deps=self.models)
        return self.bus.published[-1][1]

    def tear(self, name: ModelName, version: str) -> None:
        """Somebody changes the artifact's bytes behind the registry's back."""
        uri = f"gs://b/{name.folder}/{version}/m.gguf"
        artifact, data = self.registry.artifacts[uri]
        self.registry.artifacts[uri] = artifact, data[:-1] + b"!"

    async def serves(self, version: str, name: ModelName = NAME) -> bool:
        found = await self.registry.version(name, version)
        loaded = await self.server.loaded()
        return found is not None and loaded.sha256 == found.artifact.sha256 and loaded.alias == str(name)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_promotion_is_loaded_and_the_router_learns_of_it(world: World) -> None:
    await rollout.follow(await world.promote("1.0.0"), world.deps)
    assert await world.serves("1.0.0")
    assert world.health.looks == 1
    served = (await world.store.get("llm")).served
    assert served is not None
    assert served.version == "1.0.0"


async def test_the_same_event_twice_loads_once(world: World) -> None:
    event = await world.promote("1.0.0")
    await rollout.follow(event, world.deps)
    await rollout.follow(event, world.deps)
    assert len(world.server.loads) == 1


async def test_an_old_event_that_arrives_late_changes_nothing(world: World) -> None:
    old, new = await world.promote("1.0.0"), await world.promote("1.1.0")
    await rollout.follow(new, world.deps)
    await rollout.follow(old, world.deps)
    assert await world.serves("1.1.0")
    assert len(world.server.loads) == 1


@pytest.mark.parametrize(
    "forged", [{"seq": 9}, {"sha256": "f" * 64}, {"model": "other"}, {"org": "../.."}, {"org": ""}, {"model": "a/b"}]
)
async def test_a_forged_event_is_for_a_person(world: World, forged: dict[str, Any]) -> None:
    import msgspec

    event = await world.promote("1.0.0")
    with pytest.raises(MalformedEvent):
        await rollout.follow(msgspec.structs.replace(event, **forged), world.deps)
    assert world.server.loads == []


async def test_a_torn_artifact_is_refused_and_the_old_model_goes_on(world: World) -> None:
    await rollout.follow(await world.promote("1.0.0"), world.deps)
    event = await world.promote("1.1.0")
    world.tear(NAME, "1.1.0")
    await rollout.follow(event, world.deps)
    await rollout.follow(event, world.deps)
    assert await world.serves("1.0.0")
    known = await world.store.get("llm")
    assert known.refused is not None
    assert known.refused.version == "1.1.0"
    assert "digest" in known.refusal
    assert len(world.server.loads) == 2  # What was refused is not tried again.

    world.server.restart()
    await rollout.tick(world.deps)
    assert await world.serves("1.0.0")
    assert (await world.store.get("llm")).refusal  # Still visible.

    await rollout.follow(await world.promote("1.2.0"), world.deps)
    assert await world.serves("1.2.0")
    assert (await world.store.get("llm")).refused is None


async def test_after_a_restart_the_promoted_model_is_served_again(world: World) -> None:
    await rollout.follow(await world.promote("1.0.0"), world.deps)
    world.server.restart()
    await rollout.tick(world.deps)
    assert await world.serves("1.0.0")


async def test_without_promotions_a_server_is_not_even_asked(world: World) -> None:
    world.server.down = StoreUnavailable("asleep")
    await rollout.tick(world.deps)


async def test_the_tick_publishes_what_a_dead_promoter_did_not(world: World) -> None:
    world.bus.down = True
    world.clock.at += timedelta(minutes=1)
    with pytest.raises(IndexError):
        await world.promote("1.0.0")
    world.bus.down = False
    await rollout.tick(world.deps)
    assert [event.seq for _, event in world.bus.published] == [1]  # type: ignore[attr-defined]
    await rollout.tick(world.deps)
    assert len(world.bus.published) == 1
    assert await world.serves("1.0.0")


async def test_a_promotion_made_during_a_load_is_loaded_next(world: World) -> None:
    event = await world.promote("1.0.0")
    second = await world.promote("1.1.0")
    newest = world.registry.moves[NAME]
    world.registry.moves[NAME] = replace(newest, promotion=world.registry.past[NAME, 1])

    def meanwhile() -> None:
        world.registry.moves[NAME] = newest

    world.server.before_swap = meanwhile
    await rollout.follow(event, world.deps)
    assert await world.serves("1.1.0")
    await rollout.follow(second, world.deps)
    assert len(world.server.loads) == 2


async def test_a_crash_between_the_load_and_its_record_is_made_good(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = await world.promote("1.0.0")

    async def die(_serving: Any) -> None:
        raise Crashed

    with monkeypatch.context() as patched:
        patched.setattr(world.store, "put", die)
        with pytest.raises(Crashed):
            await rollout.follow(event, world.deps)
    await rollout.follow(event, world.deps)
    assert len(world.server.loads) == 1
    assert (await world.store.get("llm")).served is not None


async def test_a_tick_without_work_lists_the_bucket_once(world: World) -> None:
    """A list is what a month of idle pays most for."""
    servers = {name: rollout.ModelServerTarget(takes="*", control=world.server) for name in ("llm", "big")}
    deps = replace(world.deps, servers=servers)
    await rollout.follow(await world.promote("1.0.0"), deps)
    world.registry.lists = 0
    await rollout.tick(deps)
    assert world.registry.lists == 1


async def test_a_server_that_is_down_holds_up_no_other(world: World) -> None:
    down = FakeModelServer(world.registry, down=StoreUnavailable("no answer"))
    world.deps.servers["down"] = rollout.ModelServerTarget(takes="*", control=down)  # type: ignore[index]
    order = {"down": world.deps.servers["down"], "llm": world.deps.servers["llm"]}
    deps = replace(world.deps, servers=order)
    with pytest.raises(Transient):
        await rollout.follow(await world.promote("1.0.0"), deps)
    assert await world.serves("1.0.0")
    down.down = None
    await rollout.tick(deps)
    assert (await down.loaded()).alias == "acme/tiny"


async def test_each_server_takes_the_model_it_is_for(world: World) -> None:
    other = ModelName("acme", "big")
    second = FakeModelServer(world.registry)
    servers = {
        "llm": rollout.ModelServerTarget(takes="acme/tiny", control=world.server),
        "big": rollout.ModelServerTarget(takes="acme/big", control=second),
    }
    deps = replace(world.deps, servers=servers)
    await rollout.follow(await world.promote("1.0.0"), deps)
    await rollout.follow(await world.promote("7.0.0", other), deps)
    assert await world.serves("1.0.0")
    assert (await second.loaded()).alias == "acme/big"


async def test_who_took_a_promotion_is_known_once_all_have_answered(world: World) -> None:
    event = await world.promote("1.0.0")
    promotion = (await world.registry.pointer(NAME)).promotion
    assert await rollout.uptake(promotion, world.deps) == rollout.Uptake(pending=("llm",))
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        world.clock.at += timedelta(seconds=seconds)
        if len(pauses) == 3:
            await rollout.follow(event, world.deps)

    found = await rollout.wait_for_uptake(promotion, world.deps, within_s=60, pause=pause)
    assert (found, len(pauses)) == (rollout.Uptake(served_by=("llm",)), 3)
    # It is refused; the wait for one that never answers is bounded.
    event = await world.promote("1.1.0")
    world.tear(NAME, "1.1.0")
    later = (await world.registry.pointer(NAME)).promotion
    silent = await rollout.wait_for_uptake(later, world.deps, within_s=5, pause=pause)
    assert silent == rollout.Uptake(pending=("llm",))
    await rollout.follow(event, world.deps)
    refused = await rollout.wait_for_uptake(later, world.deps, within_s=5, pause=pause)
    assert (refused.served_by, list(refused.refused_by), refused.pending) == ((), ["llm"], ())
    # The operator's own machine does not know the server's address.
    away = replace(world.deps, servers={})
    assert (await rollout.uptake(promotion, away)).served_by == ("llm",)
    assert list((await rollout.uptake(later, away)).refused_by) == ["llm"]
