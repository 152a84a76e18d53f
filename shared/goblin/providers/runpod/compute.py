"""RunPod compute: pods of its community cloud and of its own data centres (secure cloud), on demand.

Source: RunPod's OpenAPI schema 2.0.0 (runpod/docs at 2026-08-20), its pages on pricing and billing, and answers of
version 2 recorded by others in August 2026; read 2026-11-25. Not tried against RunPod itself.

- Version 1 has ended: 410. Version 2 has no idempotency key, so a create is sent once; when its response is lost the
  pod is searched by its name.
- A lack of capacity is a 400 like an invalid request; only the message tells them apart. 402 is the balance: it must
  cover an hour of the pod. 403 is a key without the right, or a pool that the account may not use. 422 is our mistake.
- One GPU type per request, with `gpu.count`: without the count nothing is ever found. The catalogue shows stock for one
  cloud and one count at a time, and only with `product`; it reserves nothing.
- `status` can read RUNNING, without a `runtime`, before anything runs. A container that has ended leaves a pod that
  reads EXITED and is billed for its disk; whether RunPod restarts a container that ends is up to RunPod.
- Billed per second; a container's disk is $0.10 per GB and month, traffic is free. `cost` of a pod is for its GPUs, per
  hour.
- A container also finds `RUNPOD_API_KEY` in its environment, a key that RunPod made for that pod; it is not our key.
- The bill lists pods by id (`/billing/pods`) and not by name.
- RunPod does not say which machine a pod runs on, so no machine can be avoided.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import TypeGuard

import httpx

from goblin.core.endpoints import KeySource
from goblin.core.errors import Broken, Fault, GoblinError, ProviderUnavailable, Refused, Transient
from goblin.core.labels import is_attempt_label
from goblin.core.money import to_micros
from goblin.core.redaction import redact
from goblin.jobs.domain.instances import (
    Instance,
    InstanceState,
    Inventory,
    KnownInventory,
    RentalOrder,
    UnknownInventory,
    gpu_name,
    is_gpu,
)
from goblin.jobs.domain.market import InstanceRequirements, Listing, Offer
from goblin.jobs.ports import ComputeProvider
from goblin.providers.runpod.api import PodRow, Pods, RunPodApi, RunPodGpuRow, RunPodGpus, RunPodReply, Sleep, is_full
from httpguard import whole_number

NAME = "runpod"
VARIABLE = "RUNPOD_API_KEY"
URL = "https://api.runpod.io/v2"
KINDS = frozenset({"training", "batch"})
UNSUPPORTED = {
    "spot": "version 2 of its API cannot create interruptible pods, and has no bids and no prices for them",
    "multi_node": (
        "an Instant Cluster is several pods under one id, created and deleted through /clusters, missing in the list of"
        " pods and billed separately; an order is one instance, and its agent one process. Until both support ranks, a"
        " cluster through this port would misreport what runs and what is billed"
    ),
}
"""What an order cannot have here, and why."""

START_S_MAX = 900.0
"""Longest start; a large image takes minutes on a host that does not have it yet."""
BOOT_S = {"HIGH": 60.0, "MEDIUM": 90.0, "LOW": 180.0}
"""Time from order to container by stock, until measured by attempts: with low stock the hosts left are far away."""
RELIABILITY = {"HIGH": None, "MEDIUM": None, "LOW": 0.9}
"""Assumed reliability by stock. RunPod publishes none; with low stock the hosts left are those that others avoided."""
DISK_USD_MICROS = 100_000
"""Price of a GB of a container's disk per month. Source: docs.runpod.io/pods/pricing, read 2026-11-25."""
CATALOGUE_S = 60.0
"""How long the catalogue is reused."""
AVOIDED_S = 120.0
"""How long an offer is left out after it could not be rented."""
CENT, NOISE = Decimal("0.01"), Decimal("0.0001")
"""Rounding steps. Prices are floats, of 32 bits by the schema."""
PAGES_MAX = 100
GPUS_MAX = 1024
CLOUDS = ("COMMUNITY", "SECURE")
NAMES = {"A100_SXM": "A100_SXM4"}
"""GPU models that other providers call differently, by RunPod's name."""
PRICE_USD_MAX = 10_000
"""Highest plausible price per hour; a higher one is taken for a mistake."""


