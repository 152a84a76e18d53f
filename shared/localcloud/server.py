"""The local cloud as one process on one asyncio loop: gRPC for Pub/Sub, Firestore, Secret Manager; HTTP for the rest.

It binds loopback only: it keeps no account and checks no permission but the ones its clients ask it to (signed URLs).
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import grpc
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from localcloud import declaration
from localcloud.clock import utc_now
from localcloud.firestore.server import Firestore
from localcloud.identity import Identity
from localcloud.pubsub.chaos import Chaos
from localcloud.pubsub.server import PubSub
from localcloud.scheduler import Scheduler
from localcloud.secrets import SecretManager
from localcloud.storage import Storage

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
REQUEST_BYTES_MAX = 11 << 20
"""Above Google's 10 MiB, so that the service and not the transport says what is too large."""

Service = Literal["pubsub", "firestore", "storage"]
SERVICES: tuple[Service, ...] = ("pubsub", "firestore", "storage")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How to run; ports of 0 are chosen by the system."""

    folder: Path
    """Where all state lives; made if absent."""
    services: Sequence[Service] = SERVICES
    """What to serve; Secret Manager, identity and schedules always come along, with Storage's HTTP port."""
    pubsub_port: int = 0
    firestore_port: int = 0
    storage_port: int = 0
    declaration: Path | None = None
    functions_url: str | None = None
    """Scheduled functions answer below it; None ticks none."""
    every_s: Mapping[str, int] = field(default_factory=dict)
    """Schedules that tick every so many seconds, 1 to 59, instead of as they are declared: nobody watches a minute."""
    invoker_email: str = "goblin-invoker@goblin-local.iam.gserviceaccount.com"
    """Who scheduled calls say they are."""
    firestore_mode: Literal["pessimistic", "optimistic"] = "pessimistic"
    chaos: Chaos | None = None
    """Duplicate and reorder deliveries on purpose."""
    clock: Callable[[], datetime] = utc_now


@dataclass(frozen=True, kw_only=True, slots=True)
class Addresses:
    """Where the services listen, as the Google clients' environment variables want it."""

    pubsub: str | None
    """`host:port`, for `PUBSUB_EMULATOR_HOST`; None when not served. Secret Manager's gRPC answers there too."""
    firestore: str | None
    """`host:port`, for `FIRESTORE_EMULATOR_HOST`; None when not served."""
    http: str
    """`http://host:port`, for `STORAGE_EMULATOR_HOST`; Secret Manager's REST, Scheduler's and the certificates too."""


class LocalCloud:
    """All services together. `start`, use, `close`; state stays in the folder."""

    def __init__(self, options: Options) -> None:
        self._options = options
        said = declaration.read(options.declaration, functions_url=options.functions_url, every_s=options.every_s)
        folder, clock = options.folder, options.clock
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.identity = Identity(folder, clock=clock)
        self._pubsub = PubSub(folder / "pubsub.db", identity=self.identity, clock=clock, chaos=options.chaos)
        self._firestore = Firestore(
            folder / "firestore.db", clock=clock, indexes=said.indexes, ttl=said.ttl, mode=options.firestore_mode
        )
        account = self.identity.service_account
        self._storage = Storage(
            folder / "storage",
            clock=clock,
            publish=self._pubsub.publish,
            signers={account["client_email"]: self.identity.public_key},
        )
        self._secrets = SecretManager(folder / "secrets.db", clock=clock)
        self._scheduler = Scheduler(said.schedules, identity=self.identity, email=options.invoker_email, clock=clock)
        self._grpc: list[grpc.aio.Server] = []
        self._http: uvicorn.Server | None = None
        self._http_task: asyncio.Task[None] | None = None

    async def start(self) -> Addresses:
        """Open the ports and begin to serve.

        Raises:
            OSError: A port is taken.
        """
        options = self._options
        pubsub = firestore = None
        if "pubsub" in options.services:
            await self._pubsub.start()
            handlers = [*self._pubsub.handlers(), *self._secrets.handlers()]
            pubsub = await self._listen(handlers, options.pubsub_port)
        if "firestore" in options.services:
            await self._firestore.start()
            firestore = await self._listen(list(self._firestore.handlers()), options.firestore_port)
        await self._storage.start()
        http = await self._listen_http(options.storage_port)
        await self._scheduler.start()
        return Addresses(pubsub=pubsub, firestore=firestore, http=http)

    async def _listen(self, handlers: list[grpc.GenericRpcHandler], port: int) -> str:
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
                ("grpc.max_send_message_length", -1),
                # Two processes must never share a port silently.
                ("grpc.so_reuseport", 0),
            ]
        )
        server.add_generic_rpc_handlers(handlers)
        try:
            bound = server.add_insecure_port(f"{HOST}:{port}")
        except RuntimeError as error:
            raise OSError(f"port {port} is taken") from error
        await server.start()
        self._grpc.append(server)
        return f"{HOST}:{bound}"

    async def _listen_http(self, port: int) -> str:
        # Storage comes last: its XML routes take every path that nobody else has.
        routes = [
            Route("/localcloud", self._who),
            *self.identity.routes(),
            *self._scheduler.routes(),
            *self._secrets.routes(),
            *self._storage.routes(),
        ]
        app = Starlette(routes=routes)
        config = uvicorn.Config(
            app, host=HOST, port=port, log_level="warning", lifespan="off", access_log=False,
            timeout_graceful_shutdown=3, h11_max_incomplete_event_size=64 * 1024,
        )  # fmt: skip
        self._http = uvicorn.Server(config)
        sock = _bind(port)
        # Not `serve`, which would take the process's signal handlers: they belong to whoever started us.
        self._http_task = asyncio.create_task(self._http._serve([sock]))
        return f"http://{HOST}:{sock.getsockname()[1]}"

    async def _who(self, _: Request) -> Response:
        """Tell a starter that these ports are ours and not a stranger's; all are open once this one answers."""
        return JSONResponse({"pid": os.getpid()})

    async def close(self) -> None:
        """Finish what runs, stop, and close the files."""
        await self._scheduler.close()
        await self._pubsub.close()
        await asyncio.gather(*(server.stop(grace=1.0) for server in self._grpc))
        if self._http and self._http_task:
            self._http.should_exit = True
            await self._http_task
        await self._storage.close()
        await self._firestore.close()
        self._secrets.close()


def _bind(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((HOST, port))
    # Listening already: who connects before the server's first loop turn waits instead of being refused.
    sock.listen(1024)
    return sock
