"""Secret Manager on loopback, over gRPC and REST."""

from collections.abc import Sequence
from pathlib import Path

import grpc
from starlette.routing import BaseRoute

from localcloud.clock import Clock, utc_now
from localcloud.secrets.transports import GrpcHandlers, rest_routes
from localcloud.secrets.vault import Vault


class SecretManager:
    """Secret Manager: one vault, served over two transports."""

    def __init__(self, path: Path | None, *, clock: Clock = utc_now) -> None:
        """Open the state.

        Args:
            path: The SQLite file, made readable by its owner only. None keeps it in memory.
            clock: Aware UTC; decides when secrets expire.
        """
        self._vault = Vault(path, clock=clock)

    def handlers(self) -> Sequence[grpc.GenericRpcHandler]:
        """Return the handlers of `google.cloud.secretmanager.v1.SecretManagerService` for a `grpc.aio` server."""
        return [GrpcHandlers(self._vault)]

    def routes(self) -> list[BaseRoute]:
        """Return the routes `/v1/projects/P/secrets…` for a Starlette app."""
        return rest_routes(self._vault)

    def close(self) -> None:
        """Close the file."""
        self._vault.close()
