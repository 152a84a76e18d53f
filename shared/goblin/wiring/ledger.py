"""The ledger and its budget client, shared by gateway, jobs and billing."""

from __future__ import annotations

from goblin.billing.budget_client import BudgetClient
from goblin.billing.policy.allocation import ThresholdEvent
from goblin.billing.policy.budgets import budget_exceeded_event
from goblin.core.clock import SystemClock
from goblin.gcp.firestore.ledger import FirestoreLedger
from goblin.wiring.process import Process, here, per_process
from goblin.wiring.shutdown import before_the_end

ALLOCATIONS_MAINTAINED_EVERY_S = 1.0


@per_process
def ledger(process: Process) -> FirestoreLedger:
    """Build the ledger."""
    return FirestoreLedger(process.firestore, declared=process.settings.limits())


@per_process
def budget_client(process: Process) -> BudgetClient:
    """Build the budget client, which gives its allocations back when the process ends."""
    client = BudgetClient(
        ledger(), ledger(), SystemClock(), announce=announce, maintain_every_s=ALLOCATIONS_MAINTAINED_EVERY_S
    )
    before_the_end(client.close)
    return client


async def announce(event: ThresholdEvent) -> None:
    """Publish a threshold event on `budget-exceeded`; the Pub/Sub client is built at the first one."""
    await here().bus.publish("budget-exceeded", budget_exceeded_event(event))
