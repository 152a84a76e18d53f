"""Request-based billing on a laptop: functions but the gateway get no CPU between requests, and have their own port."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import psutil
import pytest

from tests.flows.conftest import Running
from tests.flows.test_jobs import SUBMIT, app, ask, ended, goblin, results, until

pytestmark = pytest.mark.xdist_group("flows")


def stopped(running: Running) -> list[str]:
    """The functions whose process gets no CPU now, by their command lines."""
    return [
        " ".join(one.cmdline())
        for one in running.tree()
        if one.status() == psutil.STATUS_STOPPED and "goblin.cli.host" in " ".join(one.cmdline())
    ]


def test_a_job_runs_to_its_end_where_functions_sleep_between_requests(start_up: Callable[..., Running]) -> None:
    running = start_up("--throttle")
    jobs, gateway = running.variables["GOBLIN_JOBS_URL"], running.url
    assert jobs != gateway
    key = {"authorization": f"Bearer {running.variables['GOBLIN_API_KEY']}"}

    app(running, SUBMIT, "slept", "12", "3")
    job = until(running, "slept", ended)
    assert (job["state"], job["step"]) == ("succeeded", 12), job["history"]
    assert [line["custom_id"] for line in results(running, "slept")] == [f"item-{n}" for n in range(12)]

    # Each public host has its own paths and no others.
    assert httpx.get(f"{gateway}/v1/models", headers=key, timeout=20).status_code == 200
    assert httpx.get(f"{gateway}/jobs", headers=key, timeout=20).status_code == 404
    assert httpx.get(f"{jobs}/v1/models", headers=key, timeout=20).status_code == 404
    assert httpx.get(f"{jobs}/budgets", headers=key, timeout=20).status_code == 200
    assert json.loads(goblin(running, "jobs", "list", "--json").stdout)[0]["job_id"] == "slept"

    # A push that Pub/Sub did not send is refused before the function.
    assert httpx.post(f"{jobs}/fn/job_requested/", json={}, timeout=20).status_code == 403
    forged = {"authorization": "Bearer e30.e30.SIGNATURE_REMOVED_BY_GOOGLE"}
    assert httpx.post(f"{jobs}/fn/job_requested/", json={}, headers=forged, timeout=20).status_code == 401

    # What is owed after an answer was done before it ended: nothing is allocated while the functions sleep.
    deadline = iter(range(200))
    while not (sleeping := stopped(running)):
        assert next(deadline, None) is not None, "the functions never slept"
        ask(running, "/jobs?limit=1")
    assert all("gateway" not in command for command in sleeping)
