"""Which sequence goes where, what it may reuse, and what the next batch holds. Pure.

A slot is one sequence id of the context. Its `cached` tokens are those whose keys and values are present,
also after its request has ended: that is the prefix cache. All slots share one pool of `cells`, one per
token; a prefix copied between slots is stored once, so counting it twice is an upper bound.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Adapters = tuple[tuple[str, float], ...]
"""The LoRA adapters of a request as (name, scale), sorted; keys and values depend on them."""


@dataclass(slots=True)
class Slot:
    """One sequence, as the planner sees it."""

    index: int
    cached: list[int] = field(default_factory=list)
    adapters: Adapters = ()
    busy: bool = False
    reserved: int = 0
    """Cells its request may need at most, prompt and answer; 0 when idle."""
    used_at: int = 0
    """Number of the step that used it last; older caches are given up first."""
    pending: list[int] = field(default_factory=list)
    """Tokens not decoded yet: the rest of a prompt, or the one token sampled last."""
    prefilling: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """Put a request into `slot`, starting from the first `reuse` tokens of `source`."""

    slot: int
    source: int
    reuse: int
    evict: tuple[int, ...] = ()
    """Idle slots whose caches must go for it, oldest first."""


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix, by bisection: the comparing is done by slices."""
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
    """Choose the slot for a prompt, or None while there is no idle slot or not enough cells.

    The best prefix over all slots is reused, busy ones included. Its own slot is taken when little of that
    cache would be lost; otherwise the prefix is copied to the idle slot that is missed least. At least the
    last prompt token is always decoded again: without it there are no logits to sample from.

    Args:
        prompt: At least one token.
        max_new: The most tokens that may be generated.
        cells: Size of the shared pool.
        can_copy: False for models whose state can not be cut or copied in part (recurrent ones).
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
        # Prefer an empty slot, then the one unused longest; the source itself only when it is the last idle one.
        others = [slot for slot in idle if slot is not source] or idle
        target = min(others, key=lambda slot: (len(slot.cached) > 0, slot.used_at, slot.index))
    return Placement(target.index, source.index, reuse, _evict(target, source, need, slots, cells))


def _evict(target: Slot, source: Slot, need: int, slots: Sequence[Slot], cells: int) -> tuple[int, ...]:
    held = [slot for slot in slots if not slot.busy and slot is not target and slot.cached]
    spare = cells - need - sum(slot.reserved for slot in slots if slot.busy) - sum(len(s.cached) for s in held)
    evicted: list[int] = []
    # The source goes last: it was just useful.
    for slot in sorted(held, key=lambda slot: (slot is source, slot.used_at, slot.index)):
        if spare >= 0:
            break
        spare += len(slot.cached)
        evicted.append(slot.index)
    return tuple(evicted)


@dataclass(frozen=True, slots=True)
class Row:
    """A run of one slot's pending tokens in the next batch."""

    slot: int
    count: int
    logits: bool
    """Whether its last token is sampled from: the prompt is complete, or a token is being continued."""


def choose_adapters(slots: Iterable[Slot], last: Adapters | None) -> Adapters | None:
    """Adapters are set per context, not per sequence, so each batch has one set; the sets take turns.

    None when no slot has anything to decode.
    """
    waiting = sorted({slot.adapters for slot in slots if slot.pending})
    if not waiting:
        return None
    later = [adapters for adapters in waiting if last is not None and adapters > last]
    return later[0] if later else waiting[0]


def plan_batch(slots: Iterable[Slot], *, batch_tokens: int, prefill_tokens: int) -> list[Row]:
    """One token for every running sequence, then prompt chunks within the budget.

    The budget keeps a long prompt from stalling running streams; it is shared equally, and what a short
    prompt does not need goes to the others, so that a short prompt is never stuck behind a long one.

    Args:
        slots: Those to consider; only the ones with pending tokens matter.
        batch_tokens: The most tokens in one batch; at least the number of slots.
        prefill_tokens: The most prompt tokens in one batch, at least 1.
    """
    slots = [slot for slot in slots if slot.pending]
    rows = [Row(slot.index, len(slot.pending), True) for slot in slots if not slot.prefilling]
    budget = min(prefill_tokens, batch_tokens - len(rows))
    shortest_first = sorted((s for s in slots if s.prefilling), key=lambda s: (len(s.pending), s.index))
    for position, slot in enumerate(shortest_first):
        share = -(-budget // (len(shortest_first) - position))  # Rounded up, so that a small budget moves.
        count = min(share, len(slot.pending), budget)
        if count > 0:
            rows.append(Row(slot.index, count, count == len(slot.pending)))
            budget -= count
    return rows
