"""`goblin smoke`: a chat, a batch job and forged pushes, on a deployment that has just been made."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import httpx

from goblin.cli import terminal
from goblin.cli.api import needed
from goblin.cli.deployment import reach, run
from goblin.cli.job_show import ENDED
from goblin.cli.main import DATA
from goblin.cli.terminal import plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CALL_S = 120.0
"""Longest wait for one answer: the first one starts an instance, and its model perhaps a machine."""
LOOK_S = 2.0
MODELS_MAX = 5
"""How many models are tried. The first in the list may be one whose machine is off, or whose price is unknown."""
ITEMS = 5
BUDGET_USD = "0.50"
KEY_LIFE = timedelta(hours=1)
SHOWN_MAX = 200
REFUSED = (401, 403)
UNCONFIGURED = "No endpoint is configured. Set the variables and secrets of an endpoint in goblin.toml."


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one check found."""

    check: str
    ok: bool
    detail: str
    skipped: bool = False
    """Whether there was nothing to try."""


class Skipped(Exception):
    """There is nothing to try, which is no failure; the message is the detail."""


class Failed(Exception):
    """A check failed; the message is its detail."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", help="Model to ask. Default: the first of GET /v1/models that answers.")
@click.option(
    "--batch", type=click.Choice(["finished", "accepted", "no"]), default="finished", show_default=True,
    help="How far the batch job must come. accepted cancels it at once, so that no machine is rented.",
)  # fmt: skip
@click.option(
    "--wait", "wait_s", type=click.FloatRange(1, 86_400), default=900.0, show_default=True,
    help="Longest wait for the batch job, in seconds.",
)  # fmt: skip
@click.option(
    "--push-url", envvar="GOBLIN_PUSH_URL", show_envvar=True,
    help="URL of the function job_requested. Default: where `goblin up` serves it.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@DATA
def smoke(
    model: str | None, batch: str, wait_s: float, push_url: str | None, as_json: bool, data: Path | None
) -> None:  # fmt: skip
    """Try a deployment: a chat, a batch job, and forged pushes, which must be refused.

    Uses GOBLIN_API_KEY; without it, a key that is made for this and revoked at the end. The batch job may cost up to
    $0.50. Exits with 0 if everything is right, else with 1.
    """
    reach(data)
    gateway = needed("GOBLIN_URL").rstrip("/")
    jobs = (os.environ.get("GOBLIN_JOBS_URL") or gateway).rstrip("/")
    trial = Trial(gateway=gateway, jobs=jobs, push=push_url or f"{jobs}/fn/job_requested/", bucket=batch_bucket(batch))

    async def work() -> list[Outcome]:
        async with _key() as key:
            return await asyncio.to_thread(trial.all, key, model, batch, wait_s)

    found = run(work())
    if as_json:
        terminal.echo_json(json.dumps([asdict(one) for one in found]))
    else:
        for one in found:
            terminal.echo(
                f"{'skipped' if one.skipped else 'ok     ' if one.ok else 'FAILED '}  {one.check:<12}  {one.detail}"
            )
    if not all(one.ok for one in found):
        raise SystemExit(1)


def batch_bucket(batch: str) -> str:
    """Return the bucket of the batch job's dataset; ends the command when it is needed and not set."""
    return "" if batch == "no" else needed("GOBLIN_BUCKET")


@asynccontextmanager
async def _key() -> AsyncIterator[str]:
    """Yield the API key of the environment, else a new one that is revoked afterwards and expires within an hour."""
    if key := os.environ.get("GOBLIN_API_KEY"):
        yield key
        return
    from goblin.gateway.keys import digest_of, new_key
    from goblin.gateway.ports import ApiKey, Scope
    from goblin.wiring import gateway as gateway_wiring

    now = datetime.now(UTC)
    secret = new_key()
    store = gateway_wiring.key_store()
    await store.put(
        ApiKey(
            digest=digest_of(secret), name="smoke", created_at=now, expires_at=now + KEY_LIFE,
            scopes=(Scope.INFERENCE, Scope.JOBS, Scope.OPERATE),
        )
    )  # fmt: skip
    try:
        yield secret
    finally:
        await store.disable(digest_of(secret))


