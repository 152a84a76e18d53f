"""What idle costs on Google Cloud: an hour of the scheduled functions on localcloud, counted, priced, times 730.

Each function runs in a process of its own. Its clock moves by a minute from one tick to the next, so that what is
cached is read again as often as in a real hour. All providers are configured, each a fake that answers at once, and
every key is in Secret Manager. There are no jobs, no requests, and no model in production.

Not in it, because not everybody has them: alerts, Cloud KMS, a load balancer, machines that serve models.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from goblin.cli import paths
from localcloud.front_end import strip
from localgpus.runpod.quota import Quota
from localgpus.runpod.routes import Api
from tests.bench._idle_usage import CountingCloud
from tests.bench._show import text_table
from tests.fakes import every
from tests.fakes.bills import Charges
from tests.fakes.openai_like import FakeOpenAI
from tests.fakes.runpod_pods import Stage
from tests.fakes.serving import serve

HOURS_PER_MONTH = 730
DAYS_PER_MONTH = HOURS_PER_MONTH / 24
INVOKER = "goblin-invoker@idle.iam.gserviceaccount.com"
MEMORY_GIB = 0.5
"""Memory of a function's instance."""
BILLED_S = 0.1
"""A request's time is rounded up to this."""
REQUEST_LOG_BYTES = 2000
"""Size of Cloud Run's own entry for a request, a guess: a few hundred bytes of values and as much of labels."""
FUNCTIONS_IMAGE_GB = 0.45
"""The newest image of the functions; older ones are deleted."""
KEYS = {
    "OPENAI_API_KEY": "k",
    "ANTHROPIC_API_KEY": "k",
    "GROQ_API_KEY": "k",
    "RUNPOD_API_KEY": "rpa_admin",
    "VASTAI_API_KEY": "vast-admin",
    "VAST_SERVER_KEY": "k",
    "OPENAI_ADMIN_KEY": "admin",
    "ANTHROPIC_ADMIN_KEY": "admin",
}
"""Secrets, by the variable that names each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """A list price and its free tier, which is per billing account."""

    usd: float
    per: float = 1
    """Units that `usd` pays."""
    free: float = 0
    """Units per month that cost nothing."""
    free_per_day: float = 0
    """Units per day that cost nothing."""
    unit: str = ""

    def cost(self, amount: float) -> float:
        """Return the list price of an amount per month, in dollars."""
        return amount * self.usd / self.per

    def cost_after_free(self, amount: float) -> float:
        """Return the price of what exceeds the free tier, in dollars."""
        return self.cost(max(0.0, amount - self.free - self.free_per_day * DAYS_PER_MONTH))


READ_ON = "2026-12-01"
SOURCE = "cloud.google.com/PRODUCT/pricing"
"""Stored copies, for us-east1; Firestore in a single region, which costs half of nam5."""
PRICES = {
    "run_requests": Price(usd=0.40, per=1e6, free=2e6, unit="requests"),
    "run_cpu": Price(usd=0.000024, free=180_000, unit="vCPU-s"),
    "run_memory": Price(usd=0.0000025, free=360_000, unit="GiB-s"),
    "firestore_reads": Price(usd=0.03, per=1e5, free_per_day=50_000, unit="documents"),
    "firestore_writes": Price(usd=0.09, per=1e5, free_per_day=20_000, unit="documents"),
    "firestore_deletes": Price(usd=0.01, per=1e5, free_per_day=20_000, unit="documents"),
    "storage_class_a": Price(usd=0.005, per=1000, free=5000, unit="operations"),
    "storage_class_b": Price(usd=0.0004, per=1000, free=50_000, unit="operations"),
    "secret_reads": Price(usd=0.03, per=10_000, free=10_000, unit="reads"),
    "secret_versions": Price(usd=0.06, free=6, unit="versions"),
    "scheduler_jobs": Price(usd=0.10, free=3, unit="jobs"),
    "pubsub_bytes": Price(usd=40, per=2**40, free=10 * 2**30, unit="bytes"),
    "log_bytes": Price(usd=0.50, per=2**30, free=50 * 2**30, unit="bytes"),
    "images": Price(usd=0.10, free=0.5, unit="GB"),
}
STANDING = ("secret_versions", "scheduler_jobs", "images")
"""Amounts that are there, and do not grow by the hour."""


class _Function:
    """A function's process."""

    def __init__(self, name: str, env: dict[str, str], log: Path) -> None:
        self.name = name
        self.spent: Counter[str] = Counter()
        self._log = log
        self._errors = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench._idle_function", str(paths.functions_folder() / f"{name}.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=env,
        )  # fmt: skip
        self.import_cpu_s: float = self._hear()["import_cpu_s"]

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended:\n{self._log.read_text()[-3000:]}")
        return json.loads(line)

    def call(self, authorization: str, *, minute: int) -> dict[str, Any]:
        """Call it as Cloud Scheduler would; return what it spent."""
        assert self._process.stdin is not None
        before = self._log.stat().st_size
        self._process.stdin.write(json.dumps({"shift_s": 60.0 * minute, "authorization": authorization}) + "\n")
        self._process.stdin.flush()
        answer = self._hear()
        if answer["status"] >= 300:
            raise RuntimeError(f"{self.name} answered {answer['status']} {answer['text']}\n{self._log.read_text()}")
        return {**answer, "log_bytes": self._log.stat().st_size - before}

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._errors.close()


