"""RunPod's pods as instances, over a socket: what is asked once, what is asked again, and what an answer means."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from goblin.core.errors import Broken, Fault, ProviderUnavailable, Refused, Transient
from goblin.core.labels import attempt_label
from goblin.jobs.domain.instances import Instance, InstanceState, KnownInventory, RentalOrder, UnknownInventory
from goblin.jobs.domain.market import InstanceRequirements, Listing, Offer
from goblin.jobs.ports import ComputeProvider
from goblin.providers.common.kept_connections import KeptConnections, PlainClient
from goblin.providers.runpod import compute as runpod
from localgpus.runpod.faults import Fault as WireFault
from localgpus.runpod.pods import Cloud, Pod
from tests.fakes.runpod_pods import Stage, Switch
from tests.fakes.serving import closed_port, serve

GPU = "NVIDIA GeForce RTX 4090"
LABEL = attempt_label("j", 1)
WANTED = InstanceRequirements(kind="training", gpus=("RTX_4090",), gpu_count=1)
SWITCH = Switch()
TLS = ssl.create_default_context()


class Desk:
    """The adapter, and what is behind the wire."""

    def __init__(self, base: str, client: httpx.AsyncClient, stage: Stage) -> None:
        self.base, self.client, self.stage = base, client, stage
        self.slept: list[float] = []
        self.age = 0.0
        self.provider = self.connect()

    def connect(self, **other: Any) -> ComputeProvider:
        facts = {"api_key": "rpa_all", "namespace": "project", "client": self.client, "url": f"{self.base}/v2", **other}
        return runpod.connect(sleep=self._sleep, monotonic=lambda: self.age, **facts)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.stage.clock.now += seconds

    @property
    def pods(self) -> list[Pod]:
        return self.stage.market.pods()

    def fault(self, **fields: Any) -> None:
        self.stage.api.faults.coming.append(WireFault(**fields))

    async def instances(self, provider: ComputeProvider | None = None) -> dict[str, Instance]:
        inventory = await (provider or self.provider).inventory()
        assert isinstance(inventory, KnownInventory), inventory
        return inventory.by_label()

    async def unknown(self) -> str:
        inventory = await self.provider.inventory()
        assert isinstance(inventory, UnknownInventory)
        return inventory.reason


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with serve(SWITCH) as url:
        yield url


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with PlainClient(KeptConnections(tls=TLS, most=8, kept=4)) as client:
        yield client


@pytest.fixture
def open_desk(base: str, client: httpx.AsyncClient) -> Callable[..., Desk]:
    return lambda **terms: Desk(base, client, SWITCH.show(Stage(**terms)))


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    return open_desk()


def answering(*answers: Response) -> list[tuple[str, str]]:
    """Put something behind the server that says these things, whatever is asked, and the last for ever; notes it."""
    coming, asked = list(answers), []

    async def answer(request: Request) -> Response:
        asked.append((request.method, str(request.url.path)))
        return coming.pop(0) if len(coming) > 1 else coming[0]

    SWITCH.app = Starlette(routes=[Route("/{rest:path}", answer, methods=["GET", "POST", "DELETE"])])
    return asked


def order(label: str = LABEL, offer_id: str = f"COMMUNITY:{GPU}:1", **fields: Any) -> RentalOrder:
    offer = Offer(
        offer_id=offer_id, provider="runpod", pool="p", spot=False, price_usd_micros_per_hour=340_000,
        gpu_memory_mib=24_576,
    )  # fmt: skip
    environment = {"GOBLIN_URL": "https://goblin.example", "GOBLIN_ATTEMPT_TOKEN": "attempt-token"}
    plain = RentalOrder(label=label, kind="training", environment=environment, offer=offer, image="ghcr.io/g/agent:1")
    return replace(plain, **fields)


async def listed(desk: Desk, wanted: InstanceRequirements = WANTED) -> dict[str, Offer]:
    listing = await desk.provider.offers(wanted)
    assert isinstance(listing, Listing), listing
    return {offer.offer_id: offer for offer in listing.offers}


# Offers.


async def test_community_and_secure_are_offers_of_their_own_in_our_units(desk: Desk) -> None:
    offers = await listed(desk)
    community = offers[f"COMMUNITY:{GPU}:1"]
    assert set(offers) == {f"COMMUNITY:{GPU}:1", f"SECURE:{GPU}:1"}
    assert (community.gpu, community.gpu_memory_mib, community.price_usd_micros_per_hour) == (
        "RTX_4090",
        24_576,
        340_000,
    )
    assert offers[f"SECURE:{GPU}:1"].price_usd_micros_per_hour == 600_000
    assert (community.spot, community.machine_id, community.place) == (False, None, "US-KS-2")
    assert community.storage_usd_micros_per_gib_month == 100_000
    assert community.download_usd_micros_per_gib == community.upload_usd_micros_per_gib == 0
    assert community.pool != offers[f"SECURE:{GPU}:1"].pool


async def test_several_gpus_cost_several_times_as_much_and_come_in_one_machine(desk: Desk) -> None:
    offers = await listed(desk, replace(WANTED, gpu_count=8))
    assert {offer_id: offer.price_usd_micros_per_hour for offer_id, offer in offers.items()} == {
        f"SECURE:{GPU}:8": 4_800_000
    }


async def test_what_is_sold_out_is_no_offer_and_what_is_scarce_is_a_worse_one(desk: Desk) -> None:
    plenty = (await listed(desk))[f"COMMUNITY:{GPU}:1"]
    desk.stage.market.move(GPU, Cloud.COMMUNITY, free=1)
    desk.stage.market.move(GPU, Cloud.SECURE, free=0)
    desk.age += 61
    scarce = await listed(desk)
    assert list(scarce) == [f"COMMUNITY:{GPU}:1"]
    assert scarce[f"COMMUNITY:{GPU}:1"].boot_s > plenty.boot_s
    assert (scarce[f"COMMUNITY:{GPU}:1"].reliability, plenty.reliability) == (0.9, None)


async def test_only_what_was_wanted_is_offered_by_any_of_its_names(desk: Desk) -> None:
    assert {offer.gpu for offer in (await listed(desk, InstanceRequirements(kind="batch"))).values()} >= {
        "RTX_4090",
        "H100_SXM",
    }
    big = await listed(desk, InstanceRequirements(kind="training", gpu_count=1, gpu_memory_mib_min=81_920))
    assert {offer.gpu for offer in big.values()} == {"A100_PCIE", "A100_SXM4", "H100_PCIE", "H100_SXM", "H200_SXM"}
    full_name = await listed(desk, InstanceRequirements(kind="training", gpus=("H100_80GB_HBM3",), gpu_count=1))
    assert list(full_name) == ["SECURE:NVIDIA H100 80GB HBM3:1"]
    assert await listed(desk, InstanceRequirements(kind="something else")) == {}


async def test_the_catalogue_is_read_once_a_minute(desk: Desk) -> None:
    for _ in range(3):
        await listed(desk)
    assert desk.stage.asked("GET") == ["/v2/catalog/gpus"] * 2
    desk.age += 60
    await listed(desk)
    assert len(desk.stage.asked("GET")) == 4


async def test_offers_are_unknown_when_half_of_the_catalogue_is(desk: Desk) -> None:
    desk.fault(path="/v2/catalog", status=410)
    assert await desk.provider.offers(WANTED) == UnknownInventory(reason="runpod answered 410 to /catalog/gpus.")
    assert len(await listed(desk)) == 2


@pytest.mark.parametrize(
    ("price", "most"), [(0, 4), (None, 4), (-1, 4), ("NaN", 4), ("Infinity", 4), (100_000, 4), (0.34, 0)]
)
async def test_a_price_that_nobody_told_is_not_free_and_a_machine_has_an_end(desk: Desk, price: Any, most: int) -> None:
    gpu = {
        "id": GPU, "name": "RTX 4090", "memory": 24, "secure": True, "community": True, "availability": "HIGH",
        "price": {"secure": 0.6, "community": price}, "maxCount": {"secure": 8, "community": most},
    }  # fmt: skip
    answering(JSONResponse({"gpus": [gpu]}))
    assert list(await listed(desk)) == [f"SECURE:{GPU}:1"]


async def test_a_price_is_rounded_up_to_cents_and_its_cost_is_not_above_it(desk: Desk) -> None:
    desk.stage.market.move(GPU, Cloud.COMMUNITY, usd_micros_per_hour=223_300)
    wanted = replace(WANTED, gpu_count=3)
    offer = (await listed(desk, wanted))[f"COMMUNITY:{GPU}:3"]
    assert offer.price_usd_micros_per_hour == 670_000
    for cost, taken in ((0.6699, True), (0.67, True), (0.6700000166893005, True), (0.68, False)):
        pod = {"id": "p", "name": f"{LABEL}@project", "status": "PROVISIONING", "cost": cost}
        answering(JSONResponse(pod, 201), Response(status_code=204))
        if taken:
            assert await desk.provider.rent(order(offer=offer)) == "p"
        else:
            with pytest.raises(ProviderUnavailable):
                await desk.provider.rent(order(offer=offer))


# Inventory.


async def test_an_instance_is_seen_through_its_life(desk: Desk) -> None:
    pod_id = await desk.provider.rent(order())
    instance = (await desk.instances())[LABEL]
    assert instance == Instance(
        provider="runpod", instance_id=pod_id, label=LABEL, state=InstanceState.STARTING, detail="PROVISIONING",
        spot=False, price_usd_micros_per_hour=340_000,
    )  # fmt: skip
    desk.stage.pass_time(20)
    assert (await desk.instances())[LABEL].state is InstanceState.RUNNING
    desk.stage.machines.end(f"runpod-{pod_id}")
    ended = (await desk.instances())[LABEL]
    assert (ended.state, ended.price_usd_micros_per_hour) == (InstanceState.ENDED, None)


async def test_a_pod_that_only_says_that_it_runs_is_unclear(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(running_at_once=True)
    await desk.provider.rent(order())
    instance = (await desk.instances())[LABEL]
    assert (instance.state, instance.detail) == (InstanceState.UNCLEAR, "RUNNING")
    desk.stage.pass_time(20)
    assert (await desk.instances())[LABEL].state is InstanceState.RUNNING


async def test_a_pod_whose_host_died_was_stopped(desk: Desk) -> None:
    pod_id = await desk.provider.rent(order())
    desk.stage.pass_time(20)
    desk.stage.market.lose_host(pod_id)
    assert (await desk.instances())[LABEL].state is InstanceState.STOPPED


async def test_pods_that_are_not_ours_are_neither_listed_nor_touched(desk: Desk) -> None:
    await desk.provider.rent(order())
    elsewhere = desk.connect(namespace="another")
    await elsewhere.rent(order())
    made = {"image": "i", "cloud": "COMMUNITY", "gpu": {"id": GPU, "count": 1}}
    headers = {"authorization": "Bearer rpa_all"}
    for name in ("mine", LABEL, "chat@project", "goblin-chat@project", f"{LABEL}@project@x", "@project"):
        answer = await desk.client.post(f"{desk.base}/v2/pods", json={"name": name, **made}, headers=headers)
        assert answer.status_code == 201
    assert set(await desk.instances()) == set(await desk.instances(elsewhere)) == {LABEL}
    await desk.provider.release(LABEL)
    await desk.provider.release("mine")
    await desk.provider.release("goblin-chat")
    assert await desk.instances() == {}
    assert set(await desk.instances(elsewhere)) == {LABEL}
    assert len(desk.pods) == 7


async def test_an_inventory_is_whole_over_all_its_pages(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(page=2)
    for attempt in range(1, 6):
        await desk.provider.rent(order(attempt_label("j", attempt)))
    assert set(await desk.instances()) == {attempt_label("j", attempt) for attempt in range(1, 6)}


async def test_half_an_inventory_is_none(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(page=1)
    for attempt in (1, 2, 3):
        await desk.provider.rent(order(attempt_label("j", attempt)))
    answering(
        JSONResponse({"pods": [], "pagination": {"hasNextPage": True, "nextCursor": "a"}}),
        Response("gone", 404),
    )
    assert "404" in await desk.unknown()
    answering(JSONResponse({"pods": [], "pagination": {"hasNextPage": True, "nextCursor": "a"}}))
    assert "to its end" in await desk.unknown()
    answering(JSONResponse({"pods": [], "pagination": {"hasNextPage": True, "nextCursor": None}}))
    assert "to its end" in await desk.unknown()


async def test_version_one_which_has_ended_does_not_read_as_empty(desk: Desk) -> None:
    await desk.provider.rent(order())
    old = desk.connect(url=f"{desk.base}/v1")
    assert await old.inventory() == UnknownInventory(reason="runpod answered 410 to /pods.")
    with pytest.raises(Transient):
        await old.release(LABEL)
    assert len(desk.pods) == 1


@pytest.mark.parametrize(
    "answer",
    [
        HTMLResponse("<html>hello</html>"),
        JSONResponse([]),
        JSONResponse({}),
        JSONResponse({"pods": None}),
        JSONResponse({"pods": [{"id": "a"}]}),
        JSONResponse({"pods": [{"id": "a/../b", "name": "n", "status": "RUNNING"}]}),
        Response(b'{"pods": ['),
        Response(b"", 204),
        Response(b"[" * 100_000),
        JSONResponse({"pods": []}, 302),
    ],
)
async def test_an_answer_that_is_no_list_of_pods_is_unknown(desk: Desk, answer: Response) -> None:
    answering(answer)
    assert await desk.unknown()


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 410, 418, 500, 503])
@pytest.mark.parametrize("html", [False, True])
async def test_an_error_is_unknown_whatever_it_says(desk: Desk, status: int, html: bool) -> None:
    await desk.provider.rent(order())
    desk.fault(path="/v2/pods", status=status, html=html, times=9)
    assert str(status) in await desk.unknown()


async def test_nobody_there_is_unknown(desk: Desk) -> None:
    nowhere = desk.connect(url=f"{closed_port()}/v2")
    inventory = await nowhere.inventory()
    assert isinstance(inventory, UnknownInventory)
    assert "cannot be reached" in inventory.reason


async def test_a_state_that_nobody_knows_is_unclear_and_a_terminated_pod_is_gone(desk: Desk) -> None:
    pods = [
        {"id": "a", "name": f"{attempt_label('j', 1)}@project", "status": "HIBERNATING", "cost": "NaN"},
        {"id": "b", "name": f"{attempt_label('j', 2)}@project", "status": "TERMINATED"},
    ]
    answering(JSONResponse({"pods": pods}))
    (instance,) = (await desk.instances()).values()
    assert (instance.instance_id, instance.state) == ("a", InstanceState.UNCLEAR)
    assert instance.price_usd_micros_per_hour is None


async def test_a_look_is_repeated_after_a_5xx_and_after_a_short_429(desk: Desk) -> None:
    desk.fault(method="GET", status=502, html=True)
    desk.fault(method="GET", status=None)
    assert await desk.instances() == {}
    desk.fault(method="GET", status=429, headers={"Retry-After": "7"})
    assert await desk.instances() == {}
    assert desk.slept == [0.5, 1.0, 7.0]


async def test_a_long_429_is_not_waited_out(desk: Desk) -> None:
    desk.fault(method="GET", status=429, headers={"Retry-After": "48"})
    assert "429" in await desk.unknown()
    assert desk.slept == []


async def test_the_quota_that_runs_out_ends_the_look(desk: Desk) -> None:
    for _ in range(60):
        await desk.provider.inventory()
    desk.stage.clock.now += 55
    assert await desk.instances() == {}
    assert desk.slept == [5.0]


# Renting.


async def test_a_pod_is_told_its_order_and_nothing_else(desk: Desk) -> None:
    pod_id = await desk.provider.rent(order(disk_gib=64))
    (pod,) = desk.pods
    assert (pod.id, pod.name, pod.image, pod.disk_gb) == (pod_id, f"{LABEL}@project", "ghcr.io/g/agent:1", 64)
    assert (pod.cloud, pod.gpu_id, pod.gpu_count, pod.ports) == (Cloud.COMMUNITY, GPU, 1, ())
    assert pod.env == {"GOBLIN_URL": "https://goblin.example", "GOBLIN_ATTEMPT_TOKEN": "attempt-token"}
    assert desk.stage.asked("POST") == ["/v2/pods"]


async def test_what_is_sold_out_was_not_rented_and_something_else_may_be(desk: Desk) -> None:
    desk.stage.market.mark(GPU, sold_out_unseen=True)
    with pytest.raises(ProviderUnavailable) as caught:
        await desk.provider.rent(order())
    assert caught.value.fault is Fault.CAPACITY
    assert desk.pods == []
    others = await listed(desk, InstanceRequirements(kind="training", gpu_count=8))
    await desk.provider.rent(order(offer=others["SECURE:NVIDIA H100 80GB HBM3:8"]))
    assert desk.pods[0].gpu_count == 8


@pytest.mark.parametrize(
    "words",
    [
        "There are no longer any instances available with the requested specifications. Please refresh and try again.",
        "There are no instances currently available",
        "This machine does not have the resources to deploy your pod. Please try a different machine",
        "There are not enough free GPUs on the host machine to start this pod.",
    ],
)
async def test_every_way_to_say_that_nothing_is_free_is_understood(desk: Desk, words: str) -> None:
    desk.fault(method="POST", status=400, detail=words)
    with pytest.raises(ProviderUnavailable) as caught:
        await desk.provider.rent(order())
    assert caught.value.fault is Fault.CAPACITY
    # Version 1 said so with 500; the pod is looked for all the same.
    desk.fault(method="POST", status=500, detail=words)
    with pytest.raises(ProviderUnavailable) as caught:
        await desk.provider.rent(order())
    assert caught.value.fault is Fault.CAPACITY
    assert desk.stage.asked("GET") == ["/v2/pods"]


async def test_a_broken_rule_says_which(desk: Desk) -> None:
    with pytest.raises(ProviderUnavailable, match="gpu type not found"):
        await desk.provider.rent(order(offer_id="SECURE:NVIDIA Imaginary:1"))


@pytest.mark.parametrize(
    ("status", "kind"), [(401, Refused), (403, Refused), (402, Refused), (404, Refused), (410, Refused), (422, Broken)]
)
async def test_a_no_is_final_where_no_other_offer_would_do(desk: Desk, status: int, kind: type[Exception]) -> None:
    desk.fault(method="POST", status=status)
    with pytest.raises(kind):
        await desk.provider.rent(order())
    assert desk.stage.api.asked == [("POST", "/v2/pods")]


async def test_money_that_is_short_and_a_key_that_may_not_are_told_apart(desk: Desk) -> None:
    with pytest.raises(Refused, match="key"):
        await desk.connect(api_key="rpa_reads").rent(order())
    with pytest.raises(Refused, match="key"):
        await desk.connect(api_key="rpa_none").rent(order())
    desk.stage.market.pay(-100_000_000)
    with pytest.raises(Refused, match="balance"):
        await desk.provider.rent(order())


async def test_a_body_that_they_do_not_understand_is_ours_to_mend(desk: Desk) -> None:
    with pytest.raises(Broken, match="rejected the order as invalid"):
        await desk.provider.rent(order(disk_gib=0))


async def test_an_order_that_cannot_be_one_is_not_sent(desk: Desk) -> None:
    with pytest.raises(Refused, match="image"):
        await desk.provider.rent(order(image=""))
    for offer_id in ("process", "SPOT:x:1", "SECURE:x:0", "SECURE::1", "SECURE:x"):
        with pytest.raises(Broken):
            await desk.provider.rent(order(offer_id=offer_id))
    assert desk.stage.api.asked == []


@pytest.mark.parametrize("lost", [{"status": 504, "html": True}, {"status": 500}, {"status": None}, {"status": 408}])
async def test_a_pod_whose_answer_was_lost_is_found_by_its_name(desk: Desk, lost: dict[str, Any]) -> None:
    await desk.provider.rent(order(attempt_label("j", 2)))
    desk.fault(method="POST", path="/v2/pods", applied=True, **lost)
    pod_id = await desk.provider.rent(order())
    assert {pod.id: pod.name for pod in desk.pods}[pod_id] == f"{LABEL}@project"
    assert desk.stage.asked("POST") == ["/v2/pods"] * 2
    assert len(desk.pods) == 2


@pytest.mark.parametrize("lost", [{"status": 504, "html": True}, {"status": None}])
async def test_a_request_that_was_lost_leaves_the_question_open(desk: Desk, lost: dict[str, Any]) -> None:
    desk.fault(method="POST", **lost)
    with pytest.raises(Transient) as caught:
        await desk.provider.rent(order())
    assert not isinstance(caught.value, ProviderUnavailable)
    assert desk.stage.asked("POST") == ["/v2/pods"]
    assert desk.pods == []


async def test_the_question_stays_open_when_the_list_is_unknown_too(desk: Desk) -> None:
    desk.fault(method="POST", status=502, html=True, applied=True)
    desk.fault(method="GET", status=410)
    with pytest.raises(Transient) as caught:
        await desk.provider.rent(order())
    assert not isinstance(caught.value, ProviderUnavailable)
    assert len(desk.pods) == 1
    # The inventory shows it.
    assert set(await desk.instances()) == {LABEL}


@pytest.mark.parametrize("answer", [Response(b"", 201), JSONResponse({"id": 7}, 201), HTMLResponse("<html>", 200)])
async def test_a_yes_without_an_id_is_looked_up(desk: Desk, answer: Response) -> None:
    made = {"id": "p1", "name": f"{LABEL}@project", "status": "PROVISIONING"}
    asked = answering(answer, JSONResponse({"pods": [made]}))
    assert await desk.provider.rent(order()) == "p1"
    assert asked == [("POST", "/v2/pods"), ("GET", "/v2/pods")]


async def test_a_create_is_repeated_after_a_429_only(desk: Desk) -> None:
    desk.fault(method="POST", status=429, headers={"Retry-After": "2"})
    await desk.provider.rent(order())
    assert desk.slept == [2.0]
    desk.fault(method="POST", status=429, headers={"Retry-After": "60"})
    with pytest.raises(ProviderUnavailable) as caught:
        await desk.provider.rent(order(attempt_label("j", 2)))
    assert (caught.value.fault, caught.value.retry_after_s) == (Fault.RATE, 60.0)
    assert len(desk.pods) == 1


async def test_nobody_there_means_that_nothing_was_rented(desk: Desk) -> None:
    with pytest.raises(ProviderUnavailable):
        await desk.connect(url=f"{closed_port()}/v2").rent(order())


async def test_what_could_not_be_had_is_not_offered_for_a_while(desk: Desk) -> None:
    desk.stage.market.mark(GPU, sold_out_unseen=True)
    with pytest.raises(ProviderUnavailable):
        await desk.provider.rent(order())
    assert list(await listed(desk)) == [f"SECURE:{GPU}:1"]
    desk.age += 121
    assert len(await listed(desk)) == 2


async def test_a_pod_that_costs_more_than_its_offer_is_not_kept(desk: Desk) -> None:
    await listed(desk)
    desk.stage.market.move(GPU, Cloud.COMMUNITY, usd_micros_per_hour=350_000)
    with pytest.raises(ProviderUnavailable, match="more"):
        await desk.provider.rent(order())
    assert desk.pods == []
    desk.age += 121
    offer = (await listed(desk))[f"COMMUNITY:{GPU}:1"]
    await desk.provider.rent(order(offer=offer))


async def test_a_pod_that_costs_too_much_and_cannot_be_deleted_may_be_left(desk: Desk) -> None:
    desk.stage.market.move(GPU, Cloud.COMMUNITY, usd_micros_per_hour=350_000)
    desk.fault(method="DELETE", status=500)
    with pytest.raises(Transient) as caught:
        await desk.provider.rent(order())
    assert not isinstance(caught.value, ProviderUnavailable)
    assert set(await desk.instances()) == {LABEL}


async def test_a_pod_whose_name_was_not_kept_is_not_kept_either(desk: Desk) -> None:
    made = {"id": "p1", "name": "another", "status": "PROVISIONING"}
    asked = answering(JSONResponse(made, 201), Response(status_code=204))
    with pytest.raises(Refused, match="name"):
        await desk.provider.rent(order())
    assert asked == [("POST", "/v2/pods"), ("DELETE", "/v2/pods/p1")]


async def test_the_address_may_be_the_host_alone(desk: Desk) -> None:
    await desk.connect(url=desk.base).rent(order())
    await desk.connect(url=f"{desk.base}/").release(LABEL)
    assert desk.pods == []


# Releasing.


async def test_releasing_ends_every_pod_with_the_label(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(page=1)
    for label in (LABEL, LABEL, attempt_label("j", 11)):
        await desk.provider.rent(order(label))
    await desk.provider.release(LABEL)
    assert [pod.name for pod in desk.pods] == [f"{attempt_label('j', 11)}@project"]
    await desk.provider.release(LABEL)
    assert len(desk.stage.asked("DELETE")) == 2


async def test_a_pod_that_is_gone_meanwhile_is_released(desk: Desk) -> None:
    await desk.provider.rent(order())
    desk.fault(method="DELETE", status=404)
    await desk.provider.release(LABEL)


async def test_a_conflict_is_looked_into(desk: Desk) -> None:
    pod_id = await desk.provider.rent(order())
    desk.stage.market.lock(pod_id)
    with pytest.raises(Transient, match="locked"):
        await desk.provider.release(LABEL)
    desk.stage.market.lock(pod_id, False)
    desk.fault(method="DELETE", status=409, applied=True)
    await desk.provider.release(LABEL)
    assert desk.pods == []


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 410}, {"status": 401}, {"status": None}])
async def test_a_delete_is_not_repeated_here_and_the_other_pods_are_not_forgotten(
    desk: Desk, fault: dict[str, Any]
) -> None:
    for _ in range(2):
        await desk.provider.rent(order())
    desk.fault(method="DELETE", **fault)
    with pytest.raises(Transient):
        await desk.provider.release(LABEL)
    assert len(desk.stage.asked("DELETE")) == 2
    assert len(desk.pods) == 1
    await desk.provider.release(LABEL)
    assert desk.pods == []


async def test_nothing_is_ended_on_a_list_that_cannot_be_read(desk: Desk) -> None:
    await desk.provider.rent(order())
    desk.fault(path="/v2/pods", status=410)
    with pytest.raises(Transient):
        await desk.provider.release(LABEL)
    assert desk.stage.asked("DELETE") == []


# Secrets, and what cannot be.


async def test_neither_key_nor_token_gets_out(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    for detail in ("bad key rpa_all", "env attempt-token is wrong"):
        for status in (400, 401, 422, 503):
            desk.fault(method="POST", status=status, detail=detail)
            with pytest.raises(Exception) as caught:
                await desk.provider.rent(order())
            said.append(f"{caught.value} {caught.value.__cause__}")
    desk.fault(method="GET", status=401, detail="rpa_all")
    said.append(await desk.unknown())
    assert not any("rpa_all" in path for _, path in desk.stage.api.asked)
    for text in (*said, caplog.text):
        assert "rpa_all" not in text
        assert "attempt-token" not in text


async def test_a_key_that_was_rotated_is_asked_for_again(desk: Desk) -> None:
    keys = ["rpa_old", "rpa_all"]

    class Rotated:
        async def key(self) -> str:
            return keys[0]

        async def renew(self, refused: str) -> bool:
            return keys.pop(0) == refused

    provider = desk.connect(api_key=Rotated())
    await provider.rent(order())
    assert set(await desk.instances(provider)) == {LABEL}
    assert len(desk.pods) == 1


def test_a_namespace_must_be_one(desk: Desk) -> None:
    for namespace in ("", "a@b"):
        with pytest.raises(Broken):
            desk.connect(namespace=namespace)


async def test_what_cannot_be_had_is_data_with_a_reason_and_never_offered(desk: Desk) -> None:
    assert set(runpod.UNSUPPORTED) == {"spot", "multi_node"}
    assert all(len(reason.split()) > 5 for reason in runpod.UNSUPPORTED.values())
    offers = await listed(desk, InstanceRequirements(kind="training"))
    assert not any(offer.spot for offer in offers.values())
    # More GPUs than the largest machine has would be a cluster.
    assert await listed(desk, InstanceRequirements(kind="training", gpu_count=16)) == {}
    assert not any(path.startswith("/v2/clusters") for _, path in desk.stage.api.asked)
