"""Which checkpoints of a training are kept: the newest few and the best; what is in use is never touched."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

KEPT = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A checkpoint that was verified."""

    uri: str
    """Of its manifest."""
    step: int
    attempt: int
    loss: float | None


def choose_kept(saved: Collection[Saved], *, in_use: Collection[str], kept: int = KEPT) -> frozenset[str]:
    """The manifests to keep; of two of one step the later attempt's counts as newer, of two losses the newer one.

    Args:
        saved: All that there are.
        in_use: Manifests that the job points to or a live attempt may read.
        kept: How many of the newest.
    """
    order = sorted(saved, key=lambda one: (one.step, one.attempt, one.uri))
    chosen = {one.uri for one in order[-kept:]} | {one.uri for one in order if one.uri in in_use}
    measured = [one for one in order if one.loss is not None]
    if measured:
        chosen.add(min(reversed(measured), key=lambda one: one.loss if one.loss is not None else 0.0).uri)
    return frozenset(chosen)
