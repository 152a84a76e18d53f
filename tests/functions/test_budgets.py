"""`/budgets`, `goblin budget`, `goblin costs` and the hourly settlement, on the cloud that the functions use."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from goblin.billing.domain.ledger import BudgetAction, EntryKind, LedgerEntry
from goblin.cli.main import main
from goblin.wiring import process
from goblin.wiring.ledger import ledger
from tests.clouds import RunningCloud
from tests.fakes.bills import Charges
from tests.fakes.serving import serve
from tests.functions.conftest import API_KEY
from tests.functions.test_check_health import AUDIENCE, EMAIL

HEADERS = {"authorization": f"Bearer {API_KEY}"}


@pytest.fixture
def goblin(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs the command in a loop and thread of its own, as a person's shell would in a process."""
    monkeypatch.setenv("GOBLIN_BUCKET", "b")

    def command(*words: str, code: int = 0) -> str:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(CliRunner().invoke(main, list(words))))
        thread.start()
        thread.join(30)
        assert found[0].exit_code == code, found[0].output
        return str(found[0].output)

    return command


def test_a_budget_is_set_shown_and_taken_away(
    serve_function: Callable[[str], str], goblin: Callable[..., str], api_keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VASTAI_MONTHLY_BUDGET", "25.5")
    url = serve_function("jobs")
    said = goblin("budget", "set", "key/ann", "0.01", "--per", "day", "--action", "freeze")
    assert said == "key/ann: $0.01 per day, then freeze\n"
    answer = httpx.get(f"{url}/budgets", headers=HEADERS, timeout=20)
    ann, vastai = answer.raise_for_status().json()
    assert (ann["account"], ann["period"], ann["limit_usd_micros"], ann["action"]) == (
        "key/ann",
        "day",
        10_000,
        "freeze",
    )
    assert (vastai["account"], vastai["period"], vastai["limit_usd_micros"]) == ("vastai", "month", 25_500_000)
    assert vastai["left_usd_micros"] == 25_500_000
    shown = goblin("budget", "show").splitlines()
    assert shown[0].split() == ["budget", "spent", "reserved", "left", "of"]
    assert shown[1].split() == ["key/ann", "$0.00", "$0.00", "$0.01", "$0.01", "per", "day,", "then", "freeze"]
    assert shown[2].endswith("$25.50  per month, then alert; VASTAI_MONTHLY_BUDGET")
    assert shown[-1] == "nothing is frozen"
    assert ann["unreachable"] == "refuse"
    goblin("budget", "set", "key/ann", "0.01", "--per", "day", "--when-unreachable", "spend_lent")
    ann = httpx.get(f"{url}/budgets", headers=HEADERS, timeout=20).raise_for_status().json()[0]
    assert (ann["unreachable"], ann["action"]) == ("spend_lent", "alert")
    goblin("budget", "set", "key/ann", "none", "--per", "day")
    assert [b["account"] for b in json.loads(goblin("budget", "show", "--json"))["budgets"]] == ["vastai"]
    goblin("budget", "set", "key/ann", "much", code=2)
    goblin("budget", "set", "a b", "1", code=1)


def test_a_raised_or_removed_limit_leaves_a_freeze_and_says_so(
    goblin: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOBLIN_MONTHLY_BUDGET", "10")
    process.settings.cache_clear()
    assert goblin("budget", "set", "total", "5") == "total: $5.00 per month, then alert\n"

    async def freeze() -> None:
        entry = LedgerEntry(
            entry_id="f", kind=EntryKind.FREEZE, account="total", amount_usd_micros=0, at=datetime.now(UTC),
            note="full", reaction=BudgetAction.FREEZE,
        )  # fmt: skip
        await ledger().record(entry)

    thread = threading.Thread(target=lambda: asyncio.run(freeze()))
    thread.start()
    thread.join(30)
    still = "still frozen: ./goblin budget thaw total\n"
    assert goblin("budget", "set", "total", "20").endswith(
        f"total: $10.00 per month holds, from GOBLIN_MONTHLY_BUDGET\n{still}"
    )
    assert goblin("budget", "set", "openai", "3") == f"openai: $3.00 per month, then alert\n{still}"
    assert goblin("budget", "set", "openai", "none") == f"openai has no limit per month now\n{still}"
    assert json.loads(goblin("budget", "set", "total", "none", "--json"))["frozen"] == ["total"]
    goblin("budget", "thaw", "total")
    assert "frozen" not in goblin("budget", "set", "total", "30")


def test_budgets_are_for_those_who_operate(serve_function: Callable[[str], str], api_keys: None) -> None:
    url = serve_function("jobs")
    assert httpx.get(f"{url}/budgets", timeout=20).status_code == 401
    assert httpx.post(f"{url}/budgets", headers=HEADERS, timeout=20).status_code == 405
    assert httpx.get(f"{url}/budgets/x", headers=HEADERS, timeout=20).status_code == 404


def test_the_hourly_settlement_reads_the_bills_that_are_configured(
    cloud: RunningCloud, serve_function: Callable[[str], str], goblin: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    charges = Charges()
    today = datetime.now(UTC)
    charges.charge("openai", today, 1_234_567)
    charges.charge("runpod", today - timedelta(days=2), 89)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        query = scope["query_string"].decode()
        answer = charges._answer(
            httpx.Request(
                "GET", f"http://bill{scope['path']}?{query}",
                headers=[(name.decode(), value.decode()) for name, value in scope["headers"]],
            )
        )  # fmt: skip
        await send({"type": "http.response.start", "status": answer.status_code, "headers": []})
        await send({"type": "http.response.body", "body": answer.content})

    monkeypatch.setenv("GOBLIN_PUSH_AUDIENCE", AUDIENCE)
    monkeypatch.setenv("GOBLIN_INVOKER_EMAIL", EMAIL)
    monkeypatch.setenv("GOBLIN_OIDC_CERTS_URL", f"{cloud.addresses.http}/oauth2/v1/certs")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "admin")
    monkeypatch.setenv("RUNPOD_API_KEY", "admin")
    monkeypatch.setenv("VASTAI_API_KEY", "wrong")
    with serve(application) as bill:
        for name in ("OPENAI", "RUNPOD", "VASTAI"):
            monkeypatch.setenv(f"{name}_BILLING_URL", bill)
        url = serve_function("settle_spend")
        assert httpx.post(url, json={}, timeout=20).status_code == 401
        assert cloud.cloud is not None
        token = cloud.cloud.identity.mint(email=EMAIL, audience=AUDIENCE)
        for _ in range(2):
            answer = httpx.post(url, headers={"authorization": f"Bearer {token}"}, timeout=30)
            report = answer.raise_for_status().json()
        assert list(report["unknown"]) == ["vastai"]
        assert "wrong" not in answer.text
    found = json.loads(goblin("costs", "--month", f"{today:%Y-%m}", "--json"))
    before = 89 if f"{today - timedelta(days=2):%Y-%m}" == f"{today:%Y-%m}" else 0
    assert found["total_usd_micros"] == 1_234_567 + before
    line = {"name": "openai", "spent_usd_micros": 1_234_567, "entries": 1, "running_usd_micros": 0}
    assert found["lines"][0] == line
    assert found["forecast_usd_micros"] >= found["total_usd_micros"]
    assert "$1.234567" in goblin("costs")
    assert goblin("costs", "--month", "soon", code=1)
