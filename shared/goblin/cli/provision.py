"""Create what `cloud.json` declares, through Google's own clients, as Terraform does for production.

Every step is idempotent: what exists is updated to what is declared.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CALL_S_MAX = 20.0


def private_functions(declaration: Path) -> list[str]:
    """List the functions that Pub/Sub and Cloud Scheduler call, by file name."""
    said = json.loads(declaration.read_text())
    triggered = [*said["topics"].values(), *said["schedules"].values()]
    return sorted(details["function"] for details in triggered if "function" in details)


def topics(declaration: Path, *, project: str, functions_url: str, invoker_email: str) -> None:
    """Create each topic and, if a function handles it, its dead-letter topic and push subscription."""
    from google.api_core.exceptions import AlreadyExists
    from google.cloud import pubsub_v1  # type: ignore[attr-defined,unused-ignore]
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.field_mask_pb2 import FieldMask
    from google.pubsub_v1 import types

    said = json.loads(declaration.read_text())
    push = said["push"]
    publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()

    def ensure(create: Any, request: Any, update: Any = None) -> None:
        try:
            create(request=request, timeout=CALL_S_MAX)
        except AlreadyExists:
            if update is not None:
                update()

    with closing(publisher.transport), subscriber:
        for topic, details in said["topics"].items():
            dead, path = f"{topic}-dead", publisher.topic_path(project, topic)
            ensure(publisher.create_topic, {"name": path})
            if "function" not in details:
                continue  # For apps, which create their own subscriptions.
            ensure(publisher.create_topic, {"name": publisher.topic_path(project, dead)})
            # Without a subscription a dead-letter topic loses its messages.
            parked = types.Subscription(
                name=subscriber.subscription_path(project, dead), topic=publisher.topic_path(project, dead),
                ack_deadline_seconds=60, message_retention_duration=Duration(seconds=7 * 86400),
            )  # fmt: skip
            ensure(subscriber.create_subscription, parked)
            pushed = types.Subscription(
                name=subscriber.subscription_path(project, f"{topic}-push"),
                topic=path,
                ack_deadline_seconds=push["ack_deadline_s"],
                push_config=types.PushConfig(
                    push_endpoint=f"{functions_url}/fn/{details['function']}/",
                    oidc_token=types.PushConfig.OidcToken(
                        service_account_email=invoker_email, audience=f"{functions_url}/fn/{details['function']}"
                    ),
                ),
                retry_policy=types.RetryPolicy(
                    minimum_backoff=Duration(seconds=push["backoff_s_min"]),
                    maximum_backoff=Duration(seconds=push["backoff_s_max"]),
                ),
                dead_letter_policy=types.DeadLetterPolicy(
                    dead_letter_topic=publisher.topic_path(project, dead),
                    max_delivery_attempts=push["delivery_attempts_max"],
                ),
            )

            def update(wanted: Any = pushed) -> None:
                mask = FieldMask(paths=["push_config", "ack_deadline_seconds", "retry_policy", "dead_letter_policy"])
                subscriber.update_subscription(subscription=wanted, update_mask=mask, timeout=CALL_S_MAX)

            ensure(subscriber.create_subscription, pushed, update)


def bucket(name: str, *, project: str) -> None:
    """Create the bucket of models, datasets and checkpoints."""
    from google.api_core.exceptions import Conflict
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    client = storage.Client(project=project, credentials=AnonymousCredentials())
    try:
        client.create_bucket(name, timeout=CALL_S_MAX)
    except Conflict:
        return
    finally:
        client.close()


def api_key(key: str, *, project: str, name: str) -> None:
    """Store the digest of an API key in Firestore, so that the key is accepted; the key itself is never stored."""
    from google.cloud import firestore

    client = firestore.Client(project=project)
    try:
        document = client.collection("keys").document(hashlib.sha256(key.encode()).hexdigest())
        if not document.get(timeout=CALL_S_MAX).exists:
            document.set({"name": name, "disabled": False, "created_at": datetime.now(UTC)}, timeout=CALL_S_MAX)
    finally:
        client.close()


def everything(declaration: Path, *, variables: Mapping[str, str], invoker_email: str) -> None:
    """Create everything in the cloud that `variables` name; they are put into this process's environment."""
    os.environ.update(variables)
    project, url = variables["GOOGLE_CLOUD_PROJECT"], variables.get("GOBLIN_JOBS_URL") or variables["GOBLIN_URL"]
    topics(declaration, project=project, functions_url=url, invoker_email=invoker_email)
    bucket(variables["GOBLIN_BUCKET"], project=project)
    api_key(variables["GOBLIN_API_KEY"], project=project, name="local")
