"""`goblin up --fakes`: GPU markets on this machine; their instances are processes that run the agent."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from goblin.cli.ports import HOST
from goblin.wiring.jobs import PACE_MAX
from goblin.wiring.settings import MONTHLY_BUDGETS

RECONCILE_S = 5
"""Interval of the reconcile schedule with `--fakes`; a minute would be long for a person who watches."""
MONTHLY_BUDGET_USD = "200"
URL = "GOBLIN_MARKET_URL"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fakes:
    """Port of the markets, and keys that are valid only there and only for this run."""

    port: int
    pace: float = 1.0
    """Speed-up of machine boots, preemptions and heartbeats against real time; prices per hour do not change."""
    vast_key: str = field(default_factory=lambda: f"local-{secrets.token_urlsafe(24)}", repr=False)
    runpod_key: str = field(default_factory=lambda: f"local-{secrets.token_urlsafe(24)}", repr=False)
    webhook_secret: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)

    @property
    def url(self) -> str:
        """Base URL of both markets and of the control API at `/market`."""
        return f"http://{HOST}:{self.port}"

    @property
    def reconcile_s(self) -> int:
        """Interval of the reconcile schedule, in whole seconds."""
        return max(1, min(RECONCILE_S, round(RECONCILE_S / self.pace)))

    def words(self, folder: Path) -> Sequence[str]:
        """Return the arguments of `python -m localgpus`; every image starts the agent."""
        agent = (sys.executable, "-u", "-m", "goblin.cli.child", "goblin_agent")
        return (f"--port={self.port}", f"--data={folder}", f"--pace={self.pace:g}", "--", *agent)

    def keys(self) -> Mapping[str, str]:
        """Return the API keys that the markets accept."""
        return {"VASTAI_API_KEY": self.vast_key, "RUNPOD_API_KEY": self.runpod_key}

    def budgets(self, said: Mapping[str, str]) -> Mapping[str, str]:
        """Return a default budget if none is set: jobs rent nothing without one, and no real money is spent here."""
        return {} if MONTHLY_BUDGETS.keys() & said.keys() else {"GOBLIN_MONTHLY_BUDGET": MONTHLY_BUDGET_USD}

    def variables(self) -> Mapping[str, str]:
        """Return the variables that point the functions at these markets, overriding a person's own variables."""
        return {
            **self.keys(),
            "VAST_API_URL": self.url,
            "VASTAI_BILLING_URL": self.url,
            "VASTAI_WEBHOOK_SECRET": self.webhook_secret,
            "RUNPOD_API_BASE_URL": f"{self.url}/v2",
            "RUNPOD_BILLING_URL": self.url,
            # Every image starts the agent there, but jobs need a name.
            "GOBLIN_AGENT_IMAGE": "goblin/agent",
            # A machine that is taken away ends that much sooner: its agent must hear of it before.
            "GOBLIN_PACE": f"{min(PACE_MAX, max(1.0, self.pace)):g}",
            # This endpoint uses RUNPOD_API_KEY too and must not be called with the local key.
            "RUNPOD_ENDPOINT_URL": "",
        }

    async def tell_events_to(self, goblin_url: str, http: httpx.AsyncClient) -> str:
        """Subscribe our webhook to the events of the local Vast.ai; return the error, empty on success."""
        said = {"url": f"{goblin_url}/webhooks/vastai", "secret": self.webhook_secret}
        return await self._pull("webhook", said, http, timeout_s=10.0)

    async def close(self, http: httpx.AsyncClient, *, within_s: float) -> str:
        """Close the markets and let every instance save and stop; return the error, empty on success."""
        return await self._pull("close", {"within_s": within_s}, http, timeout_s=within_s + 5)

    async def _pull(self, lever: str, said: Mapping[str, object], http: httpx.AsyncClient, *, timeout_s: float) -> str:
        try:
            answer = await http.post(f"{self.url}/market/{lever}", json=said, timeout=timeout_s)
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        return "" if answer.is_success else answer.text[:200]
