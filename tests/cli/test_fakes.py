"""With `--pace` everything that a job races against is as much faster: the market warns, the agent hears of it."""

import pytest

from goblin.cli.fakes import Fakes
from goblin.jobs import lifecycle
from goblin.jobs.policy.state_machine import HEARTBEAT_S
from goblin.jobs.webhooks import OUTBID_SEEN_S
from goblin.wiring import jobs
from goblin.wiring.process import Process
from goblin.wiring.settings import BadConfiguration, Settings
from localgpus.vast.market import EXIT_S_MAX, EXIT_S_MIN, HALT_S, NOTICE_S_MIN
from tests.fakes.jobs import World


@pytest.mark.parametrize("pace", [0.1, 1, 2, 4, 10, 50, 1000])
def test_an_agent_hears_that_its_machine_is_taken_away_while_it_still_runs(pace: float) -> None:
    fakes = Fakes(port=1, pace=pace)
    process = Process(settings=Settings(project="p", variables=fakes.variables()))
    found = jobs._pace(process)
    assert found == min(50, max(1, pace))
    heartbeat_s = lifecycle.replace(World().deps, pace=found).heartbeat_s
    assert heartbeat_s == pytest.approx(HEARTBEAT_S / found)
    exits_s = [max(NOTICE_S_MIN, seconds / pace) for seconds in (EXIT_S_MIN, EXIT_S_MAX)]
    told_s = max(HALT_S / pace, OUTBID_SEEN_S / found) + heartbeat_s
    assert told_s < exits_s[1]
    if pace >= 4:  # Slower, the shortest notice may be missed, as it is in production.
        assert told_s < exits_s[0] - 0.5
    assert 1 <= fakes.reconcile_s <= 5


@pytest.mark.parametrize("said", ["0", "-1", "nan", "inf", "51", "soon"])
def test_another_pace_is_refused_with_its_name(said: str) -> None:
    process = Process(settings=Settings(project="p", variables={"GOBLIN_PACE": said}))
    with pytest.raises(BadConfiguration, match="GOBLIN_PACE"):
        jobs._pace(process)
