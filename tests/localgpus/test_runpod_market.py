"""RunPod's market on a clock: stock, the life of a pod, its host, its bill, the balance, and all of it on disk."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from localgpus.clock import Hand
from localgpus.machines import NoMachines
from localgpus.runpod import charges, checks
from localgpus.runpod.market import Market
from localgpus.runpod.pods import Cloud, Pod, Status
from localgpus.runpod.problems import NO_INSTANCES, Problem
from tests.fakes.runpod_pods import NOON

GPU = "NVIDIA GeForce RTX 4090"


@pytest.fixture
def clock() -> Hand:
    return Hand(NOON)


@pytest.fixture
def machines() -> NoMachines:
    return NoMachines()


@pytest.fixture
def market(clock: Hand, machines: NoMachines) -> Market:
    return Market(machines, clock=clock, rng=random.Random(1))


def wanted(**fields: object) -> checks.Create:
    """A body as a client sends it."""
    body = {"name": "n", "image": "i", "cloud": "COMMUNITY", "gpu": {"id": GPU, "count": 1}, "disk": 72, **fields}
    return checks.read(json.dumps(body).encode(), checks.Create)


def free(market: Market, cloud: Cloud = Cloud.COMMUNITY) -> int:
    (gpu,) = (gpu for gpu in market.catalogue() if gpu.id == GPU)
    return gpu.shelves[cloud].free


def refusal(call: Callable[[], object]) -> Problem:
    with pytest.raises(Problem) as caught:
        call()
    return caught.value


def running(market: Market, clock: Hand, **fields: object) -> Pod:
    pod = market.create(wanted(**fields))
    clock.now += 10
    market.advance()
    clock.now += 10
    assert market.pod(pod.id).status is Status.RUNNING
    return pod


def test_a_pod_is_provisioned_started_and_running_as_time_goes_by(
    market: Market, clock: Hand, machines: NoMachines
) -> None:
    pod = market.create(wanted(env={"A": "1"}, args="--flag 'two words'"))
    assert pod.status is Status.PROVISIONING
    assert not machines.live
    clock.now += 2
    assert market.pod(pod.id).status is Status.STARTING
    started = machines.started[pod.machine]
    assert (started.image, started.args, started.env["A"]) == ("i", ("--flag", "two words"), "1")
    assert started.env["RUNPOD_POD_ID"] == pod.id
    clock.now += 2
    assert market.pod(pod.id).status is Status.RUNNING


def test_a_pod_takes_its_gpus_out_of_stock_and_gives_them_back_once(market: Market, clock: Hand) -> None:
    before = free(market)
    pod = running(market, clock, gpu={"id": GPU, "count": 2})
    assert free(market) == before - 2
    market.act(pod.id, "stop")
    assert free(market) == before
    market.delete(pod.id)
    assert free(market) == before


def test_the_same_request_twice_makes_two_pods(market: Market) -> None:
    assert market.create(wanted()).id != market.create(wanted()).id
    assert len(market.pods()) == 2


def test_a_container_that_ends_leaves_a_pod_whose_disk_still_costs(
    market: Market, clock: Hand, machines: NoMachines
) -> None:
    pod, before = running(market, clock), free(market)
    machines.end(pod.machine, 0)
    assert market.pod(pod.id).status is Status.EXITED
    assert free(market) == before + 1
    left = market.balance_usd_micros()
    clock.now += 3600
    # 72 GB for an hour: a tenth of a dollar for ten GB and 720 hours.
    assert left - market.balance_usd_micros() == pytest.approx(10_000, abs=1)


def test_a_stopped_pod_loses_its_disk_and_pays_for_nothing_but_its_volume(market: Market, clock: Hand) -> None:
    plain = running(market, clock)
    mounted = running(market, clock, mounts={"persistent": {"size": 72, "path": "/data"}})
    for pod in (plain, mounted):
        market.act(pod.id, "stop")
        assert market.pod(pod.id).status is Status.EXITED
    left = market.balance_usd_micros()
    clock.now += 3600
    assert left - market.balance_usd_micros() == pytest.approx(20_000, abs=1)


def test_a_stopped_pod_starts_again_if_its_host_has_room(market: Market, clock: Hand, machines: NoMachines) -> None:
    pod = running(market, clock)
    market.act(pod.id, "stop")
    machines.end(pod.machine)
    market.move(GPU, Cloud.COMMUNITY, free=0)
    assert refusal(lambda: market.act(pod.id, "start")).status == 400
    market.move(GPU, Cloud.COMMUNITY, free=1)
    assert market.act(pod.id, "start").status is Status.PROVISIONING
    clock.now += 2
    market.advance()
    assert pod.machine in machines.live
    assert free(market) == 0


def test_only_the_actions_of_its_status_are_valid(market: Market, clock: Hand) -> None:
    pod = running(market, clock)
    assert refusal(lambda: market.act(pod.id, "start")).status == 409
    market.act(pod.id, "stop")
    assert refusal(lambda: market.act(pod.id, "stop")).status == 409
    market.act(pod.id, "terminate")
    assert refusal(lambda: market.pod(pod.id)).status == 404


def test_a_deleted_pod_is_asked_to_end_and_its_disk_is_wiped_when_it_has(
    market: Market, clock: Hand, machines: NoMachines
) -> None:
    pod = running(market, clock)
    market.delete(pod.id)
    assert market.pods() == []
    assert pod.machine in machines.stopping
    market.advance()
    assert pod.machine in machines.started
    machines.end(pod.machine, 143)
    market.advance()
    assert pod.machine not in machines.started
    assert refusal(lambda: market.delete(pod.id)).status == 404


def test_a_lost_host_takes_the_container_along_and_charges_nothing(
    market: Market, clock: Hand, machines: NoMachines
) -> None:
    pod, before = running(market, clock), free(market)
    market.lose_host(pod.id)
    assert market.pod(pod.id).status is Status.ERROR
    assert pod.machine not in machines.live
    left = market.balance_usd_micros()
    clock.now += 3600
    assert market.balance_usd_micros() == left
    assert free(market) == before
    assert refusal(lambda: market.act(pod.id, "start")).status == 400


def test_a_pod_without_a_machine_ends_in_error(clock: Hand, machines: NoMachines) -> None:
    machines.room = 0
    market = Market(machines, clock=clock)
    pod, before = market.create(wanted()), free(market)
    clock.now += 2
    assert market.pod(pod.id).status is Status.ERROR
    assert free(market) == before + 1


@pytest.mark.parametrize(
    "fields",
    [
        {"gpu": {"id": GPU}},
        {"gpu": {"id": GPU, "count": 5}},
        {"gpu": {"id": GPU, "count": 1, "minCudaVersion": "12.11"}},
        {"gpu": {"id": GPU, "count": 1, "allowedCudaVersions": ["11.8"]}},
        {"gpu": {"id": "NVIDIA H100 80GB HBM3", "count": 1}},
        {"dataCenterIds": ["EU-RO-1"]},
        {"gpu": None, "cpu": {"id": "cpu3c"}},
    ],
)
def test_what_cannot_be_placed_is_told_in_words_alone(market: Market, fields: dict[str, object]) -> None:
    problem = refusal(lambda: market.create(wanted(**fields)))
    assert (problem.status, problem.detail) == (400, NO_INSTANCES)
    assert market.pods() == []


def test_the_catalogue_can_say_more_than_there_is(market: Market) -> None:
    market.mark(GPU, sold_out_unseen=True)
    (gpu,) = (gpu for gpu in market.catalogue() if gpu.id == GPU)
    assert gpu.availability(Cloud.COMMUNITY, 1) == "HIGH"
    assert refusal(lambda: market.create(wanted())).detail == NO_INSTANCES


def test_an_hour_must_be_covered(clock: Hand, machines: NoMachines) -> None:
    market = Market(machines, balance_usd_micros=339_999, clock=clock)
    assert refusal(lambda: market.create(wanted())).status == 402
    market.pay(1)
    assert market.create(wanted()).usd_micros_per_hour == 340_000


def test_a_price_that_moves_is_for_pods_to_come(market: Market, clock: Hand) -> None:
    pod = running(market, clock)
    market.move(GPU, Cloud.COMMUNITY, usd_micros_per_hour=500_000)
    assert market.pod(pod.id).usd_micros_per_hour == 340_000
    assert market.create(wanted()).usd_micros_per_hour == 500_000


def test_all_pods_are_stopped_when_ten_seconds_are_not_covered(clock: Hand, machines: NoMachines) -> None:
    market = Market(machines, balance_usd_micros=400_000, clock=clock)
    pod = running(market, clock, disk=1)
    clock.now = NOON + 4200
    assert market.pod(pod.id).status is Status.RUNNING
    # $0.34 and a GB's disk an hour: 400000 millionths last 4233 s.
    clock.now = NOON + 4226
    assert market.pod(pod.id).status is Status.EXITED
    assert pod.machine in machines.stopping
    assert market.balance_usd_micros() > 0
    market.pay(-10_000)
    market.advance()
    assert market.pods() == []


def test_the_bill_is_by_the_second(market: Market, clock: Hand) -> None:
    pod = market.create(wanted(disk=1))
    clock.now += 100
    market.delete(pod.id)
    clock.now += 100
    spent = charges.total(market.spans(), int(clock.now))
    assert spent == pytest.approx(340_000 * 100 / 3600 + 100_000 * 100 / (720 * 3600))
    assert market.balance_usd_micros() == 100_000_000 - int(spent)


def test_a_market_goes_on_where_it_was_kept(tmp_path: Path, clock: Hand) -> None:
    machines = NoMachines()
    market = Market(machines, folder=tmp_path, clock=clock)
    pod = running(market, clock, env={"TOKEN": "t"})
    market.move(GPU, Cloud.SECURE, free=7)
    again = Market(machines, folder=tmp_path, clock=clock)
    assert again.pod(pod.id) == market.pod(pod.id)
    assert again.pod(pod.id).env == {"TOKEN": "t"}
    assert free(again, Cloud.SECURE) == 7
    assert again.balance_usd_micros() == market.balance_usd_micros()
    assert (tmp_path / "runpod.json").stat().st_mode & 0o77 == 0
    # The machines did not live through it.
    rebooted = Market(NoMachines(), folder=tmp_path, clock=clock)
    assert rebooted.pod(pod.id).status is Status.EXITED


def test_old_spans_are_kept_as_a_sum(market: Market, clock: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localgpus.runpod.books.SPANS_MAX", 4)
    for _ in range(4):
        pod = market.create(wanted())
        clock.now += 3600
        market.delete(pod.id)
    assert len(market.spans()) == 4
    assert market.balance_usd_micros() == pytest.approx(100_000_000 - 4 * 350_000, abs=4)


def test_what_is_asked_for_in_a_bill_is_whole_buckets() -> None:
    at = datetime(2026, 11, 25, 12, 30, tzinfo=UTC)
    starts = {size: charges.start_of_bucket(at, size) for size in ("hour", "day", "week", "month", "year")}
    assert starts["hour"] == at.replace(minute=0)
    assert starts["day"] == datetime(2026, 11, 25, tzinfo=UTC)
    assert starts["week"] == datetime(2026, 11, 23, tzinfo=UTC)
    assert starts["month"] == datetime(2026, 11, 1, tzinfo=UTC)
    assert starts["year"] == datetime(2026, 1, 1, tzinfo=UTC)
    for size, start in starts.items():
        after = charges.next_bucket(start, size)
        assert charges.last_bucket(after, size) == start < at < after
