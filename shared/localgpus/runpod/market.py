"""One account: stock, prices, pods, hosts and balance, advanced by a clock that is an argument.

The market has no thread of its own. Every call advances it to the clock first, and the server calls `advance` at short
intervals, so that pods boot and end between requests too.
"""

from __future__ import annotations

import copy
import random
import shlex
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localgpus.machines import Machines, NoRoom
from localgpus.runpod import charges, checks
from localgpus.runpod.books import Books
from localgpus.runpod.charges import Span, What
from localgpus.runpod.kept import Kept, State
from localgpus.runpod.pods import ACTIONS, UP, Cloud, GpuType, Pod, Shelf, Status, gpus
from localgpus.runpod.problems import HOST_IS_FULL, NO_INSTANCES, Problem

PODS_MAX = 200
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """The times and variants of this RunPod's behaviour."""

    provision_s: float = 2.0
    """Time until a machine is found and has the image."""
    start_s: float = 2.0
    """Time from the container's start until the pod reads RUNNING."""
    grace_s: float = 5.0
    """Time between SIGTERM and SIGKILL."""
    billing_late_s: float = 300.0
    """Delay of the billing history."""
    page: int | None = None
    """Pods per page when a request gives no limit; None: all pods, without page fields, as in the schema."""
    running_at_once: bool = False
    """Whether a pod reads RUNNING from its creation on, without `runtime`: seen in August 2026, against the schema."""


