"""Vast.ai compute: instances on other people's machines, on bids (spot) and on demand.

Source: vast-ai/docs at 2026-08-07, vastai 1.9.1, dstack 0.22 and skypilot 0.14, and a third party's measurements of
2026-08-27; read 2026-11-23. Not tried against Vast.ai itself.

- A create has no idempotency key: it is sent once, and when its response is lost the instance is searched by label.
- With `price` a create is a bid, without it on demand. The response does not say which: only a read does.
- A bid that is too low is an error, and leaves a stopped contract whose disk is billed. We destroy it.
- Outbid: `intended_status` turns to stopped after about a second; the container ends 10 to 30 seconds later, without a
  signal. `exited` with `running` intended is the end of our own process.
- The list comes in pages of 25 from version 1; version 0 answers 410. Any error means unknown, never empty.
- Prices are float dollars: per hour of the whole offer, per GB of disk and month, per GB of traffic. Offer ids expire
  soon.
- Searches are limited to ten a minute and to an unpublished number a day: a result is reused for a minute, and no
  search is retried.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx
import msgspec

from goblin.core import decoding
from goblin.core.endpoints import KeySource
from goblin.core.errors import Broken, Fault, GoblinError, ProviderUnavailable, Refused, Transient
from goblin.core.labels import is_attempt_label
from goblin.jobs.domain.instances import (
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
from goblin.providers.vastai import api as vast_api
from goblin.providers.vastai.api import VastApi, VastReply
from goblin.providers.vastai.rows import (
    InstanceRow,
    VastGpuRow,
    filters,
    parse_instance,
    parse_market,
    parse_offers,
    parse_state,
    spellings,
)

NAME = "vastai"
VARIABLE = "VASTAI_API_KEY"
URL = "https://console.vast.ai"
KINDS = frozenset({"training", "batch"})
UNSUPPORTED = {"multi_node": "hosts share no private network"}
START_S_MAX = 900.0
"""Longest start; a large image takes minutes over a home's internet connection."""
KEPT_S = 60.0
"""How long a search result is reused."""
METRICS_KEPT_S = 600.0
"""How long GPU prices are reused."""
QUESTIONS_MAX = 64
"""Search results kept, one per set of requirements."""
OFFERS_MAX = 100
"""Offers per search, the cheapest first; spot and on demand are searched separately."""
PAGE = 25
PAGES_MAX = 40
ENV_MAX = 32_768
"""Characters of the environment. Source: Vast.ai's reference of the create call."""


def connect(
    *,
    api_key: str | KeySource,
    namespace: str,
    client: httpx.AsyncClient,
    url: str = URL,
    line: vast_api.RequestLine | None = None,
    monotonic: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
) -> ComputeProvider:
    """Connect to Vast.ai's API for renting instances.

    Args:
        api_key: The account's key; it must be able to read, create and destroy instances, and to search.
        namespace: Appended to each label, so that instances of other deployments on this account are never touched.
        client: Shared HTTP client.
        url: Base URL of the API, without `/api`.
        line: Spaces out the requests of one key; None uses the one that all code with this key in this process shares.
        monotonic: Clock in seconds, for the age of cached results.
        now: Clock in seconds since 1970, for the daily quota of searches.

    Raises:
        Broken: The namespace is empty or contains an `@`.
    """
    if not namespace or "@" in namespace:
        raise Broken(f"The namespace {namespace!r} of {NAME} must not be empty or contain an @.")
    api = VastApi(NAME, url, api_key, client, line or vast_api.line_of(url, api_key))
    return VastMarket(api, namespace, monotonic=monotonic, now=now)


