"""The servers of a module's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.security.stand import Stand, running


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Every server, in processes of its own; in none of them did an attack leave a trace that it should not."""
    with running(tmp_path_factory.mktemp("stand")) as made:
        yield made
