"""Every server of the project as a process of its own, and every door of each, found by walking."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
from starlette.applications import Starlette

from goblin.cli import paths
from goblin.cli.loading import load
from goblin.core.events import JobRequested
from goblin.gateway.keys import digest_of
from goblin.jobs import worker_api
from goblin.jobs.domain.instances import AttemptLease
from goblin.jobs.domain.job import Dataset, Job, JobState, spec_digest
from localcloud.identity import Identity
from tests.clouds import CloudProcess, environment
from tests.fakes.openai_like import FakeOpenAI
from tests.fakes.serving import closed_port, serve

ROOT = Path(__file__).parents[2]
FUNCTIONS = ROOT / "functions"
PROJECT = "doors"
BUCKET = "doors-bucket"
ATTACKED_BUCKET = "attacked-bucket"
"""Where the doors of the local cloud lead, so that the functions keep theirs."""
AUDIENCE = "https://functions.example"
EMAIL = "invoker@goblin.iam.gserviceaccount.com"
WEBHOOK_SECRET = "webhook-secret"
KEYS = tuple(f"gob-doors-{number}" for number in range(3))
MODEL_KEY = "model-server-key"
JOB = "j"
ENDED = ("j-finish", "j-withdraw", "j-fail", "j-cancel")
"""Jobs that a door of that name may end, so that the other doors keep theirs."""
START_S_MAX = 60.0
DECLARED = json.loads(paths.declaration().read_text())
PRIVATE = tuple(
    sorted(
        said["function"]
        for said in (*DECLARED["topics"].values(), *DECLARED["schedules"].values())
        if "function" in said
    )
)
"""Functions that only Pub/Sub and Cloud Scheduler call."""


@dataclass
class Server:
    """A process that listens, and what it wrote."""

    name: str
    port: int
    process: psutil.Process
    log: Path
    doors: list[Door] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def said(self, since: int = 0) -> bytes:
        """What it wrote on both outputs, from a position on."""
        return self.log.read_bytes()[since:]

    def rss_mib(self) -> float:
        return float(self.process.memory_info().rss) / 2**20


@dataclass(frozen=True, kw_only=True)
class Door:
    """One method of one path of one server, with credentials that it accepts."""

    server: str
    method: str
    path: str
    """With `{name}` or `{name:type}` for what a caller chooses."""
    headers: dict[str, str] = field(default_factory=dict)
    secret: str = ""
    """Signs the body, as Vast.ai does."""
    job: str = JOB

    def __str__(self) -> str:
        return f"{self.server} {self.method} {self.path}"

    def target(self, chosen: str | None = None) -> str:
        """The path, with something plausible or `chosen` in its parts."""

        def fill(found: re.Match[str]) -> str:
            name, kind = found[1], found[2] or ""
            if chosen is not None:
                return chosen
            if kind == "int":
                return "3"
            return {
                "job_id": self.job,
                "bucket": ATTACKED_BUCKET,
                "project": PROJECT,
                "model": "tiny",
                "model_id": "tiny",
            }.get(name, "x")

        return re.sub(r"\{(\w*)(?::(\w+))?\}", fill, self.path)

    def signed(self, body: bytes) -> dict[str, str]:
        """The headers of a request with this body."""
        if not self.secret:
            return self.headers
        at = str(int(time.time()))
        signature = hmac.new(self.secret.encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest()
        return {**self.headers, "x-vast-timestamp": at, "x-vast-signature-256": f"sha256={signature}"}


@dataclass
class Stand:
    """All servers."""

    servers: dict[str, Server]
    identity: Identity

    def token(self, **changes: Any) -> str:
        return self.identity.mint(**{"email": EMAIL, "audience": AUDIENCE, **changes})

    def doors(self, server: str) -> list[Door]:
        return self.servers[server].doors


@contextmanager
def running(folder: Path) -> Iterator[Stand]:
    """Start every server; stop them at the end of the block."""
    with ExitStack() as stack:
        cloud_log = (folder / "localcloud.log").open("wb")
        stack.callback(cloud_log.close)
        cloud = stack.enter_context(
            CloudProcess(folder / "cloud", f"--declaration={paths.declaration()}", stderr=cloud_log)
        )
        assert cloud.process is not None
        fake = FakeOpenAI(owner="llamacpp")
        upstream = stack.enter_context(serve(fake.app))
        variables = _variables(cloud, folder, upstream)
        attempts = _fill(cloud, variables)
        servers = {
            "localcloud": Server(
                "localcloud",
                int(cloud.addresses.http.rpartition(":")[2]),
                psutil.Process(cloud.process.pid),
                folder / "localcloud.log",
            ),
        }
        started = {
            "functions": (["goblin.cli.host"], variables),
            "front end": (
                ["goblin.cli.host", "--only", ",".join(PRIVATE)],
                {**variables, "GOBLIN_VERIFY_CALLER": "iam"},
            ),
            "llamacpp": (_model_server(folder), {}),
            "localgpus": (_markets(folder), {}),
        }
        for name, (words, more) in started.items():
            servers[name] = stack.enter_context(_process(name, words, more, folder))
        for server in servers.values():
            _wait(server)
        made = Stand(servers, Identity(folder / "cloud"))
        servers["functions"].doors = list(doors_of_functions(attempts, made.token()))
        servers["front end"].doors = [Door(server="front end", method="POST", path=f"/fn/{name}/") for name in PRIVATE]
        servers["localcloud"].doors = list(doors_of_localcloud(folder))
        servers["localgpus"].doors = list(doors_of_localgpus(folder))
        servers["llamacpp"].doors = list(doors_of_llamacpp())
        yield made


@contextmanager
def _process(name: str, words: list[str], variables: dict[str, str], folder: Path) -> Iterator[Server]:
    port = int(closed_port().rpartition(":")[2])
    log = folder / f"{name}.log"
    command = [sys.executable, "-m", words[0], "--port", str(port), *words[1:]]
    # What belongs to the person who runs the tests stays away.
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR", "LANG") if key in os.environ}
    where = [ROOT, *(ROOT / part for part in ("shared", "containers/llamacpp"))]
    env = {**kept, "PYTHONPATH": os.pathsep.join(map(str, where)), "PYTHONUNBUFFERED": "1", **variables}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=folder)
    try:
        yield Server(name, port, psutil.Process(process.pid), log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_alive(server: Server) -> bool:
    """Whether the process runs; one that has ended stays listed until its parent asks."""
    return server.process.is_running() and server.process.status() != psutil.STATUS_ZOMBIE


def _wait(server: Server) -> None:
    """Until it answers anything but 503."""
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        assert is_alive(server), server.said().decode()
        try:
            path = "/health" if server.name in ("functions", "llamacpp") else "/"
            if httpx.get(server.url + path, timeout=5, trust_env=False).status_code != 503:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)  # Another process can only be asked again.
    raise AssertionError(f"{server.name} does not answer: {server.said().decode()}")


def _variables(cloud: CloudProcess, folder: Path, upstream: str) -> dict[str, str]:
    credentials = folder / "service-account.json"
    credentials.write_text(json.dumps(Identity(folder / "cloud").service_account))
    return {
        **environment(cloud.addresses),
        "GOOGLE_CLOUD_PROJECT": PROJECT,
        "GOBLIN_BUCKET": BUCKET,
        "GOBLIN_URL": "http://goblin",
        "GOBLIN_PUSH_AUDIENCE": ",".join([AUDIENCE, *(f"http://goblin/fn/{name}" for name in PRIVATE)]),
        "GOBLIN_INVOKER_EMAIL": EMAIL,
        "GOBLIN_OIDC_CERTS_URL": f"{cloud.addresses.http}/oauth2/v1/certs",
        "VASTAI_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "GOOGLE_APPLICATION_CREDENTIALS": str(credentials),
        "LLAMACPP_URL": upstream,
        "NO_GCE_CHECK": "true",
        "METADATA_SERVER_DETECTION": "none",
    }


def _fill(cloud: CloudProcess, variables: dict[str, str]) -> dict[str, str]:
    """Make buckets, topics, keys, and jobs whose first attempts run; return the attempts' tokens by job."""
    from google.cloud import firestore, pubsub_v1

    from goblin.gcp.firestore.jobs import FirestoreJobs

    kept = dict(os.environ)
    os.environ.update(variables)
    try:
        for bucket in (BUCKET, ATTACKED_BUCKET):
            cloud.storage_client(PROJECT).create_bucket(bucket)
        publisher = pubsub_v1.PublisherClient()
        for topic in DECLARED["topics"]:
            publisher.create_topic(name=publisher.topic_path(PROJECT, topic))
        publisher.transport.close()
        store = firestore.Client(project=PROJECT)
        for number, key in enumerate(KEYS):
            fields = {
                "name": f"key-{number}",
                "disabled": False,
                "created_at": datetime.now(UTC),
                "scopes": ["inference", "jobs", "operate"],
            }
            store.collection("keys").document(digest_of(key)).set(fields)
        store.close()
        tokens = {job_id: worker_api.new_token(job_id, 1, "secret") for job_id in (JOB, *ENDED)}

        async def put() -> None:
            client = firestore.AsyncClient(project=PROJECT)
            for job_id, token in tokens.items():
                assert await FirestoreJobs(client).create(_job(job_id, token)) is not None

        asyncio.run(put())
    finally:
        os.environ.clear()
        os.environ.update(kept)
    return tokens


