"""The gRPC server of `google.pubsub.v1`, for unmodified clients; state in SQLite, pushes over HTTP."""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx

from localcloud.clock import Clock, utc_now
from localcloud.identity import Identity
from localcloud.pubsub.backlog import Backlog
from localcloud.pubsub.chaos import Chaos
from localcloud.pubsub.errors import Refused
from localcloud.pubsub.journal import SCHEMA
from localcloud.pubsub.push import Pusher
from localcloud.pubsub.snapshots import Snapshots
from localcloud.pubsub.state import State
from localcloud.pubsub.streaming import serve_stream
from localcloud.pubsub.subscriber import Subscriber
from localcloud.pubsub.subscriptions import ACK_DEADLINE_S_MAX
from localcloud.pubsub.topics import Publisher, check_message
from localcloud.pubsub.wire import Empty, PubsubMessage, Raw, raw
from localcloud.store import Store

log = logging.getLogger(__name__)

SWEEP_PERIOD_S = 60.0
SERVED_PREFIXES = ("/google.pubsub.v1.", "/google.iam.v1.IAMPolicy/")
SHUTTING_DOWN = "The server is shutting down."

Unary = Callable[[Any, Any], Awaitable[Any]]


class PubSub:
    """Google Cloud Pub/Sub in this process: one event loop, one SQLite file."""

    def __init__(
        self,
        path: Path | None,
        *,
        identity: Identity,
        clock: Clock = utc_now,
        chaos: Chaos | None = None,
    ) -> None:
        """Open the state.

        Args:
            path: The SQLite file; None keeps everything in memory.
            identity: Signs the tokens of authenticated pushes.
            clock: The time of day; call `wake` after it jumps.
            chaos: Injects duplicated and reordered deliveries; None injects none.
        """
        self._store = Store(path, SCHEMA)
        self._state = State(self._store, clock=clock, chaos=chaos)
        self._identity = identity
        self._started = False
        self._tls: ssl.SSLContext | None = None
        self._pushes: dict[Backlog, asyncio.Task[None]] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Resume pushes, pauses and retention."""
        self._started = True
        for backlog in self._state.backlogs.values():
            backlog.resume()
        self._follow_pushes()
        self._sweeper = asyncio.create_task(self._sweep_regularly())

    async def close(self) -> None:
        """Stop pushing and close the file; unacknowledged messages are delivered again after the next start."""
        self._closed = True
        tasks = [*self._pushes.values(), *([self._sweeper] if self._sweeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._pushes.clear()
        for backlog in self._state.backlogs.values():
            backlog.end(Refused(grpc.StatusCode.UNAVAILABLE, SHUTTING_DOWN))
        self._store.close()

    async def publish(self, topic: str, data: bytes, attributes: Mapping[str, str]) -> str:
        """Publish from this process, as Storage does for its notifications. Returns the message id.

        Raises:
            Refused: The topic does not exist, the message is invalid, or the server is shutting down.
        """
        message = PubsubMessage(data=data, attributes=attributes)
        self._check_open()
        check_message(message)
        return self._state.publish(topic, [message])[0]

    def wake(self) -> None:
        """Do everything that is due by the clock now."""
        self._state.sweep()
        for backlog in list(self._state.backlogs.values()):
            backlog.wake()

    def handlers(self) -> Sequence[grpc.GenericRpcHandler]:
        """Return the handlers for a `grpc.aio.server`, which must accept requests of a little more than 10 MB."""
        publisher, subscriber, snapshots = (
            Publisher(self._state),
            Subscriber(self._state),
            Snapshots(self._state),
        )

        async def pull(request: Raw, context: Any) -> Raw:
            return await subscriber.pull(request, time_left_s=context.time_remaining())

        publishing = {
            "CreateTopic": self._unary("Topic", publisher.create_topic),
            "DeleteTopic": self._unary("DeleteTopicRequest", publisher.delete_topic),
            "DetachSubscription": self._unary("DetachSubscriptionRequest", publisher.detach_subscription),
            "GetTopic": self._unary("GetTopicRequest", publisher.get_topic),
            "ListTopicSnapshots": self._unary("ListTopicSnapshotsRequest", publisher.list_topic_snapshots),
            "ListTopicSubscriptions": self._unary("ListTopicSubscriptionsRequest", publisher.list_topic_subscriptions),
            "ListTopics": self._unary("ListTopicsRequest", publisher.list_topics),
            "Publish": self._unary("PublishRequest", publisher.publish),
            "UpdateTopic": self._unary("UpdateTopicRequest", publisher.update_topic),
        }
        subscribing = {
            "Acknowledge": self._unary("AcknowledgeRequest", subscriber.acknowledge),
            "CreateSnapshot": self._unary("CreateSnapshotRequest", snapshots.create_snapshot),
            "CreateSubscription": self._unary("Subscription", self._then_follow_pushes(subscriber.create_subscription)),
            "DeleteSnapshot": self._unary("DeleteSnapshotRequest", snapshots.delete_snapshot),
            "DeleteSubscription": self._unary("DeleteSubscriptionRequest", subscriber.delete_subscription),
            "GetSnapshot": self._unary("GetSnapshotRequest", snapshots.get_snapshot),
            "GetSubscription": self._unary("GetSubscriptionRequest", subscriber.get_subscription),
            "ListSnapshots": self._unary("ListSnapshotsRequest", snapshots.list_snapshots),
            "ListSubscriptions": self._unary("ListSubscriptionsRequest", subscriber.list_subscriptions),
            "ModifyAckDeadline": self._unary("ModifyAckDeadlineRequest", subscriber.modify_ack_deadline),
            "ModifyPushConfig": self._unary(
                "ModifyPushConfigRequest", self._then_follow_pushes(subscriber.modify_push_config)
            ),
            "Pull": self._answering("PullRequest", pull),
            "Seek": self._unary("SeekRequest", snapshots.seek),
            "StreamingPull": grpc.stream_stream_rpc_method_handler(
                self._streaming_pull, raw("StreamingPullRequest").FromString, _serialise
            ),
            "UpdateSnapshot": self._unary("UpdateSnapshotRequest", snapshots.update_snapshot),
            "UpdateSubscription": self._unary(
                "UpdateSubscriptionRequest", self._then_follow_pushes(subscriber.update_subscription)
            ),
        }
        return (
            grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", publishing),
            grpc.method_handlers_generic_handler("google.pubsub.v1.Subscriber", subscribing),
            _Unknown(),
        )

    def _unary(self, request: str, method: Callable[[Raw], Awaitable[Raw]]) -> grpc.RpcMethodHandler:
        """Return a handler for a method that needs only its request; None is answered as `Empty`."""

        async def answer(message: Raw, _context: Any) -> Raw:
            return await method(message)

        return self._answering(request, answer)

    def _answering(self, request: str, method: Unary) -> grpc.RpcMethodHandler:
        async def answer(message: Raw, context: Any) -> Raw:
            try:
                self._check_open()
                reply = await method(message, context)
            except Refused as refused:
                await context.abort(refused.code, refused.message, refused.trailing_metadata())
            return Empty() if reply is None else reply

        return grpc.unary_unary_rpc_method_handler(answer, raw(request).FromString, _serialise)

    def _check_open(self) -> None:
        """Refuse with UNAVAILABLE while the server shuts down, so that clients retry."""
        if self._closed:
            raise Refused(grpc.StatusCode.UNAVAILABLE, SHUTTING_DOWN)

    async def _streaming_pull(self, _requests: Any, context: Any) -> None:
        try:
            self._check_open()
            await serve_stream(self._state.backlog, context, grpc.aio.EOF)
        except Refused as refused:
            await context.abort(refused.code, refused.message, refused.trailing_metadata())

    def _then_follow_pushes(self, method: Callable[[Raw], Awaitable[Raw]]) -> Callable[[Raw], Awaitable[Raw]]:
        async def both(request: Raw) -> Raw:
            answer = await method(request)
            self._follow_pushes()
            return answer

        return both

    def _follow_pushes(self) -> None:
        """Start a task for every push subscription that has none; it ends with the subscription."""
        if not self._started or self._closed:
            return
        for backlog in self._state.backlogs.values():
            if backlog.push_endpoint and backlog.over is None and backlog not in self._pushes:
                pusher = Pusher(backlog, connect=self._connect, identity=self._identity, now_us=self._state.now_us)
                task = asyncio.create_task(pusher.run())
                self._pushes[backlog] = task
                task.add_done_callback(partial(self._push_ended, backlog))

    def _connect(self) -> httpx.AsyncClient:
        """Open an HTTP client without proxies and redirects: pushes stay on this machine."""
        if self._tls is None:
            self._tls = httpx.create_ssl_context(trust_env=False)
        return httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False),
            follow_redirects=False,
            trust_env=False,
            timeout=ACK_DEADLINE_S_MAX,  # Each push has its own, shorter deadline.
        )

    def _push_ended(self, backlog: Backlog, task: "asyncio.Task[None]") -> None:
        self._pushes.pop(backlog, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("The push task of %s stopped.", backlog.name, exc_info=error)

    async def _sweep_regularly(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_PERIOD_S)
            self._state.sweep()


class _Unknown(grpc.GenericRpcHandler):
    """A handler that refuses and logs every RPC of Pub/Sub that is not implemented."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = str(handler_call_details.method)
        if not method.startswith(SERVED_PREFIXES):
            return None
        log.warning("Pub/Sub: %s is not implemented here.", method)

        async def refuse(_request: bytes, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"localcloud's Pub/Sub does not implement {method}")

        return grpc.unary_unary_rpc_method_handler(refuse)


def _serialise(message: Raw) -> bytes:
    return bytes(message.SerializeToString())
