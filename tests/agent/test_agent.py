"""The agent as a rented host runs it, against the real services and a real bucket: what it saves, tells and leaves."""

import json
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psutil
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from goblin.jobs.domain.job import JobState, StopRequest
from tests.agent.conftest import Agent, Controller
from tests.fakes.serving import serve

SMALL = {"steps": 60, "seed": 7, "context": 4, "width": 4, "hidden": 8, "rows": 8, "save_every": 20}
SLOW = {**SMALL, "steps": 100_000, "pace": 100, "save_every": 10}


def test_a_training_goes_all_the_way(controller: Controller) -> None:
    controller.submit(parameters=SMALL)
    agent = controller.run(controller.place())
    job = controller.job()
    assert (agent.process.returncode, job.state) == (0, JobState.SUCCEEDED), agent.said()
    assert (job.saved_step, job.step, job.invalid_reports) == (60, 60, 0)
    assert set(controller.saved()) == {"facts.json", "state.npz"}
    facts = json.loads(controller.saved()["facts.json"])
    assert (facts["step"], controller.manifest().loss) == (60, pytest.approx(facts["loss"]))
    assert list(agent.folder.iterdir()) == [], "it wipes what it used"
    assert b"char-lm: ends at step 60" in log(controller)


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
    assert controller.job().state is JobState.SUCCEEDED
    assert controller.manifest().attempt == 2
    assert controller.saved() == controller.saved("whole")


def test_a_host_that_is_taken_away_saves_and_gives_the_job_back(controller: Controller) -> None:
    controller.submit(parameters={**SLOW, "save_every": 0})
    agent = controller.start(controller.place())
    controller.until(lambda: b"char-lm" in log(controller))
    agent.process.send_signal(signal.SIGTERM)
    assert agent.wait() == 0, agent.said()
    job = controller.job()
    assert (job.state, job.preemptions) == (JobState.QUEUED, 1)
    assert "the host was taken away" in controller.reasons()
    assert 0 < job.saved_step < 100_000, "though no checkpoint was due"
    assert list(agent.folder.iterdir()) == []


def log(controller: Controller, attempt: int = 1) -> bytes:
    return b"".join(controller.read(name) for name in controller.names(f"logs/j/a{attempt}/"))


def tasks(controller: Controller, **programs: str) -> dict[str, str]:
    """The environment of an image that has tasks of its own: Python programs."""
    listed = controller.top / "tasks.json"
    listed.write_text(json.dumps({name: [sys.executable, "-c", program] for name, program in programs.items()}))
    return {"GOBLIN_TASKS": str(listed)}


def run(controller: Controller, program: str, *, data: bytes | None = b"x", **changes: Any) -> Agent:
    """A job whose task is a Python program, run by one attempt."""
    controller.submit(data=data, **{"task": "own", **changes})
    return controller.run(controller.place(), env=tasks(controller, own=program))


SAVE = """
import json, os, pathlib
def save(step, **files):
    folder = pathlib.Path(os.environ["GOBLIN_CHECKPOINTS"])
    (folder / "draft").mkdir()
    for name, text in files.items():
        (folder / "draft" / name).write_text(text)
    (folder / "draft").rename(folder / f"step-{step}")
def say(**numbers):
    with open(os.environ["GOBLIN_PROGRESS"], "a") as file:
        print(json.dumps(numbers), file=file)
"""


