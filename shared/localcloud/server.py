"""The local cloud as one process on one event loop: gRPC for Pub/Sub, Firestore, Secret Manager; HTTP for the rest.

It binds loopback only, because it has no accounts and checks no permissions, except the signatures of signed URLs.
A browser's pages reach loopback too: HTTP is behind a guard, and gRPC needs HTTP/2 from the first byte, which no
browser speaks without TLS.
"""

import asyncio
import json
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

from httpguard import LOOPBACK, Guard, Refusal
from httpguard.protocol import Protocol
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
PROJECT = "local"
"""The project that `Addresses.variables` names. Every project exists: none has to be created."""
REQUEST_BYTES_MAX = 11 << 20
"""Above Google's 10 MiB, so that the service, not the transport, refuses what is too large."""

Service = Literal["pubsub", "firestore", "storage"]
SERVICES: tuple[Service, ...] = ("pubsub", "firestore", "storage")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Settings of a local cloud. Port 0 lets the system choose one."""

    folder: Path
    """The folder of all state; created if absent."""
    services: Sequence[Service] = SERVICES
    """The services to serve. Secret Manager, identity and schedules are always served, on Storage's HTTP port."""
    pubsub_port: int = 0
    firestore_port: int = 0
    storage_port: int = 0
    declaration: Path | None = None
    functions_url: str | None = None
    """The base URL of the scheduled functions. None runs no schedule."""
    every_s: Mapping[str, int] = field(default_factory=dict)
    """Schedules that run every so many seconds, 1 to 59, instead of as declared: a person does not wait a minute."""
    invoker_email: str = "goblin-invoker@goblin-local.iam.gserviceaccount.com"
    """The service account that calls scheduled functions."""
    firestore_mode: Literal["pessimistic", "optimistic"] = "pessimistic"
    chaos: Chaos | None = None
    """Injects duplicated and reordered deliveries. None injects none."""
    clock: Callable[[], datetime] = utc_now


@dataclass(frozen=True, kw_only=True, slots=True)
class Addresses:
    """The addresses of the services, in the form of the Google clients' environment variables."""

    pubsub: str | None
    """`host:port`, for `PUBSUB_EMULATOR_HOST`; None when not served. Secret Manager's gRPC is there too."""
    firestore: str | None
    """`host:port`, for `FIRESTORE_EMULATOR_HOST`; None when not served."""
    http: str
    """`http://host:port`, for `STORAGE_EMULATOR_HOST`. Also Secret Manager's REST API, Scheduler and certificates."""

    def variables(self) -> dict[str, str]:
        """Return the environment variables that point Google's clients here; those of services not served are absent.

        Google's Secret Manager client reads no such variable. `SECRET_MANAGER_EMULATOR_HOST` is for the app, which
        gives the client that address.
        """
        named = {
            "PUBSUB_EMULATOR_HOST": self.pubsub,
            "FIRESTORE_EMULATOR_HOST": self.firestore,
            "STORAGE_EMULATOR_HOST": self.http,
            "SECRET_MANAGER_EMULATOR_HOST": self.http,
            "GOOGLE_CLOUD_PROJECT": PROJECT,
        }
        return {name: value for name, value in named.items() if value}


class LocalCloud:
    """All services together: `start`, use, `close`. The state stays in the folder."""

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
        """Open the ports and start all services.

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
            await server.stop(grace=None)
            raise _taken(port) from error
        await server.start()
        self._grpc.append(server)
        return f"{HOST}:{bound}"

    async def _listen_http(self, port: int) -> str:
        # Storage comes last: its XML routes match every path that no other route matches.
        routes = [
            Route("/localcloud", self._who),
            *self.identity.routes(),
            *self._scheduler.routes(),
            *self._secrets.routes(),
            *self._storage.routes(),
        ]
        # Any page in this machine's browser could ask for a secret otherwise. No page of another site has a reason to.
        app = Guard(Starlette(routes=routes), hosts=LOOPBACK, words=in_googles_words)
        config = uvicorn.Config(
            app, host=HOST, port=port, http=Connection, ws="none", log_config=None, log_level="warning",
            lifespan="off", access_log=False, timeout_graceful_shutdown=3,
        )  # fmt: skip
        self._http = uvicorn.Server(config)
        sock = _bind(port)
        # Not `serve`, which would replace the process's signal handlers: they belong to the caller.
        self._http_task = asyncio.create_task(self._http._serve([sock]))
        return f"http://{HOST}:{sock.getsockname()[1]}"

    async def _who(self, _: Request) -> Response:
        """Answer our process id, so that the parent process knows these ports are ours. All ports are open by now."""
        return JSONResponse({"pid": os.getpid()})

    async def close(self) -> None:
        """Finish running requests, stop, and close the files."""
        await self._scheduler.close()
        await self._pubsub.close()
        await asyncio.gather(*(server.stop(grace=1.0) for server in self._grpc))
        if self._http and self._http_task:
            self._http.should_exit = True
            await self._http_task
        await self._storage.close()
        await self._firestore.close()
        self._secrets.close()


def in_googles_words(refusal: Refusal) -> bytes:
    """Return the JSON body of a refusal in the shape of Google's errors."""
    error = {"code": refusal.status, "message": refusal.message, "errors": [{"reason": refusal.code}]}
    return json.dumps({"error": error}).encode()


class Connection(Protocol):
    """A connection, whose refusals are in Google's words."""

    words = staticmethod(in_googles_words)


def _bind(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
    except OSError as error:
        sock.close()
        raise _taken(port) from error
    # Listen now: a client that connects before the server's first loop turn waits instead of being refused.
    sock.listen(1024)
    return sock


def _taken(port: int) -> OSError:
    return OSError(f"Port {port} is taken. Choose another, or 0 for any that is free.")