def _bills(charges: Charges) -> Starlette:
    async def answer(request: Request) -> Response:
        told = charges._answer(httpx.Request("GET", str(request.url), headers=request.headers.raw))
        return Response(told.content, told.status_code)

    return Starlette(routes=[Route("/{path:path}", answer)])


@contextmanager
def _world(folder: Path) -> Iterator[tuple[CountingCloud, dict[str, str]]]:
    """A cloud with its secrets and bucket, all providers, and the environment of the functions."""
    with ExitStack() as stack:
        cloud = stack.enter_context(CountingCloud(folder / "cloud", declaration=paths.declaration()))
        fakes = {name: make() for name, make in every.FAKES.items()}
        fakes["vast_servers"].account_key = KEYS["VASTAI_API_KEY"]
        llamacpp = FakeOpenAI(owner="llamacpp")
        for fake in (*fakes.values(), llamacpp):
            fake.base = stack.enter_context(serve(fake.app))
        quota = Quota(windows=(("minute", 10**9, 60),))
        pods = Api(Stage().market, {KEYS["RUNPOD_API_KEY"]: "all"}, quota=quota)
        bills = stack.enter_context(serve(_bills(Charges())))
        env = {
            **os.environ,
            **every.variables(fakes),
            **cloud.addresses.variables(),
            **{name: f"secret:{name}" for name in KEYS},
            "LLAMACPP_URL": llamacpp.base,
            "RUNPOD_API_BASE_URL": stack.enter_context(serve(Starlette(routes=pods.routes()))),
            **{f"{name}_BILLING_URL": bills for name in ("OPENAI", "ANTHROPIC", "RUNPOD", "VASTAI")},
            "GOBLIN_BUCKET": "idle-bucket",
            "GOBLIN_URL": "http://127.0.0.1:9",
            "GOBLIN_MONTHLY_BUDGET": "100",
            "GOBLIN_INVOKER_EMAIL": INVOKER,
            "GOBLIN_VERIFY_CALLER": "iam",
        }
        client, parent = cloud.secrets_client(), f"projects/{env['GOOGLE_CLOUD_PROJECT']}"
        for name, key in KEYS.items():
            secret = {"replication": {"automatic": {}}}
            client.create_secret(request={"parent": parent, "secret_id": name, "secret": secret})
            payload = {"data": key.encode()}
            client.add_secret_version(request={"parent": f"{parent}/secrets/{name}", "payload": payload})
        cloud.storage_client(env["GOOGLE_CLOUD_PROJECT"]).create_bucket(env["GOBLIN_BUCKET"])
        yield cloud, env


