"""`goblin smoke` on a real `goblin up`: the same checks as after a deployment."""

import json

import pytest

from tests.flows.conftest import Running
from tests.flows.test_jobs import goblin

pytestmark = pytest.mark.xdist_group("flows")


def test_a_running_goblin_passes_the_smoke_test(up: Running) -> None:
    ended = goblin(up, "smoke", "--json")
    found = {one["check"]: one for one in json.loads(ended.stdout)}
    assert ended.returncode == 0, found
    assert "goblin-tiny answered" in found["chat"]["detail"]
    assert "answered 5 of 5 requests" in found["batch job"]["detail"]
    assert found["forged push"]["detail"] in ("refused with 401", "refused with 403")
