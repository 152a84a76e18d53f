"""The dead letters of this project, for operators."""

from __future__ import annotations

from goblin.gcp.dead_letters import PubSubDeadLetters
from goblin.wiring.process import Process, per_process


@per_process
def box(process: Process) -> PubSubDeadLetters:
    """Open the dead letters."""
    from google.cloud import pubsub_v1  # type: ignore[attr-defined,unused-ignore]

    return PubSubDeadLetters(pubsub_v1.SubscriberClient(), lambda: process.publisher, project=process.settings.project)