class Trial:
    """The checks of one deployment."""

    def __init__(self, *, gateway: str, jobs: str, push: str, bucket: str) -> None:
        self._gateway, self._jobs, self._push, self._bucket = gateway, jobs, push, bucket
        # No proxies from the environment: the key is sent to these URLs and nowhere else.
        self._http = httpx.Client(timeout=CALL_S, trust_env=False)
        self._model = ""
        self._unconfigured = False

    def all(self, key: str, model: str | None, batch: str, wait_s: float) -> list[Outcome]:
        """Run every check; one that fails does not keep the others from running."""
        mine = {"authorization": f"Bearer {key}"}
        checks: dict[str, Callable[[], str]] = {"chat": lambda: self._chat(mine, model)}
        if batch != "no":
            checks["batch job"] = lambda: self._batch(mine, finished=batch == "finished", wait_s=wait_s)
        checks["forged push"] = self._forged_push
        checks["forged key"] = self._forged_key
        with self._http:
            return [_outcome(name, check) for name, check in checks.items()]

    def _chat(self, key: Mapping[str, str], wanted: str | None) -> str:
        names = [wanted] if wanted else [row["id"] for row in self._get(f"{self._gateway}/v1/models", key)["data"]]
        if not names and self._has_no_provider(key):
            self._unconfigured = True
            raise Skipped(UNCONFIGURED)
        if not names:
            raise Failed("No model is served. Set the variables and secrets of an endpoint in goblin.toml.")
        reasons = []
        for name in names[:MODELS_MAX]:
            said = {"model": name, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}
            started = time.monotonic()
            answer = self._http.post(f"{self._gateway}/v1/chat/completions", json=said, headers=key)
            if answer.is_success and answer.json()["choices"]:
                self._model = name
                served = answer.headers.get("x-goblin-provider", "an endpoint")
                return f"{name} answered in {time.monotonic() - started:.1f} s, served by {served}"
            reasons.append(f"{name}: {_why(answer)}")
        raise Failed("; ".join(reasons))

    def _has_no_provider(self, key: Mapping[str, str]) -> bool:
        """Whether no endpoint is configured. A key without scope `operate` cannot show it, nor a faulty goblin.toml."""
        answer = self._http.get(f"{self._gateway}/providers", headers=key)
        return answer.is_success and not answer.headers.get("x-goblin-configuration") and answer.json() == {}

    def _batch(self, key: Mapping[str, str], *, finished: bool, wait_s: float) -> str:
        if self._unconfigured:
            raise Skipped(UNCONFIGURED)
        if not self._model:
            raise Failed("No model answered the chat, so no item of a batch would be answered either.")
        job_id = f"smoke-{secrets.token_hex(6)}"
        dataset = f"gs://{self._bucket}/datasets/{job_id}.jsonl"
        self._upload(dataset)
        spec = {
            "job_id": job_id, "kind": "batch", "dataset_uri": dataset, "checkpoint_every": ITEMS,
            "output_uri": f"gs://{self._bucket}/outputs/{job_id}.jsonl", "budget_usd": BUDGET_USD,
            "parameters": {"parallel": 1},
        }  # fmt: skip
        answer = self._http.post(f"{self._jobs}/jobs", json=spec, headers=key)
        if not answer.is_success:
            raise Failed(_why(answer))
        job = answer.json()
        if job["state"] in ("refused", "failed"):
            raise Failed(f"{job_id} is {job['state']}: {plain(job['reason'])}")
        if not finished:
            self._http.post(f"{self._jobs}/jobs/{job_id}/cancel", headers=key)
            return f"{job_id} was accepted ({job['state']}), then cancelled"
        ends_at = time.monotonic() + wait_s
        while job["state"] not in ENDED and time.monotonic() < ends_at:
            time.sleep(LOOK_S)
            job = self._get(f"{self._jobs}/jobs/{job_id}", key)
        if job["state"] not in ENDED:
            self._http.post(f"{self._jobs}/jobs/{job_id}/cancel", headers=key)
            raise Failed(f"{job_id} is still {job['state']} after {wait_s:.0f} s: {plain(job['reason'])}")
        if job["state"] != "succeeded":
            raise Failed(f"{job_id} is {job['state']}: {plain(job['reason'])}")
        return f"{job_id} answered {job['step']} of {ITEMS} requests"

    def _upload(self, uri: str) -> None:
        from google.api_core.exceptions import GoogleAPICallError
        from google.auth.exceptions import GoogleAuthError

        from goblin.cli.jobs import create

        items = [
            {
                "custom_id": f"item-{n}", "method": "POST", "url": "/v1/chat/completions",
                "body": {
                    "model": self._model, "max_tokens": 16,
                    "messages": [{"role": "user", "content": f"What is {n} plus 1?"}],
                },
            }
            for n in range(ITEMS)
        ]  # fmt: skip
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write("\n".join(json.dumps(item) for item in items))
            file.flush()
            try:
                create(uri, Path(file.name))
            except (GoogleAPICallError, GoogleAuthError, OSError) as error:
                raise Failed(f"Could not upload to {uri}: {error}") from error

    def _forged_push(self) -> str:
        """Send a push as Cloud Run would hand it on, without Google's signature, to the function itself."""
        answer = self._http.post(self._push, json=_MESSAGE, headers=forged(self._push))
        if answer.status_code in REFUSED:
            return f"refused with {answer.status_code}"
        if answer.status_code == httpx.codes.NOT_FOUND and not answer.headers.get("content-type", "").startswith(
            "application/json"
        ):
            # Source: cloud.google.com/run/docs/securing/ingress; an outsider sees no service where ingress is internal.
            return "refused with 404 before the function: its ingress is internal"
        raise Failed(f"{self._push} answered a forged push with {answer.status_code}, not with 401 or 403.")

    def _forged_key(self) -> str:
        """Send the same token to both public functions, which Google lets everyone reach."""
        said = []
        for method, url in (("GET", f"{self._gateway}/v1/models"), ("POST", f"{self._jobs}/jobs")):
            answer = self._http.request(method, url, json={}, headers=forged(url))
            if answer.status_code not in REFUSED:
                raise Failed(f"{method} {url} answered a forged token with {answer.status_code}, not with 401 or 403.")
            said.append(str(answer.status_code))
        return f"refused with {' and '.join(said)}"

    def _get(self, url: str, key: Mapping[str, str]) -> Any:
        answer = self._http.get(url, headers=key)
        if not answer.is_success:
            raise Failed(_why(answer))
        return answer.json()