def test_a_task_is_told_where_it_works_and_nothing_of_the_token(controller: Controller) -> None:
    program = f"""{SAVE}
told = {{name: value for name, value in os.environ.items() if name.startswith("GOBLIN_")}}
told["inputs"] = pathlib.Path(os.environ["GOBLIN_INPUTS"], "j.txt").read_text()
told["parameters"] = json.load(open(os.environ["GOBLIN_PARAMETERS"]))
told["every"] = float(open(os.environ["GOBLIN_CHECKPOINT_S"]).read())
told["names"] = sorted(os.environ)
family, pid = [], os.getpid()
for _ in range(3):
    family.append(open(f"/proc/{{pid}}/environ").read() + open(f"/proc/{{pid}}/cmdline").read())
    pid = int(open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[1])
told["secrets"] = [text for text in family if "gob-" + "attempt" in text]
told["agent"] = "goblin_agent.guard" in family[1] and "goblin_agent\\0" in family[2]
save(1, told=json.dumps(told))
"""
    agent = run(controller, program, parameters={"a": 1}, model="base", checkpoint_minutes=3)
    assert controller.job().state is JobState.SUCCEEDED, agent.said()
    told = json.loads(controller.saved()["told"])
    folder = agent.folder / "attempt"
    assert told["GOBLIN_CHECKPOINTS"] == str(folder / "checkpoints")
    assert "GOBLIN_RESUME" not in told
    assert (told["inputs"], told["every"], told["parameters"]) == ("x", 180.0, {"a": 1, "model": "base"})
    assert not {"GOBLIN_ATTEMPT_TOKEN", "GOBLIN_URL", "GOOGLE_APPLICATION_CREDENTIALS"} & set(told["names"])
    assert (told["secrets"], told["agent"]) == ([], True), "of itself, its guard and the agent"


def test_a_resumed_task_finds_the_checkpoint_and_starts_with_a_clean_folder(controller: Controller) -> None:
    program = f"""{SAVE}
import sys, time
resume = os.environ.get("GOBLIN_RESUME")
if resume is None:
    open("left", "w").write("over")
    save(3, state="three", other="o")
    sys.exit(7)
names = sorted(os.listdir(resume))
save(4, state=pathlib.Path(resume, "state").read_text(), seen=json.dumps([names, os.listdir(".")]))
"""
    run(controller, program)
    assert controller.job().saved_step == 3
    assert any("the task ended with exit code 7" in reason for reason in controller.reasons())
    agent = controller.run(controller.place(), env=tasks(controller, own=program))
    assert controller.job().state is JobState.SUCCEEDED, agent.said()
    assert controller.saved() == {"state": b"three", "seen": b'[["other", "state"], []]'}


def test_a_crash_gives_the_job_back_with_the_tasks_last_lines(controller: Controller) -> None:
    run(controller, "print('one\\n' * 50); raise SystemError('the GPU fell off')")
    job = controller.job()
    assert (job.state, job.failures) == (JobState.QUEUED, 1)
    assert "SystemError: the GPU fell off" in controller.reasons()[-2]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; print('bad data'); sys.exit(65)", "the task cannot be done: bad data"),
        (f"{SAVE}\nsave(1, a='')", "step-1/a has 0 bytes"),
    ],
)
def test_what_no_other_machine_can_mend_fails_the_job(controller: Controller, program: str, words: str) -> None:
    agent = run(controller, program)
    job = controller.job()
    assert job.state is JobState.FAILED, agent.said()
    assert words in job.reason


def test_an_unknown_task_is_refused_with_those_that_there_are(controller: Controller) -> None:
    run(controller, "pass", task="dance")
    assert controller.job().state is JobState.FAILED
    assert controller.job().reason == "this image has no task 'dance'; it has own, char-lm"


def test_a_child_that_the_task_left_behind_is_killed_and_holds_nothing_up(controller: Controller) -> None:
    program = f"{SAVE}\nimport subprocess\nsave(1, a=str(subprocess.Popen(['sleep', '300']).pid))"
    agent = run(controller, program)
    assert controller.job().state is JobState.SUCCEEDED, agent.said()
    controller.until(lambda: not alive(int(controller.saved()["a"])))


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


WAITING = f"""{SAVE}
import signal, sys, threading
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
save(1, pid=str(os.getpid()))
stop.wait()
say(step=2, total=9)
save(2, every=open(os.environ["GOBLIN_CHECKPOINT_S"]).read())
"""


def waiting(controller: Controller, monkeypatch: pytest.MonkeyPatch, program: str = WAITING) -> Agent:
    """An agent whose task has saved step 1 and waits."""
    controller.deps = replace(controller.deps, pace=200)
    controller.submit(task="own", data=None)
    agent = controller.start(controller.place(), env=tasks(controller, own=program))
    controller.until(lambda: controller.job().saved_step == 1)
    return agent


