import asyncio
import contextlib
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goblin.core.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable
from goblin.registry import promotion
from goblin.registry.domain.versions import ModelName
from goblin.registry.policy.promotion import PromotionRequest
from tests.fakes.gguf import gguf
from tests.fakes.registry import Crashed, FakeBus, FakeRegistry, FixedClock

NAME = ModelName("acme", "tiny")
AT = datetime(2026, 11, 25, 12, tzinfo=UTC)


def quiet(_done: int) -> None:
    pass


def request(event_id: str = "e") -> PromotionRequest:
    return PromotionRequest(event_id=event_id, actor="ann", reason="", at=AT)


@pytest.fixture
def deps() -> promotion.PromotionDeps:
    return promotion.PromotionDeps(registry=FakeRegistry(), bus=FakeBus(), clock=FixedClock(AT))


async def register(deps: promotion.PromotionDeps, tmp_path: Path, version: str) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf(version.encode()))
    await promotion.register(NAME, version, file, actor="ann", progress=quiet, deps=deps)


async def promote(
    deps: promotion.PromotionDeps, version: str, event_id: str = "e", expected: str | None = None
) -> promotion.PromotionOutcome:
    return await promotion.promote(NAME, version, expected=expected, request=request(event_id), deps=deps)


def seqs(deps: Any) -> list[int]:
    return [event.seq for _, event in deps.bus.published]


async def test_registering_twice_is_registering_once(deps: promotion.PromotionDeps, tmp_path: Path) -> None:
    await register(deps, tmp_path, "1.0.0")
    await register(deps, tmp_path, "1.0.0")
    assert len(await deps.registry.versions()) == 1


async def test_a_version_never_changes(deps: promotion.PromotionDeps, tmp_path: Path) -> None:
    await register(deps, tmp_path, "1.0.0")
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf(b"other"))
    with pytest.raises(Conflict):
        await promotion.register(NAME, "1.0.0", other, actor="ann", progress=quiet, deps=deps)
    (tmp_path / "m.gguf").write_bytes(gguf(b"changed"))
    with pytest.raises(Conflict):
        await promotion.register(NAME, "1.0.0", tmp_path / "m.gguf", actor="ann", progress=quiet, deps=deps)


async def test_only_a_gguf_is_registered(deps: promotion.PromotionDeps, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"PK\x03\x04")
    with pytest.raises(InvalidRequest, match="not a GGUF"):
        await promotion.register(NAME, "1.0.0", file, actor="ann", progress=quiet, deps=deps)


async def test_a_gguf_that_was_cut_off_is_not_uploaded(deps: Any, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf(b"weights" * 100)[:-1])
    with pytest.raises(InvalidRequest, match="cut off: its tensors end at byte"):
        await promotion.register(NAME, "1.0.0", file, actor="ann", progress=quiet, deps=deps)
    assert deps.registry.artifacts == {}


async def test_a_version_without_a_manifest_cannot_be_promoted(deps: promotion.PromotionDeps) -> None:
    with pytest.raises(NotFound):
        await promote(deps, "1.0.0")


async def test_the_event_follows_from_the_move(deps: Any, tmp_path: Path) -> None:
    await register(deps, tmp_path, "1.0.0")
    moved = await promote(deps, "1.0.0", "x")
    ((topic, event),) = deps.bus.published
    assert topic == "model-promoted"
    assert (event.org, event.model, event.version, event.seq, event.event_id) == ("acme", "tiny", "1.0.0", 1, "x")
    assert event.sha256 == moved.promotion.artifact.sha256
    assert moved.changed
    assert moved.announced
    again = await promote(deps, "1.0.0", "y")
    assert not again.changed
    assert seqs(deps) == [1]


async def test_an_answer_that_was_lost_is_found_again(deps: Any, tmp_path: Path) -> None:
    await register(deps, tmp_path, "1.0.0")
    deps.registry.lose_answer = True
    assert (await promote(deps, "1.0.0")).changed
    assert seqs(deps) == [1]


