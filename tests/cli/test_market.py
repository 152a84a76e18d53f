"""`goblin market`, against the markets that `up --fakes` starts; nothing runs on their machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from goblin.cli.fakes import Fakes
from goblin.cli.main import main
from localgpus import server
from localgpus.machines import NoMachines
from tests.fakes.serving import closed_port, serve

Goblin = Callable[..., Result]


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serve(server.Markets(NoMachines(), limits=False).app()) as found:
        monkeypatch.setenv("GOBLIN_MARKET_URL", found)
        monkeypatch.setenv("GOBLIN_BUCKET", "bkt")
        yield found


@pytest.fixture
def goblin(url: str) -> Goblin:
    return lambda *words: CliRunner().invoke(main, ["market", *words])


def rent(url: str, label: str) -> None:
    with httpx.Client(base_url=url, headers={"authorization": "Bearer local-vast-key"}) as http:
        ask = {"gpu_name": {"eq": "RTX 4090"}, "type": "bid", "num_gpus": {"eq": 1}, "order": [["dph_total", "asc"]]}
        offer = http.post("/api/v0/bundles/", json=ask).json()["offers"][0]
        order = {"image": "i", "label": label, "price": 0.3, "env": {}, "disk": 10}
        assert http.put(f"/api/v0/asks/{offer['id']}/", json=order).json()["success"]


def seen(goblin: Goblin) -> Any:
    return json.loads(goblin("--json").stdout)["vastai"]


def test_the_market_lists_machines_and_what_is_rented(goblin: Goblin, url: str) -> None:
    assert "nothing is rented" in goblin().stdout
    rent(url, "goblin-j-a1@p")
    shown = goblin().stdout
    assert "114      1 x RTX 4090   Bulgaria, BG" in shown
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("goblin-j-a1@p")]
    assert row[1:3] == ["vastai", "114"]
    assert {"spot", "$0.300/h"} <= set(row)


def test_a_jobs_newest_instance_is_outbid_by_the_jobs_name(goblin: Goblin, url: str) -> None:
    for attempt in (2, 10):
        rent(url, f"goblin-j-a{attempt}@p")
    rent(url, "goblin-j-a3-a99@p")
    assert goblin("outbid", "j", "--for", "60").stdout == "outbid: goblin-j-a10\n"
    others = {machine["id"]: machine["others"] for machine in seen(goblin)["machines"]}
    (mine,) = [one for one in seen(goblin)["instances"] if one["label"] == "goblin-j-a10@p"]
    assert others[mine["machine_id"]]
    assert goblin("relent", "goblin-j-a10").exit_code == 0
    assert not {machine["id"]: machine["others"] for machine in seen(goblin)["machines"]}[mine["machine_id"]]


def test_prices_are_changed_and_hosts_die(goblin: Goblin, url: str) -> None:
    rent(url, "goblin-j-a1@p")
    assert goblin("price", "111", "--floor", "0.31").exit_code == 0
    assert [one["floor_usd_per_gpu_hour"] for one in seen(goblin)["machines"] if one["id"] == 111] == [0.31]
    for lever in ("kill", "die"):
        assert goblin(lever, "j").exit_code == 0
    assert [one["up"] for one in seen(goblin)["machines"] if one["id"] == 114] == [False]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["outbid", "nobody"], 1, "Job nobody has no instance"),
        (["outbid", "goblin-j-a1"], 1, "The market refused"),
        (["price", "111"], 2, "Give --floor or --price"),
        (["price", "999", "--floor", "1"], 1, "no machine 999"),
    ],
)
def test_what_cannot_be_done_is_one_line(goblin: Goblin, words: list[str], code: int, says: str) -> None:
    refused = goblin(*words)
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (code, 1)
    assert says in refused.stderr


def test_without_a_market_it_says_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOBLIN_BUCKET", "bkt")
    monkeypatch.delenv("GOBLIN_MARKET_URL", raising=False)
    refused = CliRunner().invoke(main, ["market"])
    assert (refused.exit_code, "goblin up --fakes" in refused.stderr) == (1, True)
    monkeypatch.setenv("GOBLIN_MARKET_URL", closed_port())
    assert "does not answer" in CliRunner().invoke(main, ["market"]).stderr


def test_the_fakes_point_everything_that_has_a_key_at_themselves() -> None:
    fakes, others = Fakes(port=1), Fakes(port=1)
    said = fakes.variables()
    urls = {said[name] for name in said if name.endswith("_URL")}
    assert urls == {"http://127.0.0.1:1", "http://127.0.0.1:1/v2", ""}
    keys = [said[name] for name in ("VASTAI_API_KEY", "RUNPOD_API_KEY", "VASTAI_WEBHOOK_SECRET")]
    assert len(set(keys)) == 3
    assert not set(keys) & set(others.variables().values())
    assert not any(key in repr(fakes) for key in keys)
    assert fakes.keys().items() <= said.items()
