"""A local cloud for tests and benches, in a thread of this process or as a process of its own."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self
from unittest import mock

from localcloud.in_thread import CloudInThread
from localcloud.server import Addresses, Options

START_S_MAX = 30


def environment(addresses: Addresses) -> dict[str, str]:
    """The variables that point Google's clients at the cloud."""
    named = {
        "PUBSUB_EMULATOR_HOST": addresses.pubsub,
        "FIRESTORE_EMULATOR_HOST": addresses.firestore,
        "STORAGE_EMULATOR_HOST": addresses.http,
    }
    return {name: value for name, value in named.items() if value}


class _Clients:
    addresses: Addresses

    def project(self) -> str:
        """A project nobody has used."""
        return f"p-{uuid.uuid4().hex[:12]}"

    @property
    def storage_url(self) -> str:
        return self.addresses.http

    def storage_client(self, project: str | None = None) -> Any:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        with mock.patch.dict(os.environ, {"STORAGE_EMULATOR_HOST": self.addresses.http}):
            return storage.Client(project=project or self.project(), credentials=AnonymousCredentials())

    def secrets_client(self, transport: str = "rest") -> Any:
        """A Secret Manager client over `rest` or `grpc`."""
        import grpc
        from google.api_core.client_options import ClientOptions
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import secretmanager_v1 as secretmanager
        from google.cloud.secretmanager_v1.services.secret_manager_service.transports import (
            SecretManagerServiceGrpcTransport,
        )

        if transport == "grpc":
            channel = grpc.insecure_channel(str(self.addresses.pubsub))
            return secretmanager.SecretManagerServiceClient(
                transport=SecretManagerServiceGrpcTransport(channel=channel)
            )
        return secretmanager.SecretManagerServiceClient(
            transport="rest",
            credentials=AnonymousCredentials(),
            client_options=ClientOptions(api_endpoint=self.addresses.http),
        )


class RunningCloud(_Clients, CloudInThread):
    """In a thread with its own loop: quick, and its clock and chaos can be given."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(Options(folder=folder, **options))


class CloudProcess(_Clients):
    """As a process of its own, to be killed with -9 and started again on the same folder."""

    def __init__(
        self, folder: Path, *words: str, env: Mapping[str, str] | None = None, stderr: IO[bytes] | None = None
    ) -> None:
        self.folder = folder
        self._stderr = stderr
        self._words = words
        self._env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Addresses:
        """Start it and wait until it says where it listens."""
        ports = [f"--{name}-port=0" for name in ("pubsub", "firestore", "storage")]
        command = [sys.executable, "-m", "localcloud", "--json", f"--data={self.folder}", *ports, *self._words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._stderr, text=True, env=self._env)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"localcloud ended with {self.process.wait(START_S_MAX)}")
        self.addresses = Addresses(**json.loads(line))
        return self.addresses

    def kill(self) -> None:
        """`kill -9`."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(START_S_MAX)
        if self.process.stdout:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(START_S_MAX)
            finally:
                self.kill()


__all__ = ["CloudProcess", "RunningCloud", "environment"]
