"""Adapters from settings, once per process and event loop, on first use: nothing connects at import."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import random
import ssl
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from weakref import WeakKeyDictionary

import httpx
from google.cloud.firestore import AsyncClient

from goblin import providers
from goblin.billing import budgets as budget
from goblin.billing.budget_client import BudgetClient
from goblin.billing.budgets import FreezeView
from goblin.billing.policy.allocation import ThresholdEvent
from goblin.billing.policy.budgets import budget_exceeded_event
from goblin.core.clock import SystemClock
from goblin.core.endpoints import Endpoint, KeySource
from goblin.gateway import health
from goblin.gateway import inference as chat
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
from goblin.gcp.firestore.answers import FirestoreAnswers, FirestoreReplies
from goblin.gcp.firestore.gateway import FirestoreHealth, FirestoreKeys, FirestoreRequests
from goblin.gcp.firestore.ledger import FirestoreLedger
from goblin.gcp.identity_tokens import credentials_for
from goblin.gcp.oidc import CallerVerifier
from goblin.gcp.secret_manager import PREFIX as SECRET
from goblin.gcp.secret_manager import SecretManager
from goblin.providers.common.kept_connections import KeptConnections, PlainClient
from goblin.web.metrics import PrometheusMeter
from goblin.wiring.settings import BadConfiguration, Settings
from goblin.wiring.shutdown import before_the_end

CONNECTIONS_KEPT = 64
CONNECTIONS_MAX = 1024
ALLOCATIONS_MAINTAINED_EVERY_S = 1.0


@cache
def settings() -> Settings:
    return Settings.from_env()


@cache
def meter() -> PrometheusMeter:
    return PrometheusMeter()


@cache
def tracer() -> Tracer | None:
    """Who is told of every request, if anybody; loaded only then."""
    said = settings().variables
    traces, metrics = (said.get(f"OTEL_{what}_EXPORTER", "none") for what in ("TRACES", "METRICS"))
    if said.get("OTEL_SDK_DISABLED") == "true" or {traces, metrics} <= {"", "none"}:
        return None
    from goblin.web import tracing as telemetry

    return telemetry.connect(traces=traces, metrics=metrics, service=said.get("OTEL_SERVICE_NAME") or "goblin-gateway")


def gateway() -> chat.InferenceDeps:
    """What the inference routes need."""
    return _here().gateway


def health_check() -> health.HealthDeps:
    """What the scheduled health check needs."""
    _here().reloader.poke()
    return _here().health


def health_view() -> HealthView:
    """What the router believes of the endpoints."""
    return _here().gateway.router.health


def key_store() -> KeyStore:
    """Who may call."""
    return FirestoreKeys(firestore())


def ledger() -> FirestoreLedger:
    """This loop's ledger."""
    return _here().ledger


def budget_client() -> BudgetClient:
    """This loop's purses."""
    return _here().budget_client


def configuration_fault() -> str:
    """What is wrong with `goblin.toml`, so that an older one is in force; empty when nothing is."""
    return _here().reloader.fault


async def announce(threshold_event: ThresholdEvent) -> None:
    """Publish that a budget has passed a threshold."""
    await _here().announce(threshold_event)


def account_key(text: str) -> str | KeySource:
    """A key of an account, as it is or, for `secret:NAME`, from Secret Manager."""
    if not text.startswith(SECRET):
        return text
    return _here().secret(text.removeprefix(SECRET))


def firestore() -> AsyncClient:
    """This loop's Firestore."""
    return _here().firestore


def http() -> httpx.AsyncClient:
    """This loop's connections to providers."""
    return _here().http


async def verify_caller(authorization: str | None) -> None:
    """Let only our own service accounts pass: Pub/Sub's and the scheduler's. Raises as `CallerVerifier.verify`."""
    if settings().verify_callers:
        await _here().callers.verify(authorization)


def provider_names() -> frozenset[str]:
    """The folders in `goblin/providers` that have an `inference.py`."""
    return frozenset(providers.having("inference"))


def connect(
    endpoint: Endpoint, client: httpx.AsyncClient, secrets: SecretManager | None = None
) -> tuple[Endpoint, ChatProvider]:
    """The provider that speaks to an endpoint, and the endpoint with its keys and what its provider lacks.

    Raises:
        BadConfiguration: there is no such provider, or no such secret can be.
    """
    if endpoint.provider not in provider_names():
        there = ", ".join(sorted(provider_names()))
        raise BadConfiguration(
            f"endpoint {endpoint.name}: there is no provider {endpoint.provider!r}; there are {there}"
        )
    module = importlib.import_module(f"{providers.__name__}.{endpoint.provider}.inference")
    known = replace(
        endpoint,
        lacks=module.UNSUPPORTED,
        api_key=_key(endpoint, endpoint.api_key, secrets),
        account_key=_key(endpoint, endpoint.account_key, secrets),
        credentials=credentials_for(endpoint),
    )
    return known, module.connect(known, client)


def _key(endpoint: Endpoint, key: str | KeySource | None, secrets: SecretManager | None) -> str | KeySource | None:
    """A key as the file has it, or, for `secret:NAME`, whatever Secret Manager holds when it is needed."""
    if not isinstance(key, str) or not key.startswith(SECRET):
        return key
    if secrets is None:
        raise BadConfiguration(f"endpoint {endpoint.name}: its key is in Secret Manager, which is not connected")
    try:
        return secrets.source(key.removeprefix(SECRET))
    except ValueError as error:
        raise BadConfiguration(f"endpoint {endpoint.name}: {error}") from error


