"""The clouds that the contract suite runs on: ours, and Google's own emulators where they are installed.

A test takes `pubsub_cloud` or `firestore_cloud` and runs once on each; `local_cloud` is ours alone, for what Google
ships no emulator of. A difference is written on the test, with its reason:

    @pytest.mark.differs(google="ignores filters")   the test must fail there (strictly)
    @pytest.mark.not_on(google="takes 30 s there")   the test is not run there
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest

from localcloud import google
from tests.clouds import RunningCloud

CLOUDS = ("localcloud", "google")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "differs(cloud=reason): the cloud is known to fail this test, for the reason")
    config.addinivalue_line("markers", "not_on(cloud=reason): the test is not run on the cloud, for the reason")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        cloud = next((name for name in CLOUDS if name in getattr(item, "callspec", _none).params.values()), None)
        if cloud is None:
            continue
        for mark in item.iter_markers("differs"):
            if reason := mark.kwargs.get(cloud):
                item.add_marker(pytest.mark.xfail(strict=True, reason=f"{cloud}: {reason}"))
        for mark in item.iter_markers("not_on"):
            if reason := mark.kwargs.get(cloud):
                item.add_marker(pytest.mark.skip(reason=f"{cloud}: {reason}"))


@dataclass
class _None:
    params: dict[str, Any] = field(default_factory=dict)


_none = _None()


class Cloud:
    """One cloud's Pub/Sub and Firestore, seen through Google's unmodified clients."""

    def __init__(self, name: str, *, pubsub: str | None = None, firestore: str | None = None) -> None:
        self.name = name
        self.pubsub = pubsub
        self.firestore = firestore
        self._open = ExitStack()

    def project(self) -> str:
        """A project nobody has used."""
        return f"p-{uuid.uuid4().hex[:12]}"

    def publisher(self, **options: Any) -> Any:
        from google.cloud import pubsub_v1

        with mock.patch.dict(os.environ, {"PUBSUB_EMULATOR_HOST": str(self.pubsub)}):
            client = pubsub_v1.PublisherClient(**options)
        self._open.callback(client.transport.close)
        return client

    def subscriber(self, **options: Any) -> Any:
        from google.cloud import pubsub_v1

        with mock.patch.dict(os.environ, {"PUBSUB_EMULATOR_HOST": str(self.pubsub)}):
            client = pubsub_v1.SubscriberClient(**options)
        self._open.callback(client.close)
        return client

    def client(self, project: str | None = None, database: str | None = None) -> Any:
        """A Firestore client on a fresh project."""
        from google.cloud import firestore

        with mock.patch.dict(os.environ, {"FIRESTORE_EMULATOR_HOST": str(self.firestore)}):
            client = firestore.Client(project=project or self.project(), database=database)
            _ = client._firestore_api  # The address is read when the transport is made.
        self._open.callback(client.close)
        return client

    def async_client(self, project: str | None = None, database: str | None = None) -> Any:
        """A Firestore AsyncClient on a fresh project; make it inside the test's loop."""
        from google.cloud import firestore

        with mock.patch.dict(os.environ, {"FIRESTORE_EMULATOR_HOST": str(self.firestore)}):
            client = firestore.AsyncClient(project=project or self.project(), database=database)
            _ = client._firestore_api
        return client

    def channel(self, service: str) -> grpc.Channel:
        """A bare channel to `pubsub` or `firestore`, for what no client method sends."""
        channel = grpc.insecure_channel(str(getattr(self, service)))
        self._open.callback(channel.close)
        return channel

    def close_clients(self) -> None:
        """Close what this test opened."""
        self._open.close()
        self._open = ExitStack()


@pytest.fixture(scope="session")
def local_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCloud]:
    """Our cloud, empty, in this process."""
    indexes = Path(__file__).with_name("declaration.json")
    with RunningCloud(tmp_path_factory.mktemp("localcloud"), declaration=indexes) as cloud:
        yield cloud


@pytest.fixture(scope="session")
def _pubsub_addresses(request: pytest.FixtureRequest) -> Iterator[Any]:
    with ExitStack() as stack:
        yield _starter(request, stack, "pubsub")


@pytest.fixture(scope="session")
def _firestore_addresses(request: pytest.FixtureRequest) -> Iterator[Any]:
    with ExitStack() as stack:
        yield _starter(request, stack, "firestore")


def _starter(request: pytest.FixtureRequest, stack: ExitStack, service: str) -> Any:
    """A function from a cloud's name to the service's address there; each is started once, on first use."""
    known: dict[str, str] = {}

    def address(name: str) -> str:
        if name in known:
            return known[name]
        if name == "localcloud":
            known[name] = getattr(request.getfixturevalue("local_cloud").addresses, service)
            return known[name]
        found = google.find()
        if found.reason:
            pytest.skip(found.reason)
        port = google.free_port()
        command = google.pubsub_command if service == "pubsub" else google.firestore_command
        stack.enter_context(google.running(command(found, port), port))
        known[name] = f"{google.HOST}:{port}"
        return known[name]

    return address


@pytest.fixture(params=CLOUDS)
def pubsub_cloud(request: pytest.FixtureRequest, _pubsub_addresses: Any) -> Iterator[Cloud]:
    """Pub/Sub on each cloud."""
    cloud = Cloud(request.param, pubsub=_pubsub_addresses(request.param))
    yield cloud
    cloud.close_clients()


@pytest.fixture(params=CLOUDS)
def firestore_cloud(request: pytest.FixtureRequest, _firestore_addresses: Any) -> Iterator[Cloud]:
    """Firestore on each cloud."""
    cloud = Cloud(request.param, firestore=_firestore_addresses(request.param))
    yield cloud
    cloud.close_clients()
