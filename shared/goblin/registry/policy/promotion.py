"""Decide what the next production pointer says, and what a model server should serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from goblin.registry.domain.versions import LoadedModel, Pointer, Promotion, ServingState, Version

NONE = "none"
"""Expected version that means: nothing is in production."""
ANY_MODEL = "*"
"""Value of `takes` for a model server that serves the model promoted last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionRequest:
    """Request to move the pointer: by which caller, why, when."""

    event_id: str
    actor: str
    reason: str
    at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """Decision: write `promotion` if the pointer's generation is still `generation`; 0 means no pointer."""

    promotion: Promotion
    generation: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Unmoved:
    """Decision: nothing to do, because the version is in production already."""

    pointer: Pointer


@dataclass(frozen=True, kw_only=True, slots=True)
class NoMove:
    """Decision: refuse the move, for this reason."""

    reason: str


def choose_promotion(
    version: Version, current: Pointer | None, *, expected: str | None, request: PromotionRequest
) -> Move | Unmoved | NoMove:
    """Decide what a promotion writes.

    Args:
        version: The version to put into production.
        current: The pointer as just read.
        expected: The version that must be in production now, or `none`; None accepts any.
        request: The caller and the reason.
    """
    held = current.promotion.version if current else NONE
    if expected is not None and expected != held:
        return NoMove(reason=f"production of {version.name} is {held}, not {expected}")
    if current is not None and held == version.version:
        return Unmoved(pointer=current)
    return _move(
        version,
        current,
        previous=current.promotion.version if current else None,
        previous_seq=current.promotion.seq if current else None,
        request=request,
    )


def choose_rollback(
    current: Pointer | None, back_to: Promotion | None, *, expected: str | None, request: PromotionRequest
) -> Move | NoMove:
    """Decide what a rollback writes: a new move, to the version that was in production before.

    Args:
        current: The pointer as just read.
        back_to: The move at the pointer's `previous_seq`, from history.
        expected: As for a promotion.
        request: The caller and the reason.
    """
    if current is None:
        return NoMove(reason="nothing is in production")
    now = current.promotion
    if expected is not None and expected != now.version:
        return NoMove(reason=f"production of {now.name} is {now.version}, not {expected}")
    if back_to is None:
        return NoMove(reason=f"{now.version} is the first version of {now.name} in production")
    return _move(back_to, current, previous=back_to.previous, previous_seq=back_to.previous_seq, request=request)


def _move(
    to: Version | Promotion,
    current: Pointer | None,
    *,
    previous: str | None,
    previous_seq: int | None,
    request: PromotionRequest,
) -> Move:
    promotion = Promotion(
        name=to.name,
        version=to.version,
        artifact=to.artifact,
        seq=current.promotion.seq + 1 if current else 1,
        event_id=request.event_id,
        promoted_at=request.at,
        promoted_by=request.actor,
        reason=request.reason,
        previous=previous,
        previous_seq=previous_seq,
    )
    return Move(promotion=promotion, generation=current.generation if current else 0)


def choose_wanted(production: Sequence[Promotion], *, takes: str) -> Promotion | None:
    """Choose what one model server should serve, of everything in production.

    Args:
        production: The current promotion of each model, in any order.
        takes: The model that the server is for, or `*` for the one that was promoted last.
    """
    wanted = [p for p in production if takes in (ANY_MODEL, str(p.name))]
    return max(wanted, key=lambda p: (p.promoted_at, p.name), default=None)


def covers(known: Promotion, promotion: Promotion) -> bool:
    """Check whether what a server did with one promotion answers for another: the same, or a later one of its model."""
    return known.event_id == promotion.event_id or (known.name == promotion.name and known.seq > promotion.seq)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Decision: make the server serve this promotion."""

    promotion: Promotion


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Decision: leave the server as it is; `confirmed` is the promotion that it serves, if it is one."""

    reason: str
    confirmed: Promotion | None = None


def choose_load(wanted: Promotion | None, known: ServingState, loaded: LoadedModel) -> Load | Keep:
    """Compare what a server should serve with what it serves.

    A promotion that the server refused is not tried again, because its bytes never change. The server keeps the last
    promotion that it loaded, also after a restart, until the next promotion.
    """
    refused = wanted is not None and known.refused is not None and known.refused.event_id == wanted.event_id
    target = known.served if refused else wanted
    if target is None:
        return Keep(reason="no promotion that it accepts is in production")
    if loaded.sha256 == target.artifact.sha256 and loaded.alias == str(target.name):
        return Keep(reason=f"it serves {target.name} {target.version}", confirmed=target)
    return Load(promotion=target)
