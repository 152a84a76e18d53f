"""Dependencies of the registry: versions and pointers in the bucket, and the model servers that follow them."""

from __future__ import annotations

from goblin.core.clock import SystemClock
from goblin.gcp.firestore.serving import FirestoreServing
from goblin.providers.llamacpp.control import LlamaCppControl
from goblin.registry import promotion
from goblin.registry import rollout as rollout_service
from goblin.registry.policy.promotion import ANY_MODEL
from goblin.wiring import gateway
from goblin.wiring.process import Process, per_process

CONTROLLED = "llamacpp"
"""Provider whose servers are ours, so that promoted models can be loaded into them."""
TAKES = "takes"
"""Endpoint option: which promoted model the server loads, `ORG/MODEL`, `*` (any, the default) or `nothing`."""
NOTHING = "nothing"


@per_process
def registry(process: Process) -> promotion.PromotionDeps:
    """Build the dependencies of registering and promoting."""
    from goblin.gcp.model_registry import GcsRegistry

    bucket = process.setting("GOBLIN_BUCKET", "the bucket of models")
    return promotion.PromotionDeps(registry=GcsRegistry(process.storage, bucket), bus=process.bus, clock=SystemClock())


@per_process
def rollout(process: Process) -> rollout_service.RolloutDeps:
    """Build the dependencies of a rollout."""
    from goblin.gcp.storage import GcsObjects

    health = gateway.health_check()
    servers = {
        endpoint.name: rollout_service.ModelServerTarget(
            takes=endpoint.options.get(TAKES, ANY_MODEL), control=LlamaCppControl(endpoint, process.http)
        )
        for endpoint in health.catalog.endpoints
        if endpoint.provider == CONTROLLED and endpoint.options.get(TAKES) != NOTHING
    }
    return rollout_service.RolloutDeps(
        models=registry(),
        objects=GcsObjects(process.storage),
        servers=servers,
        store=FirestoreServing(process.firestore),
        health=health,
    )
