"""Google Cloud Pub/Sub on loopback: Publisher, Subscriber, push delivery, and fault injection for tests."""

from localcloud.pubsub.chaos import Chaos
from localcloud.pubsub.errors import Refused
from localcloud.pubsub.server import PubSub

__all__ = ["Chaos", "PubSub", "Refused"]
