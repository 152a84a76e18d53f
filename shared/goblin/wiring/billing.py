"""Dependencies of budgets and of the hourly settlement: ledger, Cloud Run services, configured bills."""

from __future__ import annotations

import importlib
import re
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from goblin import providers
from goblin.billing import budgets as budget_service
from goblin.billing import scale_to_zero
from goblin.billing import settlement as settlement_service
from goblin.billing.ports import BillSource
from goblin.core.clock import SystemClock
from goblin.core.endpoints import Endpoint
from goblin.providers.flyio import billing as flyio
from goblin.providers.vastai import billing as vastai
from goblin.wiring.ledger import announce, ledger
from goblin.wiring.process import Process, per_process
from goblin.wiring.settings import BadConfiguration

SERVICE = "service"
"""Option of an endpoint on Cloud Run: the service behind it, which `scale_to_zero` budgets turn off."""
_SERVICE = re.compile(r"(?:projects/[^/]{1,128}/locations/[a-z0-9-]{1,63}/services/)?[a-z][a-z0-9-]{0,62}")


@per_process
def budgets(process: Process) -> budget_service.BudgetDeps:
    """Build the dependencies of budget events and commands."""
    return budget_service.BudgetDeps(ledger=ledger(), clock=SystemClock(), scaling=_scaling())


@per_process
def settlement(process: Process) -> settlement_service.SettlementDeps:
    """Build the dependencies of the hourly settlement."""
    return settlement_service.SettlementDeps(
        ledger=ledger(),
        allocation_store=ledger(),
        bills=_bills(process),
        announce=announce,
        prices=process.settings.catalog().prices_in_use(),
        clock=SystemClock(),
        scaling=_scaling(),
    )


@per_process
def _scaling(process: Process) -> scale_to_zero.ScaleToZeroDeps | None:
    settings = process.settings
    services = _services(settings.catalog().endpoints, project=settings.project, region=settings.region)
    if not services:
        return None
    from goblin.gcp.cloud_run import CloudRun

    scaler = CloudRun(emulator=settings.cloud_run_emulator)
    return scale_to_zero.ScaleToZeroDeps(ledger=ledger(), scaler=scaler, services=services, clock=SystemClock())


def _services(endpoints: Sequence[Endpoint], *, project: str, region: str) -> dict[str, list[Endpoint]]:
    """Return the endpoints by the full name of their Cloud Run service."""
    found: dict[str, list[Endpoint]] = defaultdict(list)
    for endpoint in endpoints:
        if not (name := endpoint.options.get(SERVICE)):
            continue
        if not _SERVICE.fullmatch(name):
            raise BadConfiguration(
                f"Endpoint {endpoint.name}: its option `{SERVICE}` is not the name of a Cloud Run service."
            )
        full = name if "/" in name else f"projects/{project}/locations/{region}/services/{name}"
        found[full].append(endpoint)
    return found


def _bills(process: Process) -> list[BillSource]:
    """Connect the bills whose keys are configured; tests replace a provider's URL with `{NAME}_BILLING_URL`."""
    variables = process.settings.variables
    found: list[BillSource] = []
    for name in providers.having("billing"):
        module = importlib.import_module(f"{providers.__name__}.{name}.billing")
        key = variables.get(module.VARIABLE)
        if not key:
            continue
        more: dict[str, Any] = {}
        if name == flyio.NAME:
            app, price = variables.get("FLY_CHAT_APP"), variables.get("FLY_MACHINE_USD_PER_MONTH")
            if not app or not price:
                continue
            more["rate"] = flyio.Rate(app=app, started_usd_per_month=Decimal(price))
        if name == vastai.NAME:
            more["namespace"] = process.settings.project
        if url := variables.get(f"{name.upper()}_BILLING_URL"):
            more["url"] = url
        found.append(module.connect(process.account_key(key), process.http, **more))
    return found
