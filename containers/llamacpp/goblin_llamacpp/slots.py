"""Planning of slots and batches: where a request goes, what it reuses, what is decoded next. Pure.

A slot is one sequence id of the context. Its `cached` tokens are those whose keys and values are in memory. They stay
there after the request has ended; that is the prefix cache. All slots share one pool of `cells`, one cell per token. A
prefix copied between slots is stored once, so counting it for both slots gives an upper bound.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Adapters = tuple[tuple[str, float], ...]
"""LoRA adapters of a request as sorted (name, scale) pairs. Keys and values depend on them."""


@dataclass(slots=True)
class Slot:
    """State of one sequence that the planner needs."""

    index: int
    cached: list[int] = field(default_factory=list)
    adapters: Adapters = ()
    busy: bool = False
    reserved: int = 0
    """Most cells that its request may need, prompt and answer together; 0 when idle."""
    used_at: int = 0
    """Number of the step that used it last. The oldest caches are evicted first."""
    pending: list[int] = field(default_factory=list)
    """Tokens not decoded yet: the rest of a prompt, or the token that was sampled last."""
    prefilling: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """Decision to put a request into `slot`, reusing the first `reuse` cached tokens of the slot `source`."""

    slot: int
    source: int
    reuse: int
    evict: tuple[int, ...] = ()
    """Idle slots whose caches must be evicted to make room, oldest first."""


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the longest common prefix.

    Bisection over slices: comparing two slices is faster than comparing tokens one by one.
    """
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def place(
    prompt: Sequence[int],
    max_new: int,
    slots: Sequence[Slot],
    *,
    cells: int,
    adapters: Adapters = (),
    can_copy: bool = True,
) -> Placement | None:
    """Choose the slot for a prompt, or None while no slot is idle or too few cells are free.

    The longest cached prefix of any slot is reused, busy slots included. The request takes that same slot if it is idle
    and loses little of its cache. Otherwise the prefix is copied to an idle slot: an empty one, else the one unused
    longest. The last prompt token is always decoded again, because without it there are no logits to sample from.

    Args:
        prompt: At least one token.
        max_new: The most tokens that may be generated.
        slots: All slots of the context.
        cells: Size of the shared pool.
        adapters: The request's adapters. Only a prefix computed with the same adapters is reused.
        can_copy: False for recurrent models, whose state cannot be cut or copied in part.
    """
    idle = [slot for slot in slots if not slot.busy]
    if not idle:
        return None
    need = len(prompt) + max_new
    if need > cells - sum(slot.reserved for slot in slots if slot.busy):
        return None

    source, reuse = idle[0], 0
    for slot in slots if can_copy else idle:
        if slot.adapters != adapters:
            continue
        match = min(common_prefix(slot.cached, prompt), len(prompt) - 1)
        if not can_copy and match < len(slot.cached):
            match = 0
        if match > reuse:
            source, reuse = slot, match

    target = source
    if reuse == 0 or source.busy or (can_copy and reuse * 2 < len(source.cached)):
        # Prefer an empty slot, then the one unused longest. Take the source itself only if no other slot is idle.
        others = [slot for slot in idle if slot is not source] or idle
        target = min(others, key=lambda slot: (len(slot.cached) > 0, slot.used_at, slot.index))
    return Placement(target.index, source.index, reuse, _evict(target, source, need, slots, cells))


def _evict(target: Slot, source: Slot, need: int, slots: Sequence[Slot], cells: int) -> tuple[int, ...]:
    held = [slot for slot in slots if not slot.busy and slot is not target and slot.cached]
    spare = cells - need - sum(slot.reserved for slot in slots if slot.busy) - sum(len(s.cached) for s in held)
    evicted: list[int] = []
    # Evict the source last, because its cache was just useful.
    for slot in sorted(held, key=lambda slot: (slot is source, slot.used_at, slot.index)):
        if spare >= 0:
            break
        spare += len(slot.cached)
        evicted.append(slot.index)
    return tuple(evicted)


@dataclass(frozen=True, slots=True)
class Row:
    """Pending tokens of one slot that go into the next batch."""

    slot: int
    count: int
    logits: bool
    """Whether a token is sampled after the last one: the prompt is complete, or the answer is being generated."""


def choose_adapters(slots: Iterable[Slot], last: Adapters | None) -> Adapters | None:
    """Choose the adapters of the next batch, or None when no slot has pending tokens.

    llama.cpp sets adapters per context, not per sequence, so a batch has one set. The sets take turns in sorted order.

    Args:
        slots: All slots of the context.
        last: The adapters of the batch before.
    """
    waiting = sorted({slot.adapters for slot in slots if slot.pending})
    if not waiting:
        return None
    later = [adapters for adapters in waiting if last is not None and adapters > last]
    return later[0] if later else waiting[0]


def plan_batch(slots: Iterable[Slot], *, batch_tokens: int, prefill_tokens: int) -> list[Row]:
    """Plan the next batch: one token for every running sequence, then prompt chunks within a budget.

    The budget keeps a long prompt from stalling running streams. Prompts share it equally. What a short prompt does not
    need goes to the others, so a short prompt never waits for a long one.

    Args:
        slots: The slots to consider. Those without pending tokens are skipped.
        batch_tokens: The most tokens in one batch; at least the number of slots.
        prefill_tokens: The most prompt tokens in one batch, at least 1.
    """
    slots = [slot for slot in slots if slot.pending]
    rows = [Row(slot.index, len(slot.pending), True) for slot in slots if not slot.prefilling]
    budget = min(prefill_tokens, batch_tokens - len(rows))
    shortest_first = sorted((s for s in slots if s.prefilling), key=lambda s: (len(s.pending), s.index))
    for position, slot in enumerate(shortest_first):
        share = -(-budget // (len(shortest_first) - position))  # Rounded up, so that it is never 0.
        count = min(share, len(slot.pending), budget)
        if count > 0:
            rows.append(Row(slot.index, count, count == len(slot.pending)))
            budget -= count
    return rows
