"""`goblin up`: run all of Goblin on this machine, report when it is ready, stop it in order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx

from goblin.cli import environments, fakes, paths, ports, provision
from goblin.cli.fakes import Fakes
from goblin.cli.ports import HOST, listens
from goblin.cli.supervisor import Child, Failed, keep, python_child, wait_ready
from goblin.providers.local import compute as local
from goblin.wiring.settings import MONTHLY_BUDGETS
from localcloud import google

PROJECT = "goblin-local"
INVOKER = f"goblin-invoker@{PROJECT}.iam.gserviceaccount.com"
START_S_MAX = 60.0
MODEL_LOAD_S_MAX = 900.0
LAST_RUN_S_MAX = 15.0
"""How long to wait for the children of a killed run: each stops within seconds after its parent ends."""
SAVE_S_MAX = 10.0
"""How long job instances may take to save, before the functions that they save through are stopped."""


class UpRefused(Exception):
    """`goblin up` cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpOptions:
    """Options of one `goblin up`."""

    port: int
    data: Path
    cloud: Literal["embedded", "emulators"]
    model: Path | None
    fakes: bool = False
    """Whether GPU markets run on this machine."""
    pace: float = 1.0
    """Speed-up of the market's machines against real time."""
    throttle: bool = False
    """Whether functions other than the gateway get no CPU between requests, as with request-based billing."""


