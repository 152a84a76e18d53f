"""The registry: register a version, move the production pointer, and publish the event of the move.

    move the pointer ──► publish `model-promoted` ──► append the move to history
      (commit point)        (at least once)            (published: not repeated)

The history entry is written after the event, so a pointer without its entry is a move whose event may not be published.
Two places publish such an event again: the next promotion, before it moves the pointer, and
`functions/serve_promoted.py`, every minute. So a crash at any step loses no event and leaves no gap in history, no
matter which process wrote the pointer. A notification of the bucket could replace the second step, but it fires for
every uploaded artifact too, its message is not a `ModelPromoted`, and converting it needs one more topic and one more
function. The minute tick is needed in any case, because a restarted model server must load its model again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from goblin.core.errors import Conflict, NotFound, StoreUnavailable, Transient
from goblin.core.events import ModelPromoted
from goblin.core.ports import Bus, Clock
from goblin.registry import gguf
from goblin.registry.domain import versions
from goblin.registry.domain.versions import ModelName, Pointer, Promotion, Version
from goblin.registry.policy import promotion as policy
from goblin.registry.policy.promotion import Move, NoMove, PromotionRequest, Unmoved
from goblin.registry.ports import ModelRegistry

log = logging.getLogger(__name__)

TOPIC = "model-promoted"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionDeps:
    registry: ModelRegistry
    bus: Bus
    clock: Clock


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionOutcome:
    """Result of a promotion or rollback: the version that is in production now."""

    promotion: Promotion
    changed: bool
    """False if the version was in production already."""
    announced: bool
    """False if the event could not be published yet; the next tick publishes it."""
    before: str | None
    """The version that was in production before; None: nothing was."""


async def register(
    name: ModelName, version: str, file: Path, *, actor: str, progress: Callable[[int], None], deps: PromotionDeps
) -> Version:
    """Upload a GGUF file as a new version; the same file again returns the existing version.

    Raises:
        InvalidRequest: The file is not a GGUF file, is damaged or cut off, or has no such name.
        Conflict: The version exists with another file.
    """
    artifact_name = versions.parse_artifact(file.name)
    await asyncio.to_thread(gguf.check, file)
    artifact = await deps.registry.upload(name, version, artifact_name, file, progress=progress)
    wanted = Version(name=name, version=version, artifact=artifact, registered_at=deps.clock.now(), registered_by=actor)
    if await deps.registry.publish(wanted):
        return wanted
    there = await deps.registry.version(name, version)
    if there is None or there.artifact != artifact:
        raise Conflict(f"{name} {version} exists with another file. Versions never change: choose another version.")
    return there


async def promote(
    name: ModelName, version: str, *, expected: str | None, request: PromotionRequest, deps: PromotionDeps
) -> PromotionOutcome:
    """Put a version into production.

    Args:
        name: The model.
        version: A registered version.
        expected: The version that must be in production now, or `none`; None accepts any.
        request: The caller and the reason; its `event_id` is new for each request and the same for its retries.

    Raises:
        NotFound: The version is not registered.
        Conflict: Another version than expected is in production, or the pointer moved at the same time.
    """
    found = await deps.registry.version(name, version)
    if found is None:
        raise NotFound(
            f'Model {name} has no version {version}. List its versions with "goblin models show ORG/MODEL".',
            param="version",
        )
    current = await deps.registry.pointer(name)
    if current is not None:
        await announce(current.promotion, deps)
    decision = policy.choose_promotion(found, current, expected=expected, request=request)
    return await _carry_out(decision, current, deps)


async def rollback(
    name: ModelName, *, expected: str | None, request: PromotionRequest, deps: PromotionDeps
) -> PromotionOutcome:
    """Put the previous version back into production; a second rollback goes back one more. Raises as `promote`."""
    current = await deps.registry.pointer(name)
    if current is None:
        raise NotFound(f"No version of {name} is in production.", param="model")
    await announce(current.promotion, deps)
    seq = current.promotion.previous_seq
    back_to = await deps.registry.history(name, seq) if seq is not None else None
    decision = policy.choose_rollback(current, back_to, expected=expected, request=request)
    return await _carry_out(decision, current, deps)


async def _carry_out(
    decision: Move | Unmoved | NoMove, current: Pointer | None, deps: PromotionDeps
) -> PromotionOutcome:
    before = current.promotion.version if current else None
    match decision:
        case NoMove():
            raise Conflict(f"Not promoted: {decision.reason}.")
        case Unmoved():
            return PromotionOutcome(promotion=decision.pointer.promotion, changed=False, announced=True, before=before)
        case Move():
            await _move(decision, deps)
            announced = await _announce_now(decision, deps)
            return PromotionOutcome(promotion=decision.promotion, changed=True, announced=announced, before=before)


async def _move(move: Move, deps: PromotionDeps) -> None:
    """Write the pointer. After an error, our own event id in the pointer shows that the write succeeded."""
    try:
        await deps.registry.move(move.promotion, generation=move.generation)
    except (Conflict, StoreUnavailable):
        now = await deps.registry.pointer(move.promotion.name)
        if now is None or now.promotion.event_id != move.promotion.event_id:
            raise


async def _announce_now(move: Move, deps: PromotionDeps) -> bool:
    try:
        await announce(move.promotion, deps)
    except Transient as error:
        # The pointer is moved, so the promotion has succeeded.
        log.warning(
            "%s seq %d: the event is not published yet: %s", move.promotion.name, move.promotion.seq, error.message
        )
        return False
    return True


async def announce(promotion: Promotion, deps: PromotionDeps) -> bool:
    """Publish a move's event unless history has the move already; return whether it was published now."""
    if await deps.registry.history(promotion.name, promotion.seq) is not None:
        return False
    await deps.bus.publish(TOPIC, event_of(promotion))
    await deps.registry.append_history(promotion)
    return True


def event_of(promotion: Promotion) -> ModelPromoted:
    """Build the event of a move."""
    return ModelPromoted(
        org=promotion.name.org,
        model=promotion.name.model,
        version=promotion.version,
        artifact_uri=promotion.artifact.uri,
        sha256=promotion.artifact.sha256,
        seq=promotion.seq,
        previous=promotion.previous,
        event_id=promotion.event_id,
        actor=promotion.promoted_by,
    )


async def history(name: ModelName, deps: PromotionDeps, *, limit: int = 20) -> list[Promotion]:
    """Return the last moves of a model's pointer, the newest first; the newest is read from the pointer itself."""
    current = await deps.registry.pointer(name)
    if current is None:
        return []
    moves = [current.promotion]
    for seq in range(current.promotion.seq - 1, max(current.promotion.seq - limit, 0), -1):
        move = await deps.registry.history(name, seq)
        if move is not None:
            moves.append(move)
    return moves
