"""`google.pubsub.v1.Subscriber`: subscriptions, pull and acknowledgements."""

import asyncio
import contextlib
from typing import Any

import grpc

from localcloud.pubsub import names
from localcloud.pubsub.backlog import Backlog
from localcloud.pubsub.deliveries import Received
from localcloud.pubsub.errors import Refused, exists, invalid, not_found
from localcloud.pubsub.state import State
from localcloud.pubsub.subscriptions import ACK_DEADLINE_S_MAX, MUTABLE, check_push, complete
from localcloud.pubsub.wire import Raw, Subscription, raw

PULL_MESSAGES_MAX = 1000
PULL_WAIT_S = 60.0
"""Seconds after which an idle pull answers empty; earlier when its caller's deadline is near."""
PULL_ANSWER_MARGIN_S = 0.3


class Subscriber:
    """The unary RPCs: each method takes and returns a raw message, or raises `Refused`."""

    def __init__(self, state: State) -> None:
        """Use a state."""
        self._state = state

    async def create_subscription(self, request: Raw) -> Raw:
        """CreateSubscription."""
        names.check_name("subscriptions", request.name)
        names.check_name("topics", request.topic)
        complete(request)
        self._check_dead_letter_topic(request)
        self._state.topic(request.topic)
        if request.name in self._state.backlogs:
            raise exists("Subscription", request.name)
        request.detached = False
        return self._shown(self._state.add_subscription(request))

    async def get_subscription(self, request: Raw) -> Raw:
        """GetSubscription."""
        return self._shown(self._named(request.subscription))

    async def list_subscriptions(self, request: Raw) -> Raw:
        """ListSubscriptions of a project, by name."""
        names.check_project(request.project)
        inside = [n for n in self._state.backlogs if n.startswith(f"{request.project}/subscriptions/")]
        some, token = names.page(inside, request.page_size, request.page_token)
        subscriptions = [self._shown(self._state.backlogs[name]) for name in some]
        return raw("ListSubscriptionsResponse")(subscriptions=subscriptions, next_page_token=token)

    async def update_subscription(self, request: Raw) -> Raw:
        """UpdateSubscription."""
        names.check_name("subscriptions", request.subscription.name)
        fields = names.check_mask("UpdateSubscriptionRequest", request.subscription, request.update_mask, MUTABLE)
        backlog = self._state.backlog(request.subscription.name)
        changed = Subscription()
        changed.CopyFrom(backlog.resource)
        names.apply_fields(changed, request.subscription, fields)
        complete(changed)
        if "dead_letter_policy" in fields:
            self._check_dead_letter_topic(changed)
        self._change(backlog, changed)
        return self._shown(backlog)

    async def delete_subscription(self, request: Raw) -> Raw:
        """DeleteSubscription."""
        names.check_name("subscriptions", request.subscription)
        self._state.drop_subscription(request.subscription)
        return None

    async def modify_push_config(self, request: Raw) -> Raw:
        """ModifyPushConfig: an empty configuration switches to pull."""
        backlog = self._named(request.subscription)
        check_push(request.push_config)
        changed = Subscription()
        changed.CopyFrom(backlog.resource)
        changed.push_config.CopyFrom(request.push_config)
        complete(changed)
        self._change(backlog, changed)

    async def pull(self, request: Raw, *, time_left_s: float | None) -> Raw:
        """Pull: wait for a first message, then answer with what is ready."""
        if request.max_messages <= 0:
            raise invalid("max_messages must be positive.")
        backlog = self._named(request.subscription)
        limit = min(request.max_messages, PULL_MESSAGES_MAX)
        bell = asyncio.Event()
        backlog.listen(bell)
        try:
            wait_s = 0.0 if request.return_immediately else PULL_WAIT_S
            if time_left_s is not None:
                wait_s = min(wait_s, max(0.0, time_left_s - PULL_ANSWER_MARGIN_S))
            received = take_for_pull(backlog, limit)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    while not received:
                        bell.clear()
                        await bell.wait()
                        received = take_for_pull(backlog, limit)
        finally:
            backlog.unlisten(bell)
        with_attempt = backlog.shows_attempts
        return raw("PullResponse")(received_messages=[one.wire(with_attempt=with_attempt) for one in received])

    async def acknowledge(self, request: Raw) -> Raw:
        """Acknowledge: durable before it answers."""
        backlog = self._named(request.subscription)
        if not request.ack_ids:
            raise invalid("No ack ids specified.")
        refuse_failures(backlog.acknowledge(request.ack_ids))

    async def modify_ack_deadline(self, request: Raw) -> Raw:
        """ModifyAckDeadline: 0 returns the message to the queue."""
        backlog = self._named(request.subscription)
        if not request.ack_ids:
            raise invalid("No ack ids specified.")
        check_deadline(request.ack_deadline_seconds)
        refuse_failures(backlog.modify_deadline(request.ack_ids, request.ack_deadline_seconds))

    def _named(self, name: str) -> Backlog:
        names.check_name("subscriptions", name)
        return self._state.backlog(name)

    def _change(self, backlog: Backlog, resource: Raw) -> None:
        backlog.resource = resource
        self._state.save_subscription(backlog)
        backlog.reconfigured()

    def _check_dead_letter_topic(self, resource: Raw) -> None:
        grave = resource.dead_letter_policy.dead_letter_topic
        if resource.HasField("dead_letter_policy") and grave not in self._state.topics:
            raise not_found("Dead letter topic", grave)

    def _shown(self, backlog: Backlog) -> Raw:
        """Return the resource with the fields that production adds to its answers."""
        topic = self._state.topics.get(backlog.resource.topic)
        shown = Subscription()
        shown.CopyFrom(backlog.resource)
        if topic is not None and topic.retention_us:
            shown.topic_message_retention_duration.CopyFrom(topic.resource.message_retention_duration)
        return shown


def take_for_pull(backlog: Backlog, limit: int) -> list[Received]:
    """Lease messages for a pull; refused while the subscription is pushed."""
    refuse_push(backlog)
    return backlog.take(limit=limit, deadline_s=backlog.resource.ack_deadline_seconds)


def refuse_push(backlog: Backlog) -> None:
    """Refuse to pull a push subscription: only one of push and pull delivers."""
    if backlog.push_endpoint:
        raise Refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"The subscription is pushed to its endpoint and cannot be pulled (resource={backlog.name}).",
        )


def refuse_failures(failures: dict[str, str]) -> None:
    """Report to an exactly-once client which acknowledgements did not count."""
    if failures:
        raise Refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            "Some acknowledgement ids in the request were invalid.",
            failures,
        )


def check_deadline(seconds: Any) -> None:
    """Refuse a deadline outside of 0 to 600 seconds."""
    if not 0 <= seconds <= ACK_DEADLINE_S_MAX:
        raise invalid(f"ack_deadline_seconds must be between 0 and {ACK_DEADLINE_S_MAX}, not {seconds}.")