# No function takes it: a push whose caller was believed would be answered with 400, and change nothing.
_MESSAGE = {"message": {"data": base64.b64encode(b"{}").decode(), "messageId": "1"}, "subscription": "smoke"}


def forged(url: str) -> dict[str, str]:
    """Return the header of a caller that claims to be Pub/Sub: right claims for a URL, and no signature."""
    now = int(time.time())
    project = os.environ.get("GCS_PROJECT_ID") or os.environ.get("GOOGLE_CLOUD_PROJECT") or "project"
    claims = {
        "iss": "https://accounts.google.com", "aud": url, "iat": now, "exp": now + 600, "email_verified": True,
        "email": os.environ.get("GOBLIN_INVOKER_EMAIL") or f"goblin-invoker@{project}.iam.gserviceaccount.com",
    }  # fmt: skip
    header, payload = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in ({"alg": "RS256", "kid": "1", "typ": "JWT"}, claims)
    )
    return {"authorization": f"Bearer {header}.{payload}.SIGNATURE_REMOVED_BY_GOOGLE"}


def _outcome(name: str, check: Callable[[], str]) -> Outcome:
    try:
        return Outcome(check=name, ok=True, detail=check())
    except Skipped as reason:
        return Outcome(check=name, ok=True, detail=str(reason), skipped=True)
    except Failed as reason:
        return Outcome(check=name, ok=False, detail=str(reason))
    except httpx.TransportError as error:
        return Outcome(check=name, ok=False, detail=f"No answer: {error or type(error).__name__}.")
    except (ValueError, KeyError, TypeError) as error:
        return Outcome(check=name, ok=False, detail=f"The answer is not Goblin's: {type(error).__name__} {error}.")


def _why(answer: httpx.Response) -> str:
    try:
        text = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = answer.text or "no text"
    return f"{answer.url.path} answered {answer.status_code}: {plain(text)[:SHOWN_MAX]}"