class Up:
    """One run of `goblin up` with its child processes."""

    def __init__(self, choice: UpOptions, say: Callable[[str], None]) -> None:
        self._choice = choice
        self._say = say
        self._folder = paths.DataFolder(choice.data)
        self._lock = -1
        self._turn = ports.take_turn()
        self._ports = ports.choose(choice.port)
        self._fakes = Fakes(port=self._ports.market, pace=choice.pace) if choice.fakes else None
        self.variables = self._variables("")

    def _variables(self, key: str) -> dict[str, str]:
        """Return what `goblin env` prints: the variables that point Google's clients and the OpenAI SDK here."""
        at = self._ports
        said = {
            "GOBLIN_URL": f"http://{HOST}:{at.http}",
            **({"GOBLIN_JOBS_URL": f"http://{HOST}:{at.jobs}"} if self._choice.throttle else {}),
            "GOBLIN_API_KEY": key,
            "GOBLIN_BUCKET": f"{PROJECT}-models",
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "GCS_PROJECT_ID": PROJECT,
            "PUBSUB_EMULATOR_HOST": f"{HOST}:{at.pubsub}",
            "FIRESTORE_EMULATOR_HOST": f"{HOST}:{at.firestore}",
            "STORAGE_EMULATOR_HOST": f"http://{HOST}:{at.storage}",
            "SECRET_MANAGER_EMULATOR_HOST": f"http://{HOST}:{at.storage}",
        }
        # Commands that show money need the budgets too, also in another terminal.
        said |= {name: os.environ[name] for name in MONTHLY_BUDGETS if os.environ.get(name)}
        return said | ({fakes.URL: self._fakes.url, **self._fakes.budgets(said)} if self._fakes else {})

    async def run(self, ready: Callable[[dict[str, str], float], None]) -> None:
        """Start everything, call `ready`, then keep it running until a signal.

        Raises:
            UpRefused: A child cannot start, or it crashed too often.
        """
        started = time.monotonic()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        self._lock = await self._hold()
        self._folder.sign(self.variables["GOBLIN_URL"])
        self._folder.forget_environment()
        self.variables = self._variables(self._folder.api_key())
        local.reopen(self._instances)
        children = self._children()
        try:
            work = asyncio.create_task(self._serve(children, started, ready))
            waiting = asyncio.create_task(stop.wait())
            done, _ = await asyncio.wait([work, waiting], return_when=asyncio.FIRST_COMPLETED)
            if work in done:
                work.result()
            waiting.cancel()
            work.cancel()
            await asyncio.gather(work, waiting, return_exceptions=True)
        except Failed as failure:
            raise UpRefused(str(failure)) from failure
        finally:
            self._folder.forget_environment()
            if stop.is_set():
                self._say("stopping: requests in flight may finish, jobs save a checkpoint")
            await self._let_jobs_save(children)
            # The functions first, so that no request comes in; the local cloud last, so that all state can be written.
            for child in children:
                await child.stop()

    async def _let_jobs_save(self, children: list[Child]) -> None:
        """Let job instances save and stop, without new work, while the functions that they need still answer."""
        if not any(child.name == "functions" and child.runs for child in children):
            return
        closing: list[Coroutine[Any, Any, object]] = [local.close(self._instances, within_s=SAVE_S_MAX)]
        async with httpx.AsyncClient(trust_env=False) as http:
            if self._fakes and any(child.name == "localgpus" and child.runs for child in children):
                closing.append(self._fakes.close(http, within_s=SAVE_S_MAX))
            await asyncio.gather(*closing)

    @property
    def _jobs_url(self) -> str:
        """Where everything but the gateway and the console is reached."""
        return self.variables.get("GOBLIN_JOBS_URL") or self.variables["GOBLIN_URL"]

    @property
    def _instances(self) -> Path:
        return self._choice.data / "instances"

    async def _hold(self) -> int:
        """Lock the data folder; wait for the children of a killed run to end."""
        deadline = time.monotonic() + LAST_RUN_S_MAX
        told = False
        while True:
            try:
                return self._folder.hold()
            except paths.NotOurs as refused:
                raise UpRefused(str(refused)) from refused
            except paths.Held as held:
                pid = held.holder.get("pid")
                if time.monotonic() > deadline or not isinstance(pid, int) or _alive(pid):
                    raise UpRefused(str(held)) from held
                if not told:
                    self._say("the previous run was killed; waiting for its last process to end")
                    told = True
                await asyncio.sleep(0.1)

    def _child(self, name: str, command: list[str], env: dict[str, str]) -> Child:
        log = self._choice.data / "logs" / f"{name}.log"
        return Child(name=name, command=command, env=env, log=log, lock=self._lock)

    def _children(self) -> list[Child]:
        """Return every child process, in the order in which they are stopped."""
        at, url = self._ports, self._jobs_url
        emulated = self._choice.cloud == "emulators"
        cloud_words = [
            f"--data={self._choice.data / 'cloud'}", f"--storage-port={at.storage}", f"--functions-url={url}",
            f"--declaration={paths.declaration()}", f"--invoker-email={INVOKER}",
        ]  # fmt: skip
        if emulated:
            cloud_words.append("--services=storage")
        else:
            cloud_words += [f"--pubsub-port={at.pubsub}", f"--firestore-port={at.firestore}"]
        model_key, model_key_file = self._folder.new_llamacpp_key()
        functions = {
            **self.variables,
            "GCS_REGION": os.environ.get("GCS_REGION", "us-east1"),
            "LLAMACPP_URL": f"http://{HOST}:{at.llamacpp}",
            "LLAMACPP_API_KEY": model_key,
            "GOBLIN_OIDC_CERTS_URL": f"http://{HOST}:{at.storage}/oauth2/v1/certs",
            # One process serves every function here, so each function's own URL is allowed in it.
            "GOBLIN_PUSH_AUDIENCE": ",".join(
                f"{url}/fn/{name}" for name in provision.private_functions(paths.declaration())
            ),
            "GOBLIN_VERIFY_CALLER": "iam",
            "GOBLIN_INVOKER_EMAIL": INVOKER,
            "GOBLIN_LOCAL_INSTANCES": str(self._instances),
            # This account signs the URLs that instances get; on Cloud Run the service account does.
            "GOOGLE_APPLICATION_CREDENTIALS": str(self._folder.write_credentials(_service_account(self._choice.data))),
        }
        if self._fakes:
            functions |= self._fakes.variables()
            cloud_words.append(f"--every=reconcile={self._fakes.reconcile_s}")
        if emulated:
            # Google's Pub/Sub emulator stores `oidc_token` and never sends one.
            functions["GOBLIN_VERIFY_CALLER"] = "off"
        model = (self._choice.model or paths.default_model()).absolute()
        children = [
            *self._functions(environments.for_functions(os.environ, functions)),
            self._child(
                "llamacpp",
                python_child(
                    "goblin_llamacpp", f"--host={HOST}", f"--port={at.llamacpp}", f"--model={model}",
                    f"--api-key-file={model_key_file}", "--allow-load",
                    # What a promotion loads is a signed URL of an object of ours, and nothing else.
                    f"--load-from=http://{HOST}:{at.storage}/{PROJECT}-models/",
                ),
                environments.for_model_server(os.environ),
            ),
        ]  # fmt: skip
        if emulated:
            found = google.find()
            if found.reason:
                raise UpRefused(found.reason)
            java = environments.for_emulator(os.environ)
            children.append(self._child("pubsub-emulator", google.pubsub_command(found, at.pubsub), java))
            children.append(self._child("firestore-emulator", google.firestore_command(found, at.firestore), java))
        if self._fakes:
            words = self._fakes.words(self._choice.data / "gpus")
            env = environments.for_local_service(os.environ, self._fakes.keys())
            children.append(self._child("localgpus", python_child("localgpus", *words), env))
        local_cloud = python_child("localcloud", *cloud_words)
        children.append(self._child("localcloud", local_cloud, environments.for_local_service(os.environ)))
        return children

    def _functions(self, env: dict[str, str]) -> list[Child]:
        """Return the processes of the functions: one, or with `--throttle` the gateway's and one that is throttled."""
        at = self._ports
        if not self._choice.throttle:
            return [self._child("functions", python_child("goblin.cli.host", f"--port={at.http}"), env)]
        awake = ["gateway", "console"]
        others = sorted(file.stem for file in paths.functions_folder().glob("[a-z]*.py") if file.stem not in awake)
        served = [*python_child("goblin.cli.host", "--port={port}", f"--only={','.join(others)}")]
        throttled = python_child("localcloud.throttle", f"--port={at.jobs}", "--", *served)
        return [
            self._child("jobs", throttled, env),
            self._child(
                "functions", python_child("goblin.cli.host", f"--port={at.http}", f"--only={','.join(awake)}"), env
            ),
        ]

    async def _serve(
        self, children: list[Child], started: float, ready: Callable[[dict[str, str], float], None]
    ) -> None:
        for child in children:
            await child.start()
        by_name = {child.name: child for child in children}
        async with httpx.AsyncClient(trust_env=False, timeout=5.0) as http:
            await self._wait_for_clouds(http, by_name)
            listening = [("functions", self._ports.http), ("llamacpp", self._ports.llamacpp)]
            for name, port in (*listening, *([("jobs", self._ports.jobs)] if self._choice.throttle else [])):
                await wait_ready(by_name[name], partial(listens, port), START_S_MAX)
            os.close(self._turn)
            await asyncio.to_thread(
                provision.everything, paths.declaration(), variables=self.variables, invoker_email=INVOKER
            )
            await self._begin(http, by_name)
            self._folder.write_environment(self.variables)
            ready(self.variables, time.monotonic() - started)

            again = partial(self._begin, http, by_name, again=True)
            await _all(*(keep(child, self._say, again) for child in children))

    async def _begin(self, http: httpx.AsyncClient, children: dict[str, Child], *, again: bool = False) -> None:
        """Wait until all answer, then run the schedules: at the start, and again after a child was restarted."""
        await self._wait_for_clouds(http, children, kept=again)
        await self._wait_for_answers(http, children, kept=again)
        await self._serve_promoted(http)
        # The router needs the endpoints' health from the first request on.
        if failure := await self._run_schedule(http, "check-health"):
            if not again:
                raise UpRefused(f"The first health check failed: {failure}")
            self._say(f"the health check failed and runs again within a minute: {failure}")
        if self._fakes and (failure := await self._fakes.tell_events_to(self._jobs_url, http)):
            self._say(
                f"the market sends no webhook events; jobs are reconciled every {self._fakes.reconcile_s} s: {failure}"
            )
        await self._resume_jobs(http)

    async def _wait_for_clouds(
        self, http: httpx.AsyncClient, children: dict[str, Child], *, kept: bool = False
    ) -> None:
        at = self._ports
        emulators = (("pubsub-emulator", at.pubsub), ("firestore-emulator", at.firestore))
        for name, port in (*emulators, ("localgpus", at.market)):
            if name in children:
                await wait_ready(children[name], partial(listens, port), START_S_MAX, kept=kept)
        cloud, url = children["localcloud"], f"http://{HOST}:{at.storage}/localcloud"
        await wait_ready(cloud, lambda: _is_process(http, url, cloud), START_S_MAX, kept=kept)

    async def _wait_for_answers(self, http: httpx.AsyncClient, children: dict[str, Child], *, kept: bool) -> None:
        """Wait until the model server has loaded its model and the functions answer."""
        model, url = f"http://{HOST}:{self._ports.llamacpp}/health", f"{self.variables['GOBLIN_URL']}/health"
        await wait_ready(children["llamacpp"], partial(_answers, http, model), MODEL_LOAD_S_MAX, kept=kept)
        await wait_ready(children["functions"], partial(_answers, http, url), START_S_MAX, kept=kept)

    async def _serve_promoted(self, http: httpx.AsyncClient) -> None:
        """Load the model in production into the model server, which starts with the model of `--model`."""
        if failure := await self._run_schedule(http, "serve-promoted"):
            self._say(f"the promoted model could not be loaded yet; the next try is within a minute: {failure}")

    async def _resume_jobs(self, http: httpx.AsyncClient) -> None:
        """Reconcile the jobs of the previous run now, not at the next full minute."""
        if failure := await self._run_schedule(http, "reconcile"):
            self._say(f"jobs could not be reconciled yet; the next try is within a minute: {failure}")

    async def _run_schedule(self, http: httpx.AsyncClient, name: str) -> str:
        """Run one schedule now; return the error, empty on success."""
        url = f"http://{HOST}:{self._ports.storage}/v1/projects/{PROJECT}/locations/us-east1/jobs/{name}:run"
        try:
            answer = await http.post(url, timeout=60.0)
            said = answer.json().get("status", {})
        except (httpx.HTTPError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        failed = answer.status_code != 200 or said.get("code")
        return str(said.get("message", answer.text)) if failed else ""


def _service_account(data: Path) -> dict[str, str]:
    """Return the service account whose signatures the local cloud accepts; its key is made on first use."""
    from localcloud.identity import Identity

    return Identity(data / "cloud").service_account


async def _all(*work: Coroutine[Any, Any, None]) -> None:
    """Run coroutines together; the first failure cancels the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _is_process(http: httpx.AsyncClient, url: str, child: Child) -> bool:
    """Whether the answer comes from the child, and not from another process that took its port first."""
    try:
        said = (await http.get(url)).json()
    except (httpx.HTTPError, ValueError):
        return False
    return isinstance(said, dict) and child.process is not None and said.get("pid") == child.process.pid


async def _answers(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).status_code == 200
    except httpx.HTTPError:
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main(choice: UpOptions, say: Callable[[str], None], ready: Callable[[dict[str, str], float], None]) -> int:
    """Run until a signal and return the exit code.

    Raises:
        UpRefused: It cannot start or go on.
    """
    if sys.platform == "win32":
        raise UpRefused("goblin up needs Linux or macOS. On Windows, use WSL.")
    if choice.model is not None and not choice.model.is_file():
        raise UpRefused(f"There is no model file {choice.model}. Give the path of a .gguf file to --model.")
    # Whatever is created below the data folder is its owner's.
    os.umask(0o077)
    try:
        asyncio.run(Up(choice, say).run(ready))
    except ports.Taken as taken:
        raise UpRefused(str(taken)) from taken
    return 0
