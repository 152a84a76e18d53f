"""`goblin up`: the whole cloud on this machine, ready when it says so, stopped in order."""

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

from goblin.cli import fakes, paths, ports, provision
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
"""How long to wait for the children of a run that was killed: each stops within seconds of losing its parent."""
SAVE_S_MAX = 10.0
"""What runs for jobs may take so long to save, before what it saves through is stopped."""


class UpRefused(Exception):
    """Why it cannot start, in one line that says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpOptions:
    """What the person asked for."""

    port: int
    data: Path
    cloud: Literal["embedded", "emulators"]
    model: Path | None
    fakes: bool = False
    """With markets of rented GPUs on this machine."""
    pace: float = 1.0
    """Of their machines, in times of life."""


class Up:
    """One run: children in the order in which they are stopped."""

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
        """What `goblin env` prints: Google's clients and the OpenAI SDK of any app, pointed here."""
        at = self._ports
        said = {
            "GOBLIN_URL": f"http://{HOST}:{at.http}",
            "GOBLIN_API_KEY": key,
            "GOBLIN_BUCKET": f"{PROJECT}-models",
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "GCS_PROJECT_ID": PROJECT,
            "PUBSUB_EMULATOR_HOST": f"{HOST}:{at.pubsub}",
            "FIRESTORE_EMULATOR_HOST": f"{HOST}:{at.firestore}",
            "STORAGE_EMULATOR_HOST": f"http://{HOST}:{at.storage}",
            "SECRET_MANAGER_EMULATOR_HOST": f"http://{HOST}:{at.storage}",
        }
        # Budgets are read by everything that shows money, also from another terminal.
        said |= {name: os.environ[name] for name in MONTHLY_BUDGETS if os.environ.get(name)}
        return said | ({fakes.URL: self._fakes.url, **self._fakes.budgets(said)} if self._fakes else {})

    async def run(self, ready: Callable[[dict[str, str], float], None]) -> None:
        """Start everything, call `ready`, then keep it running until a signal.

        Raises:
            Refusal: It cannot start, or it fell and could not be kept.
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
                self._say("stopping: running requests may finish, jobs save what they have done")
            await self._let_jobs_save(children)
            # Doorways first, so that nothing new comes in; the cloud last, so that all can still be written down.
            for child in children:
                await child.stop()

    async def _let_jobs_save(self, children: list[Child]) -> None:
        """What works on jobs saves through the functions: while these answer, for a while, and for no new work."""
        if not any(child.name == "functions" and child.runs for child in children):
            return
        closing: list[Coroutine[Any, Any, object]] = [local.close(self._instances, within_s=SAVE_S_MAX)]
        async with httpx.AsyncClient(trust_env=False) as http:
            if self._fakes and any(child.name == "localgpus" and child.runs for child in children):
                closing.append(self._fakes.close(http, within_s=SAVE_S_MAX))
            await asyncio.gather(*closing)

    @property
    def _instances(self) -> Path:
        return self._choice.data / "instances"

    async def _hold(self) -> int:
        """Take the data folder; the children of a killed run get a moment to end."""
        deadline = time.monotonic() + LAST_RUN_S_MAX
        told = False
        while True:
            try:
                return self._folder.hold()
            except paths.Held as held:
                pid = held.holder.get("pid")
                if time.monotonic() > deadline or not isinstance(pid, int) or _alive(pid):
                    raise UpRefused(str(held)) from held
                if not told:
                    self._say("the last run was killed; waiting for its last process to end")
                    told = True
                await asyncio.sleep(0.1)

    def _child(self, name: str, command: list[str], env: dict[str, str] | None = None) -> Child:
        return Child(
            name=name, command=command, env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            log=self._choice.data / "logs" / f"{name}.log", lock=self._lock,
        )  # fmt: skip

    def _children(self) -> list[Child]:
        """Every process, in stopping order."""
        at, url = self._ports, self.variables["GOBLIN_URL"]
        emulated = self._choice.cloud == "emulators"
        cloud_words = [
            f"--data={self._choice.data / 'cloud'}", f"--storage-port={at.storage}", f"--functions-url={url}",
            f"--declaration={paths.declaration()}", f"--invoker-email={INVOKER}",
        ]  # fmt: skip
        if emulated:
            cloud_words.append("--services=storage")
        else:
            cloud_words += [f"--pubsub-port={at.pubsub}", f"--firestore-port={at.firestore}"]
        llamacpp = f"http://{HOST}:{at.llamacpp}"
        functions = {
            **self.variables,
            "GCS_REGION": os.environ.get("GCS_REGION", "us-east1"),
            "LLAMACPP_URL": llamacpp,
            "GOBLIN_OIDC_CERTS_URL": f"http://{HOST}:{at.storage}/oauth2/v1/certs",
            "GOBLIN_PUSH_AUDIENCE": url,
            "GOBLIN_INVOKER_EMAIL": INVOKER,
            "GOBLIN_LOCAL_INSTANCES": str(self._instances),
            # Signs the URLs that instances get; on Cloud Run the service's own account does.
            "GOOGLE_APPLICATION_CREDENTIALS": str(self._folder.write_credentials(_service_account(self._choice.data))),
        }
        if self._fakes:
            functions |= self._fakes.variables()
            cloud_words.append(f"--every=reconcile={fakes.RECONCILE_S}")
        if emulated:
            # Google's Pub/Sub emulator keeps `oidc_token` and never sends one.
            functions["GOBLIN_VERIFY_CALLER"] = "off"
        model = (self._choice.model or paths.default_model()).absolute()
        children = [
            self._child("functions", python_child("goblin.cli.host", f"--port={at.http}"), functions),
            self._child(
                "llamacpp",
                # It asks for no key, so it lets only this machine load another model.
                python_child("goblin_llamacpp", f"--port={at.llamacpp}", f"--model={model}", "--allow-load"),
            ),
        ]
        if emulated:
            found = google.find()
            if found.reason:
                raise UpRefused(found.reason)
            children.append(self._child("pubsub-emulator", google.pubsub_command(found, at.pubsub)))
            children.append(self._child("firestore-emulator", google.firestore_command(found, at.firestore)))
        if self._fakes:
            words = self._fakes.words(self._choice.data / "gpus")
            children.append(self._child("localgpus", python_child("localgpus", *words), dict(self._fakes.keys())))
        children.append(self._child("localcloud", python_child("localcloud", *cloud_words)))
        return children

    async def _serve(
        self, children: list[Child], started: float, ready: Callable[[dict[str, str], float], None]
    ) -> None:
        for child in children:
            await child.start()
        by_name = {child.name: child for child in children}
        async with httpx.AsyncClient(trust_env=False, timeout=5.0) as http:
            await self._wait_for_clouds(http, by_name)
            for name, port in (("functions", self._ports.http), ("llamacpp", self._ports.llamacpp)):
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
        """At the start, and again when a child had fallen; others may have fallen too, and come back as well."""
        await self._wait_for_clouds(http, children, kept=again)
        await self._wait_for_answers(http, children, kept=again)
        await self._serve_promoted(http)
        # So that the router knows its providers from the first request.
        if failure := await self._run_schedule(http, "check-health"):
            if not again:
                raise UpRefused(f"the first health check failed: {failure}")
            self._say(f"providers are looked at at the next minute: {failure}")
        if self._fakes and (failure := await self._fakes.tell_events_to(self.variables["GOBLIN_URL"], http)):
            self._say(f"the market tells no events, looking every {fakes.RECONCILE_S} s must do: {failure}")
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
        """Both must answer: the functions at all, the model server once its model is loaded."""
        model, url = f"http://{HOST}:{self._ports.llamacpp}/health", f"{self.variables['GOBLIN_URL']}/health"
        await wait_ready(children["llamacpp"], partial(_answers, http, model), MODEL_LOAD_S_MAX, kept=kept)
        await wait_ready(children["functions"], partial(_answers, http, url), START_S_MAX, kept=kept)

    async def _serve_promoted(self, http: httpx.AsyncClient) -> None:
        """Give the model server what is in production; it begins with what it was started with."""
        if failure := await self._run_schedule(http, "serve-promoted"):
            self._say(f"promoted models are looked after at the next minute: {failure}")

    async def _resume_jobs(self, http: httpx.AsyncClient) -> None:
        """Look now what became of the jobs of the last run, not at the next full minute."""
        if failure := await self._run_schedule(http, "reconcile"):
            self._say(f"jobs are looked after at the next minute: {failure}")

    async def _run_schedule(self, http: httpx.AsyncClient, name: str) -> str:
        """Run one schedule at once; what went wrong, empty when all is well."""
        url = f"http://{HOST}:{self._ports.storage}/v1/projects/{PROJECT}/locations/us-east1/jobs/{name}:run"
        try:
            answer = await http.post(url, timeout=60.0)
            said = answer.json().get("status", {})
        except (httpx.HTTPError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        failed = answer.status_code != 200 or said.get("code")
        return str(said.get("message", answer.text)) if failed else ""


def _service_account(data: Path) -> dict[str, str]:
    """The account whose signatures the local cloud knows; its key is made on first use."""
    from localcloud.identity import Identity

    return Identity(data / "cloud").service_account


async def _all(*work: Coroutine[Any, Any, None]) -> None:
    """Run together; the first failure ends all."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _is_process(http: httpx.AsyncClient, url: str, child: Child) -> bool:
    """Whether the answer comes from the child and not from a stranger that took its port first."""
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
    """Run until a signal; the exit code.

    Raises:
        Refusal: It cannot start or go on.
    """
    if sys.platform == "win32":
        raise UpRefused("goblin up needs Linux or macOS; on Windows use WSL.")
    if choice.model is not None and not choice.model.is_file():
        raise UpRefused(f"no model file at {choice.model}. --model wants the path of a .gguf file.")
    try:
        asyncio.run(Up(choice, say).run(ready))
    except ports.Taken as taken:
        raise UpRefused(str(taken)) from taken
    return 0
