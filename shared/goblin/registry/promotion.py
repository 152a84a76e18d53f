"""The registry: register a version, move the production pointer, and let the event follow from the move.

    move the pointer ──► publish `model-promoted` ──► append the move to history
      (commit point)        (at least once)            (it is out: nobody repeats it)

The history entry is written after the event, so a pointer without its entry is a move whose event may not be out.
Whoever meets one publishes it again: the next promotion before it moves the pointer, and `functions/serve_promoted.py`
every minute. So a crash anywhere loses no event and leaves no gap in history, and it does not matter who wrote the
pointer. A notification of the bucket would do the first step too, but it also tells of every uploaded artifact, its
message is not a `ModelPromoted`, and it needs one more topic and one more function to become one; the tick is needed
either way, because a model server that starts again must be given its model again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from goblin.core.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable, Transient
from goblin.core.events import ModelPromoted
from goblin.core.ports import Bus, Clock
from goblin.registry.domain import versions
from goblin.registry.domain.versions import ModelName, Promotion, Version
from goblin.registry.policy import promotion as policy
from goblin.registry.policy.promotion import Move, NoMove, PromotionRequest, Unmoved
from goblin.registry.ports import ModelRegistry

log = logging.getLogger(__name__)

TOPIC = "model-promoted"
GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionDeps:
    registry: ModelRegistry
    bus: Bus
    clock: Clock


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionOutcome:
    """What is in production now."""

    promotion: Promotion
    changed: bool
    """False when it was there before."""
    announced: bool
    """False when the event could not be published yet; the next tick does it."""


async def register(
    name: ModelName, version: str, file: Path, *, actor: str, progress: Callable[[int], None], deps: PromotionDeps
) -> Version:
    """Upload a GGUF as a new version; the same file again answers what is there.

    Raises:
        InvalidRequest: The file, or its name, is not a GGUF's.
        Conflict: The version exists with another file.
    """
    artifact_name = versions.parse_artifact(file.name)
    if not _is_gguf(file):
        raise InvalidRequest(f"{file} is not a GGUF file.", param="file")
    artifact = await deps.registry.upload(name, version, artifact_name, file, progress=progress)
    wanted = Version(name=name, version=version, artifact=artifact, registered_at=deps.clock.now(), registered_by=actor)
    if await deps.registry.publish(wanted):
        return wanted
    there = await deps.registry.version(name, version)
    if there is None or there.artifact != artifact:
        raise Conflict(f"{name} {version} is registered already, with another file. Versions never change.")
    return there


def _is_gguf(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(GGUF_MAGIC)) == GGUF_MAGIC


async def promote(
    name: ModelName, version: str, *, expected: str | None, request: PromotionRequest, deps: PromotionDeps
) -> PromotionOutcome:
    """Put a version into production.

    Args:
        name: Which model.
        version: Which registered version.
        expected: What the caller believes to be in production, or `none`; None: whatever is there.
        request: Who asks; its `event_id` is fresh for each wish and the same for each retry of it.

    Raises:
        NotFound: The version is not registered.
        Conflict: Production is not what was expected, or somebody else moved it at the same time.
    """
    found = await deps.registry.version(name, version)
    if found is None:
        raise NotFound(f"{name} has no version {version}.", param="version")
    current = await deps.registry.pointer(name)
    if current is not None:
        await announce(current.promotion, deps)
    return await _carry_out(policy.choose_promotion(found, current, expected=expected, request=request), deps)


async def rollback(
    name: ModelName, *, expected: str | None, request: PromotionRequest, deps: PromotionDeps
) -> PromotionOutcome:
    """Put into production what was there before; a second time goes back further. Raises as `promote`."""
    current = await deps.registry.pointer(name)
    if current is None:
        raise NotFound(f"Nothing of {name} is in production.", param="model")
    await announce(current.promotion, deps)
    seq = current.promotion.previous_seq
    back_to = await deps.registry.history(name, seq) if seq is not None else None
    return await _carry_out(policy.choose_rollback(current, back_to, expected=expected, request=request), deps)


async def _carry_out(decision: Move | Unmoved | NoMove, deps: PromotionDeps) -> PromotionOutcome:
    match decision:
        case NoMove():
            raise Conflict(f"Not promoted: {decision.reason}.")
        case Unmoved():
            return PromotionOutcome(promotion=decision.pointer.promotion, changed=False, announced=True)
        case Move():
            await _move(decision, deps)
            return PromotionOutcome(
                promotion=decision.promotion, changed=True, announced=await _announce_now(decision, deps)
            )


async def _move(move: Move, deps: PromotionDeps) -> None:
    """Write the pointer. An answer that was lost on its way is told from a refusal by reading our own event id."""
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
        # The pointer is moved; to answer "failed" would be false.
        log.warning("%s seq %d: the event is late: %s", move.promotion.name, move.promotion.seq, error.message)
        return False
    return True


async def announce(promotion: Promotion, deps: PromotionDeps) -> bool:
    """Publish a move's event unless history says that it is out; whether it was published now."""
    if await deps.registry.history(promotion.name, promotion.seq) is not None:
        return False
    await deps.bus.publish(TOPIC, event_of(promotion))
    await deps.registry.append_history(promotion)
    return True


def event_of(promotion: Promotion) -> ModelPromoted:
    """The event that follows from a move."""
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
    """The last moves of a model's pointer, the newest first; the pointer itself may stand in for its own entry."""
    current = await deps.registry.pointer(name)
    if current is None:
        return []
    moves = [current.promotion]
    for seq in range(current.promotion.seq - 1, max(current.promotion.seq - limit, 0), -1):
        move = await deps.registry.history(name, seq)
        if move is not None:
            moves.append(move)
    return moves