@dataclass
class _Process:
    """Everything that lives as long as one event loop."""

    settings: Settings
    _providers: dict[str, ChatProvider] = field(default_factory=dict)
    _connections: dict[str, tuple[Endpoint, Endpoint, ChatProvider]] = field(default_factory=dict)
    """By endpoint name: what the file says, the same with what the provider adds, and the provider."""

    @cached_property
    def http(self) -> httpx.AsyncClient:
        # No redirects and no proxies from the environment: provider URLs are what the file says.
        tls = ssl.create_default_context()
        return PlainClient(KeptConnections(tls=tls, most=CONNECTIONS_MAX, kept=CONNECTIONS_KEPT))

    @cached_property
    def firestore(self) -> AsyncClient:
        return AsyncClient(project=self.settings.project or None)

    @cached_property
    def callers(self) -> CallerVerifier:
        return CallerVerifier(
            self.http,
            audience=self.settings.caller_audience,
            emails=self.settings.caller_emails,
            certs_url=self.settings.certs_url,
        )

    @cached_property
    def _text(self) -> str:
        return self.settings.config_text()

    @cached_property
    def _secrets(self) -> SecretManager:
        return SecretManager(self.settings.project, emulator=self.settings.secret_manager_emulator)

    def secret(self, name: str) -> KeySource:
        """Raises `ValueError`: no secret can be called that."""
        return self._secrets.source(name)

    def _connected(self, text: str) -> tuple[Catalog, dict[str, ChatProvider]]:
        """What the file says, and who speaks to its endpoints; those that it says the same of as before are kept."""
        catalog, connections = self.settings.parse(text), {}
        for endpoint in catalog.endpoints:
            kept = self._connections.get(endpoint.name)
            if kept is None or kept[0] != endpoint:
                kept = (endpoint, *connect(endpoint, self.http, self._secrets))
            connections[endpoint.name] = kept
        self._connections = connections
        known = {name: known for name, (_, known, _) in connections.items()}
        return catalog.connected(known), {name: provider for name, (_, _, provider) in connections.items()}

    def _put_in_force(self, text: str) -> None:
        catalog, providers = self._connected(text)
        # Added and not exchanged: a request that is under way may still ask one that is not in the file any more.
        self._providers.update(providers)
        self.health.catalog = self.gateway.router.catalog = catalog

    @cached_property
    def reloader(self) -> ConfigReloader:
        return ConfigReloader(
            text=self._text, read=self.settings.config_text, apply=self._put_in_force, clock=SystemClock()
        )

    @cached_property
    def health(self) -> health.HealthDeps:
        catalog, self._providers = self._connected(self._text)
        return health.HealthDeps(
            catalog=catalog,
            providers=self._providers,
            store=FirestoreHealth(self.firestore),
            clock=SystemClock(),
        )

    @cached_property
    def ledger(self) -> FirestoreLedger:
        return FirestoreLedger(self.firestore, declared=self.settings.limits())

    @cached_property
    def budget_client(self) -> BudgetClient:
        budget_client = BudgetClient(
            self.ledger,
            self.ledger,
            SystemClock(),
            announce=self.announce,
            maintain_every_s=ALLOCATIONS_MAINTAINED_EVERY_S,
        )
        before_the_end(budget_client.close)
        return budget_client

    @cached_property
    def receipts(self) -> ReceiptWriter:
        batches = ReceiptWriter(FirestoreRequests(self.firestore), SystemClock())
        before_the_end(batches.close)
        return batches

    async def announce(self, threshold_event: ThresholdEvent) -> None:
        """Publish that a budget has passed a threshold; the client is built when one first does."""
        from google.cloud import pubsub_v1  # type: ignore[attr-defined,unused-ignore]

        from goblin.gcp.pubsub import PubSubBus

        bus = PubSubBus(pubsub_v1.PublisherClient(), project=self.settings.project)
        await bus.publish("budget-exceeded", budget_exceeded_event(threshold_event))

    @cached_property
    def gateway(self) -> chat.InferenceDeps:
        clock = SystemClock()
        spend = budget.BudgetDeps(ledger=self.ledger, clock=clock)
        view = HealthView(self.health)
        stats = EndpointStats(clock, tell=view.tell)
        view.believe = stats.believe
        return chat.InferenceDeps(
            router=Router(
                catalog=self.health.catalog,
                stats=stats,
                health=view,
                freezes=FreezeView(spend),
                rng=random.random,
                # A random start, or every fresh process would send its first request to the first endpoint.
                turns=itertools.count(random.randrange(1 << 16)),
                reloader=self.reloader,
            ),
            providers=self.health.providers,
            keys=Keys(FirestoreKeys(self.firestore), clock),
            budget_client=self.budget_client,
            uptime=UptimeSessions(clock),
            receipts=self.receipts,
            meter=meter(),
            clock=clock,
            admission=AdmissionControl(AdmissionLimits(), clock),
            answers=AnswerCache(FirestoreAnswers(self.firestore), clock),
            once=IdempotentRequests(FirestoreReplies(self.firestore), clock),
            warm_ups=WarmUps(stats),
            tracer=tracer(),
        )


_processes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Process] = WeakKeyDictionary()


def _here() -> _Process:
    loop = asyncio.get_running_loop()
    if loop not in _processes:
        _processes[loop] = _Process(settings())
    return _processes[loop]