async def test_a_move_that_never_arrived_is_no_success(
    deps: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(deps, tmp_path, "1.0.0")

    async def broken(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("down")

    monkeypatch.setattr(deps.registry, "move", broken)
    with pytest.raises(StoreUnavailable):
        await promote(deps, "1.0.0")
    assert seqs(deps) == []


async def test_a_silent_topic_does_not_take_back_a_move_and_holds_up_the_next(deps: Any, tmp_path: Path) -> None:
    for version in ("1.0.0", "1.1.0"):
        await register(deps, tmp_path, version)
    deps.bus.down = True
    moved = await promote(deps, "1.0.0")
    assert moved.changed
    assert not moved.announced
    with pytest.raises(StoreUnavailable):
        await promote(deps, "1.1.0", "f")  # Or the event of 1.0.0 would be lost.
    deps.bus.down = False
    await promote(deps, "1.1.0", "f")
    assert seqs(deps) == [1, 2]


async def test_a_rollback_is_a_move_like_any_other(deps: Any, tmp_path: Path) -> None:
    for number, version in enumerate(("1.0.0", "1.1.0", "1.2.0")):
        await register(deps, tmp_path, version)
        await promote(deps, version, f"e{number}")
    for version in ("1.1.0", "1.0.0"):
        moved = await promotion.rollback(NAME, expected=None, request=request(f"back-to-{version}"), deps=deps)
        assert moved.promotion.version == version
        assert moved.before == {"1.1.0": "1.2.0", "1.0.0": "1.1.0"}[version]
    with pytest.raises(Conflict, match="first version"):
        await promotion.rollback(NAME, expected=None, request=request("too far"), deps=deps)
    assert seqs(deps) == [1, 2, 3, 4, 5]
    past = await promotion.history(NAME, deps)
    assert [move.seq for move in past] == [5, 4, 3, 2, 1]
    with pytest.raises(NotFound):
        await promotion.rollback(ModelName("acme", "none"), expected=None, request=request(), deps=deps)


class Interrupted:
    """Wraps a port: before its n-th write or publication the process dies, or after it when `late`."""

    def __init__(self, inner: Any, step: Callable[[], None]) -> None:
        self._inner = inner
        self._step = step

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._inner, name)
        if name not in ("move", "append_history", "publish"):
            return call

        async def stepped(*words: Any, **named: Any) -> Any:
            self._step()
            result = await call(*words, **named)
            self._step()
            return result

        return stepped


@pytest.mark.parametrize("dies_at", range(1, 7))
async def test_a_crash_anywhere_loses_no_event_and_leaves_no_gap(deps: Any, tmp_path: Path, dies_at: int) -> None:
    for version in ("1.0.0", "1.1.0"):
        await register(deps, tmp_path, version)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == dies_at:
            raise Crashed

    dying = promotion.PromotionDeps(
        registry=Interrupted(deps.registry, step), bus=Interrupted(deps.bus, step), clock=deps.clock  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(Crashed):
        await promote(dying, "1.0.0", "first")
    # Somebody else comes along, knowing nothing of it.
    await promote(deps, "1.0.0", "again")
    await promote(deps, "1.1.0", "next")
    assert sorted(set(seqs(deps))) == [1, 2]
    assert sorted(seq for _, seq in deps.registry.past) == [1, 2]
    by_seq: dict[int, set[str]] = {}
    for _, event in deps.bus.published:
        by_seq.setdefault(event.seq, set()).add(event.event_id)
    assert all(len(ids) == 1 for ids in by_seq.values())  # Doubled perhaps, contradicted never.


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), writers=st.integers(2, 5), wishes=st.integers(1, 3))
def test_racing_promotions_win_once_per_generation(seed: int, writers: int, wishes: int, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("race")

    async def race() -> None:
        rng = random.Random(seed)
        registry, bus = FakeRegistry(), FakeBus()

        class Yielding:
            """Lets the others run at every call, in an order the dice choose."""

            def __init__(self, inner: Any) -> None:
                self._inner = inner

            def __getattr__(self, name: str) -> Any:
                async def later(*words: Any, **named: Any) -> Any:
                    for _ in range(rng.randrange(3)):
                        await asyncio.sleep(0)
                    result = await getattr(self._inner, name)(*words, **named)
                    for _ in range(rng.randrange(3)):
                        await asyncio.sleep(0)
                    return result

                return later

        plain = promotion.PromotionDeps(registry=registry, bus=bus, clock=FixedClock(AT))
        for n in range(writers * wishes):
            await register(plain, folder, f"1.0.{n}")
        deps = promotion.PromotionDeps(registry=Yielding(registry), bus=Yielding(bus), clock=FixedClock(AT))  # type: ignore[arg-type]
        won: list[promotion.PromotionOutcome] = []

        async def writer(number: int) -> None:
            for wish in range(wishes):
                version = f"1.0.{number * wishes + wish}"
                with contextlib.suppress(Conflict):
                    won.append(await promote(deps, version, f"{number}-{wish}"))

        await asyncio.gather(*(writer(number) for number in range(writers)))
        pointer = await registry.pointer(NAME)
        assert pointer is not None
        last = pointer.promotion.seq
        assert sorted(moved.promotion.seq for moved in won) == list(range(1, last + 1))  # One winner per generation.
        assert sorted(seq for _, seq in registry.past) == list(range(1, last + 1))
        assert {event.seq for _, event in bus.published} == set(range(1, last + 1))  # type: ignore[attr-defined]
        for moved in won:
            assert registry.past[NAME, moved.promotion.seq] == moved.promotion

    asyncio.run(race())


async def test_expecting_what_is_there_makes_a_stale_promotion_lose(deps: Any, tmp_path: Path) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        await register(deps, tmp_path, version)
    await promote(deps, "1.0.0", "a", expected="none")
    await promote(deps, "1.1.0", "b", expected="1.0.0")
    with pytest.raises(Conflict, match=r"1\.1\.0, not 1\.0\.0"):
        await promote(deps, "1.2.0", "c", expected="1.0.0")
    assert AT + timedelta(0) == (await deps.registry.pointer(NAME)).promotion.promoted_at
