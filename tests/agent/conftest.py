"""A controller of the real services, on a real socket, with a real bucket; agents are processes."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest
from google.oauth2 import service_account

from goblin.cli.loading import load
from goblin.core.events import CheckpointSaved, JobRequested
from goblin.core.labels import attempt_label
from goblin.gcp.storage import GcsObjects
from goblin.jobs import checkpoints, worker_api
from goblin.jobs.domain.checkpoints import Manifest
from goblin.jobs.domain.instances import AttemptLease
from goblin.jobs.domain.job import Dataset, Job, JobState, spec_digest
from goblin.jobs.lifecycle import JobDeps
from goblin.jobs.training import check_inputs
from goblin.wiring import jobs as job_wiring
from tests.clouds import RunningCloud, environment
from tests.fakes.jobs import MemoryBus, World
from tests.fakes.serving import serve

FUNCTIONS = Path(__file__).parents[2] / "functions"
DEADLINE_S = 30.0
TEXT = b"the goblin counts its coins, and the coins count on the goblin. " * 20
_numbers = itertools.count()


HURRIED = (
    "-c",
    "import goblin_agent.training as training; training.SAVE_S_MAX = 0.1\n"
    "from goblin_agent.__main__ import main; raise SystemExit(main())",
)


class PromptBus(MemoryBus):
    """Delivers `checkpoint-saved` at once, as a function of ours would hear it."""

    deps: JobDeps

    async def publish(self, topic: str, event: Any) -> None:
        await super().publish(topic, event)
        if isinstance(event, CheckpointSaved):
            await checkpoints.note(event, self.deps)


class Now:
    """The real time: what is signed must be valid."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


@dataclass
class Agent:
    """One agent, as an instance runs it."""

    process: subprocess.Popen[bytes]
    folder: Path
    output: Path

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def tree(self) -> list[psutil.Process]:
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]


