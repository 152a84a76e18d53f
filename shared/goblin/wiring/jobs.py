"""What the functions of jobs work with, from settings, once per process and event loop, on first use."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from goblin.core.clock import SystemClock
from goblin.core.errors import NotFound
from goblin.core.money import to_micros
from goblin.gcp.firestore.jobs import FirestoreAttemptKeys, FirestoreJobs, FirestoreMarket
from goblin.gcp.firestore.webhooks import FirestoreWebhookEvents
from goblin.jobs import reservations
from goblin.jobs.domain.job import JobKind
from goblin.jobs.lifecycle import JobDeps
from goblin.jobs.ports import ComputeProvider
from goblin.wiring import process as wiring
from goblin.wiring.settings import BadConfiguration

LIMITS: Mapping[str, int] = {JobKind.BATCH: 2, JobKind.TRAINING: 2, JobKind.INFERENCE: 2}
"""Jobs of one kind at once."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

log = logging.getLogger(__name__)

_kept: WeakKeyDictionary[asyncio.AbstractEventLoop, JobDeps] = WeakKeyDictionary()


def jobs() -> JobDeps:
    """What every service of jobs works with.

    Raises:
        BadConfiguration: A setting is missing.
    """
    loop = asyncio.get_running_loop()
    if loop not in _kept:
        _kept[loop] = _connect()
    return _kept[loop]


def _connect() -> JobDeps:
    # Imported here: they cost half a second, and not every function that looks at jobs opens a bucket.
    from google.cloud import pubsub_v1, storage

    from goblin.gcp.pubsub import PubSubBus
    from goblin.gcp.storage import GcsObjects

    project = wiring.settings().project
    firestore = wiring.firestore()
    return JobDeps(
        jobs=FirestoreJobs(firestore),
        objects=GcsObjects(storage.Client(project=project or None)),
        bus=PubSubBus(pubsub_v1.PublisherClient(), project=project),
        keys=FirestoreAttemptKeys(firestore),
        compute=_compute(),
        clock=SystemClock(),
        bucket=_needed("GOBLIN_BUCKET", "the bucket of datasets, outputs and checkpoints"),
        url=_needed("GOBLIN_URL", "where rented instances reach this Goblin"),
        limits=LIMITS,
        new_secret=lambda: secrets.token_urlsafe(32),
        market=FirestoreMarket(firestore),
        money=reservations.ReservationDeps(budget_client=wiring.budget_client(), ledger=wiring.ledger()),
        caps=_caps(),
        image=wiring.settings().variables.get("GOBLIN_AGENT_IMAGE", ""),
    )


def webhook_events() -> FirestoreWebhookEvents:
    """Which hints of providers were followed."""
    return FirestoreWebhookEvents(wiring.firestore())


async def webhook_secret(name: str) -> str:
    """What a provider signs with. Raises `NotFound`: without one nobody is listened to."""
    said = wiring.settings().variables.get(name, "").strip()
    if not said:
        raise NotFound("no webhook is set up here")
    key = wiring.account_key(said)
    return key if isinstance(key, str) else await key.key()


def _compute() -> dict[str, ComputeProvider]:
    """The providers that are configured: each by its key, this machine by its folder."""
    settings = wiring.settings()
    providers: dict[str, ComputeProvider] = {}
    if folder := settings.variables.get("GOBLIN_LOCAL_INSTANCES"):
        from goblin.providers.local import compute as local

        providers[local.NAME] = local.connect(Path(folder))
    if key := settings.variables.get("RUNPOD_API_KEY"):
        from goblin.providers.runpod import compute as runpod

        url = settings.variables.get("RUNPOD_API_BASE_URL") or runpod.URL
        if _reaches_us(runpod.NAME, url):
            providers[runpod.NAME] = runpod.connect(
                api_key=wiring.account_key(key), namespace=settings.project, client=wiring.http(), url=url
            )
    if key := settings.variables.get("VASTAI_API_KEY"):
        from goblin.providers.vastai import compute as vastai

        url = settings.variables.get("VAST_API_URL") or vastai.URL
        if _reaches_us(vastai.NAME, url):
            providers[vastai.NAME] = vastai.connect(
                api_key=wiring.account_key(key), namespace=settings.project, client=wiring.http(), url=url
            )
    return providers


def _reaches_us(name: str, api_url: str) -> bool:
    """Whether a machine that is rented there could call this Goblin; one that could not would only cost."""
    ours = _needed("GOBLIN_URL", "where rented instances reach this Goblin")
    here = [urlsplit(url).hostname in LOOPBACK for url in (ours, api_url)]
    if here == [True, False]:
        log.warning("nothing is rented from %s: its machines could not reach %s", name, ours)
        return False
    return True


def _caps() -> dict[str, int]:
    """What an operator allows an instance of a provider to cost in an hour, in millionths of a dollar."""
    said = wiring.settings().variables.get("VASTAI_MAX_COST_PER_HOUR", "")
    if not said:
        return {}
    try:
        return {"vastai": to_micros(Decimal(said))}
    except (InvalidOperation, ValueError, OverflowError) as error:
        raise BadConfiguration(f"VASTAI_MAX_COST_PER_HOUR is no amount of dollars: {said!r}") from error


def _needed(name: str, meaning: str) -> str:
    value = wiring.settings().variables.get(name)
    if not value:
        raise BadConfiguration(f"{name} is not set: {meaning}")
    return value