def connect(
    *,
    api_key: str | KeySource,
    namespace: str,
    client: httpx.AsyncClient,
    url: str = URL,
    sleep: Sleep = asyncio.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> ComputeProvider:
    """Connect to RunPod's API for renting pods.

    Args:
        api_key: The account's key; it must be able to read, and to write pods.
        namespace: Appended to each label in a pod's name, so that pods of other deployments on this account are never
            touched.
        client: Shared HTTP client.
        url: Base URL of the API, with its version.
        sleep: Waits a number of seconds.
        monotonic: Clock in seconds, for the age of the catalogue.

    Raises:
        Broken: The namespace is empty or contains an `@`.
    """
    if not namespace or "@" in namespace:
        raise Broken(f"The namespace {namespace!r} of {NAME} must not be empty or contain an @.")
    # RunPod's own libraries expect a URL without the version in the same variable.
    base = url if httpx.URL(url).path.strip("/") else f"{url.rstrip('/')}/v2"
    return RunPodPods(RunPodApi(NAME, base, api_key, client, sleep=sleep), namespace, monotonic)


class RunPodPods:
    """RunPod as a `ComputeProvider`."""

    name = NAME
    kinds = KINDS
    start_s_max = START_S_MAX

    def __init__(self, api: RunPodApi, namespace: str, monotonic: Callable[[], float]) -> None:
        self._api = api
        self._namespace = namespace
        self._monotonic = monotonic
        self._catalogue: dict[tuple[str, int], tuple[float, tuple[RunPodGpuRow, ...]]] = {}
        """When each catalogue was read, and its rows, by cloud and count."""
        self._avoided: dict[str, float] = {}
        """Until when an offer is left out because it could not be rented, by offer id."""
        self._reading = asyncio.Lock()

    async def offers(self, wanted: InstanceRequirements) -> Listing | UnknownInventory:
        if wanted.kind not in KINDS:
            return Listing()
        count = max(1, wanted.gpu_count)
        try:
            async with self._reading:
                rows = {cloud: await self._rows(cloud, count) for cloud in CLOUDS}
        except GoblinError as error:
            return UnknownInventory(reason=error.message)
        found = (parse_offer(row, cloud, count) for cloud in CLOUDS for row in rows[cloud])
        now = self._monotonic()
        return Listing(
            offers=tuple(
                offer
                for offer in found
                if offer is not None and _fits(offer, wanted) and self._avoided.get(offer.offer_id, now) <= now
            )
        )

    async def inventory(self) -> Inventory:
        try:
            pods = await self._pods()
        except GoblinError as error:
            return UnknownInventory(reason=error.message)
        labelled = ((self._label(pod), pod) for pod in pods)
        return KnownInventory(
            instances=frozenset(
                parse_instance(pod, label) for label, pod in labelled if label and pod.status != "TERMINATED"
            )
        )

    async def rent(self, order: RentalOrder) -> str:
        cloud, gpu_id, count = parse_offer_id(order.offer.offer_id)
        if not order.image:
            raise Refused(f"{NAME} needs a container image, and the order {order.label} names none.")
        body = {
            "name": self._name(order.label),
            "image": order.image,
            "cloud": cloud,
            "gpu": {"id": gpu_id, "count": count},
            "disk": order.disk_gib,
            "env": order.environment,
            "ports": [],
            "startSsh": False,
        }
        try:
            answer = await self._api.ask("POST", "/pods", body=body)
        except ProviderUnavailable:
            raise  # The request was never sent.
        except Transient as error:
            return await self._look_for(order, error)
        if 400 <= answer.status < 500 and answer.status != 408:
            refusal = _refusal(answer, order, self._api)
            if isinstance(refusal, ProviderUnavailable) and refusal.fault in (Fault.CAPACITY, Fault.UNSUPPORTED):
                self._avoid(order.offer)
            raise refusal
        try:
            if answer.status not in (httpx.codes.CREATED, httpx.codes.OK):
                raise self._api.refused(answer, "/pods")
            pod = self._api.parse(answer, PodRow)
        except ProviderUnavailable as error:
            # The response does not show whether a pod was created: only the list of pods does.
            says_no = answer.status >= 500 and is_full(answer)
            return await self._look_for(order, error, says_no=says_no)
        return await self._checked(order, pod)

    async def release(self, label: str) -> None:
        if not is_attempt_label(label):
            return
        left: Transient | None = None
        for pod in await self._pods():
            if pod.name == self._name(label):
                try:
                    await self._end(pod)
                except Transient as error:
                    left = error
        if left is not None:
            raise left

    async def _checked(self, order: RentalOrder, pod: PodRow) -> str:
        """Check a new pod's name and price, and delete it if they are wrong.

        Without its name the pod could not be found again.

        Raises:
            ProviderUnavailable: It costs more than the offer, and was deleted.
            Refused: It has another name, and was deleted.
            Transient: One of both, and it may still exist.
        """
        cost = _micros(pod.cost) if _is_price(pod.cost) else 0
        if pod.name == self._name(order.label) and cost <= order.offer.price_usd_micros_per_hour:
            return pod.id
        try:
            await self._end(pod)
        except ProviderUnavailable as error:
            raise Transient(f"Pod {pod.id} may still exist: {error.message}") from error
        if pod.name != self._name(order.label):
            raise Refused(f"{NAME} did not keep the name {order.label}, so the pod could not be found again.")
        self._avoid(order.offer)
        raise ProviderUnavailable(f"{NAME} charges more for {order.offer.offer_id} than it offered.")

    def _avoid(self, offer: Offer) -> None:
        """Leave an offer out for `AVOIDED_S`: the catalogue is up to a minute old, a failed order is newer."""
        now = self._monotonic()
        self._avoided = {key: until for key, until in self._avoided.items() if now < until}
        self._avoided[offer.offer_id] = now + AVOIDED_S

    async def _end(self, pod: PodRow) -> None:
        """Delete a pod; one that is gone already is no error. Raises `Transient`."""
        path = f"/pods/{pod.id}"
        answer = await self._api.ask("DELETE", path)
        if answer.status == 409:
            seen = await self._api.ask("GET", path)
            if seen.status == 404 or (seen.status == 200 and self._api.parse(seen, PodRow).status == "TERMINATED"):
                return
            raise Transient(
                f"{NAME} refuses to delete pod {pod.id} now. It may be locked: unlock it in RunPod's console."
            )
        # Not 410: it is about the API version, not about the pod.
        if answer.status not in (httpx.codes.OK, httpx.codes.NO_CONTENT, httpx.codes.NOT_FOUND):
            raise self._api.refused(answer, path)

    async def _look_for(self, order: RentalOrder, lost: Transient, *, says_no: bool = False) -> str:
        """Find the pod of a create whose response was lost. Raises `ProviderUnavailable`, `Transient`."""
        try:
            pods = await self._pods()
        except GoblinError as error:
            raise Transient(f"{lost.message} {error.message}") from lost
        named = (pod for pod in pods if pod.name == self._name(order.label) and pod.status != "TERMINATED")
        found = sorted(named, key=lambda pod: (pod.created_at, pod.id))
        if found:
            return await self._checked(order, found[0])
        if says_no:
            self._avoid(order.offer)
            raise ProviderUnavailable(f"{NAME} has no capacity for {order.offer.offer_id}.", fault=Fault.CAPACITY)
        raise Transient(f"{lost.message} No pod has its name yet.") from lost

    async def _pods(self) -> Sequence[PodRow]:
        """List all pods of the account. Raises `ProviderUnavailable` unless the whole list was read."""
        pods: list[PodRow] = []
        cursor: str | None = None
        for _ in range(PAGES_MAX):
            page = await self._api.read("/pods", Pods, params={"cursor": cursor} if cursor else None)
            pods += page.pods
            if page.pagination is None or not page.pagination.has_next_page:
                return pods
            if not page.pagination.next_cursor or page.pagination.next_cursor == cursor:
                break
            cursor = page.pagination.next_cursor
        raise ProviderUnavailable(f"The list of pods of {NAME} cannot be read to its end.")

    async def _rows(self, cloud: str, count: int) -> tuple[RunPodGpuRow, ...]:
        kept = self._catalogue.get((cloud, count))
        now = self._monotonic()
        if kept is not None and now - kept[0] < CATALOGUE_S:
            return kept[1]
        params = {"include": "AVAILABILITY", "product": "POD", "cloud": cloud, "count": str(count)}
        rows = (await self._api.read("/catalog/gpus", RunPodGpus, params=params)).gpus
        self._catalogue = {key: value for key, value in self._catalogue.items() if now - value[0] < CATALOGUE_S}
        self._catalogue[cloud, count] = (now, rows)
        return rows

    def _name(self, label: str) -> str:
        return f"{label}@{self._namespace}"

    def _label(self, pod: PodRow) -> str | None:
        """Read the attempt label of a pod; None when it is not of this deployment and must not be touched."""
        label, _, namespace = pod.name.rpartition("@")
        return label if namespace == self._namespace and is_attempt_label(label) else None


def parse_offer(row: RunPodGpuRow, cloud: str, count: int) -> Offer | None:
    """Convert a row of the catalogue, for one cloud and `count` GPUs; None when it is out of stock or has no price."""
    if cloud == "SECURE":
        there, price, most = row.secure, row.price.secure, row.max_count.secure
    else:
        there, price, most = row.community, row.price.community, row.max_count.community
    if not there or row.availability not in BOOT_S or not _is_price(price) or most < count:
        return None
    gpu = gpu_name(row.name)
    gpu = NAMES.get(gpu, gpu)
    return Offer(
        offer_id=f"{cloud}:{row.id}:{count}", provider=NAME, pool=f"{NAME}/{cloud.lower()}/{gpu}", spot=False, gpu=gpu,
        gpu_count=count, gpu_memory_mib=row.memory * 1024, price_usd_micros_per_hour=_micros(price * count, CENT),
        storage_usd_micros_per_gib_month=DISK_USD_MICROS, boot_s=BOOT_S[row.availability],
        reliability=RELIABILITY[row.availability],
        place=", ".join(place.id for place in row.data_centers if place.availability != "NONE"),
    )  # fmt: skip


def _is_price(usd: Decimal | None) -> TypeGuard[Decimal]:
    """Tell whether a price is plausible. A missing one is not free, and zero means that the GPU is not sold."""
    return usd is not None and usd.is_finite() and 0 < usd < PRICE_USD_MAX


def _micros(usd: Decimal, step: Decimal = NOISE) -> int:
    """Convert dollars to micro-dollars without float noise.

    Offers are rounded up to whole cents, because a pod's `cost` may be, and it must not exceed the offer.
    """
    return to_micros(usd.quantize(NOISE).quantize(step, ROUND_CEILING))


def parse_offer_id(offer_id: str) -> tuple[str, str, int]:
    """Split an offer id of `parse_offer` into cloud, GPU type and count. Raises `Broken`."""
    cloud, _, rest = offer_id.partition(":")
    gpu_id, _, said = rest.rpartition(":")
    count = whole_number(said, GPUS_MAX)
    if cloud not in CLOUDS or not gpu_id or not count:
        raise Broken(f"{offer_id!r} is not an offer id of {NAME}.")
    return cloud, gpu_id, count


def parse_instance(pod: PodRow, label: str) -> Instance:
    """Convert a pod of ours. We never stop pods, so EXITED means that it ended by itself or the balance ran out."""
    match pod.status:
        case "PROVISIONING" | "STARTING":
            state = InstanceState.STARTING
        case "RUNNING":
            state = InstanceState.RUNNING if pod.runtime else InstanceState.UNCLEAR
        case "EXITED":
            state = InstanceState.ENDED
        case "ERROR":
            state = InstanceState.STOPPED
        case _:
            state = InstanceState.UNCLEAR
    return Instance(
        provider=NAME, instance_id=pod.id, label=label, state=state, spot=False, detail=redact(pod.status)[:300],
        price_usd_micros_per_hour=_micros(pod.cost) if _is_price(pod.cost) else None,
    )  # fmt: skip


def _fits(offer: Offer, wanted: InstanceRequirements) -> bool:
    """Tell whether an offer fits. The requirements may name the GPU by RunPod's full type name too."""
    names = {offer.gpu, gpu_name(parse_offer_id(offer.offer_id)[1])}
    return any(is_gpu(name, wanted.gpus) for name in names) and offer.gpu_memory_mib >= wanted.gpu_memory_mib_min


def _refusal(answer: RunPodReply, order: RentalOrder, api: RunPodApi) -> GoblinError:
    """Build the error for a refused create; no pod was created."""
    told = api.words(answer, order.environment.values())
    match answer.status:
        case 400 if is_full(answer):
            return ProviderUnavailable(f"{NAME} has no capacity for {order.offer.offer_id}.", fault=Fault.CAPACITY)
        case 400:
            # This includes messages about a lack of capacity that `is_full` does not know yet.
            return ProviderUnavailable(f"{NAME} cannot place {order.offer.offer_id}: {told}", fault=Fault.UNSUPPORTED)
        case 401 | 403:
            return Refused(f"{NAME} refuses the API key, or the account may not rent this ({answer.status}).")
        case 402:
            return Refused(f"{NAME}: the balance does not cover an hour of {order.offer.offer_id}. Add credit.")
        case 422:
            return Broken(f"{NAME} rejected the order as invalid: {told}")
        case 429:
            return ProviderUnavailable(
                f"The rate limit of {NAME} is reached.", fault=Fault.RATE, retry_after_s=answer.retry_after_s
            )
    return Refused(f"{NAME} answered {answer.status} to an order.")
