"""`goblin up --fakes`: markets of rented GPUs on this machine, whose instances are processes that run the agent."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from goblin.cli.ports import HOST
from goblin.wiring.settings import MONTHLY_BUDGETS

RECONCILE_S = 5
"""Between two looks at what is rented: nobody who watches waits for the minute."""
MONTHLY_BUDGET_USD = "200"
URL = "GOBLIN_MARKET_URL"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fakes:
    """The markets' port, and keys that open nothing else and live as long as this run."""

    port: int
    pace: float = 1.0
    """Machines boot, and are taken away, so many times faster than life; prices stay those of an hour."""
    vast_key: str = field(default_factory=lambda: f"local-{secrets.token_urlsafe(24)}", repr=False)
    runpod_key: str = field(default_factory=lambda: f"local-{secrets.token_urlsafe(24)}", repr=False)
    webhook_secret: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)

    @property
    def url(self) -> str:
        """Of both markets, and of the levers at `/market`."""
        return f"http://{HOST}:{self.port}"

    def words(self, folder: Path) -> Sequence[str]:
        """What `python -m localgpus` is told; every image is the agent."""
        agent = (sys.executable, "-u", "-m", "goblin.cli.child", "goblin_agent")
        return (f"--port={self.port}", f"--data={folder}", f"--pace={self.pace:g}", "--", *agent)

    def keys(self) -> Mapping[str, str]:
        """What the markets let in."""
        return {"VASTAI_API_KEY": self.vast_key, "RUNPOD_API_KEY": self.runpod_key}

    def budgets(self, said: Mapping[str, str]) -> Mapping[str, str]:
        """A budget, unless there is one: nothing is rented without, and this money is as real as the machines."""
        return {} if MONTHLY_BUDGETS.keys() & said.keys() else {"GOBLIN_MONTHLY_BUDGET": MONTHLY_BUDGET_USD}

    def variables(self) -> Mapping[str, str]:
        """What points the functions here, and away from where a person's own variables point."""
        return {
            **self.keys(),
            "VAST_API_URL": self.url,
            "VASTAI_BILLING_URL": self.url,
            "VASTAI_WEBHOOK_SECRET": self.webhook_secret,
            "RUNPOD_API_BASE_URL": f"{self.url}/v2",
            "RUNPOD_BILLING_URL": self.url,
            # Every image is the agent there; one must be named.
            "GOBLIN_AGENT_IMAGE": "goblin/agent",
            # It serves models with the same key: it must not get the made-up one.
            "RUNPOD_ENDPOINT_URL": "",
        }

    async def tell_events_to(self, goblin_url: str, http: httpx.AsyncClient) -> str:
        """Have Vast.ai's events told to our webhook; why not, empty when all is well."""
        said = {"url": f"{goblin_url}/webhooks/vastai", "secret": self.webhook_secret}
        return await self._pull("webhook", said, http, timeout_s=10.0)

    async def close(self, http: httpx.AsyncClient, *, within_s: float) -> str:
        """Rent nothing more, and let every instance save and end; why not, empty when all have."""
        return await self._pull("close", {"within_s": within_s}, http, timeout_s=within_s + 5)

    async def _pull(self, lever: str, said: Mapping[str, object], http: httpx.AsyncClient, *, timeout_s: float) -> str:
        try:
            answer = await http.post(f"{self.url}/market/{lever}", json=said, timeout=timeout_s)
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        return "" if answer.is_success else answer.text[:200]
