"""Placing and planning, without a model."""

from hypothesis import given
from hypothesis import strategies as st

from goblin_llamacpp.queue import FairQueue
from goblin_llamacpp.slots import Slot, choose_adapters, common_prefix, place, plan_batch

tokens = st.lists(st.integers(0, 3), max_size=20)


@given(tokens, tokens)
def test_the_common_prefix_is_that_of_a_plain_loop(a, b):
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix(a, b) == expected


@st.composite
def slot_sets(draw):
    slots = []
    for index in range(draw(st.integers(1, 5))):
        busy = draw(st.booleans())
        cached = draw(tokens)
        reserved = len(cached) + draw(st.integers(1, 10)) if busy else 0
        slots.append(Slot(index, cached, busy=busy, reserved=reserved, used_at=draw(st.integers(0, 9))))
    return slots


@given(
    slot_sets(),
    st.lists(st.integers(0, 3), min_size=1, max_size=20),
    st.integers(1, 10),
    st.integers(1, 150),
    st.booleans(),
)
def test_a_placement_fits_and_reuses_only_what_is_there(slots, prompt, max_new, cells, can_copy):
    """Afterwards the pool can hold every running request to its end, whatever was cached before."""
    placement = place(prompt, max_new, slots, cells=cells, can_copy=can_copy)
    need = len(prompt) + max_new
    busy = sum(slot.reserved for slot in slots if slot.busy)
    may = any(not slot.busy for slot in slots) and need + busy <= cells
    assert (placement is not None) == may
    if placement is None:
        return
    target, source = slots[placement.slot], slots[placement.source]
    assert not target.busy
    assert 0 <= placement.reuse < len(prompt), "the last token must be decoded again"
    assert source.cached[: placement.reuse] == prompt[: placement.reuse]
    if placement.reuse and not can_copy:
        assert target is source
        assert placement.reuse == len(source.cached)
    assert all(not slots[index].busy and index != target.index for index in placement.evict)
    kept = [s for s in slots if not s.busy and s is not target and s.index not in placement.evict]
    assert busy + need + sum(len(slot.cached) for slot in kept) <= cells


def test_a_long_cache_is_not_destroyed_for_a_short_prefix():
    slots = [Slot(0, cached=[1] * 3 + [2] * 97), Slot(1)]
    placement = place([1, 1, 1, 5], 4, slots, cells=1000)
    assert (placement.slot, placement.source, placement.reuse) == (1, 0, 3)


def test_a_conversation_goes_on_in_its_own_slot():
    slots = [Slot(0), Slot(1, cached=[1, 2, 3])]
    placement = place([1, 2, 3, 4], 4, slots, cells=1000)
    assert (placement.slot, placement.source, placement.reuse) == (1, 1, 3)


def test_a_busy_slots_prefix_is_copied():
    slots = [Slot(0, cached=[1, 2, 3], busy=True, reserved=9), Slot(1)]
    placement = place([1, 2, 9], 4, slots, cells=1000)
    assert (placement.slot, placement.source, placement.reuse) == (1, 0, 2)


def test_adapters_do_not_share_prefixes():
    slots = [Slot(0, cached=[1, 2, 3], adapters=(("poet", 1.0),)), Slot(1)]
    assert place([1, 2, 3, 4], 4, slots, cells=1000).reuse == 0


def test_sets_of_adapters_take_turns():
    slots = [
        Slot(0, pending=[1]),
        Slot(1, pending=[1], adapters=(("a", 1.0),)),
        Slot(2, pending=[1], adapters=(("b", 1.0),)),
    ]
    seen, last = [], None
    for _ in range(6):
        last = choose_adapters(slots, last)
        seen.append(last)
    assert sorted(seen) == sorted([slot.adapters for slot in slots] * 2)
    assert choose_adapters([Slot(0)], None) is None


@st.composite
def waiting_slots(draw):
    slots = []
    for index in range(draw(st.integers(0, 8))):
        prefilling = draw(st.booleans())
        count = draw(st.integers(1, 300)) if prefilling else 1
        slots.append(Slot(index, pending=[0] * count, prefilling=prefilling, busy=True))
    return slots


@given(waiting_slots(), st.integers(1, 64), st.integers(8, 64))
def test_a_batch_serves_every_running_stream_and_keeps_its_bounds(slots, prefill, batch):
    rows = plan_batch(slots, batch_tokens=batch, prefill_tokens=prefill)
    by_slot = {row.slot: row for row in rows}
    assert len(by_slot) == len(rows)
    assert sum(row.count for row in rows) <= batch
    for slot in slots:
        if not slot.prefilling:
            assert by_slot[slot.index].count == 1
            assert by_slot[slot.index].logits
    reading = [row for row in rows if slots[row.slot].prefilling]
    assert sum(row.count for row in reading) <= prefill
    for row in reading:
        assert row.count > 0
        assert row.logits == (row.count == len(slots[row.slot].pending))
    if slots:
        assert rows, "something always moves"
        budget = min(prefill, batch - sum(not slot.prefilling for slot in slots))
        wanted = sum(len(slot.pending) for slot in slots if slot.prefilling)
        assert sum(row.count for row in reading) == min(budget, wanted), "nothing of the budget is wasted"


def test_a_short_prompt_is_not_stuck_behind_a_long_one():
    slots = [Slot(0, pending=[0] * 1000, prefilling=True), Slot(1, pending=[0] * 10, prefilling=True)]
    rows = {row.slot: row for row in plan_batch(slots, batch_tokens=64, prefill_tokens=32)}
    assert rows[1].count == 10
    assert rows[1].logits
    assert rows[0].count == 22


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers()), max_size=30), st.integers(0, 20))
def test_the_queue_is_bounded_and_loses_nothing(requests, capacity):
    queue = FairQueue(capacity)
    taken = []
    for number, (client, _) in enumerate(requests):
        if queue.has_room(1):
            queue.append(client, number)
            taken.append((client, number))
    assert len(queue) == min(capacity, len(requests))
    popped = [queue.pop() for _ in range(len(queue))]
    assert sorted(popped) == sorted(taken)
    assert queue.pop() is None
    for client in "abc":
        own = [item for owner, item in popped if owner == client]
        assert own == sorted(own), "in order within a client"
    # Between two turns of one client, every other that waits has a turn.
    for position, (client, _) in enumerate(popped):
        between = []
        for owner, _ in popped[position + 1 :]:
            if owner == client:
                break
            between.append(owner)
        else:
            continue  # It had no further turn.
        assert len(between) == len(set(between))


def test_what_is_given_back_is_next_and_what_is_removed_is_gone():
    queue = FairQueue(10)
    for client, item in [("a", 1), ("b", 2), ("a", 3)]:
        queue.append(client, item)
    client, item = queue.pop()
    queue.push_front(client, item)
    assert queue.pop() == ("a", 1)
    assert queue.remove("a", 3)
    assert not queue.remove("a", 3)
    assert list(queue) == [2]
