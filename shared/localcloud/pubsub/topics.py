"""`google.pubsub.v1.Publisher`: topics, and publishing to them.

Limits: https://cloud.google.com/pubsub/quotas#resource_limits, read 2026-11-23.
"""

from localcloud.pubsub import names
from localcloud.pubsub.errors import exists, invalid, unsupported
from localcloud.pubsub.state import State, detached
from localcloud.pubsub.wire import MICROS, Raw, Topic, duration_us, raw

PUBLISH_BYTES_MAX = 10_000_000
PUBLISH_MESSAGES_MAX = 1000
ATTRIBUTES_MAX = 100
ATTRIBUTE_KEY_BYTES_MAX = 256
ATTRIBUTE_VALUE_BYTES_MAX = 1024
ORDERING_KEY_BYTES_MAX = 1024
RETENTION_S_MIN, RETENTION_S_MAX = 600, 31 * 24 * 3600

MUTABLE = frozenset({"labels", "message_retention_duration", "message_storage_policy"})
NOT_HERE = ("schema_settings", "ingestion_data_source_settings", "message_transforms", "kms_key_name")


class Publisher:
    """The Publisher RPCs: each method takes and returns a raw message, or raises `Refused`."""

    def __init__(self, state: State) -> None:
        """Use a state."""
        self._state = state

    async def create_topic(self, request: Raw) -> Raw:
        """CreateTopic."""
        names.check_name("topics", request.name)
        check_topic(request)
        if request.name in self._state.topics:
            raise exists("Topic", request.name)
        request.state = Topic.State.ACTIVE
        self._state.add_topic(request)
        return request

    async def get_topic(self, request: Raw) -> Raw:
        """GetTopic."""
        names.check_name("topics", request.topic)
        return self._state.topic(request.topic).resource

    async def list_topics(self, request: Raw) -> Raw:
        """ListTopics, by name."""
        names.check_project(request.project)
        inside = [name for name in self._state.topics if name.startswith(f"{request.project}/topics/")]
        some, token = names.page(inside, request.page_size, request.page_token)
        topics = [self._state.topics[name].resource for name in some]
        return raw("ListTopicsResponse")(topics=topics, next_page_token=token)

    async def update_topic(self, request: Raw) -> Raw:
        """UpdateTopic."""
        names.check_name("topics", request.topic.name)
        fields = names.check_mask("UpdateTopicRequest", request.topic, request.update_mask, MUTABLE)
        topic = self._state.topic(request.topic.name)
        changed = Topic()
        changed.CopyFrom(topic.resource)
        names.apply_fields(changed, request.topic, fields)
        check_topic(changed)
        topic.resource = changed
        self._state.save_topic(topic)
        return changed

    async def delete_topic(self, request: Raw) -> Raw:
        """DeleteTopic: its subscriptions stay, on `_deleted-topic_`."""
        names.check_name("topics", request.topic)
        self._state.drop_topic(request.topic)
        return None

    async def list_topic_subscriptions(self, request: Raw) -> Raw:
        """ListTopicSubscriptions: names of the attached ones."""
        names.check_name("topics", request.topic)
        attached = list(self._state.topic(request.topic).backlogs)
        some, token = names.page(attached, request.page_size, request.page_token)
        return raw("ListTopicSubscriptionsResponse")(subscriptions=some, next_page_token=token)

    async def list_topic_snapshots(self, request: Raw) -> Raw:
        """ListTopicSnapshots: names."""
        names.check_name("topics", request.topic)
        topic = self._state.topic(request.topic)
        rows = self._state.store.execute("SELECT name FROM snapshots WHERE topic = ?", (topic.number,))
        some, token = names.page([row[0] for row in rows], request.page_size, request.page_token)
        return raw("ListTopicSnapshotsResponse")(snapshots=some, next_page_token=token)

    async def detach_subscription(self, request: Raw) -> Raw:
        """DetachSubscription."""
        names.check_name("subscriptions", request.subscription)
        backlog = self._state.backlog(request.subscription)
        self._state.detach(backlog, detached(backlog.name))
        return raw("DetachSubscriptionResponse")()

    async def publish(self, request: Raw) -> Raw:
        """Publish: on disk before it answers."""
        names.check_name("topics", request.topic)
        if not request.messages:
            raise invalid("No messages to publish: the request must hold at least one message.")
        if len(request.messages) > PUBLISH_MESSAGES_MAX:
            raise invalid(
                f"The value for message_count is too large. You passed {len(request.messages)} in the request, "
                f"but the maximum value is {PUBLISH_MESSAGES_MAX}."
            )
        if request.ByteSize() > PUBLISH_BYTES_MAX:
            raise invalid(f"Request payload size exceeds the limit: {PUBLISH_BYTES_MAX} bytes.")
        for message in request.messages:
            check_message(message)
        return raw("PublishResponse")(message_ids=self._state.publish(request.topic, request.messages))


def check_topic(topic: Raw) -> None:
    """Refuse what production refuses, and features that localcloud does not implement."""
    names.check_labels(topic.labels)
    refuse_missing(topic, NOT_HERE)
    if topic.HasField("message_retention_duration"):
        check_retention(duration_us(topic.message_retention_duration))


def check_retention(retention_us: int) -> None:
    """Refuse a retention outside of 10 minutes to 31 days."""
    if not RETENTION_S_MIN * MICROS <= retention_us <= RETENTION_S_MAX * MICROS:
        raise invalid(f"message_retention_duration out of bounds: {RETENTION_S_MIN} to {RETENTION_S_MAX} seconds.")


def refuse_missing(resource: Raw, fields: tuple[str, ...]) -> None:
    """Refuse features that would otherwise be silently ignored."""
    used = {descriptor.name for descriptor, _ in resource.ListFields()}
    for field in fields:
        if field in used:
            raise unsupported(f"{resource.DESCRIPTOR.name}.{field}")


def check_message(message: Raw) -> None:
    """Refuse a message without data and attributes, or with attributes beyond their limits."""
    if not message.data and not message.attributes:
        raise invalid("Some messages are empty: each must have data or at least one attribute.")
    if len(message.ordering_key.encode()) > ORDERING_KEY_BYTES_MAX:
        raise invalid(f"The ordering key is longer than {ORDERING_KEY_BYTES_MAX} bytes.")
    if len(message.attributes) > ATTRIBUTES_MAX:
        raise invalid(f"A message has at most {ATTRIBUTES_MAX} attributes, not {len(message.attributes)}.")
    for key, value in message.attributes.items():
        if not key or len(key.encode()) > ATTRIBUTE_KEY_BYTES_MAX or key.startswith("goog"):
            raise invalid(f"Invalid attribute key: {key[:80]!r}.")
        if len(value.encode()) > ATTRIBUTE_VALUE_BYTES_MAX:
            raise invalid(f"The value of attribute {key!r} is longer than {ATTRIBUTE_VALUE_BYTES_MAX} bytes.")
