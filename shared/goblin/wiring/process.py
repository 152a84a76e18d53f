"""One process: its settings and its clients, built on first use. Nothing connects at import.

Clients belong to one event loop. The dependencies of a room are built from them once, by functions that `per_process`
wraps.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property, wraps
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import httpx
from google.cloud.firestore import AsyncClient

from goblin.core.endpoints import KeySource
from goblin.core.ports import DeadLetters
from goblin.gcp.oidc import CallerVerifier
from goblin.gcp.secret_manager import PREFIX as SECRET
from goblin.gcp.secret_manager import SecretManager
from goblin.providers.common.kept_connections import KeptConnections, PlainClient
from goblin.web import logs
from goblin.wiring.settings import BadConfiguration, Settings

if TYPE_CHECKING:
    from google.cloud import pubsub_v1, storage

    from goblin.gcp.pubsub import PubSubBus

T = TypeVar("T")

CONNECTIONS_KEPT = 64
CONNECTIONS_MAX = 1024


@cache
def settings() -> Settings:
    """Return the settings of the environment, read once."""
    return Settings.from_env()


def _project() -> str:
    """Return the project for log lines; empty while the settings are invalid, because that must be logged too."""
    try:
        return settings().project
    except BadConfiguration:
        return ""


logs.name_project(_project)


@dataclass
class Process:
    """Settings and clients of one event loop."""

    settings: Settings
    built: dict[Callable[[Process], Any], Any] = field(default_factory=dict)
    """Objects of `per_process` functions, by the function that built them."""

    @cached_property
    def http(self) -> httpx.AsyncClient:
        """HTTP client for providers."""
        # No redirects and no proxies from the environment: only URLs from `goblin.toml` are called.
        tls = ssl.create_default_context()
        return PlainClient(KeptConnections(tls=tls, most=CONNECTIONS_MAX, kept=CONNECTIONS_KEPT))

    @cached_property
    def firestore(self) -> AsyncClient:
        return AsyncClient(project=self.settings.project or None)

    @cached_property
    def storage(self) -> storage.Client:
        # Imported here: the import takes a quarter of a second, and many functions open no bucket.
        from google.cloud import storage

        return storage.Client(project=self.settings.project or None)

    @cached_property
    def bus(self) -> PubSubBus:
        # Imported here: the import takes a quarter of a second, and many functions publish nothing.
        from goblin.gcp.pubsub import PubSubBus

        return PubSubBus(self.publisher, project=self.settings.project)

    @cached_property
    def publisher(self) -> pubsub_v1.PublisherClient:
        from google.cloud import pubsub_v1  # type: ignore[attr-defined,unused-ignore]

        return pubsub_v1.PublisherClient()

    @cached_property
    def secrets(self) -> SecretManager:
        return SecretManager(self.settings.project, emulator=self.settings.secret_manager_emulator)

    @cached_property
    def callers(self) -> CallerVerifier:
        return CallerVerifier(
            self.http,
            audiences=self.settings.caller_audiences,
            emails=self.settings.caller_emails,
            certs_url=self.settings.certs_url,
            signature_verified=self.settings.verify_callers == "iam",
        )

    def setting(self, name: str, meaning: str) -> str:
        """Return an environment variable that must be set.

        Raises:
            BadConfiguration: The variable is not set; the message says what it is for.
        """
        value = self.settings.variables.get(name)
        if not value:
            raise BadConfiguration(f"{name} is not set. It is {meaning}.")
        return value

    def account_key(self, text: str) -> str | KeySource:
        """Return an account key as written, or, for `secret:NAME`, a source that reads Secret Manager."""
        return self.secrets.source(text.removeprefix(SECRET)) if text.startswith(SECRET) else text


_processes: WeakKeyDictionary[asyncio.AbstractEventLoop, Process] = WeakKeyDictionary()


def here() -> Process:
    """Return the process object of the running event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _processes:
        _processes[loop] = Process(settings())
    return _processes[loop]


def per_process(build: Callable[[Process], T]) -> Callable[[], T]:
    """Wrap a function so that it builds its object once per process, on first use."""

    @wraps(build)
    def built() -> T:
        process = here()
        if build not in process.built:
            process.built[build] = build(process)
        found: T = process.built[build]
        return found

    return built


def dead_letters() -> DeadLetters:
    """Open the dead letter topics."""
    return here().bus


async def verify_caller(authorization: str | None) -> None:
    """Check that the caller is one of our service accounts, Pub/Sub's or Cloud Scheduler's.

    Raises:
        Unauthenticated: No OIDC token, or an invalid one.
        Forbidden: A valid token of another account, or no caller is configured.
        Transient: Google's certificates could not be read.
    """
    if settings().verify_callers != "off":
        await here().callers.verify(authorization)