@dataclass
class Controller:
    """The controller, its bucket, and the agents that were started."""

    cloud: RunningCloud
    bucket: str
    world: World
    deps: JobDeps
    url: str
    top: Path
    agents: list[Agent] = field(default_factory=list)
    hurried: bool = False
    """Agents give a task no time to save."""

    def job(self, job_id: str = "j") -> Job:
        return self.world.job(job_id)

    def write(self, name: str, data: bytes) -> str:
        self.storage().bucket(self.bucket).blob(name).upload_from_string(data)
        return f"gs://{self.bucket}/{name}"

    def read(self, name: str) -> bytes:
        data: bytes = self.storage().bucket(self.bucket).blob(name).download_as_bytes()
        return data

    def names(self, prefix: str) -> list[str]:
        return [blob.name for blob in self.storage().list_blobs(self.bucket, prefix=prefix)]

    def storage(self) -> Any:
        return self.cloud.storage_client("p")

    def submit(self, job_id: str = "j", *, data: bytes | None = TEXT, **changes: Any) -> None:
        """A training that was accepted and waits."""
        uri = self.write(f"datasets/{job_id}.txt", data) if data is not None else None
        if "parameters" in changes:
            changes["parameters"] = msgspec.Raw(msgspec.json.encode(changes["parameters"]))
        spec = JobRequested(
            **{"job_id": job_id, "kind": "training", "task": "char-lm", "dataset_uri": uri, **changes}
        )  # fmt: skip
        now = datetime.now(UTC)
        job = Job(
            job_id=job_id, spec=spec, spec_sha256=spec_digest(spec), state=JobState.QUEUED, requested_at=now,
            updated_at=now,
        )  # fmt: skip
        found = asyncio.run(check_inputs(job, self.deps))
        assert found is None or isinstance(found, Dataset), found
        asyncio.run(self.world.jobs.create(replace(job, dataset=found)))

    def place(self, job_id: str = "j") -> str:
        """A lease for the next attempt; its token."""
        stored = self.world.jobs.stored[job_id]
        job, now = stored.job, datetime.now(UTC)
        token = worker_api.new_token(job_id, job.attempt + 1, f"secret{next(_numbers)}")
        lease = AttemptLease(
            provider="elsewhere", label=attempt_label(job_id, job.attempt + 1), token_sha256=worker_api.digest(token),
            placed_at=now, until=now + timedelta(minutes=5), instance_id="i", resumed_step=job.saved_step,
        )  # fmt: skip
        job = replace(job, state=JobState.STARTING, attempt=job.attempt + 1, lease=lease)
        assert asyncio.run(self.world.jobs.replace(job, stored.version)) is not None
        return token

    def change(self, how: Callable[[Job], Job], job_id: str = "j") -> None:
        """Somebody else writes the job."""
        while True:
            stored = self.world.jobs.stored[job_id]
            if asyncio.run(self.world.jobs.replace(how(stored.job), stored.version)) is not None:
                return

    def start(self, token: str, *, folder: Path | None = None, env: Mapping[str, str] | None = None) -> Agent:
        """An agent of its own process, told what an instance is told."""
        folder = folder or self.top / f"host-{next(_numbers)}"
        folder.mkdir(exist_ok=True)
        output = self.top / f"agent-{next(_numbers)}.log"
        told = {"GOBLIN_URL": self.url, "GOBLIN_ATTEMPT_TOKEN": token, **(env or {})}
        words = HURRIED if self.hurried else ("-m", "goblin_agent")
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=folder, env=told, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        agent = Agent(process, folder, output)
        self.agents.append(agent)
        return agent

    def run(self, token: str, **others: Any) -> Agent:
        agent = self.start(token, **others)
        agent.wait()
        return agent

    def say(self, token: str, what: str, body: Any = None, *, job_id: str = "j") -> httpx.Response:
        """What a host that is no agent posts."""
        headers = {"authorization": f"Bearer {token}"}
        return httpx.post(f"{self.url}/jobs/{job_id}/{what}", json=body or {}, headers=headers, timeout=30)

    def manifest(self, job_id: str = "j") -> Manifest:
        checkpoint = self.job(job_id).checkpoint
        assert checkpoint is not None
        made = asyncio.run(checkpoints.read_manifest(checkpoint.manifest_uri, self.deps))
        assert made is not None
        return made[0]

    def saved(self, job_id: str = "j") -> dict[str, bytes]:
        """The files of the job's checkpoint."""
        return {file.name: self.read(file.uri.split("/", 3)[3]) for file in self.manifest(job_id).files}

    def until(self, true: Callable[[], bool]) -> None:
        """Wait for what another process does."""
        deadline = time.monotonic() + DEADLINE_S
        while not true():
            assert time.monotonic() < deadline, [agent.said() for agent in self.agents]
            time.sleep(0.02)

    def reasons(self, job_id: str = "j") -> list[str]:
        return [line.text for line in self.job(job_id).reasons]


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCloud]:
    with RunningCloud(tmp_path_factory.mktemp("cloud")) as cloud:
        yield cloud


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The function of jobs; what it works with is each test's own."""
    with serve(load(FUNCTIONS / "jobs.py")) as url:
        yield url


@pytest.fixture
def controller(
    cloud: RunningCloud, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Controller]:  # fmt: skip
    assert cloud.cloud is not None
    for name, value in environment(cloud.addresses).items():
        monkeypatch.setenv(name, value)
    bucket = f"agents-{next(_numbers)}"
    client = cloud.storage_client("p")
    client.create_bucket(bucket)
    world = World()
    signer = service_account.Credentials.from_service_account_info(cloud.cloud.identity.service_account)
    bus = PromptBus()
    deps = replace(
        world.deps, objects=GcsObjects(client, signer=signer), bucket=bucket, bus=bus, clock=Now(), compute={},
    )  # fmt: skip
    bus.deps = deps
    monkeypatch.setattr(job_wiring, "jobs", lambda: running.deps)
    running = Controller(cloud, bucket, world, deps, url, tmp_path)
    yield running
    for agent in running.agents:
        if agent.process.poll() is None:
            for one in agent.tree():
                one.kill()
            agent.process.wait(DEADLINE_S)
