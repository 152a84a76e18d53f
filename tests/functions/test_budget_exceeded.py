"""The topic `budget-exceeded` as Pub/Sub pushes it, and the gateway that obeys it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from click.testing import CliRunner

from goblin.billing.domain.ledger import month_of
from goblin.cli.main import main
from tests.clouds import RunningCloud
from tests.fakes.cloud_run import FakeCloudRun
from tests.fakes.serving import serve
from tests.functions.conftest import API_KEY, OTHER_KEY, Fakes
from tests.functions.pushes import Invoker

HELLO: Any = [{"role": "user", "content": "Hi"}]
CONFIG = """
[[endpoints]]
name = "free"
provider = "llamacpp"
url = "${LLAMACPP_URL}"
models = ["tiny"]
price_input_usd_micros_per_mtok = 0
price_output_usd_micros_per_mtok = 0

[[endpoints]]
name = "paid"
provider = "openai"
url = "${OPENAI_BASE_URL}"
models = ["tiny", "big"]
price_input_usd_micros_per_mtok = 2000000
price_output_usd_micros_per_mtok = 8000000
"""
BILLING = {
    "budgetDisplayName": "b", "costAmount": 10.01, "costIntervalStart": "2026-11-01T08:00:00Z", "budgetAmount": 10.0,
    "budgetAmountType": "SPECIFIED_AMOUNT", "currencyCode": "USD",
}  # fmt: skip
FROM_BILLING = {"billingAccountId": "01-23", "budgetId": "b-1", "schemaVersion": "1.0"}


def threshold_event(**changes: Any) -> dict[str, Any]:
    now = month_of(datetime.now(UTC))
    return {"account": "openai", "window": now, "spent_usd_micros": 10, "limit_usd_micros": 10, **changes}


def used_up(firestore: Any, account: str = "openai", action: str = "freeze") -> None:
    """Let the ledger have a budget that is used up this month."""
    month = month_of(datetime.now(UTC))
    fields = {
        "name": account,
        "limits": [{"period": "month", "limit_usd_micros": 10, "action": action}],
        "tallies": {"month": {"window": month, "spent_usd_micros": 10, "leased_usd_micros": 0}},
    }
    firestore.collection("accounts").document(account).set(fields)


@pytest.fixture
def invoker(environ: dict[str, str], cloud: RunningCloud, monkeypatch: pytest.MonkeyPatch) -> Invoker:
    return Invoker(cloud, monkeypatch)


@pytest.fixture
def url(invoker: Invoker, serve_function: Callable[[str], str]) -> str:
    return serve_function("budget_exceeded")


def documents(firestore: Any, collection: str) -> list[dict[str, Any]]:
    return [document.to_dict() for document in firestore.collection(collection).stream()]


def test_the_same_crossing_twice_freezes_once(url: str, invoker: Invoker, firestore: Any) -> None:
    used_up(firestore)
    assert [invoker.push(url, threshold_event()) for _ in range(2)] == [204, 204]
    assert [(f["account"], f["entry_id"]) for f in documents(firestore, "freezes")] == [
        ("openai", f"budget:openai:{threshold_event()['window']}:1")
    ]
    assert len(documents(firestore, "ledger")) == 1


def test_an_invented_crossing_freezes_nothing(url: str, invoker: Invoker, firestore: Any) -> None:
    invented = {"spent_usd_micros": 10**12, "threshold": 9, "action": "scale_to_zero"}
    for account in ("total", "openai", "key/tests"):
        assert invoker.push(url, threshold_event(account=account, **invented)) == 204
    assert documents(firestore, "freezes") == documents(firestore, "ledger") == []


def test_cloud_billing_is_understood_on_the_same_topic(url: str, invoker: Invoker, firestore: Any) -> None:
    assert invoker.push(url, BILLING, **FROM_BILLING) == 204
    assert documents(firestore, "ledger") == []
    assert invoker.push(url, {**BILLING, "alertThresholdExceeded": 1.0}, **FROM_BILLING) == 204
    assert [f["account"] for f in documents(firestore, "freezes")] == ["total"]


def settled(firestore: Any) -> list[dict[str, Any]]:
    return [entry for entry in documents(firestore, "ledger") if entry["kind"] == "settle"]


@pytest.mark.parametrize(
    "payload", [b"", b"{", {}, threshold_event(spent_usd_micros=-1), threshold_event(account="a b")]
)
def test_what_cannot_be_read_goes_to_the_dead_letters(url: str, invoker: Invoker, firestore: Any, payload: Any) -> None:
    assert invoker.push(url, payload) == 400
    assert documents(firestore, "ledger") == []


def test_strangers_freeze_nothing(url: str, invoker: Invoker, firestore: Any) -> None:
    assert httpx.post(url, json={}, timeout=20).status_code == 401
    assert invoker.push(url, threshold_event(), email="stranger@example.com") == 403
    assert documents(firestore, "freezes") == []


def test_free_providers_go_on_and_paid_ones_answer_402(
    invoker: Invoker, serve_function: Callable[[str], str], served_fakes: Any, fakes: Fakes, api_keys: None,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, firestore: Any,
) -> None:  # fmt: skip
    config = tmp_path / "goblin.toml"
    config.write_text(CONFIG)
    for name, value in {**served_fakes[1], "GOBLIN_CONFIG": str(config)}.items():
        monkeypatch.setenv(name, value)
    budget, gateway = serve_function("budget_exceeded"), serve_function("gateway")
    fakes.openai.models = ["tiny", "big"]
    with openai.OpenAI(api_key=API_KEY, base_url=f"{gateway}/v1", max_retries=0, timeout=20) as client:
        client.chat.completions.create(model="big", messages=HELLO)
        # Booked after the last byte, which is all that the caller waits for.
        until = time.monotonic() + 10
        while not (booked := settled(firestore)) and time.monotonic() < until:
            time.sleep(0.01)
        (entry,) = booked
        assert (entry["account"], entry["amount_usd_micros"]) == ("openai/tests", 62)
        month = month_of(datetime.now(UTC))
        balances = [b for b in documents(firestore, "balances") if b["window"] == month]
        accounts = ("total", "openai", "openai/tests", "key/tests", "model/big")
        assert {b["account"]: b["spent_usd_micros"] for b in balances} == dict.fromkeys(accounts, 62)

        used_up(firestore)
        assert invoker.push(budget, threshold_event()) == 204
        page = httpx.get(f"{gateway}/providers", headers={"authorization": f"Bearer {API_KEY}"}, timeout=20).json()
        assert page["free"]["frozen"] == ""
        assert page["paid"]["frozen"].startswith("openai spent")
        asked = len(fakes.openai.asked)
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(model="big", messages=HELLO)
        assert refused.value.status_code == 402
        assert refused.value.code == "budget_exhausted"
        assert "openai spent" in refused.value.message
        assert len(fakes.openai.asked) == asked  # Nothing was sent.
        raw = client.chat.completions.with_raw_response.create(model="tiny", messages=HELLO)
        assert raw.headers["x-goblin-provider"] == "free"
    assert len(settled(firestore)) == 1  # What is free is no entry.


def test_a_key_with_a_cent_is_refused_the_request_that_would_cross(
    invoker: Invoker, serve_function: Callable[[str], str], served_fakes: Any, fakes: Fakes, api_keys: None,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, firestore: Any,
) -> None:  # fmt: skip
    config = tmp_path / "goblin.toml"
    config.write_text(CONFIG)
    for name, value in {**served_fakes[1], "GOBLIN_CONFIG": str(config)}.items():
        monkeypatch.setenv(name, value)
    cent = {"name": "key/tests", "limits": [{"period": "month", "limit_usd_micros": 10_000, "action": "alert"}]}
    firestore.collection("accounts").document("key~tests").set(cent)
    gateway = serve_function("gateway")
    fakes.openai.models = ["big"]
    with openai.OpenAI(api_key=API_KEY, base_url=f"{gateway}/v1", max_retries=0, timeout=20) as client:

        def ask(most: int, stream: bool = False) -> Any:
            return client.chat.completions.with_raw_response.create(
                model="big", messages=HELLO, max_tokens=most, stream=stream
            )

        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(model="big", messages=HELLO)  # Our limit for it is 4096: $0.033.
        assert refused.value.status_code == 402
        assert fakes.openai.asked == []
        answer = ask(1000)
        assert answer.headers["x-goblin-cost-usd"] == "0.000062"
        assert fakes.openai.asked[-1]["max_tokens"] == 1000
        receipt = _receipt(gateway, answer.headers["x-goblin-request-id"])
        assert (receipt["cost_usd_micros"], receipt["provider"]) == (62, "paid")

        # The rest of the cent, to the request that would cross: each may cost up to 8,288 millionths.
        sent = 1
        while sent < 60:
            try:
                ask(1000)
            except openai.APIStatusError as error:
                refusal = error
                break
            sent += 1
        assert 20 < sent < 40
        assert len(fakes.openai.asked) == sent  # Nothing of the refused one was sent.
        assert (refusal.status_code, refusal.code, refusal.type) == (402, "budget_exhausted", "insufficient_quota")
        assert "key/tests" in refusal.message
        assert "resets at" in refusal.message
        until = time.monotonic() + 10  # Entries are written together, within about a second.
        while len(settled(firestore)) < sent and time.monotonic() < until:
            time.sleep(0.02)
        assert len(settled(firestore)) == sent
        with pytest.raises(openai.APIStatusError):
            ask(1000, stream=True)
        assert ask(10).headers["x-goblin-cost-usd"] == "0.000062"  # A smaller one still fits.
        other = client.with_options(api_key=OTHER_KEY).chat.completions.create(model="big", messages=HELLO)
        assert other.choices
    account = firestore.collection("accounts").document("key~tests").get().to_dict()["tallies"]["month"]
    assert account["spent_usd_micros"] + account["leased_usd_micros"] <= 10_000


def test_a_price_nobody_knows_is_not_zero(
    serve_function: Callable[[str], str], served_fakes: Any, fakes: Fakes, api_keys: None, environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    config = tmp_path / "goblin.toml"
    config.write_text("\n".join(line for line in CONFIG.splitlines() if "000" not in line))
    for name, value in {**served_fakes[1], "GOBLIN_CONFIG": str(config)}.items():
        monkeypatch.setenv(name, value)
    fakes.openai.models = ["big"]
    gateway = serve_function("gateway")
    with (
        openai.OpenAI(api_key=API_KEY, base_url=f"{gateway}/v1", max_retries=0, timeout=20) as client,
        pytest.raises(openai.APIStatusError) as refused,
    ):
        client.chat.completions.create(model="big", messages=HELLO)
    assert (refused.value.status_code, refused.value.code) == (402, "price_unknown")
    assert fakes.openai.asked == []


def test_cloud_run_is_scaled_to_zero_and_a_thaw_brings_it_back(
    invoker: Invoker, serve_function: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, firestore: Any,
) -> None:  # fmt: skip
    fake, service = FakeCloudRun(), "projects/p/locations/us-east4/services/llamacpp"
    fake.deploy(service, {"minInstanceCount": 1, "maxInstanceCount": 3})
    with serve(fake.app) as address:
        monkeypatch.setenv("CLOUD_RUN_EMULATOR_HOST", address)
        monkeypatch.setenv("CLOUDRUN_LLAMACPP_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("CLOUDRUN_LLAMACPP_MODEL", "tiny")
        monkeypatch.setenv("CLOUDRUN_LLAMACPP_SERVICE", service)
        url = serve_function("budget_exceeded")
        fake.fail = [503]
        used_up(firestore, "total", "scale_to_zero")
        said = threshold_event(account="total")
        assert invoker.push(url, said) == 503  # Frozen already, and to be delivered again.
        assert [freeze["account"] for freeze in documents(firestore, "freezes")] == ["total"]
        assert [invoker.push(url, said) for _ in range(2)] == [204, 204]
        assert (fake.updates, fake.scaling(service)) == (1, {"scalingMode": 2, "manualInstanceCount": 0})
        monkeypatch.setenv("GOBLIN_BUCKET", "b")
        assert goblin("budget", "thaw", "total").startswith("total is thawed")
        assert fake.scaling(service) == {"scalingMode": 1, "minInstanceCount": 1, "maxInstanceCount": 3}
        shown = goblin("budget", "show")
        assert "Cloud Run service llamacpp is scaled to zero; it had 1 to 3 instances" in shown
        assert "Cloud Run service llamacpp may run again, with 1 to 3 instances" in shown


def goblin(*words: str) -> str:
    """The command, in a loop and thread of its own."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(CliRunner().invoke(main, list(words))))
    thread.start()
    thread.join(30)
    assert found[0].exit_code == 0, found[0].output
    return str(found[0].output)


def _receipt(gateway: str, request_id: str) -> dict[str, Any]:
    until = time.monotonic() + 10
    while True:
        said = httpx.get(f"{gateway}/requests/{request_id}", headers={"authorization": f"Bearer {API_KEY}"}, timeout=20)
        if said.status_code == 200 or time.monotonic() > until:
            found: dict[str, Any] = said.raise_for_status().json()
            return found
        time.sleep(0.01)
