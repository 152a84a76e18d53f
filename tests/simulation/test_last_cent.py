"""Two hundred concurrent requests for the last cent, from many instances on one real (local) ledger."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest

from tests.bench.ledger import _last_cent
from tests.clouds import RunningCloud, environment


@pytest.mark.parametrize("instances", [8])
async def test_the_last_cent_is_not_overspent_and_hardly_any_of_it_is_left(instances: int, tmp_path: Path) -> None:
    with (
        RunningCloud(tmp_path / "cloud", services=("firestore",)) as cloud,
        mock.patch.dict(os.environ, environment(cloud.addresses)),
    ):
        over, stranded = await _last_cent(instances, f"cent-{instances}")
    assert over == 0
    assert stranded < 0.05
