"""What the functions and commands of models and budgets work with, once per event loop, on first use."""

from __future__ import annotations

import asyncio
import importlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from goblin import providers
from goblin.billing import budgets as budget
from goblin.billing import scale_to_zero as scaling
from goblin.billing import settlement as settling
from goblin.billing.ports import BillSource
from goblin.core.clock import SystemClock
from goblin.core.endpoints import Endpoint
from goblin.gcp.cloud_run import CloudRun
from goblin.gcp.firestore.serving import FirestoreServing
from goblin.providers.flyio import billing as flyio
from goblin.providers.llamacpp.control import LlamaCppControl
from goblin.providers.vastai import billing as vastai
from goblin.registry import promotion as models
from goblin.registry import rollout as serving
from goblin.registry.policy.promotion import ANY_MODEL
from goblin.wiring import process as wiring
from goblin.wiring.settings import BadConfiguration

if TYPE_CHECKING:
    from google.cloud import storage

CONTROLLED = "llamacpp"
"""The provider whose servers are ours to load models into."""
TAKES = "takes"
"""The endpoint's option that says what it is for: `ORG/MODEL`, `*` (the default) or `nothing`."""
NOTHING = "nothing"
SERVICE = "service"
"""The option of an endpoint on Cloud Run that names the service behind it, for budgets that turn it off."""
_SERVICE = re.compile(r"(?:projects/[^/]{1,128}/locations/[a-z0-9-]{1,63}/services/)?[a-z][a-z0-9-]{0,62}")


def registry() -> models.PromotionDeps:
    """What registering and promoting need."""
    return _here().models


def serve() -> serving.RolloutDeps:
    """What bringing model servers in line needs."""
    return _here().serving


def budgets() -> budget.BudgetDeps:
    """What budget events and commands need."""
    return _here().budget


def settlement() -> settling.SettlementDeps:
    """What the hourly settlement needs."""
    return _here().settlement


@dataclass
class _Process:
    @cached_property
    def storage(self) -> storage.Client:
        # Imported here: it costs a quarter of a second, and budgets open no bucket.
        from google.cloud import storage

        return storage.Client(project=wiring.settings().project or None)

    @cached_property
    def models(self) -> models.PromotionDeps:
        from google.cloud import pubsub_v1  # type: ignore[attr-defined,unused-ignore]

        from goblin.gcp.model_registry import GcsRegistry
        from goblin.gcp.pubsub import PubSubBus

        settings = wiring.settings()
        bucket = settings.variables.get("GOBLIN_BUCKET")
        if not bucket:
            raise BadConfiguration("GOBLIN_BUCKET is not set: the bucket of models.")
        return models.PromotionDeps(
            registry=GcsRegistry(self.storage, bucket),
            bus=PubSubBus(pubsub_v1.PublisherClient(), project=settings.project),
            clock=SystemClock(),
        )

    @cached_property
    def serving(self) -> serving.RolloutDeps:
        from goblin.gcp.storage import GcsObjects

        health = wiring.health_check()
        servers = {
            endpoint.name: serving.ModelServerTarget(
                takes=endpoint.options.get(TAKES, ANY_MODEL), control=LlamaCppControl(endpoint, wiring.http())
            )
            for endpoint in health.catalog.endpoints
            if endpoint.provider == CONTROLLED and endpoint.options.get(TAKES) != NOTHING
        }
        return serving.RolloutDeps(
            models=self.models,
            objects=GcsObjects(self.storage),
            servers=servers,
            store=FirestoreServing(wiring.firestore()),
            health=health,
        )

    @cached_property
    def budget(self) -> budget.BudgetDeps:
        return budget.BudgetDeps(ledger=wiring.ledger(), clock=SystemClock(), scaling=self.scaling)

    @cached_property
    def scaling(self) -> scaling.ScaleToZeroDeps | None:
        settings = wiring.settings()
        services = _services(settings.catalog().endpoints, project=settings.project, region=settings.region)
        if not services:
            return None
        scaler = CloudRun(emulator=settings.cloud_run_emulator)
        return scaling.ScaleToZeroDeps(ledger=wiring.ledger(), scaler=scaler, services=services, clock=SystemClock())

    @cached_property
    def settlement(self) -> settling.SettlementDeps:
        return settling.SettlementDeps(
            ledger=wiring.ledger(),
            allocation_store=wiring.ledger(),
            bills=_bills(),
            announce=wiring.announce,
            prices=wiring.health_check().catalog.prices_in_use(),
            clock=SystemClock(),
            scaling=self.scaling,
        )


def _services(endpoints: Sequence[Endpoint], *, project: str, region: str) -> dict[str, list[Endpoint]]:
    """The Cloud Run services that endpoints name, in full, each with those it stands behind."""
    found: dict[str, list[Endpoint]] = defaultdict(list)
    for endpoint in endpoints:
        if not (name := endpoint.options.get(SERVICE)):
            continue
        if not _SERVICE.fullmatch(name):
            raise BadConfiguration(f"endpoint {endpoint.name}: its option `{SERVICE}` names no Cloud Run service")
        full = name if "/" in name else f"projects/{project}/locations/{region}/services/{name}"
        found[full].append(endpoint)
    return found


def _bills() -> list[BillSource]:
    """The bills whose keys are configured; a URL in the environment stands for the provider's own in tests."""
    said = wiring.settings().variables
    found: list[BillSource] = []
    for name in providers.having("billing"):
        module = importlib.import_module(f"{providers.__name__}.{name}.billing")
        key = said.get(module.VARIABLE)
        if not key:
            continue
        more: dict[str, Any] = {}
        if name == flyio.NAME:
            app, price = said.get("FLY_CHAT_APP"), said.get("FLY_MACHINE_USD_PER_MONTH")
            if not app or not price:
                continue
            more["rate"] = flyio.Rate(app=app, started_usd_per_month=Decimal(price))
        if name == vastai.NAME:
            more["namespace"] = wiring.settings().project
        if url := said.get(f"{name.upper()}_BILLING_URL"):
            more["url"] = url
        found.append(module.connect(wiring.account_key(key), wiring.http(), **more))
    return found


_processes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Process] = WeakKeyDictionary()


def _here() -> _Process:
    loop = asyncio.get_running_loop()
    if loop not in _processes:
        _processes[loop] = _Process()
    return _processes[loop]
