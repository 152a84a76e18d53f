"""What stands in for each provider of instances in the contract test: the other side, as a test can move it."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from goblin.jobs.domain.instances import KnownInventory
from goblin.jobs.domain.market import InstanceRequirements
from goblin.jobs.ports import ComputeProvider
from goblin.providers.common.kept_connections import KeptConnections, PlainClient
from goblin.providers.local import compute as local
from goblin.providers.runpod import compute as runpod
from goblin.providers.vastai import compute as vastai
from goblin.providers.vastai.api import RequestLine
from localgpus.runpod.faults import Fault
from localgpus.vast.faults import Fault as VastFault
from tests.fakes.runpod_pods import Stage, Switch
from tests.fakes.serving import serve
from tests.localgpus.vast import KEY, Town, machine


class Stand(Protocol):
    """One provider, reached as in production."""

    provider: ComputeProvider
    wanted: InstanceRequirements
    """Something that it has."""

    def again(self) -> ComputeProvider:
        """Another client of the same provider, as after a restart of ours."""

    async def settle(self) -> None:
        """Let what was asked for happen: instances boot, and end."""

    async def told(self, label: str) -> dict[str, str]:
        """The environment of the instance's process."""

    async def end(self, label: str) -> None:
        """Its process comes to an end by itself."""

    async def stranger(self) -> str:
        """Somebody else's instance on the same account; its name."""

    async def count(self) -> int:
        """Instances that exist over there, whosever they are."""

    def break_lists(self, times: int) -> None:
        """The next looks at the list fail."""


class LocalStand:
    """Processes of this machine that write down their environment, and wait for their end."""

    wanted = InstanceRequirements(kind="batch")
    program = (
        "import json, os, sys, threading\n"
        "open('draft', 'w').write(json.dumps(dict(os.environ)))\n"
        "os.replace('draft', 'told')\n"
        "threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(3)), daemon=True).start()\n"
        "threading.Event().wait()\n"
    )

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.provider: local.LocalInstances = local.connect(folder, command=(sys.executable, "-c", self.program))
        self._broken = folder / "goblin-broken-a1" / "record.json"

    def again(self) -> ComputeProvider:
        return local.connect(self._folder, command=(sys.executable, "-c", "raise SystemExit"))

    async def settle(self) -> None:
        """Those that were asked to end have, and the others have begun."""
        await _until(lambda: all(self._settled(folder) for folder in self._folder.glob("goblin-*-a*")))

    def _settled(self, folder: Path) -> bool:
        child = self.provider._children.get(folder.name)
        try:
            asked = json.loads((folder / "record.json").read_text())["asked_to_end"]
        except FileNotFoundError:
            return True
        return child is None or child.poll() is not None or (not asked and (folder / "told").exists())

    async def told(self, label: str) -> dict[str, str]:
        told: dict[str, str] = json.loads((self._folder / label / "told").read_text())
        return told

    async def end(self, label: str) -> None:
        child = self.provider._children[label]
        child.kill()
        await asyncio.to_thread(child.wait)

    async def stranger(self) -> str:
        (self._folder / "mine").mkdir(parents=True)
        return "mine"

    async def count(self) -> int:
        running = sum(child.poll() is None for child in self.provider._children.values())
        return running + (self._folder / "mine").is_dir()

    def break_lists(self, times: int) -> None:
        self._broken.mkdir(parents=True)

    def close(self) -> None:
        for child in self.provider._children.values():
            child.kill()
            child.wait()
            assert child.stdin
            child.stdin.close()