def test_a_heartbeat_that_answers_stop_ends_the_attempt_with_a_save(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = waiting(controller, monkeypatch)
    stop = StopRequest(reason="the budget is used up", by=datetime.now(UTC) + timedelta(minutes=2))
    controller.change(lambda job: replace(job, stop=stop, spec=msgspec.structs.replace(job.spec, checkpoint_minutes=2)))
    assert agent.wait() == 0, agent.said()
    job = controller.job()
    assert (job.saved_step, job.state) == (2, JobState.QUEUED)
    assert "the budget is used up" in controller.reasons()
    assert controller.saved()["every"] == b"120.0\n", "the controller changed its mind about it, too"


def test_an_attempt_that_is_over_stops_at_once_and_saves_nothing(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = waiting(controller, monkeypatch)
    pid = int(controller.saved()["pid"])
    controller.place()
    assert agent.wait() == 0, agent.said()
    assert not alive(pid)
    assert list(agent.folder.iterdir()) == []
    job = controller.job()
    assert (job.saved_step, job.attempt, job.state) == (1, 2, JobState.STARTING)


def test_a_task_that_does_not_save_in_time_is_killed_and_its_job_given_back(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.hurried = True
    stubborn = WAITING.replace("stop.wait()", "threading.Event().wait()")
    agent = waiting(controller, monkeypatch, stubborn)
    agent.process.send_signal(signal.SIGTERM)
    assert agent.wait() == 0, agent.said()
    assert controller.job().saved_step == 1
    assert "the host was taken away; the task did not save in time" in controller.reasons()


def test_what_a_task_says_of_itself_is_shown_and_its_nonsense_is_not(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = WAITING.replace(
        "stop.wait()",
        "say(step=1, total=9, loss=2.5, steps_per_s=4, save_s=0.25)\n"
        "say(step=-5, total='many', loss=float('nan'), steps_per_s=-1, save_s=1e400)\n"
        "open(os.environ['GOBLIN_PROGRESS'], 'a').write('no json\\n[1]\\n')\n"
        "stop.wait()",
    )
    agent = waiting(controller, monkeypatch, program)
    controller.until(lambda: bool(controller.job().progress and controller.job().progress.loss))
    told = controller.job().progress
    assert (told.step, told.loss, told.steps_per_s, told.save_s, told.gpu_share) == (1, 2.5, 4.0, 0.25, None)
    assert (controller.job().told_total, controller.job().invalid_reports) == (9, 0)
    agent.process.send_signal(signal.SIGTERM)
    agent.wait()


def test_an_agent_that_was_killed_and_starts_again_goes_on_with_its_attempt(controller: Controller) -> None:
    controller.submit(parameters={**SMALL, "pace": 50})
    token = controller.place()
    agent = controller.start(token)
    controller.until(lambda: controller.job().saved_step >= 20)
    for one in agent.tree():
        one.kill()
    agent.wait()
    left = agent.folder / "attempt" / "inputs" / "j.txt"
    written = left.stat().st_mtime_ns
    again = controller.start(token, folder=agent.folder)
    controller.until(lambda: controller.job().saved_step >= 40)
    assert left.stat().st_mtime_ns == written, "what was brought is not brought again"
    assert again.wait() == 0, again.said()
    job = controller.job()
    assert (job.state, job.attempt, job.invalid_reports) == (JobState.SUCCEEDED, 1, 0)
    assert list(agent.folder.iterdir()) == []


def test_the_token_goes_where_it_was_told_to_go_and_nowhere_else(controller: Controller) -> None:
    seen: list[str] = []

    async def strange(request: Request) -> Response:
        seen.append(str(request.url))
        return Response(status_code=307, headers={"location": f"{request.base_url}elsewhere"})

    with serve(Starlette(routes=[Route("/{path:path}", strange, methods=["GET", "POST", "CONNECT"])])) as url:
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"), url)
        controller.submit(task="own", data=b"x")
        agent = controller.run(
            controller.place(), env={**proxies, **tasks(controller, own="import sys; sys.exit(65)")}
        )  # fmt: skip
        assert (controller.job().state, seen) == (JobState.FAILED, []), agent.said()
        controller.run("gob-attempt-x.1.j", env={"GOBLIN_URL": url})
        assert [one.removeprefix(url) for one in seen] == ["/jobs/j/claim", "/jobs/j/fail"]