class VastMarket:
    """Vast.ai as a `ComputeProvider`."""

    name = NAME
    kinds = KINDS
    start_s_max = START_S_MAX

    def __init__(
        self, api: VastApi, namespace: str, *, monotonic: Callable[[], float], now: Callable[[], float]
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._monotonic = monotonic
        self._now = now
        self._found: dict[InstanceRequirements, tuple[float, Listing]] = {}
        self._gpus: tuple[float, tuple[VastGpuRow, ...]] | None = None
        self._no_search_until = 0.0
        self._searching = asyncio.Lock()

    async def offers(self, wanted: InstanceRequirements) -> Listing | UnknownInventory:
        if wanted.kind not in KINDS:
            return Listing()
        try:
            async with self._searching:
                return await self._listing(wanted)
        except GoblinError as error:
            return UnknownInventory(reason=error.message)

    async def inventory(self) -> Inventory:
        try:
            instances = await self._instances()
        except GoblinError as error:
            return UnknownInventory(reason=error.message)
        ours = ((self._label(row), row) for row in instances)
        return KnownInventory(instances=frozenset(parse_instance(row, label) for label, row in ours if label))

    async def rent(self, order: RentalOrder) -> str:
        body = self._body(order)
        try:
            answer = await self._api.ask("create", "PUT", f"/api/v0/asks/{int(order.offer.offer_id)}/", body=body)
        except ProviderUnavailable:
            raise  # The request was never sent.
        except Transient as error:
            return await self._look_for(order, error)
        finally:
            self._forget(order.offer)
        said = _created(answer)
        if said.success and said.new_contract:
            return await self._checked(order, said.new_contract)
        refused = self._api.refused(answer)
        if said.new_contract:
            await self._destroy(said.new_contract)
            raise refused
        if refused.fault in (Fault.MONEY, Fault.AUTH):
            raise Refused(f"{NAME} refuses every order ({refused.fault}). Check its API key and the account's credit.")
        if answer.detail.code == "invalid_args":
            raise Refused(f"{NAME} rejected the order {order.label} as invalid: {answer.detail.code}.")
        if answer.status == 429 or answer.detail.code in ("no_such_ask", "invalid_price"):
            raise refused  # No instance was created.
        if said.success is False and answer.status < 500 and answer.status != 408:
            # It refused, and may have created an instance all the same.
            await self._end(order.label)
            raise refused
        return await self._look_for(order, refused)

    async def release(self, label: str) -> None:
        if is_attempt_label(label):
            await self._end(label)

    # Searching.

    async def _listing(self, wanted: InstanceRequirements) -> Listing:
        """Search, or reuse a result that is younger than `KEPT_S`. Raises `ProviderUnavailable`."""
        at = self._monotonic()
        self._found = {key: kept for key, kept in self._found.items() if at - kept[0] < KEPT_S}
        if wanted in self._found:
            return self._found[wanted][1]
        gpus = await self._gpu_rows()
        names = {name for gpu in wanted.gpus for name in spellings(gpu)}
        names |= {row.gpu_name for row in gpus if wanted.gpus and is_gpu(gpu_name(row.gpu_name), wanted.gpus)}
        searches = (self._search(wanted, names, spot=spot) for spot in (True, False))
        spot, on_demand = await asyncio.gather(*searches)
        count = max(1, wanted.gpu_count)
        markets = {gpu_name(row.gpu_name): parse_market(row, gpu_count=count) for row in gpus}
        offered = {offer.gpu for offer in (*spot, *on_demand)}
        listing = Listing(
            offers=(*spot, *on_demand), markets={gpu: markets[gpu] for gpu in sorted(offered & markets.keys())}
        )
        if len(self._found) < QUESTIONS_MAX:
            self._found[wanted] = (at, listing)
        return listing

    async def _search(self, wanted: InstanceRequirements, names: set[str], *, spot: bool) -> list[Offer]:
        if self._now() < self._no_search_until:
            raise ProviderUnavailable(f"The daily search quota of {NAME} is used up.", fault=Fault.RATE)
        asked = filters(wanted, names, spot=spot, limit=OFFERS_MAX)
        answer = await self._api.ask("search", "POST", "/api/v0/bundles/", body=asked)
        if answer.status == 429 and answer.resets_at is not None:
            self._no_search_until = answer.resets_at
        return parse_offers(self._api.parse(answer, Offers).offers, wanted, spot=spot)

    async def _gpu_rows(self) -> tuple[VastGpuRow, ...]:
        """Read market prices and Vast.ai's GPU names. Empty when they cannot be read: offers work without them."""
        at = self._monotonic()
        if self._gpus is not None and at - self._gpus[0] < METRICS_KEPT_S:
            return self._gpus[1]
        params = {"verified": "yes", "hosting_type": "all", "num_gpus": "all"}
        try:
            answer = await self._api.ask("metrics", "GET", "/api/v0/metrics/gpu/current/", params=params)
            found = self._api.parse(answer, GpuPage).gpus
        except ProviderUnavailable:
            found = self._gpus[1] if self._gpus is not None else ()
        self._gpus = (at, found)
        return found

    def _forget(self, offer: Offer) -> None:
        """Drop the cached offers of a machine that we rented on: Vast.ai replaces them by new ones."""
        for wanted, (at, listing) in self._found.items():
            left = tuple(other for other in listing.offers if other.machine_id != offer.machine_id)
            self._found[wanted] = (at, replace(listing, offers=left))

    # Instances.

    async def _instances(self, label: str | None = None) -> Sequence[InstanceRow]:
        """List the account's instances, or those with one of our labels.

        Raises `ProviderUnavailable` unless the whole list was read.
        """
        found: dict[int, InstanceRow] = {}
        params = {"limit": str(PAGE), "order_by": json.dumps([{"col": "id", "dir": "asc"}])}
        if label is not None:
            params["select_filters"] = json.dumps({"label": {"eq": self._name(label)}})
        for _ in range(PAGES_MAX):
            page = self._api.parse(await self._api.ask("list", "GET", "/api/v1/instances/", params=params), Page)
            if not page.success:
                break
            found |= {row.id: row for row in page.instances}
            if not page.next_token:
                # Do not trust Vast.ai's filter: the rows returned here are destroyed.
                return [row for row in found.values() if label is None or row.label == self._name(label)]
            if page.next_token == params.get("after_token"):
                break
            params["after_token"] = page.next_token
        raise ProviderUnavailable(f"The list of instances of {NAME} cannot be read to its end.")

    async def _end(self, label: str) -> None:
        """Destroy every instance with the label. Raises `Transient` when one may be left."""
        left: Transient | None = None
        try:
            rows = await self._instances(label)
        except ProviderUnavailable as error:
            raise Transient(error.message, retry_after_s=error.retry_after_s) from error
        for row in rows:
            try:
                await self._destroy(row.id)
            except Transient as error:
                left = error
        if left is not None:
            raise left

    async def _destroy(self, number: int) -> None:
        """Destroy an instance; one that is gone already is no error. Raises `Transient` when it may still exist."""
        try:
            answer = await self._api.ask("destroy", "DELETE", f"/api/v0/instances/{number}/", body={})
            if "no_such_instance" in (answer.detail.code, answer.detail.message):
                return
            if self._api.parse(answer, Done).success:
                return
        except Transient as error:
            raise Transient(f"Instance {number} may still exist: {error.message}") from error
        raise Transient(f"{NAME} did not confirm that instance {number} is destroyed.")

    async def _checked(self, order: RentalOrder, number: int) -> str:
        """Check that the instance is what was ordered, and destroy it if not.

        Without the bid it would cost the full price; without the label no inventory would find it.

        Raises:
            ProviderUnavailable: It differs from the order, and was destroyed.
            Refused: It differs as it would with every order, and was destroyed.
            Transient: It differs from the order, and may still exist.
        """
        try:
            answer = await self._api.ask("one", "GET", f"/api/v0/instances/{number}/", params={"owner": "me"})
            row = self._api.parse(answer, One).instances
        except ProviderUnavailable:
            return str(number)  # The next inventory shows what it is.
        if row is None:
            return str(number)
        if row.label != self._name(order.label):
            await self._destroy(number)
            raise Refused(f"{NAME} did not keep the label {order.label}, so the instance could not be found again.")
        if row.is_bid is not None and row.is_bid != order.offer.spot:
            await self._destroy(number)
            raise ProviderUnavailable(
                f"{NAME} rented {order.label} {'as a bid' if row.is_bid else 'on demand'}, not as ordered."
            )
        if parse_state(row) in (InstanceState.STOPPED, InstanceState.LEAVING):
            # Created without GPUs, to wait for them: another customer took the offer first.
            await self._destroy(number)
            raise ProviderUnavailable(f"{NAME}: the offer for {order.label} is taken.", fault=Fault.CAPACITY)
        return str(number)

    async def _look_for(self, order: RentalOrder, lost: Transient) -> str:
        """Find the instance of a create whose response was lost. Raises `ProviderUnavailable`, `Transient`."""
        try:
            rows = await self._instances(order.label)
        except GoblinError as error:
            raise Transient(f"{lost.message} {error.message}") from lost
        if not rows:
            raise Transient(f"{lost.message} No instance has its label yet.") from lost
        return await self._checked(order, min(row.id for row in rows))

    def _body(self, order: RentalOrder) -> Mapping[str, Any]:
        """Build the body of a create. Raises `Refused` when the order contradicts itself or exceeds a limit."""
        bid = order.bid_usd_micros_per_hour
        if not order.image:
            raise Refused(f"{NAME} needs a container image, and the order {order.label} names none.")
        if order.offer.spot != (bid is not None):
            # Without a price Vast.ai would silently rent it on demand.
            raise Refused(f"{NAME}: the order {order.label} has {'no' if bid is None else 'a'} bid, unlike its offer.")
        if sum(len(name) + len(value) for name, value in order.environment.items()) > ENV_MAX:
            raise Refused(f"{NAME}: the environment of the order {order.label} is over {ENV_MAX} characters.")
        return {
            "client_id": "me", "image": order.image, "disk": order.disk_gib, "label": self._name(order.label),
            "env": order.environment, "runtype": "args", "target_state": "running", "cancel_unavail": True,
            "force": False, **({} if bid is None else {"price": bid / 1_000_000}),
        }  # fmt: skip

    def _name(self, label: str) -> str:
        return f"{label}@{self._namespace}"

    def _label(self, row: InstanceRow) -> str | None:
        """Read the attempt label of an instance; None when it is not of this deployment and must not be touched."""
        label, _, namespace = (row.label or "").rpartition("@")
        return label if namespace == self._namespace and is_attempt_label(label) else None


class Offers(msgspec.Struct, frozen=True, kw_only=True):
    offers: list[Any]
    """Decoded one by one, so that one bad row does not spoil the rest."""


class GpuPage(msgspec.Struct, frozen=True, kw_only=True):
    gpus: tuple[VastGpuRow, ...]


class Page(msgspec.Struct, frozen=True, kw_only=True):
    instances: tuple[InstanceRow, ...]
    success: bool = True
    next_token: str | None = None


class One(msgspec.Struct, frozen=True, kw_only=True):
    instances: InstanceRow | None = None


class Done(msgspec.Struct, frozen=True, kw_only=True):
    success: bool


class Created(msgspec.Struct, frozen=True, kw_only=True):
    success: bool | None = None
    new_contract: int | None = None


def _created(answer: VastReply) -> Created:
    """Parse what a create reports to have created; an error response may report it too."""
    try:
        return msgspec.json.decode(answer.data, type=Created)
    except decoding.UNREADABLE:
        return Created()
