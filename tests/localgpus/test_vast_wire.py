"""Vast.ai on the wire: paths and their slashes, shapes of answers and errors, pages, limits and webhooks."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from localgpus.vast import control, hooks
from localgpus.vast.faults import Fault
from tests.fakes.serving import serve
from tests.localgpus.vast import KEY, START, Town, machine

TOWN = Town()
SEARCH = {"type": "bid", "allocated_storage": 72, "rentable": {"eq": True}, "order": [["dph_total", "asc"]]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await TOWN.app(scope, receive, send)

    with serve(app) as base:
        yield base


def town(*machines: Any, **said: Any) -> Town:
    global TOWN
    TOWN = Town(*machines, **said)
    return TOWN


class Client:
    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"})

    def __call__(self, method: str, path: str, body: Any = None, **query: Any) -> httpx.Response:
        params = {name: value if isinstance(value, str) else json.dumps(value) for name, value in query.items()}
        return self.http.request(method, path, json=body, params=params)

    def search(self, **filters: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self("POST", "/api/v0/bundles/", {**SEARCH, **filters}).json()["offers"]
        return found

    def rent(self, ask: int, **said: Any) -> httpx.Response:
        return self("PUT", f"/api/v0/asks/{ask}/", {"client_id": "me", "image": "i", "label": "a", "disk": 72, **said})

    def list(self, **query: Any) -> Any:
        return self("GET", "/api/v1/instances/", **query).json()


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    town()
    made = Client(url)
    yield made
    made.http.close()


def test_an_offer_has_the_fields_that_clients_read(client: Client) -> None:
    town(machine(num_gpus=2))
    one, both = sorted(client.search(), key=lambda row: row["num_gpus"])
    assert (one["num_gpus"], both["num_gpus"]) == (1, 2)
    assert (one["gpu_name"], one["gpu_ram"], one["machine_id"]) == ("RTX 4090", 24_564, 1)
    assert (one["min_bid"], one["dph_base"]) == (0.20, 0.40)
    # 72 GB at 0.15 for a month of 720 hours.
    assert one["dph_total"] == pytest.approx(0.20 + 0.015)
    assert one["is_bid"] is True
    assert one["duration"] == one["end_date"] - START


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"gpu_name": {"in": ["RTX 3090"]}}, [2]),
        ({"gpu_name": {"eq": "RTX 4090"}}, [1]),
        ({"gpu_ram": {"gte": 24_000}}, [1]),
        ({"geolocation": {"notin": ["CN", "US"]}}, [2]),
        ({"reliability2": {"gt": 0.95}, "inet_down": {"lt": 1700}}, [1]),
        ({"no_such_field": {"eq": 1}}, []),
        ({"limit": 1}, [2]),
        ({"order": [["gpu_ram", "desc"]]}, [1, 2]),
        ({"verified": {"eq": True}, "rented": {"eq": False}, "external": {"eq": False}}, [2, 1]),
    ],
)
def test_filters(client: Client, filters: dict[str, Any], found: list[int]) -> None:
    poor = machine(2, gpu_name="RTX 3090", gpu_ram=24_000 - 1, floor=0.1, geolocation="Poland, PL", reliability=0.9)
    town(machine(1), poor)
    assert [row["machine_id"] for row in client.search(**filters)] == found


def test_a_filter_that_is_none_is_refused(client: Client) -> None:
    answer = client("POST", "/api/v0/bundles/", {"gpu_ram": {"about": 3}})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert client("POST", "/api/v0/bundles/", {"gpu_ram": {"gte": "much"}}).status_code == 400


def test_the_newer_search_finds_the_same(client: Client) -> None:
    newer = client("PUT", "/api/v0/search/asks/", {"select_cols": ["*"], "q": SEARCH}).json()["offers"]
    assert newer == client.search()


def test_with_a_price_it_is_a_bid_and_without_one_silently_on_demand(client: Client) -> None:
    town(machine(1), machine(2))
    bid, full = client.search()
    number = client.rent(bid["id"], price=0.25).json()["new_contract"]
    assert client.rent(full["id"]).json()["success"] is True
    rows = {row["id"]: row for row in client.list()["instances"]}
    assert rows[number]["is_bid"] is True
    assert (rows[number]["dph_base"], rows[number]["min_bid"]) == (0.25, pytest.approx(0.30))
    (other,) = (row for row in rows.values() if row["id"] != number)
    assert (other["is_bid"], other["dph_base"]) == (False, 0.40)


def test_a_low_bid_is_an_error_with_a_contract(client: Client) -> None:
    (offer,) = client.search()
    answer = client.rent(offer["id"], price=0.19)
    assert (answer.status_code, answer.json()["success"]) == (400, False)
    (row,) = client.list()["instances"]
    assert row["id"] == answer.json()["new_contract"]
    assert (row["actual_status"], row["intended_status"], row["cur_state"]) == ("exited", "stopped", "stopped")


@pytest.mark.parametrize(
    ("said", "status", "error"),
    [
        ({"image": None}, 400, "invalid_args"),
        ({"price": 0.0001}, 400, "invalid_price"),
        ({"price": 129}, 400, "invalid_price"),
        ({"args": ["x" * 4097]}, 400, "invalid_args"),
        ({"env": {"A": "x" * 40_000}}, 400, "invalid_args"),
        ({"disk": 5000}, 400, "invalid_args"),
        ({"disk": "much"}, 400, "invalid_args"),
    ],
)
def test_orders_that_are_refused(client: Client, said: dict[str, Any], status: int, error: str) -> None:
    (offer,) = client.search()
    answer = client.rent(offer["id"], **said)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert client.list()["instances"] == []


def test_an_offer_that_is_gone_is_no_such_ask(client: Client) -> None:
    answer = client.rent(12_345)
    assert (answer.status_code, answer.json()["error"]) == (404, "no_such_ask")
    (offer,) = client.search()
    control.reclaim(TOWN.market, 1)
    assert client.rent(offer["id"], price=0.3).json()["error"] == "no_such_ask"


def test_a_machine_that_somebody_took_in_full_is_not_waited_for_if_asked_not_to(client: Client) -> None:
    (offer,) = client.search()
    TOWN.market.state.machines[1].rivals = [control.Rival(gpus=1, bid=None)]
    answer = client.rent(offer["id"], price=0.3, cancel_unavail=True)
    assert (answer.status_code, answer.json()["error"]) == (410, "no_such_ask")
    parked = client.rent(offer["id"], price=0.3).json()
    assert parked["success"] is True
    (row,) = client.list()["instances"]
    assert row["intended_status"] == "stopped"


def test_the_list_comes_in_pages_and_counts_labels(client: Client) -> None:
    town(machine(num_gpus=64, floor=0.01))
    for number in range(30):
        TOWN.rent(bid=0.02, label=f"job-{number % 2}")
    assert client("GET", "/api/v1/instances/", limit="26").status_code == 400
    first = client.list(limit="25")
    assert (len(first["instances"]), first["total_instances"]) == (25, 30)
    assert first["label_counts"] == {"job-0": 15, "job-1": 15}
    second = client.list(limit="25", after_token=first["next_token"])
    assert (len(second["instances"]), second["next_token"]) == (5, None)
    ours = client.list(select_filters={"label": {"eq": "job-1"}})
    assert {row["label"] for row in ours["instances"]} == {"job-1"}


def test_what_is_computed_cannot_be_filtered(client: Client) -> None:
    answer = client("GET", "/api/v1/instances/", select_filters={"dph_total": {"lt": 1}})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


def test_the_old_list_is_gone_and_says_so(client: Client) -> None:
    answer = client("GET", "/api/v0/instances/")
    assert (answer.status_code, answer.json()["error"]) == (410, "deprecated_endpoint")


@pytest.mark.parametrize("path", ["/api/v1/instances", "/api/v0/bundles", "/api/v0/users/current"])
def test_the_slash_matters(client: Client, path: str) -> None:
    assert client("GET", path).status_code == 404


def test_one_instance_is_an_object_under_a_plural(client: Client) -> None:
    contract = TOWN.rent()
    assert client("GET", f"/api/v0/instances/{contract.id}/", owner="me").json()["instances"]["id"] == contract.id
    assert client("GET", "/api/v0/instances/1/", owner="me").json() == {"instances": None}


def test_an_instance_is_labelled_stopped_started_and_destroyed(client: Client) -> None:
    contract = TOWN.running()
    path = f"/api/v0/instances/{contract.id}/"
    assert client("PUT", path, {"label": "b"}).json() == {"success": True}
    assert client("PUT", path, {"state": "stopped"}).json() == {"success": True}
    assert (contract.label, contract.intended) == ("b", "stopped")
    assert client("PUT", path, {"state": "running"}).json() == {"success": True}
    assert client("PUT", path, {"state": "dancing"}).status_code == 400
    assert client("DELETE", path, {}).json()["success"] is True
    assert client("DELETE", path, {}).json()["error"] == "no_such_instance"


def test_a_bid_is_changed_within_its_bounds(client: Client) -> None:
    contract = TOWN.running(bid=0.25)
    path = f"/api/v0/instances/bid_price/{contract.id}/"
    assert client("PUT", path, {"client_id": "me", "price": 0.3}).json() == {"success": True}
    assert contract.bid == 0.3
    assert client("PUT", path, {"price": 33}).json()["error"] == "invalid_price"
    assert client("PUT", "/api/v0/instances/bid_price/1/", {"price": 0.3}).status_code == 404


def test_charges_need_days_and_have_parts(client: Client) -> None:
    TOWN.running()
    TOWN.later(3600.0)
    assert client("GET", "/api/v0/charges/").json()["error"] == "invalid_request"
    days = {"day": {"gte": START - 86_400, "lte": START + 86_400}, "type": {"in": ["instance"]}}
    said = client("GET", "/api/v0/charges/", select_filters=days, limit="100").json()
    assert said["success"] is True
    parts = {item["type"]: item["amount"] for row in said["results"] for item in row["items"]}
    assert parts["gpu"] == pytest.approx(0.40)
    user = client("GET", "/api/v0/users/current/").json()
    assert user["balance"] == pytest.approx(25.0 - sum(row["amount"] for row in said["results"]), abs=1e-6)


def test_metrics_have_percentiles_for_each_gpu(client: Client) -> None:
    town(machine(1), machine(2, gpu_name="RTX 3090", price=0.2, floor=0.1))
    gpus = client("GET", "/api/v0/metrics/gpu/current/", verified="yes").json()["gpus"]
    assert [gpu["gpu_name"] for gpu in gpus] == ["RTX 3090", "RTX 4090"]
    assert gpus[1]["price_p10"] <= gpus[1]["price_median"] <= gpus[1]["price_p90"] == 0.40


def test_keys(client: Client, url: str) -> None:
    assert httpx.get(f"{url}/api/v1/instances/").status_code == 403
    bad = httpx.get(f"{url}/api/v1/instances/", headers={"authorization": "Bearer x"})
    assert (bad.status_code, bad.json()["error"]) == (404, "auth_error")
    assert httpx.put(f"{url}/api/v0/asks/1/", headers={"authorization": "Bearer x"}).status_code == 401
    assert httpx.post(f"{url}/api/v0/bundles/", json=SEARCH).status_code == 200


def test_too_many_requests_are_refused_in_either_shape(client: Client) -> None:
    town(limits=True)
    assert client("GET", "/api/v1/instances/").status_code == 200
    again = client("GET", "/api/v1/instances/")
    assert (again.status_code, "threshold=1.0" in again.json()["detail"]) == (429, True)
    (offer,) = client.search()
    assert client.rent(offer["id"], image=None).status_code == 400
    again = client.rent(offer["id"])
    assert (again.status_code, "threshold=4.5" in again.text) == (429, True)
    # Who asks too soon waits twelve seconds.
    TOWN.clock.now += 11.0
    assert client.rent(offer["id"]).status_code == 429
    TOWN.clock.now += 12.5
    assert client.rent(offer["id"]).status_code == 200


def test_searches_are_ten_a_minute_and_have_a_quota_a_day(client: Client) -> None:
    town(limits=True)
    TOWN.limits.searches_per_day = 11
    for _ in range(10):
        client.search()
    assert client("POST", "/api/v0/bundles/", SEARCH).status_code == 429
    TOWN.clock.now += 61.0
    client.search()
    over = client("POST", "/api/v0/bundles/", SEARCH)
    assert (over.status_code, over.json()) == (429, {"error": "search_quota_exceeded"})
    assert int(over.headers["x-ratelimit-reset"]) % 86_400 == 0


def test_faults_come_before_or_after_what_was_asked(client: Client) -> None:
    (offer,) = client.search()
    TOWN.faults.add(Fault(call="create", status=504, body="late", after=True))
    assert client.rent(offer["id"]).text == "late"
    assert len(client.list()["instances"]) == 1
    TOWN.faults.add(Fault(call="list", status=410, body='{"error": "deprecated_endpoint"}', times=2))
    assert [client("GET", "/api/v1/instances/").status_code for _ in range(3)] == [410, 410, 200]


HOOK = {"name": "h", "webhook_url": "http://127.0.0.1:9/hook", "event_types": ["client:outbid"]}


def test_a_webhooks_secret_is_told_once(client: Client) -> None:
    made = client("POST", "/api/v0/webhooks/", HOOK).json()["webhook"]
    assert made["secret"]
    assert "secret" not in client("GET", "/api/v0/webhooks/").json()["webhooks"][0]
    rotated = client("POST", f"/api/v0/webhooks/{made['id']}/rotate-secret/").json()["secret"]
    assert rotated not in ("", made["secret"])
    for _ in range(3):
        assert client("POST", "/api/v0/webhooks/", HOOK).status_code == 200
    assert client("POST", "/api/v0/webhooks/", HOOK).status_code == 400
    assert client("DELETE", f"/api/v0/webhooks/{made['id']}/").json()["success"] is True


@pytest.mark.parametrize("address", ["https://example.org/hook", "http://10.0.0.1/", "ftp://127.0.0.1/", "", 3])
def test_a_webhook_stays_on_this_machine(client: Client, address: Any) -> None:
    assert client("POST", "/api/v0/webhooks/", {**HOOK, "webhook_url": address}).status_code == 400


class Receiver:
    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.got: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.got.append(request)
        return httpx.Response(self.statuses.pop(0) if self.statuses else 204)


async def test_an_outbid_is_told_and_signed_until_somebody_says_he_heard(client: Client) -> None:
    secret = client("POST", "/api/v0/webhooks/", HOOK).json()["webhook"]["secret"]
    TOWN.running(bid=0.25)
    control.outbid(TOWN.market, "a")
    receiver = Receiver(500)
    async with httpx.AsyncClient(transport=httpx.MockTransport(receiver)) as http:
        await hooks.deliver(TOWN.market, http)
        await hooks.deliver(TOWN.market, http)
        TOWN.clock.now += 10.0
        await hooks.deliver(TOWN.market, http)
        TOWN.clock.now += 1000.0
        await hooks.deliver(TOWN.market, http)
    first, second = receiver.got
    assert first.content == second.content
    said = json.loads(second.content)
    assert (said["notif_type"], said["event_id"]) == ("outbid", second.headers["x-vast-event-id"])
    assert [request.headers["x-vast-delivery-attempt"] for request in receiver.got] == ["1", "2"]
    signed = second.headers["x-vast-timestamp"].encode() + b"." + second.content
    expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    assert second.headers["x-vast-signature-256"] == f"sha256={expected}"
    assert "instance_id" not in said


async def test_who_refuses_is_not_told_again_and_a_test_is_sent_once(client: Client) -> None:
    made = client("POST", "/api/v0/webhooks/", HOOK).json()["webhook"]
    TOWN.running(bid=0.25)
    control.outbid(TOWN.market, "a")
    client("POST", f"/api/v0/webhooks/{made['id']}/test/")
    receiver = Receiver(403, 503)
    async with httpx.AsyncClient(transport=httpx.MockTransport(receiver)) as http:
        for _ in range(3):
            await hooks.deliver(TOWN.market, http)
            TOWN.clock.now += 100.0
    assert [json.loads(request.content)["notif_type"] for request in receiver.got] == ["outbid", "webhook_test"]


def test_what_is_no_json_or_too_large_is_refused(client: Client) -> None:
    assert client.http.post("/api/v0/bundles/", content=b"{").status_code == 400
    assert client.http.post("/api/v0/bundles/", content=b"[]").status_code == 400
    assert client.http.post("/api/v0/bundles/", content=b"x" * 300_000).status_code == 413
