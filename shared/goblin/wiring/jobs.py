"""Dependencies of jobs: their stores, the providers that rent instances, and the operator's limits."""

from __future__ import annotations

import logging
import secrets
from decimal import Decimal, InvalidOperation
from pathlib import Path
from urllib.parse import urlsplit

from goblin.core.clock import SystemClock
from goblin.core.errors import NotFound
from goblin.core.money import to_micros
from goblin.gateway.admission import AdmissionControl
from goblin.gateway.policy.admission import AdmissionLimits
from goblin.gcp.firestore.jobs import FirestoreAttemptKeys, FirestoreJobs, FirestoreMarketHistory
from goblin.gcp.firestore.webhooks import FirestoreWebhookEvents
from goblin.jobs import reservations
from goblin.jobs.lifecycle import JobDeps
from goblin.jobs.policy.queue import PLACES
from goblin.jobs.ports import ComputeProvider
from goblin.wiring.ledger import budget_client, ledger
from goblin.wiring.process import Process, here, per_process
from goblin.wiring.settings import BadConfiguration

PACE_MAX = 50
"""Heartbeats come five times a second then; an attempt's token may ask ten times."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

log = logging.getLogger(__name__)


@per_process
def jobs(process: Process) -> JobDeps:
    """Build the dependencies of every jobs service.

    Raises:
        BadConfiguration: A setting is missing or invalid; the message names it.
    """
    # Imported here: importing Cloud Storage takes a quarter of a second, and not every function opens a bucket.
    from goblin.gcp.storage import GcsObjects

    firestore = process.firestore
    return JobDeps(
        jobs=FirestoreJobs(firestore),
        objects=GcsObjects(process.storage),
        bus=process.bus,
        keys=FirestoreAttemptKeys(firestore),
        compute=_compute(process),
        clock=SystemClock(),
        bucket=process.setting("GOBLIN_BUCKET", "the bucket of datasets, outputs and checkpoints"),
        url=process.setting("GOBLIN_URL", "where rented instances reach the gateway"),
        jobs_url=_jobs_url(process),
        limits=PLACES,
        new_secret=lambda: secrets.token_urlsafe(32),
        market=FirestoreMarketHistory(firestore),
        money=reservations.ReservationDeps(budget_client=budget_client(), ledger=ledger()),
        caps=_caps(process),
        gpu_models=tuple(process.settings.variables.get("GOBLIN_GPU_MODELS", "").replace(",", " ").split()),
        pace=_pace(process),
        image=process.settings.variables.get("GOBLIN_AGENT_IMAGE", ""),
    )


@per_process
def keyless(process: Process) -> AdmissionControl:
    """Build the admission control of callers without API keys: hosts of attempts, and providers' webhooks.

    Apart from that of API keys, so that neither side keeps the other out.
    """
    return AdmissionControl(AdmissionLimits(), SystemClock())


@per_process
def webhook_events(process: Process) -> FirestoreWebhookEvents:
    """Build the store of webhook events that were handled already."""
    return FirestoreWebhookEvents(process.firestore)


async def webhook_secret(name: str) -> str:
    """Return the secret with which a provider signs webhook events.

    Raises:
        NotFound: No secret is configured, so that no webhook event is accepted.
    """
    process = here()
    said = process.settings.variables.get(name, "").strip()
    if not said:
        raise NotFound("No webhook is configured here.")
    key = process.account_key(said)
    return key if isinstance(key, str) else await key.key()


def _compute(process: Process) -> dict[str, ComputeProvider]:
    """Connect the configured providers: rented ones by their keys, this machine by its folder."""
    settings = process.settings
    providers: dict[str, ComputeProvider] = {}
    if folder := settings.variables.get("GOBLIN_LOCAL_INSTANCES"):
        from goblin.providers.local import compute as local

        providers[local.NAME] = local.connect(Path(folder))
    if key := settings.variables.get("RUNPOD_API_KEY"):
        from goblin.providers.runpod import compute as runpod

        url = settings.variables.get("RUNPOD_API_BASE_URL") or runpod.URL
        if _reaches_us(process, runpod.NAME, url):
            providers[runpod.NAME] = runpod.connect(
                api_key=process.account_key(key), namespace=settings.project, client=process.http, url=url
            )
    if key := settings.variables.get("VASTAI_API_KEY"):
        from goblin.providers.vastai import compute as vastai

        url = settings.variables.get("VAST_API_URL") or vastai.URL
        if _reaches_us(process, vastai.NAME, url):
            providers[vastai.NAME] = vastai.connect(
                api_key=process.account_key(key), namespace=settings.project, client=process.http, url=url
            )
    return providers


def _reaches_us(process: Process, name: str, api_url: str) -> bool:
    """Whether a machine rented there could call this Goblin; one that could not would only cost money."""
    ours = _jobs_url(process)
    here = [urlsplit(url).hostname in LOOPBACK for url in (ours, api_url)]
    if here == [True, False]:
        log.warning("no instances are rented from %s, because its machines could not reach %s (GOBLIN_URL)", name, ours)
        return False
    return True


def _caps(process: Process) -> dict[str, int]:
    """Return the price caps that the operator set: micro-dollars per hour and instance, by provider."""
    said = process.settings.variables.get("VASTAI_MAX_COST_PER_HOUR", "")
    if not said:
        return {}
    try:
        return {"vastai": to_micros(Decimal(said))}
    except (InvalidOperation, ValueError, OverflowError) as error:
        raise BadConfiguration(
            f"VASTAI_MAX_COST_PER_HOUR is not an amount of dollars: {said!r}. Write it as 0.80."
        ) from error


def _pace(process: Process) -> float:
    """Return how much faster than real ones the markets are."""
    said = process.settings.variables.get("GOBLIN_PACE", "") or "1"
    try:
        pace = float(said)
    except ValueError:
        pace = 0.0
    if not 1 <= pace <= PACE_MAX:
        raise BadConfiguration(f"GOBLIN_PACE is {said!r}. Set it to a number from 1 to {PACE_MAX}.")
    return pace


def _jobs_url(process: Process) -> str:
    """Return where agents reach the worker API: a host of its own in production, on a laptop the gateway's."""
    apart = process.settings.variables.get("GOBLIN_JOBS_URL", "")
    return apart or process.setting("GOBLIN_URL", "where rented instances reach this Goblin")