class RunPodStand:
    """RunPod's wire over a market."""

    wanted = InstanceRequirements(kind="training", gpus=("RTX_4090",), gpu_count=1)

    def __init__(self, base: str, client: PlainClient, stage: Stage) -> None:
        self._base, self._client, self._stage = base, client, stage
        self.provider = self.again()

    def again(self) -> ComputeProvider:
        return runpod.connect(
            api_key="rpa_all", namespace="project", client=self._client, url=f"{self._base}/v2", sleep=self._sleep
        )

    async def _sleep(self, seconds: float) -> None:
        self._stage.clock.now += seconds

    async def settle(self) -> None:
        for name in list(self._stage.machines.stopping):
            self._stage.machines.end(name, 143)
        self._stage.pass_time(20)

    async def told(self, label: str) -> dict[str, str]:
        return self._stage.machines.started[self._machine(label)].env

    async def end(self, label: str) -> None:
        self._stage.machines.end(self._machine(label))

    async def stranger(self) -> str:
        body = {"name": "goblin-j-a1@elsewhere", "image": "i", "gpu": {"id": "NVIDIA L40S", "count": 1}}
        headers = {"authorization": "Bearer rpa_all"}
        made = await self._client.post(f"{self._base}/v2/pods", json=body, headers=headers)
        assert made.status_code == 201
        return "goblin-j-a1@elsewhere"

    async def count(self) -> int:
        return len(self._stage.market.pods())

    def break_lists(self, times: int) -> None:
        self._stage.api.faults.coming.append(Fault(method="GET", path="/v2/pods", status=410, times=times))

    def _machine(self, label: str) -> str:
        (pod,) = (pod for pod in self._stage.market.pods() if pod.name == f"{label}@project")
        return pod.machine


class VastStand:
    """Vast.ai's wire over a market."""

    wanted = InstanceRequirements(kind="training", gpus=("RTX_4090",), gpu_count=1)

    def __init__(self, base: str, client: PlainClient, town: Town) -> None:
        self._base, self._client, self._town = base, client, town
        self._line = RequestLine(monotonic=town.clock, sleep=self._sleep)
        self.provider = self.again()

    def again(self) -> ComputeProvider:
        return vastai.connect(
            api_key=KEY, namespace="project", client=self._client, url=self._base, line=self._line,
            monotonic=self._town.clock, now=self._town.clock,
        )  # fmt: skip

    async def _sleep(self, seconds: float) -> None:
        self._town.clock.now += seconds

    async def settle(self) -> None:
        for name in list(self._town.machines.stopping):
            self._town.machines.end(name, 143)
        for _ in range(6):
            self._town.later(10)

    async def told(self, label: str) -> dict[str, str]:
        return self._town.machines.started[self._machine(label)].env

    async def end(self, label: str) -> None:
        self._town.machines.end(self._machine(label))
        self._town.later(30)

    async def stranger(self) -> str:
        return self._town.rent(3, label="goblin-j-a1@elsewhere").label

    async def count(self) -> int:
        return len(self._town.market.state.contracts)

    def break_lists(self, times: int) -> None:
        body = '{"success": false, "error": "deprecated_endpoint"}'
        self._town.faults.add(VastFault(call="list", status=410, body=body, times=times))

    def _machine(self, label: str) -> str:
        contracts = self._town.market.state.contracts.values()
        (contract,) = (contract for contract in contracts if contract.label == f"{label}@project")
        return f"vast-{contract.id}"


@asynccontextmanager
async def _local(folder: Path) -> AsyncIterator[Stand]:
    stand = LocalStand(folder / "instances")
    yield stand
    stand.close()


@asynccontextmanager
async def _runpod(_: Path) -> AsyncIterator[Stand]:
    switch = Switch()
    stage = switch.show(Stage())
    with serve(switch) as base:
        async with PlainClient(KeptConnections(tls=ssl.create_default_context(), most=8, kept=4)) as client:
            yield RunPodStand(base, client, stage)


@asynccontextmanager
async def _vastai(_: Path) -> AsyncIterator[Stand]:
    town = Town(*(machine(number) for number in (1, 2, 3, 4)))
    with serve(town.app) as base:
        async with PlainClient(KeptConnections(tls=ssl.create_default_context(), most=8, kept=4)) as client:
            yield VastStand(base, client, town)


STANDS: dict[str, Callable[[Path], AbstractAsyncContextManager[Stand]]] = {
    "local": _local, "runpod": _runpod, "vastai": _vastai,
}  # fmt: skip
"""By the adapter's file."""


async def labels(provider: ComputeProvider) -> set[str]:
    """What a known inventory holds."""
    inventory = await provider.inventory()
    assert isinstance(inventory, KnownInventory), inventory
    return {instance.label for instance in inventory.instances}


async def _until(true: Callable[[], bool]) -> None:
    """Wait for what another process does; there is nothing to wait on but its effects."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