def _job(job_id: str, token: str) -> Job:
    now = datetime.now(UTC)
    spec = JobRequested(
        job_id=job_id,
        kind="batch",
        dataset_uri=f"gs://{BUCKET}/datasets/j.jsonl",
        output_uri=f"gs://{BUCKET}/outputs/{job_id}.jsonl",
    )
    lease = AttemptLease(
        provider="elsewhere",
        label=f"goblin-{job_id}-a1",
        token_sha256=worker_api.digest(token),
        placed_at=now,
        until=now + timedelta(hours=1),
        instance_id=f"i-{job_id}",
    )
    return Job(
        job_id=job_id,
        spec=spec,
        spec_sha256=spec_digest(spec),
        state=JobState.STARTING,
        requested_at=now,
        updated_at=now,
        attempt=1,
        lease=lease,
        dataset=Dataset(uri=str(spec.dataset_uri), generation=1, size=100, items=5),
    )


def _model_server(folder: Path) -> list[str]:
    import goblin_llamacpp

    keys = folder / "model-server-keys"
    keys.write_text(MODEL_KEY)
    models = folder / "models"
    models.mkdir()
    model = Path(goblin_llamacpp.__file__).parent / "models" / "goblin-tiny.gguf"
    return [
        "goblin_llamacpp",
        "--model",
        str(model),
        "--alias",
        "tiny",
        "--api-key-file",
        str(keys),
        "--allow-load",
        "--models-dir",
        str(models),
        "--threads",
        "1",
    ]


