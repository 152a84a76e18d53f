"""The pytest fixture `localcloud`: a fresh cloud for each test, on free ports, with its state in a temporary folder."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from localcloud.in_thread import CloudInThread
from localcloud.server import Addresses, Options


@pytest.fixture
def localcloud_options() -> Mapping[str, Any]:
    """Fields of `localcloud.server.Options` for the fixture `localcloud`. Override it to add some."""
    return {}


@pytest.fixture
def localcloud(
    localcloud_options: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Addresses]:
    """Run a local cloud during the test, with the environment variables that point Google's clients at it."""
    options = Options(folder=tmp_path_factory.mktemp("localcloud"), **localcloud_options)
    with CloudInThread(options) as cloud:
        for name, value in cloud.addresses.variables().items():
            monkeypatch.setenv(name, value)
        yield cloud.addresses
