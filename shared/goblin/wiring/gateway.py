"""Dependencies of the gateway: the current `goblin.toml`, connected endpoints, and all that a request passes."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from functools import cache, cached_property

from goblin.billing import budgets
from goblin.billing.budgets import FreezeView
from goblin.core.clock import SystemClock
from goblin.core.endpoints import Endpoint
from goblin.gateway import health, inference
from goblin.gateway.admission import AdmissionControl
from goblin.gateway.cache import AnswerCache
from goblin.gateway.config_reload import ConfigReloader
from goblin.gateway.domain.catalog import Catalog
from goblin.gateway.endpoint_stats import EndpointStats
from goblin.gateway.health import HealthView
from goblin.gateway.idempotency import IdempotentRequests
from goblin.gateway.keys import Keys
from goblin.gateway.policy.admission import AdmissionLimits
from goblin.gateway.ports import ChatProvider, KeyStore, Tracer
from goblin.gateway.receipts import ReceiptWriter
from goblin.gateway.router import Router
from goblin.gateway.uptime import UptimeSessions
from goblin.gateway.warm_up import WarmUps
from goblin.gcp.firestore.answers import FirestoreCache, FirestoreIdempotency
from goblin.gcp.firestore.gateway import FirestoreHealth, FirestoreKeys, FirestoreReceipts
from goblin.web.metrics import PrometheusMeter
from goblin.wiring.endpoints import connect
from goblin.wiring.ledger import budget_client, ledger
from goblin.wiring.process import Process, here, per_process, settings
from goblin.wiring.shutdown import before_the_end


@cache
def meter() -> PrometheusMeter:
    """Return the metrics of this process."""
    return PrometheusMeter()


@cache
def tracer() -> Tracer | None:
    """Return the tracer if the environment names an exporter, else None; its libraries are loaded only then."""
    variables = settings().variables
    traces, metrics = (variables.get(f"OTEL_{what}_EXPORTER", "none") for what in ("TRACES", "METRICS"))
    if variables.get("OTEL_SDK_DISABLED") == "true" or {traces, metrics} <= {"", "none"}:
        return None
    from goblin.web import tracing

    service = variables.get("OTEL_SERVICE_NAME") or "goblin-gateway"
    return tracing.connect(traces=traces, metrics=metrics, service=service)


@dataclass
class Configured:
    """The current `goblin.toml`: its catalog, its connected endpoints, and the reloader that follows the file."""

    process: Process
    _providers: dict[str, ChatProvider] = field(default_factory=dict)
    _connections: dict[str, tuple[Endpoint, Endpoint, ChatProvider]] = field(default_factory=dict)
    """By endpoint name: the endpoint as declared, the endpoint with what the provider adds, and the provider."""

    @cached_property
    def _text(self) -> str:
        return self.process.settings.config_text()

    def _connected(self, text: str) -> tuple[Catalog, dict[str, ChatProvider]]:
        """Parse the file and connect its endpoints; connections of unchanged endpoints are kept."""
        catalog, connections = self.process.settings.parse(text), {}
        for endpoint in catalog.endpoints:
            kept = self._connections.get(endpoint.name)
            if kept is None or kept[0] != endpoint:
                kept = (endpoint, *connect(endpoint, self.process.http, self.process.secrets))
            connections[endpoint.name] = kept
        self._connections = connections
        known = {name: known for name, (_, known, _) in connections.items()}
        return catalog.connected(known), {name: provider for name, (_, _, provider) in connections.items()}

    def _put_in_force(self, text: str) -> None:
        catalog, providers = self._connected(text)
        # Add, do not replace: a request in flight may still use an endpoint that is no longer in the file.
        self._providers.update(providers)
        self.health.catalog = self.gateway.router.catalog = catalog

    @cached_property
    def reloader(self) -> ConfigReloader:
        read = self.process.settings.config_text
        return ConfigReloader(text=self._text, read=read, apply=self._put_in_force, clock=SystemClock())

    @cached_property
    def health(self) -> health.HealthDeps:
        catalog, self._providers = self._connected(self._text)
        return health.HealthDeps(
            catalog=catalog,
            providers=self._providers,
            store=FirestoreHealth(self.process.firestore),
            clock=SystemClock(),
        )

    @cached_property
    def receipts(self) -> ReceiptWriter:
        writer = ReceiptWriter(FirestoreReceipts(self.process.firestore), SystemClock())
        before_the_end(writer.close)
        return writer

    @cached_property
    def gateway(self) -> inference.InferenceDeps:
        clock, firestore = SystemClock(), self.process.firestore
        view = HealthView(self.health)
        stats = EndpointStats(clock, tell=view.tell)
        view.believe = stats.believe
        return inference.InferenceDeps(
            router=Router(
                catalog=self.health.catalog,
                stats=stats,
                health=view,
                freezes=FreezeView(budgets.BudgetDeps(ledger=ledger(), clock=clock)),
                rng=random.random,
                # Start at random, or every new process would send its first request to the first endpoint.
                turns=itertools.count(random.randrange(1 << 16)),
                reloader=self.reloader,
            ),
            providers=self.health.providers,
            keys=Keys(FirestoreKeys(firestore), clock),
            budget_client=budget_client(),
            uptime=UptimeSessions(clock),
            receipts=self.receipts,
            meter=meter(),
            clock=clock,
            admission=AdmissionControl(AdmissionLimits(), clock),
            answers=AnswerCache(FirestoreCache(firestore), clock),
            once=IdempotentRequests(FirestoreIdempotency(firestore), clock),
            warm_ups=WarmUps(stats),
            tracer=tracer(),
        )


@per_process
def configured(process: Process) -> Configured:
    """Build the current configuration."""
    return Configured(process)


def gateway() -> inference.InferenceDeps:
    """Return the dependencies of the inference routes."""
    return configured().gateway


def health_check() -> health.HealthDeps:
    """Return the dependencies of the scheduled health check; reload `goblin.toml` if that is due."""
    configured().reloader.poke()
    return configured().health


def health_view() -> HealthView:
    """Return the router's view of the health of endpoints."""
    return configured().gateway.router.health


def configuration_fault() -> str:
    """Return the error in `goblin.toml` because of which an older version stays in force; empty if there is none."""
    return configured().reloader.fault


def key_store() -> KeyStore:
    """Return the store of API keys."""
    return FirestoreKeys(here().firestore)


def origins() -> frozenset[str]:
    """Return the origins whose web pages may call the public functions. Raises `BadConfiguration`."""
    return settings().origins()