def _markets(folder: Path) -> list[str]:
    return ["localgpus", "--data", str(folder / "gpus"), "--no-limits", "--", sys.executable, "-c", "pass"]


# The doors.


def doors_of_functions(attempts: dict[str, str], oidc: str) -> Iterator[Door]:
    """Every function, and every route and method of those that have several."""
    for file in sorted(FUNCTIONS.glob("[a-z]*.py")):
        function = file.stem
        load(file)
        module = sys.modules[f"functions.{function}"]
        routers = [thing for thing in vars(module).values() if isinstance(thing, Starlette)]
        if not routers:
            headers = {"authorization": f"Bearer {oidc}"}
            for method in ("POST", "GET"):
                yield Door(server="functions", method=method, path=f"/fn/{function}/", headers=headers)
        for route in (route for router in routers for route in router.routes):
            for method in sorted(route.methods or ()):  # type: ignore[attr-defined]
                path: str = route.path  # type: ignore[attr-defined]
                hosts = method == "POST" and path.startswith("/jobs/{job_id}/") and not path.endswith("/cancel")
                job = next((job for job in ENDED if path.endswith(f"/{job.removeprefix('j-')}")), JOB)
                headers = {"authorization": f"Bearer {attempts[job] if hosts else KEYS[0]}"}
                secret = WEBHOOK_SECRET if path.startswith("/webhooks/") else ""
                yield Door(
                    server="functions",
                    method=method,
                    path=f"/fn/{function}{path}",
                    headers=headers,
                    secret=secret,
                    job=job,
                )


def doors_of_localcloud(folder: Path) -> Iterator[Door]:
    from localcloud.server import LocalCloud, Options

    cloud = LocalCloud(Options(folder=folder / "walked"))
    yield Door(server="localcloud", method="GET", path="/localcloud")
    for part in vars(cloud).values():
        for route in part.routes() if hasattr(part, "routes") else ():
            for method in sorted(route.methods or ("GET", "PUT", "POST", "DELETE")):
                path = "/{bucket}/{path}" if route.path == "/{path:path}" else route.path
                if method == "POST" and path.endswith("/secrets"):
                    path += "?secretId=x"
                yield Door(server="localcloud", method=method, path=path)
    for pattern, handlers in cloud._storage._routes._table:
        for method in handlers:
            path = pattern.pattern.replace("\\", "").replace("([^/]+)", "{bucket}", 1).replace("([^/]+)", "{path}")
            query = "?uploadType=media&name=x" if path.startswith("/upload") and method == "POST" else ""
            query = "?project=p" if path.endswith("/b") else query
            yield Door(server="localcloud", method=method, path=path + query)
    yield Door(server="localcloud", method="POST", path="/batch/storage/v1")


def doors_of_localgpus(folder: Path) -> Iterator[Door]:
    from localgpus.machines import Processes
    from localgpus.server import Markets

    for route in Markets(Processes(["true"], folder / "walked-gpus")).app().routes:
        for method in sorted(route.methods or ()):  # type: ignore[attr-defined]
            path: str = route.path  # type: ignore[attr-defined]
            key = "local-runpod-key" if path.startswith(("/v2", "/v1")) else "local-vast-key"
            yield Door(server="localgpus", method=method, path=path, headers={"authorization": f"Bearer {key}"})


def doors_of_llamacpp() -> Iterator[Door]:
    from goblin_llamacpp.server import Server as ModelServer
    from goblin_llamacpp.server import ServerSettings

    app = ModelServer(None, ServerSettings(api_keys=(MODEL_KEY,))).app()  # type: ignore[arg-type]
    for route in app.routes:
        for method in sorted(route.methods or ()):  # type: ignore[attr-defined]
            path: str = route.path  # type: ignore[attr-defined]
            yield Door(server="llamacpp", method=method, path=path, headers={"authorization": f"Bearer {MODEL_KEY}"})
