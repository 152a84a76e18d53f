"""Rollout: bring model servers in line with the production pointers.

Level-triggered: an event is only a reason to compare now, so a lost, late, doubled or forged one does no harm. The
pointers are read again after every load, so that of two racing rollouts the newest version wins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from goblin.core.errors import InvalidRequest, MalformedEvent, Transient
from goblin.core.events import ModelPromoted
from goblin.core.ports import ObjectStore
from goblin.gateway import health
from goblin.registry import promotion as promotion_service
from goblin.registry.domain.versions import ModelName, Pointer, Promotion, ServingState, Version, version_order
from goblin.registry.policy import promotion as policy
from goblin.registry.policy.promotion import Keep, Load
from goblin.registry.ports import ModelServer, ServingStore

log = logging.getLogger(__name__)

UPTAKE_EVERY_S = 1.0
LOADS_MAX = 3
"""Most loads per server in one rollout; the next tick continues."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelServerTarget:
    """A model server of ours, with the model that it is for."""

    takes: str
    """`ORG/MODEL`, or `*` for the model that was promoted last."""
    control: ModelServer


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutDeps:
    models: promotion_service.PromotionDeps
    objects: ObjectStore
    """Signs the URLs from which the servers download."""
    servers: Mapping[str, ModelServerTarget]
    """By endpoint name."""
    store: ServingStore
    health: health.HealthDeps


async def follow(event: ModelPromoted, deps: RolloutDeps) -> None:
    """Handle a `model-promoted` event.

    Raises:
        MalformedEvent: There was no such promotion; the pointer is always written before the event.
        Transient: A server or a store did not answer; the tick tries again too.
    """
    try:
        name = ModelName.parse(f"{event.org}/{event.model}")
    except InvalidRequest as error:
        raise MalformedEvent(error.message) from error
    pointer = await deps.models.registry.pointer(name)
    said = f"{name} seq {event.seq}"
    if pointer is None or pointer.promotion.seq < event.seq:
        raise MalformedEvent(f"The event announces {said}, but there was no such promotion.")
    if pointer.promotion.seq > event.seq:
        log.info("ignored the event of %s: production is at seq %d", said, pointer.promotion.seq)
        return
    if pointer.promotion.artifact.sha256 != event.sha256:
        raise MalformedEvent(f"The event announces {said} with another digest than the promotion has.")
    await bring_in_line(deps)


async def tick(deps: RolloutDeps) -> None:
    """Publish events that are still due, then bring the servers in line, as after a restart or a lost event."""
    pointers = await deps.models.registry.pointers()
    failed: Exception | None = None
    for pointer in pointers:
        try:
            if await promotion_service.announce(pointer.promotion, deps.models):
                log.info("%s seq %d: published its event late", pointer.promotion.name, pointer.promotion.seq)
        except Exception as error:
            log.warning("The event of %s could not be published: %s", pointer.promotion.name, error, exc_info=error)
            failed = error
    await bring_in_line(deps, pointers)
    if failed is not None:
        raise failed


async def bring_in_line(deps: RolloutDeps, pointers: Sequence[Pointer] | None = None) -> None:
    """Make each server serve what it should, one after the other; a failure does not stop the others.

    Args:
        pointers: Pointers that were read just now. They are read again after each load.

    Raises:
        Transient: A server or a store did not answer.
        Exception: What one of them raised beside that; the others are in line.
    """
    failed: Exception | None = None
    changed = False
    for endpoint, server in deps.servers.items():
        try:
            if pointers is None:
                pointers = await deps.models.registry.pointers()
            if await _bring(endpoint, server, pointers, deps):
                changed, pointers = True, None
        except Transient as error:
            log.warning("%s could not be brought in line: %s", endpoint, error.message)
            failed, pointers = error, None
        except Exception as error:
            log.exception("%s could not be brought in line", endpoint)
            failed, pointers = failed or error, None
    if changed:
        # The router learns of models from the health check.
        await health.check_all(deps.health)
    if failed is not None:
        raise failed


async def _bring(endpoint: str, server: ModelServerTarget, pointers: Sequence[Pointer], deps: RolloutDeps) -> bool:
    """Bring one server in line; return whether it serves another model now."""
    changed = False
    for _ in range(LOADS_MAX):
        # Load.
        production = [pointer.promotion for pointer in pointers]
        wanted = policy.choose_wanted(production, takes=server.takes)
        known = await deps.store.get(endpoint)
        if wanted is None and known.served is None:
            return changed  # Nothing was ever promoted: keep the model it started with, without asking the server.
        # Decide.
        decision = policy.choose_load(wanted, known, await server.control.loaded())
        # Apply.
        match decision:
            case Keep(confirmed=confirmed):
                if confirmed is not None and known.served != confirmed:
                    await _remember_served(confirmed, known, deps)
                return changed
            case Load(promotion=promotion):
                changed |= await _load(promotion, server, known, deps)
                pointers = await deps.models.registry.pointers()
    return changed


