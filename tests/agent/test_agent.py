"""The agent as a rented host runs it, against the real services and a real bucket: what it saves, tells and leaves."""

import json
import signal

import psutil
import pytest

from goblin.domain.jobs import State
from tests.agent.conftest import Controller

SMALL = {"steps": 60, "seed": 7, "context": 4, "width": 4, "hidden": 8, "rows": 8, "save_every": 20}
SLOW = {**SMALL, "steps": 100_000, "pace": 100, "save_every": 10}


def test_a_training_goes_all_the_way(controller: Controller) -> None:
    controller.submit(parameters=SMALL)
    agent = controller.run(controller.place())
    job = controller.job()
    assert (agent.process.returncode, job.state) == (0, State.SUCCEEDED), agent.said()
    assert (job.saved_step, job.step, job.lies) == (60, 60, 0)
    assert set(controller.saved()) == {"facts.json", "state.npz"}
    facts = json.loads(controller.saved()["facts.json"])
    assert (facts["step"], controller.manifest().loss) == (60, pytest.approx(facts["loss"]))
    assert list(agent.folder.iterdir()) == [], "it wipes what it used"
    assert "char-lm: ends at step 60" in controller.read(controller.names("logs/j/a1/")[-1]).decode()


def test_a_host_that_dies_is_followed_by_one_that_ends_with_the_same_bits(controller: Controller) -> None:
    controller.submit("whole", parameters=SMALL)
    controller.run(controller.place("whole"))
    # Slow enough to die on the way; the pace is no part of the recipe.
    controller.submit(parameters={**SMALL, "pace": 50})
    first = controller.start(controller.place())
    controller.until(lambda: controller.job().saved_step >= 20)
    family = first.tree()
    first.process.kill()
    first.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == [], "the task does not outlive its agent"
    assert 20 <= controller.job().saved_step < 60
    second = controller.run(controller.place())
    assert second.process.returncode == 0, second.said()
    assert controller.job().state is State.SUCCEEDED
    assert controller.manifest().attempt == 2
    assert controller.saved() == controller.saved("whole")


def test_a_host_that_is_taken_away_saves_and_gives_the_job_back(controller: Controller) -> None:
    controller.submit(parameters={**SLOW, "save_every": 0})
    agent = controller.start(controller.place())
    controller.until(lambda: b"char-lm" in log(controller))
    agent.process.send_signal(signal.SIGTERM)
    assert agent.wait() == 0, agent.said()
    job = controller.job()
    assert (job.state, job.preemptions) == (State.QUEUED, 1)
    assert "the host was taken away" in controller.reasons()
    assert 0 < job.saved_step < 100_000, "though no checkpoint was due"
    assert list(agent.folder.iterdir()) == []


def log(controller: Controller, attempt: int = 1) -> bytes:
    return b"".join(controller.read(name) for name in controller.names(f"logs/j/a{attempt}/"))
