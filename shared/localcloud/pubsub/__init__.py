"""Google Cloud Pub/Sub on loopback: the Publisher and Subscriber services, push, and a little chaos for tests."""

from localcloud.pubsub.chaos import Chaos
from localcloud.pubsub.errors import Refused
from localcloud.pubsub.server import PubSub

__all__ = ["Chaos", "PubSub", "Refused"]
