"""RunPod's API on a socket: what a client of version 2 meets, errors and quirks included."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from localgpus.machines import NoMachines
from localgpus.runpod import routes
from localgpus.runpod.faults import Fault
from localgpus.runpod.market import Market
from localgpus.runpod.pods import Cloud
from localgpus.runpod.quota import Quota
from tests.fakes import runpod_pods
from tests.fakes.runpod_pods import KEYS, NOON, Switch
from tests.fakes.serving import serve
from tests.localgpus.test_runpod_market import GPU

ASKED = {"include": "AVAILABILITY", "product": "POD"}
SWITCH = Switch()


class Stage(runpod_pods.Stage):
    """With a client that has the good key."""

    client: httpx.AsyncClient

    def body(self, **fields: Any) -> dict[str, Any]:
        gpu = {"id": GPU, "count": 1}
        return {"name": "n", "image": "i", "cloud": "COMMUNITY", "gpu": gpu, "disk": 20, "startSsh": False, **fields}

    async def create(self, **fields: Any) -> dict[str, Any]:
        answer = await self.client.post("/v2/pods", json=self.body(**fields))
        assert answer.status_code == 201, answer.text
        return dict(answer.json())


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with serve(SWITCH) as url:
        yield url


@pytest.fixture
async def raise_stage(base: str) -> AsyncIterator[Callable[..., Stage]]:
    headers = {"authorization": "Bearer rpa_all"}
    async with httpx.AsyncClient(base_url=base, headers=headers, trust_env=False) as client:

        def up(**terms: Any) -> Stage:
            stage = Stage(**terms)
            stage.client = client
            SWITCH.show(stage)
            return stage

        yield up


@pytest.fixture
def stage(raise_stage: Callable[..., Stage]) -> Stage:
    return raise_stage()


def is_problem(answer: httpx.Response, status: int, words: str = "") -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], bool(body["title"])) == (status, True)
    assert words in body["detail"]


async def test_a_pod_is_made_shown_listed_and_deleted(stage: Stage) -> None:
    made = await stage.create(env={"A": "1"})
    assert (made["status"], made["actions"]) == ("PROVISIONING", ["stop", "terminate"])
    assert (made["cost"], made["runtime"], made["startedAt"]) == (0.34, None, None)
    assert made["createdAt"] == "2026-11-25T12:00:00.000Z"
    stage.clock.now += 5
    await stage.client.get("/v2/pods")
    stage.clock.now += 5
    shown = (await stage.client.get(f"/v2/pods/{made['id']}")).json()
    assert (shown["status"], shown["env"], shown["gpu"]) == ("RUNNING", {"A": "1"}, {"id": GPU, "count": 1})
    assert shown["runtime"]["uptime"] == 0
    assert (await stage.client.get("/v2/pods")).json() == {"pods": [shown]}
    gone = await stage.client.delete(f"/v2/pods/{made['id']}")
    assert (gone.status_code, gone.content) == (204, b"")
    is_problem(await stage.client.get(f"/v2/pods/{made['id']}"), 404)
    is_problem(await stage.client.delete(f"/v2/pods/{made['id']}"), 404)
    assert (await stage.client.get("/v2/pods")).json() == {"pods": []}


async def test_a_pod_that_has_ended_costs_nothing_by_its_own_account(stage: Stage) -> None:
    made = await stage.create()
    stage.clock.now += 5
    stage.market.advance()
    stage.machines.end(f"runpod-{made['id']}")
    shown = (await stage.client.get(f"/v2/pods/{made['id']}")).json()
    assert (shown["status"], shown["cost"], shown["actions"]) == ("EXITED", 0.0, ["start", "terminate"])


async def test_a_pod_may_read_running_before_it_is(raise_stage: Callable[..., Stage]) -> None:
    stage = raise_stage(running_at_once=True)
    made = await stage.create()
    assert (made["status"], made["runtime"]) == ("RUNNING", None)
    assert not stage.machines.live


@pytest.mark.parametrize(
    ("fields", "violation"),
    [
        ({"bogus": 1}, "$: additional properties 'bogus' not allowed"),
        ({"gpu": {"id": GPU, "count": 0}}, "$.gpu.count"),
        ({"gpu": {"id": GPU, "count": 1, "type": "x"}}, "$.gpu: additional properties 'type' not allowed"),
        ({"gpuTypeIds": [GPU]}, "'gpuTypeIds'"),
        ({"interruptible": True}, "'interruptible'"),
        ({"env": {"A": 1}}, "$.env"),
        ({"disk": "20"}, "$.disk"),
        ({"cloud": "ALL"}, "$.cloud"),
        ({"name": ""}, "$.name"),
        ({"mounts": {"persistent": {"size": 9, "path": "/d"}}}, "$.mounts.persistent.size"),
        ({"ports": ["22"]}, "$.ports"),
    ],
)
async def test_a_body_that_breaks_the_schema_is_422(stage: Stage, fields: dict[str, Any], violation: str) -> None:
    answer = await stage.client.post("/v2/pods", json=stage.body(**fields))
    is_problem(answer, 422, "Request validation failed.")
    assert violation in answer.json()["errors"][0]
    assert stage.market.pods() == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cpu": {"id": "cpu3c"}}, "exactly one"),
        ({"gpu": None}, "exactly one"),
        ({"image": ""}, "image is required"),
        ({"gpu": {"id": GPU, "count": 1, "minCudaVersion": "12.8", "allowedCudaVersions": ["12.8"]}}, "exclusive"),
        ({"mounts": {"network": [{"volumeId": "v", "path": "/d"}]}}, "volume not found"),
        ({"gpu": {"id": "RTX 4090", "count": 1}}, "gpu type not found"),
        ({"gpu": {"id": GPU}}, "no longer any instances"),
    ],
)
async def test_a_broken_rule_and_no_capacity_look_alike(stage: Stage, fields: dict[str, Any], words: str) -> None:
    is_problem(await stage.client.post("/v2/pods", json=stage.body(**fields)), 400, words)


async def test_a_body_that_is_no_json_or_too_large_is_refused(stage: Stage) -> None:
    is_problem(await stage.client.post("/v2/pods", content=b"{"), 400)
    is_problem(await stage.client.post("/v2/pods", content=b" " * (1024 * 1024 + 1)), 413)


async def test_a_key_is_needed_and_may_do_what_it_may(stage: Stage) -> None:
    nobody = await stage.client.get("/v2/account/ssh-keys", headers={"authorization": ""})
    is_problem(nobody, 401, "missing bearer token")
    assert "RateLimit" not in nobody.headers
    is_problem(await stage.client.get("/v2/pods", headers={"authorization": "Bearer no"}), 401)
    reads = {"authorization": "Bearer rpa_reads"}
    assert (await stage.client.get("/v2/account/ssh-keys", headers=reads)).json() == {"keys": []}
    is_problem(await stage.client.post("/v2/pods", headers=reads, json=stage.body()), 403)


async def test_a_pool_that_the_account_may_not_have_is_403(stage: Stage) -> None:
    stage.market.mark(GPU, restricted=True)
    is_problem(await stage.client.post("/v2/pods", json=stage.body()), 403)


async def test_money_that_is_short_is_402(stage: Stage) -> None:
    stage.market.pay(-100_000_000)
    is_problem(await stage.client.post("/v2/pods", json=stage.body()), 402)


async def test_version_one_is_gone_whatever_is_asked(stage: Stage) -> None:
    for method, path in (("GET", "/v1/pods"), ("POST", "/v1/pods"), ("DELETE", "/v1/pods/x")):
        is_problem(await stage.client.request(method, path), 410, "v2")


async def test_what_is_not_there_is_404_and_what_cannot_be_done_405(stage: Stage) -> None:
    is_problem(await stage.client.get("/v2/pods/none"), 404)
    is_problem(await stage.client.get("/v2/something"), 404)
    answer = await stage.client.put("/v2/pods")
    is_problem(answer, 405)
    assert answer.headers["allow"] == "GET, POST"


async def test_an_action_out_of_turn_is_409_and_an_unknown_one_422(stage: Stage) -> None:
    made = await stage.create()
    path = f"/v2/pods/{made['id']}/action"
    is_problem(await stage.client.post(path, json={"action": "restart"}), 409)
    answer = await stage.client.post(path, json={"action": "reset"})
    is_problem(answer, 422)
    assert (await stage.client.post(path, json={"action": "stop"})).json()["status"] == "EXITED"
    assert (await stage.client.post(path, json={"action": "terminate"})).status_code == 204


async def test_a_locked_pod_is_not_deleted(stage: Stage) -> None:
    made = await stage.create()
    stage.market.lock(made["id"])
    is_problem(await stage.client.delete(f"/v2/pods/{made['id']}"), 409)


async def test_the_catalogue_tells_stock_only_of_a_product(stage: Stage) -> None:
    plain = (await stage.client.get("/v2/catalog/gpus")).json()["gpus"]
    assert not any("availability" in gpu for gpu in plain)
    by_id = {gpu["id"]: gpu for gpu in plain}
    assert by_id[GPU]["price"] == {"secure": 0.6, "community": 0.34}
    assert by_id["NVIDIA H100 80GB HBM3"]["community"] is False
    is_problem(await stage.client.get("/v2/catalog/gpus?include=AVAILABILITY"), 400)
    is_problem(await stage.client.get("/v2/catalog/gpus?product=POD"), 400)
    is_problem(await stage.client.get("/v2/catalog/gpus?cloud=SECURE"), 400)
    is_problem(await stage.client.get("/v2/catalog/gpus?include=AVAILABILITY&product=VM"), 422)


@pytest.mark.parametrize(("free", "level"), [(0, "NONE"), (1, "LOW"), (4, "MEDIUM"), (10, "HIGH")])
async def test_availability_is_of_one_cloud_and_one_count(stage: Stage, free: int, level: str) -> None:
    stage.market.move(GPU, Cloud.COMMUNITY, free=free)

    async def look(**query: Any) -> Any:
        answer = (await stage.client.get(f"/v2/catalog/gpus/{GPU}", params={**ASKED, **query})).json()
        assert ("dataCenters" in answer) == (answer["availability"] != "NONE")
        return answer["availability"]

    assert await look(cloud="COMMUNITY") == level
    # The secure cloud, where none is named.
    assert await look() == "HIGH"
    assert await look(cloud="COMMUNITY", count=free + 1) == "NONE"
    assert await look(product="SERVERLESS") == "NONE"


async def test_pages_follow_one_another_though_pods_come_and_go(raise_stage: Callable[..., Stage]) -> None:
    paged, ids = raise_stage(page=2), []
    for number in range(5):
        ids.append((await paged.create(name=f"n{number}"))["id"])
        paged.clock.now += 1
    first = (await paged.client.get("/v2/pods")).json()
    assert [pod["id"] for pod in first["pods"]] == ids[:2]
    assert first["pagination"]["hasNextPage"] is True
    paged.market.delete(ids[0])
    cursor = first["pagination"]["nextCursor"]
    second = (await paged.client.get("/v2/pods", params={"cursor": cursor, "limit": 1000})).json()
    assert [pod["id"] for pod in second["pods"]] == ids[2:]
    assert second["pagination"] == {"nextCursor": None, "hasNextPage": False}
    is_problem(await paged.client.get("/v2/pods?cursor=x"), 422)
    is_problem(await paged.client.get("/v2/pods?limit=1001"), 422)
    is_problem(await paged.client.get("/v2/pods?limit=-1"), 422)


async def test_quotas_are_told_with_every_answer_and_refuse_with_a_time(stage: Stage) -> None:
    first = await stage.client.get("/v2/pods")
    assert first.headers["ratelimit"] == '"minute";r=59;t=60, "hour";r=2999;t=3600'
    assert first.headers["ratelimit-policy"] == '"minute";q=60;w=60, "hour";q=3000;w=3600'
    for _ in range(59):
        assert (await stage.client.get("/v2/pods")).status_code == 200
    stage.clock.now += 48
    refused = await stage.client.get("/v2/pods")
    is_problem(refused, 429, "minute window")
    assert refused.headers["retry-after"] == "12"
    assert refused.headers["ratelimit"].startswith('"minute";r=0;t=12, "hour";r=2940')
    stage.clock.now += 12
    assert (await stage.client.get("/v2/pods")).status_code == 200


def test_who_is_exempt_from_quotas_hears_nothing_of_them() -> None:
    quota = Quota(windows=())
    assert {str(quota.take(NOON)) for _ in range(100)} == {"({}, None)"}


async def test_the_bill_of_the_account_and_of_its_pods_agree(stage: Stage) -> None:
    first = await stage.create(disk=72)
    stage.clock.now += 6 * 3600
    second = await stage.create(disk=72)
    stage.clock.now = NOON + 13 * 3600  # It is one in the morning.
    stage.market.delete(first["id"])
    stage.market.delete(second["id"])
    stage.clock.now += 3600
    day = {"bucketSize": "day", "startTime": "2026-11-25T00:00:00Z", "endTime": "2026-11-26T00:00:00Z"}
    whole = (await stage.client.get("/v2/billing", params=day)).json()
    (record,) = whole["records"]
    assert (record["startTime"], record["endTime"]) == ("2026-11-25T00:00:00Z", "2026-11-26T00:00:00Z")
    assert record["podGpuAmount"] == pytest.approx((12 + 6) * 0.34)
    assert record["podDiskAmount"] == pytest.approx((12 + 6) * 0.01)
    assert record["totalAmount"] == pytest.approx(18 * 0.35)
    assert whole["metadata"]["recordCount"] == 1
    pods = (await stage.client.get("/v2/billing/pods", params={"bucketSize": "day", "lastN": 2})).json()
    amounts = {(row["podId"], row["startTime"][:10]): row["totalAmount"] for row in pods["records"]}
    assert amounts[first["id"], "2026-11-25"] == pytest.approx(12 * 0.35)
    assert amounts[second["id"], "2026-11-26"] == pytest.approx(1 * 0.35)
    assert pods["metadata"]["uniquePodCount"] == 2
    one = (await stage.client.get("/v2/billing/pods", params={**day, "podId": first["id"]})).json()
    assert {row["podId"] for row in one["records"]} == {first["id"]}
    assert one["metadata"]["totals"]["totalAmount"] == pytest.approx(12 * 0.35)


async def test_the_bill_lags(stage: Stage) -> None:
    await stage.create()
    stage.clock.now += 300
    late = (await stage.client.get("/v2/billing?bucketSize=hour&lastN=1")).json()
    assert late["metadata"]["totals"]["totalAmount"] == 0
    stage.clock.now += 100
    later = (await stage.client.get("/v2/billing?bucketSize=hour&lastN=1")).json()
    assert later["metadata"]["totals"]["podGpuAmount"] == pytest.approx(0.34 * 100 / 3600)


async def test_times_of_a_bill_are_snapped_outwards_and_exclude_counts(stage: Stage) -> None:
    query = {"bucketSize": "day", "startTime": "2026-11-24T23:00:00Z", "endTime": "2026-11-25T00:00:01Z"}
    records = (await stage.client.get("/v2/billing", params=query)).json()["records"]
    assert [row["startTime"][:10] for row in records] == ["2026-11-24", "2026-11-25"]
    is_problem(await stage.client.get("/v2/billing?lastN=1&endTime=2026-11-25T00:00:00Z"), 400)
    is_problem(await stage.client.get("/v2/billing?bucketSize=minute"), 422)
    is_problem(await stage.client.get("/v2/billing?startTime=yesterday"), 422)


async def test_a_proxy_answers_with_a_page(stage: Stage) -> None:
    stage.api.faults.coming += [Fault(status=502, html=True), Fault(status=503, headers={"Retry-After": "3"})]
    page = await stage.client.get("/v2/pods")
    assert (page.status_code, page.headers["content-type"]) == (502, "text/html; charset=utf-8")
    assert page.text.startswith("<html>")
    problem = await stage.client.get("/v2/pods")
    is_problem(problem, 503)
    assert problem.headers["retry-after"] == "3"
    assert (await stage.client.get("/v2/pods")).status_code == 200


async def test_an_answer_can_be_lost_after_the_request_took_effect(stage: Stage) -> None:
    stage.api.faults.coming += [
        Fault(method="POST", path="/v2/pods", status=504, html=True, applied=True),
        Fault(method="POST", path="/v2/pods", status=None, applied=True),
    ]
    assert (await stage.client.post("/v2/pods", json=stage.body())).status_code == 504
    with pytest.raises(httpx.RemoteProtocolError):
        await stage.client.post("/v2/pods", json=stage.body())
    assert len(stage.market.pods()) == 2


async def test_serverless_and_clusters_are_there_and_empty(stage: Stage) -> None:
    assert (await stage.client.get("/v2/serverless")).json() == {"endpoints": []}
    assert (await stage.client.get("/v2/clusters")).json() == {"clusters": []}
    is_problem(await stage.client.post("/v2/clusters", json={}), 400, "no longer any instances")


def test_routes_are_served_from_the_root() -> None:
    paths = {route.path for route in routes(Market(NoMachines()), keys=KEYS)}
    assert {"/v2/pods", "/v2/billing", "/v1/{rest:path}"} <= paths