async def _load(promotion: Promotion, server: ModelServerTarget, known: ServingState, deps: RolloutDeps) -> bool:
    what = f"{promotion.name} {promotion.version} (seq {promotion.seq})"
    artifact = promotion.artifact
    grant = await deps.objects.sign_get(artifact.uri, generation=artifact.generation)
    refusal = await server.control.load(grant.url, sha256=artifact.sha256, alias=str(promotion.name))
    if refusal is None:
        log.info("%s serves %s", known.endpoint, what)
        await _remember_served(promotion, known, deps)
        return True
    log.error("%s refused to load %s: %s", known.endpoint, what, refusal)
    now = deps.models.clock.now()
    await deps.store.put(replace(known, refused=promotion, refusal=refusal, updated_at=now))
    return False


async def _remember_served(promotion: Promotion, known: ServingState, deps: RolloutDeps) -> None:
    """Store what a server serves. Clear its refusal only if the served promotion is newer than the refused one."""
    newer = known.refused is None or promotion.promoted_at > known.refused.promoted_at
    now = deps.models.clock.now()
    kept = replace(known, served=promotion, updated_at=now)
    await deps.store.put(replace(kept, refused=None, refusal="") if newer else kept)


@dataclass(frozen=True, kw_only=True, slots=True)
class Uptake:
    """What the model servers made of one promotion."""

    served_by: tuple[str, ...] = ()
    """Endpoints that serve it, or a later promotion of the model."""
    refused_by: Mapping[str, str] = field(default_factory=dict)
    """Reason by endpoint."""
    pending: tuple[str, ...] = ()
    """Endpoints that should serve it and have neither loaded nor refused it yet."""

    @property
    def settled(self) -> bool:
        """Whether every server that is known to be concerned has answered, and at least one has."""
        return not self.pending and bool(self.served_by or self.refused_by)


async def uptake(promotion: Promotion, deps: RolloutDeps) -> Uptake:
    """Read what the model servers have made of a promotion so far."""
    states = {state.endpoint: state for state in await deps.store.all()}
    # Not every process knows the servers' addresses: those that served the model before are concerned too.
    takers = {
        endpoint for endpoint, server in deps.servers.items() if server.takes in (policy.ANY_MODEL, str(promotion.name))
    }
    concerned = {name for name in takers if not _serves_another(states.get(name), promotion)}
    concerned |= {name for name, state in states.items() if state.served and state.served.name == promotion.name}
    served, refused = [], {}
    for name, state in sorted(states.items()):
        if state.served is not None and policy.covers(state.served, promotion):
            served.append(name)
        elif state.refused is not None and policy.covers(state.refused, promotion):
            refused[name] = state.refusal
    pending = tuple(sorted(concerned - set(served) - refused.keys()))
    return Uptake(served_by=tuple(served), refused_by=refused, pending=pending)


def _serves_another(state: ServingState | None, promotion: Promotion) -> bool:
    """Check whether a server that takes any model serves one that was promoted later."""
    served = state.served if state else None
    return served is not None and served.name != promotion.name and served.promoted_at > promotion.promoted_at


async def wait_for_uptake(
    promotion: Promotion, deps: RolloutDeps, *, within_s: float,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Uptake:  # fmt: skip
    """Wait until the model servers have loaded or refused a promotion, or the time is up; return what is known then."""
    clock = deps.models.clock
    until = clock.monotonic() + within_s
    while True:
        found = await uptake(promotion, deps)
        left_s = until - clock.monotonic()
        if found.settled or left_s <= 0:
            return found
        await pause(min(UPTAKE_EVERY_S, left_s))


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutOverview:
    """Overview of one model, for people."""

    name: ModelName
    versions: tuple[Version, ...]
    """The highest first."""
    production: Promotion | None
    served_by: Mapping[str, str]
    """Version of it that each model server serves, as last stored; by endpoint."""
    refused_by: Mapping[str, str]
    """Version and reason of the last promotion that a model server refused; by endpoint."""


async def overview(deps: RolloutDeps) -> list[RolloutOverview]:
    """Return every model that has a version or is in production, by name."""
    versions = await deps.models.registry.versions()
    production = {pointer.promotion.name: pointer.promotion for pointer in await deps.models.registry.pointers()}
    servers = await deps.store.all()
    return [
        RolloutOverview(
            name=name,
            versions=tuple(
                sorted((v for v in versions if v.name == name), key=lambda v: version_order(v.version), reverse=True)
            ),
            production=production.get(name),
            served_by={s.endpoint: s.served.version for s in servers if s.served and s.served.name == name},
            refused_by={
                s.endpoint: f"{s.refused.version}: {s.refusal}" for s in servers if s.refused and s.refused.name == name
            },
        )
        for name in sorted({version.name for version in versions} | production.keys())
    ]
