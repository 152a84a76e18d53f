"""With `--pace` everything that a job races against is as much faster: the market warns, the agent hears of it."""

import pytest

from goblin.cli.fakes import Fakes
from goblin.jobs.policy.state_machine import HEARTBEAT_S
from goblin.wiring import jobs
from goblin.wiring.process import Process
from goblin.wiring.settings import BadConfiguration, Settings
from localgpus.vast.market import EXIT_S_MIN


@pytest.mark.parametrize("pace", [0.1, 1, 2, 4, 10, 50])
def test_a_heartbeat_comes_before_a_machine_that_is_taken_away_ends(pace: float) -> None:
    fakes = Fakes(port=1, pace=pace)
    said = float(fakes.variables()["GOBLIN_HEARTBEAT_S"])
    assert said <= HEARTBEAT_S
    assert said <= EXIT_S_MIN / pace
    process = Process(settings=Settings(project="p", variables=fakes.variables()))
    assert jobs._heartbeat_s(process) == said


@pytest.mark.parametrize("said", ["0", "-1", "nan", "inf", "11", "soon"])
def test_another_interval_than_a_lease_bears_is_refused_with_its_name(said: str) -> None:
    process = Process(settings=Settings(project="p", variables={"GOBLIN_HEARTBEAT_S": said}))
    with pytest.raises(BadConfiguration, match="GOBLIN_HEARTBEAT_S"):
        jobs._heartbeat_s(process)
