"""Which checkpoints of a training are kept: the newest, the one with the lowest loss, and those in use."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

KEPT = 3
"""Newest checkpoints kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A verified checkpoint."""

    uri: str
    """URI of its manifest."""
    step: int
    attempt: int
    loss: float | None


def choose_kept(saved: Collection[Saved], *, in_use: Collection[str], kept: int = KEPT) -> frozenset[str]:
    """Choose the manifests to keep. At equal steps the later attempt's is newer; at equal losses the newer is better.

    Args:
        saved: All verified checkpoints of the job.
        in_use: Manifests that the job points to or a live attempt may read.
        kept: How many of the newest to keep.
    """
    order = sorted(saved, key=lambda one: (one.step, one.attempt, one.uri))
    chosen = {one.uri for one in order[-kept:]} | {one.uri for one in order if one.uri in in_use}
    measured = [one for one in order if one.loss is not None]
    if measured:
        chosen.add(min(reversed(measured), key=lambda one: one.loss if one.loss is not None else 0.0).uri)
    return frozenset(chosen)
