"""Transactions interleaved in every way are as if they had run one after the other, in both modes."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localcloud.firestore.refusals import Refused
from localcloud.firestore.transactions import Mode
from tests.localcloud.firestore_room import Room

PATHS = ["c/0", "c/1", "c/2"]
BOUND = 5
DEADLINE_S = 8
State = dict[str, int]


@dataclass(frozen=True)
class Read:
    path: str


@dataclass(frozen=True)
class QueryAll:
    """Every document whose `n` is above the bound."""


@dataclass(frozen=True)
class Set:
    path: str
    added: int
    """What is written is the sum of all that was read, plus this."""


@dataclass(frozen=True)
class Delete:
    path: str


@dataclass
class Program:
    """One transaction: what it reads, then what it writes."""

    reads: list[Read | QueryAll]
    writes: list[Set | Delete]
    kind: Literal["transaction", "plain"]
    seen: list[Any] = field(default_factory=list)
    end: str = "running"

    def changes(self) -> dict[str, int | None]:
        total = sum(sum(one.values()) if isinstance(one, dict) else one or 0 for one in self.seen) % 10
        return {
            write.path: None if isinstance(write, Delete) else total + write.added
            for write in self.writes
        }  # fmt: skip

    def replay(self, state: State) -> State | None:
        """The state after it runs alone; None when it would have seen something else."""
        expected = [
            {path: n for path, n in state.items() if n > BOUND} if isinstance(read, QueryAll) else state.get(read.path)
            for read in self.reads
        ]
        if self.kind == "transaction" and expected != self.seen:
            return None
        after = dict(state)
        for path, n in self.changes().items():
            if n is None:
                after.pop(path, None)
            else:
                after[path] = n
        return after


paths = st.sampled_from(PATHS)
programs = st.builds(
    Program,
    reads=st.lists(st.builds(Read, paths) | st.just(QueryAll()), max_size=3),
    writes=st.lists(st.builds(Set, paths, st.integers(0, 9)) | st.builds(Delete, paths), max_size=2),
    kind=st.sampled_from(["transaction", "transaction", "transaction", "plain"]),
)


async def end_of(commit: Coroutine[Any, Any, Any]) -> str:
    """How a commit ends."""
    try:
        await commit
    except Refused as refused:
        return refused.code.name
    return "committed"


async def steps(room: Room, program: Program, turn: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a program, waiting for its turn before every call."""
    transaction = b""
    if program.kind == "plain":
        program.reads = []
    else:
        await turn()
        transaction = room.begin()
    for read in program.reads:
        await turn()
        if isinstance(read, Read):
            program.seen.append(await room.read(read.path, transaction))
        else:
            program.seen.append(await room.query_above("c", BOUND, transaction))
    await turn()
    program.end = await end_of(room.commit(program.changes(), transaction))


async def interleave(room: Room, running: list[Program], schedule: list[int]) -> None:
    """Let one program after the other take one step, as the schedule says; who waits for a lock is passed over."""
    gates = [asyncio.Semaphore(0) for _ in running]
    tasks = [
        asyncio.create_task(steps(room, program, lambda gate=gate: gate.acquire()))  # type: ignore[misc]
        for program, gate in zip(running, gates, strict=True)
    ]
    for number in schedule:
        gates[number % len(gates)].release()
        for _ in range(8):
            await asyncio.sleep(0)
    for gate in gates:
        for _ in range(8):
            gate.release()
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*tasks)


def is_serial(start: State, end: State, committed: list[Program]) -> bool:
    """Whether some order of the committed programs sees and leaves the same."""
    for order in itertools.permutations(committed):
        state: State | None = dict(start)
        for program in order:
            state = program.replay(state) if state is not None else None
        if state == end:
            return True
    return False


@pytest.mark.parametrize("mode", ["pessimistic", "optimistic"])
@settings(max_examples=250, deadline=None)
@given(
    running=st.lists(programs, min_size=2, max_size=4),
    schedule=st.lists(st.integers(0, 3), max_size=24),
    start=st.dictionaries(paths, st.integers(0, 12), max_size=3),
)
def test_every_interleaving_is_as_if_one_after_the_other(
    mode: Mode, running: list[Program], schedule: list[int], start: State
) -> None:
    async def run() -> State:
        room = Room(mode)
        await room.commit(dict(start))
        await interleave(room, running, schedule)
        end = {path: await room.read(path) for path in PATHS}
        assert room.transactions.locks.held == 0, "an ended transaction still holds locks"
        assert room.documents.versions_kept == 0, "versions are kept that nobody can read"
        return {path: n for path, n in end.items() if n is not None}

    end = asyncio.run(run())
    assert {program.end for program in running} <= {"committed", "ABORTED"}
    committed = [program for program in running if program.end == "committed"]
    assert committed, "nobody got through"
    assert is_serial(start, end, committed)


def _write_skew(mode: Mode) -> list[str]:
    """Two that each read what the other writes; returns how each ended."""

    async def run() -> list[str]:
        room = Room(mode, wait_s=DEADLINE_S)
        await room.commit({"c/0": 1, "c/1": 1})
        first, second = room.begin(), room.begin()
        await asyncio.gather(room.read("c/0", first), room.read("c/1", second))
        crossed = [
            asyncio.create_task(room.read("c/1", first)),
            asyncio.create_task(room.read("c/0", second)),
        ]
        await crossed[0]
        ends = [await end_of(room.commit({"c/0": 0}, first))]
        await crossed[1]
        return [*ends, await end_of(room.commit({"c/1": 0}, second))]

    return asyncio.run(asyncio.wait_for(run(), DEADLINE_S))


@pytest.mark.parametrize("mode", ["pessimistic", "optimistic"])
def test_write_skew_is_refused_to_the_younger(mode: Mode) -> None:
    assert _write_skew(mode) == ["committed", "ABORTED"]


@pytest.mark.parametrize("mode", ["pessimistic", "optimistic"])
async def test_a_phantom_is_a_conflict(mode: Mode) -> None:
    room = Room(mode)
    transaction = room.begin()
    assert await room.query_above("c", BOUND, transaction) == {}
    await room.commit({"c/new": 9})
    with pytest.raises(Refused, match="differently"):
        await room.commit({"c/sum": 0}, transaction)


async def test_optimistic_reads_show_one_instant() -> None:
    room = Room("optimistic")
    await room.commit({"c/0": 1, "c/1": 1})
    transaction = room.begin()
    assert await room.read("c/0", transaction) == 1
    await room.commit({"c/0": 2, "c/1": 2})
    assert await room.read("c/1", transaction) == 1
    assert await room.query_above("c", 0, transaction) == {"c/0": 1, "c/1": 1}
    with pytest.raises(Refused):
        await room.commit({"c/2": 0}, transaction)


async def test_snapshots_of_two_times_show_two_states() -> None:
    room = Room("optimistic")
    await room.commit({"c/0": 1, "c/1": 1})
    early = room.begin(read_only={})
    await room.commit({"c/0": 2, "c/1": None, "c/2": 2})
    late = room.begin(read_only={})
    await room.commit({"c/0": 3, "c/1": 3, "c/2": None})
    assert await room.query_above("c", 0, early) == {"c/0": 1, "c/1": 1}
    assert await room.query_above("c", 0, late) == {"c/0": 2, "c/2": 2}
    await room.commit({}, early)
    assert [await room.read(path, late) for path in PATHS] == [2, None, 2]
    await room.commit({}, late)
    assert room.documents.versions_kept == 0