class Market:
    """One account at RunPod. Every method can be called from any thread."""

    def __init__(
        self,
        machines: Machines,
        *,
        balance_usd_micros: int = 100_000_000,
        stock: list[GpuType] | None = None,
        terms: Terms | None = None,
        folder: Path | None = None,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        """Open a new account, or the one that is stored in the folder.

        Args:
            machines: Where pods run.
            balance_usd_micros: Starting balance.
            stock: GPU types that can be rented; None: `pods.gpus()`.
            terms: Times and variants; None: the defaults.
            folder: Where the state is stored; None: nowhere.
            clock: Returns seconds since 1970.
            rng: Draws the pods' ids.
        """
        self.terms = terms or Terms()
        self.clock = clock
        self._machines = machines
        self._kept = Kept(folder / "runpod.json") if folder is not None else None
        self._rng = rng or random.Random()
        self._lock = threading.RLock()
        self.closed = False
        """Whether the stock is empty for good. Rented pods stay."""
        books = Books(paid_usd_micros=balance_usd_micros)
        before = self._kept.read() if self._kept is not None else None
        self._state = before or State(gpus=gpus() if stock is None else stock, books=books)

    # Requests of clients.

    def catalogue(self) -> list[GpuType]:
        """List every GPU type with its current stock and price."""
        with self._lock:
            self._advance()
            seen = copy.deepcopy(self._state.gpus)
            for shelf in (shelf for gpu in seen for shelf in gpu.shelves.values()):
                shelf.free = 0 if self.closed else shelf.free
            return seen

    def pods(self) -> list[Pod]:
        """List every pod, oldest first."""
        with self._lock:
            self._advance()
            pods = sorted(self._state.pods.values(), key=lambda pod: (pod.created_at, pod.id))
            return [copy.copy(pod) for pod in pods]

    def pod(self, pod_id: str) -> Pod:
        """Find a pod. Raises `Problem`: 404 if it does not exist."""
        with self._lock:
            self._advance()
            return copy.copy(self._pod(pod_id))

    def create(self, body: checks.Create) -> Pod:
        """Rent a pod. The same request twice makes two pods. Raises `Problem`."""
        with self._lock:
            self._advance()
            if (rule := checks.broken_rule(body)) is not None:
                raise Problem(400, rule)
            if body.templateId is not None:
                raise Problem(404, "template not found")
            try:
                args = tuple(body.cmd) or tuple(shlex.split(body.args))
            except ValueError as error:
                raise Problem(400, "args cannot be parsed") from error
            gpu, shelf, count = self._placeable(body)
            price = shelf.usd_micros_per_hour * count
            if self.balance_usd_micros() < price:
                raise Problem(402, "Your balance is too low: an hour of this pod must be covered.")
            shelf.free -= count
            now = self.clock()
            volume = body.mounts.persistent
            pod = Pod(
                id="".join(self._rng.choices(_LETTERS, k=14)), name=body.name, image=body.image, gpu_id=gpu.id,
                gpu_count=count, cloud=body.cloud, data_center=gpu.data_centers[0], cuda=gpu.cuda[-1],
                disk_gb=body.disk, usd_micros_per_hour=price, created_at=now, phase_at=now, args_text=body.args,
                args=args, env=dict(body.env), ports=tuple(body.ports),
                volume_gb=volume.size if volume else 0, volume_path=volume.path if volume else "",
            )  # fmt: skip
            self._state.pods[pod.id] = pod
            self._bill(pod)
            self._save()
            return copy.copy(pod)

    def act(self, pod_id: str, action: str) -> Pod:
        """Start, stop, restart or delete (`terminate`) a pod. Raises `Problem`."""
        with self._lock:
            self._advance()
            pod = self._pod(pod_id)
            if action == "terminate":
                return self.delete(pod_id)
            if action not in ACTIONS[pod.status]:
                raise Problem(409, f"action {action} is not valid for a pod that is {pod.status}")
            if pod.locked and action != "start":
                raise Problem(409, "pod is locked")
            if action == "start":
                self._start_again(pod)
            elif action == "stop":
                self._stop(pod)
            else:
                self._machines.kill(pod.machine)
                self._wipe(pod)
                self._begin(pod, Status.PROVISIONING)
            self._save()
            return copy.copy(pod)

    def delete(self, pod_id: str) -> Pod:
        """Delete a pod. Raises `Problem`: 404 if it does not exist, 409 if it is locked (inferred)."""
        with self._lock:
            self._advance()
            pod = self._pod(pod_id)
            if pod.locked:
                raise Problem(409, "pod is locked")
            self._terminate(pod)
            self._save()
            return pod

    def spans(self) -> list[Span]:
        """List the spans that bills are made of."""
        with self._lock:
            self._advance()
            return [copy.copy(span) for span in self._state.books.spans]

    def balance_usd_micros(self) -> int:
        """Return the balance. It can be below zero when the market was not advanced for long."""
        with self._lock:
            return self._state.books.left_usd_micros(int(self.clock()))

    # Levers for tests and people.

    def advance(self) -> None:
        """Advance every pod and the balance to the clock."""
        with self._lock:
            self._advance()

    def move(
        self, gpu_id: str, cloud: Cloud, *, free: int | None = None, usd_micros_per_hour: int | None = None
    ) -> None:
        """Change the stock of a GPU type, or its price for new pods."""
        with self._lock:
            shelf = self._gpu(gpu_id).shelves[cloud]
            shelf.free = shelf.free if free is None else free
            if usd_micros_per_hour is not None:
                shelf.usd_micros_per_hour = usd_micros_per_hour
            self._save()

    def mark(self, gpu_id: str, *, restricted: bool = False, sold_out_unseen: bool = False) -> None:
        """Make a GPU type unavailable although the catalogue lists it."""
        with self._lock:
            gpu = self._gpu(gpu_id)
            gpu.restricted, gpu.sold_out_unseen = restricted, sold_out_unseen
            self._save()

    def lock(self, pod_id: str, locked: bool = True) -> None:
        """Lock or unlock a pod, as the console does."""
        with self._lock:
            self._pod(pod_id).locked = locked
            self._save()

    def lose_host(self, pod_id: str) -> None:
        """Let the pod's host die, with its GPUs and its volume. Charges stop. That the pod reads ERROR is inferred."""
        with self._lock:
            pod = self._pod(pod_id)
            self._machines.kill(pod.machine)
            self._close(pod)
            pod.host_lost = True
            self._enter(pod, Status.ERROR)
            self._save()

    def pay(self, usd_micros: int) -> None:
        """Pay into the account, or out of it with a negative amount."""
        with self._lock:
            self._state.books.paid_usd_micros += usd_micros
            self._save()

    # Time.

    def _advance(self) -> None:
        for pod in list(self._state.pods.values()):
            self._bring_on(pod)
        for name in list(self._state.leaving):
            if not self._machines.running(name):
                self._machines.remove(name)
                self._state.leaving.remove(name)
        self._collect()
        self._save()

    def _bring_on(self, pod: Pod) -> None:
        now = self.clock()
        if pod.status is Status.PROVISIONING and now >= pod.phase_at + self.terms.provision_s:
            try:
                self._machines.start(pod.machine, image=pod.image, args=pod.args, env=_told(pod))
            except NoRoom:
                self._close(pod)
                self._give_back(pod)
                self._enter(pod, Status.ERROR)
                return
            self._enter(pod, Status.STARTING)
            pod.launched = True
        if pod.status in (Status.STARTING, Status.RUNNING) and not self._machines.running(pod.machine):
            # The program ended by itself. The container's disk stays and is billed; the GPU is not.
            self._close(pod, What.GPU)
            self._give_back(pod)
            self._enter(pod, Status.EXITED)
        if pod.status is Status.STARTING and now >= pod.phase_at + self.terms.start_s:
            self._enter(pod, Status.RUNNING)
            pod.started_at = now

    def _collect(self) -> None:
        """Stop every pod if the balance does not cover ten more seconds; delete all pods at zero.

        RunPod deletes those without a network volume; there are no network volumes here.
        """
        left = self.balance_usd_micros()
        burning = [pod for pod in self._state.pods.values() if pod.status in UP]
        if burning and left < 10 * self._state.books.burn_per_s():
            for pod in burning:
                self._stop(pod)
        if left <= 0:
            for pod in list(self._state.pods.values()):
                self._terminate(pod)

    # Steps.

    def _placeable(self, body: checks.Create) -> tuple[GpuType, Shelf, int]:
        if self.closed or body.gpu is None or len(self._state.pods) >= PODS_MAX:
            raise Problem(400, NO_INSTANCES)
        gpu = self._gpu(body.gpu.id)
        if gpu.restricted:
            raise Problem(403, "access denied")
        # Without a count RunPod finds no capacity, and its answer does not say why. Source: runpod's MCP server, 3.3.0.
        count = body.gpu.count if isinstance(body.gpu.count, int) else 0
        shelf = gpu.shelves.get(body.cloud)
        if (
            shelf is None
            or gpu.sold_out_unseen
            or not 1 <= count <= min(shelf.free, shelf.most)
            or (body.dataCenterIds and not set(body.dataCenterIds) & set(gpu.data_centers))
            or not _fits_cuda(gpu, body.gpu)
        ):
            raise Problem(400, NO_INSTANCES)
        return gpu, shelf, count

    def _start_again(self, pod: Pod) -> None:
        shelf = self._gpu(pod.gpu_id).shelves[pod.cloud]
        if pod.host_lost or shelf.free < pod.gpu_count:
            raise Problem(400, HOST_IS_FULL)
        shelf.free -= pod.gpu_count
        self._close(pod)
        self._wipe(pod)
        pod.stopped = False
        self._begin(pod, Status.PROVISIONING)
        self._bill(pod)

    def _stop(self, pod: Pod) -> None:
        self._machines.stop(pod.machine, grace_s=self.terms.grace_s)
        self._close(pod)
        self._give_back(pod)
        pod.stopped = True
        self._enter(pod, Status.EXITED)
        if pod.volume_gb:
            self._open(pod, What.VOLUME, pod.volume_gb * charges.IDLE_VOLUME_USD_MICROS)

    def _terminate(self, pod: Pod) -> None:
        self._machines.stop(pod.machine, grace_s=self.terms.grace_s)
        self._close(pod)
        if pod.status in UP:
            self._give_back(pod)
        self._enter(pod, Status.TERMINATED)
        del self._state.pods[pod.id]
        self._state.leaving.append(pod.machine)

    def _begin(self, pod: Pod, status: Status) -> None:
        self._enter(pod, status)
        pod.launched, pod.started_at = False, None

    def _enter(self, pod: Pod, status: Status) -> None:
        pod.status, pod.phase_at = status, self.clock()

    def _wipe(self, pod: Pod) -> None:
        """Wipe the container's disk, as a restart does. With a volume the machine's one disk is the volume: keep it."""
        if not pod.volume_gb:
            self._machines.remove(pod.machine)

    def _give_back(self, pod: Pod) -> None:
        self._gpu(pod.gpu_id).shelves[pod.cloud].free += pod.gpu_count

    def _gpu(self, gpu_id: str) -> GpuType:
        found = next((gpu for gpu in self._state.gpus if gpu.id == gpu_id), None)
        if found is None:
            raise Problem(400, "gpu type not found")
        return found

    def _pod(self, pod_id: str) -> Pod:
        if (pod := self._state.pods.get(pod_id)) is None:
            raise Problem(404, "pod not found")
        return pod

    def _bill(self, pod: Pod) -> None:
        """Start the pod's charges once it holds its GPUs. That the pull of the image is billed is inferred."""
        self._open(pod, What.GPU, pod.usd_micros_per_hour * charges.MONTH_HOURS)
        self._open(pod, What.DISK, pod.disk_gb * charges.DISK_USD_MICROS)
        if pod.volume_gb:
            self._open(pod, What.VOLUME, pod.volume_gb * charges.DISK_USD_MICROS)

    def _open(self, pod: Pod, what: What, usd_micros_per_month: int) -> None:
        self._state.books.open(pod.id, what, usd_micros_per_month, int(self.clock()))

    def _close(self, pod: Pod, only: What | None = None) -> None:
        self._state.books.close(pod.id, int(self.clock()), only)

    def _save(self) -> None:
        if self._kept is not None:
            self._kept.write(self._state)


def _told(pod: Pod) -> dict[str, str]:
    """Build a container's environment. RunPod also adds a key of the pod's own, which this market does not have."""
    return {
        "RUNPOD_POD_ID": pod.id,
        "RUNPOD_DC_ID": pod.data_center,
        "RUNPOD_GPU_COUNT": str(pod.gpu_count),
        "RUNPOD_GPU_NAME": pod.gpu_id,
        **pod.env,
    }


def _fits_cuda(gpu: GpuType, wanted: checks.GpuWanted) -> bool:
    offered = [_version(version) for version in gpu.cuda]
    if wanted.allowedCudaVersions:
        return any(_version(version) in offered for version in wanted.allowedCudaVersions)
    return wanted.minCudaVersion is None or max(offered) >= _version(wanted.minCudaVersion)


def _version(text: str) -> tuple[int, ...]:
    """Split a version into numbers for comparing: 12.11 is above 12.2."""
    return tuple(int(part) for part in text.split("."))