class _Hour:
    """An hour of ticks, and what was counted of it by function."""

    def __init__(self, cloud: CountingCloud, env: dict[str, str], folder: Path) -> None:
        self._cloud, self._env, self._folder = cloud, env, folder
        self._running = ExitStack()
        self.functions: dict[str, _Function] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def _function(self, name: str) -> _Function:
        if name not in self.functions:
            env = {**self._env, "GOBLIN_PUSH_AUDIENCE": f"https://{name}.example"}
            self.functions[name] = _Function(name, env, self._folder / f"{name}.log")
            self._running.callback(self.functions[name].close)
        return self.functions[name]

    def tick(self, name: str, minute: int, *, counted: bool = True) -> None:
        """Call a function once. The first call of a process counts what a cold start costs."""
        assert self._cloud.cloud is not None
        cold = name not in self.functions
        function = self._function(name)
        before = self._cloud.usage.copy()
        token = self._cloud.cloud.identity.mint(email=INVOKER, audience=f"https://{name}.example")
        answer = function.call(f"Bearer {strip(token)}", minute=minute)
        if not counted:
            return
        used = self._cloud.usage.copy()
        used.subtract(before)
        function.spent.update({unit: count for unit, count in used.items() if count})
        seconds = answer["wall_s"] + (function.import_cpu_s if cold else 0.0)
        function.spent["cpu_s"] += answer["cpu_s"]
        function.spent["run_cpu"] += math.ceil(seconds / BILLED_S) * BILLED_S
        function.spent["run_requests"] += 1
        function.spent["log_bytes"] += answer["log_bytes"] + REQUEST_LOG_BYTES


def run(words: list[str]) -> dict[str, Any]:
    """Let an hour pass, count what is used, and price a month of such hours."""
    schedules = json.loads(paths.declaration().read_text())["schedules"]
    each_minute = [one["function"] for one in schedules.values() if one["schedule"] == "* * * * *"]
    hourly = [one["function"] for one in schedules.values() if one["schedule"] != "* * * * *"]
    with (
        tempfile.TemporaryDirectory() as name,
        _world(Path(name)) as (cloud, env),
        _Hour(cloud, env, Path(name)) as hour,
    ):
        for minute in range(61):
            for function in each_minute:
                # What is called each minute never gets cold; its first call is not of this hour.
                hour.tick(function, minute, counted=minute > 0)
        for function in hourly:
            hour.tick(function, 0)
        functions = {name: dict(function.spent) for name, function in hour.functions.items()}
    hourly_amounts = sum((Counter(spent) for spent in functions.values()), Counter())
    amounts = {line: hourly_amounts[line] * HOURS_PER_MONTH for line in PRICES if line not in (*STANDING, "run_memory")}
    amounts |= {"run_memory": amounts["run_cpu"] * MEMORY_GIB, "images": FUNCTIONS_IMAGE_GB}
    amounts |= {"secret_versions": len(KEYS), "scheduler_jobs": len(schedules)}
    lines = {line: round(price.cost_after_free(amounts[line]), 4) for line, price in PRICES.items()}
    listed = {line: round(price.cost(amounts[line]), 4) for line, price in PRICES.items()}
    return {
        "usd_per_month": round(sum(lines.values()), 4),
        "lines": lines,
        "list_usd_per_month": round(sum(listed.values()), 4),
        "list_lines": listed,
        "amounts": amounts,
        "functions": functions,
    }


def table(result: dict[str, Any]) -> str:
    """Line by line, then function by function."""
    rows = [
        (
            line,
            f"{result['amounts'][line]:,.6g} {price.unit}",
            _usd(result["lines"][line]),
            _usd(result["list_lines"][line]),
        )
        for line, price in PRICES.items()
    ]
    rows.append(("total", "", _usd(result["usd_per_month"]), _usd(result["list_usd_per_month"])))
    units = ("firestore_reads", "firestore_writes", "storage_class_a", "storage_class_b", "secret_reads", "cpu_s")
    of_functions = [
        (name, spent["run_requests"], *(spent.get(unit, 0) for unit in units), spent["log_bytes"])
        for name, spent in result["functions"].items()
    ]
    return "\n\n".join(
        [
            text_table(
                f"A month of idle, {HOURS_PER_MONTH} hours", ("line", "amount", "with the free tier", "list"), rows
            ),
            text_table(
                "Counted in one hour",
                ("function", "calls", "reads", "writes", "class A", "class B", "secrets", "CPU s", "log bytes"),
                of_functions,
            ),
            f"Prices: {SOURCE}, read {READ_ON}. Free tiers are per billing account.",
            "Alerts, Cloud KMS, a load balancer and machines that serve models are extra.\n"
            "Real providers answer later than fakes: at 2 s per health check, run_cpu is about 100,000 vCPU-s,\n"
            "which is still free.",
        ]
    )


def _usd(amount: float) -> str:
    return f"${amount:.2f}"
