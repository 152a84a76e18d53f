"""`goblin keys`: create, list and revoke API keys. A key is shown once, when it is made; only its SHA-256 is stored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import msgspec

from goblin.cli import terminal
from goblin.cli.deployment import reach, run
from goblin.cli.main import DATA, fail
from goblin.core.errors import NotFound
from goblin.gateway.keys import digest_of, new_key
from goblin.gateway.ports import ApiKey, Scope

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
SHOWN = 12
"""Characters of a digest that are shown: enough to tell keys apart, too few to guess a key."""
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1)}


class _Span(click.ParamType):
    name = "30d|12h"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        found = re.fullmatch(r"([1-9][0-9]{0,4})([hd])", value)
        if found is None:
            self.fail(f"{value!r} is not a span of time; write 30d or 12h", param, ctx)
        return int(found[1]) * _UNITS[found[2]]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def keys() -> None:
    """Create, list and revoke API keys."""


@keys.command()
@click.argument("name")
@click.option(
    "--tenant", default="", help="Owner of the key. Keys of one tenant share cached answers and jobs. Default: none."
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([str(scope) for scope in Scope]),
    help="What the key may do. Default: inference. Repeatable.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Model that the key may use; org/* means all that begin with org/. Default: all. Repeatable.",
)
@click.option("--rate", type=click.IntRange(min=1), help="Most requests per minute. Default: no limit.")
@click.option("--parallel", type=click.IntRange(min=1), help="Most requests in flight. Default: no limit.")
@click.option("--expires", type=_Span(), help="Time until the key expires. Default: never.")
@JSON
@DATA
def create(
    name: str,
    tenant: str,
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    rate: int | None,
    parallel: int | None,
    expires: timedelta | None,
    as_json: bool,
    data: Path | None,
) -> None:
    """Create a key called NAME and show it, this once."""
    reach(data)
    now = datetime.now(UTC)
    secret = new_key()
    key = ApiKey(
        digest=digest_of(secret),
        name=name,
        created_at=now,
        expires_at=None if expires is None else now + expires,
        tenant=tenant,
        scopes=scopes or (Scope.INFERENCE,),
        models=models or None,
        rate_per_minute=rate,
        parallel_max=parallel,
    )

    async def work() -> None:
        from goblin.wiring import gateway as gateway_wiring

        await gateway_wiring.key_store().put(key)

    run(work())
    if as_json:
        terminal.echo_json(msgspec.json.encode({"key": secret, **_fields(key)}).decode())
        return
    terminal.echo(secret)
    terminal.echo(
        f"{name}: {', '.join(key.scopes)}. Keep the key: it is not stored and cannot be shown again.", err=True
    )


@keys.command(name="list")
@JSON
@DATA
def list_keys(as_json: bool, data: Path | None) -> None:
    """List every key, the oldest first."""
    reach(data)
    found = run(_all())
    if as_json:
        terminal.echo_json(msgspec.json.encode({"keys": [_fields(key) for key in found]}).decode())
        return
    for key in found:
        row = f"{key.digest[:SHOWN]}  {_state(key, datetime.now(UTC)):<8} {key.name:<24} {_limits(key)}"
        terminal.echo(terminal.plain(row))
    if not found:
        terminal.echo("no keys; make one with: goblin keys create NAME")


@keys.command()
@click.argument("which")
@JSON
@DATA
def revoke(which: str, as_json: bool, data: Path | None) -> None:
    """Revoke a key; WHICH is its name, or the beginning of its digest. It stops working within 60 seconds."""
    reach(data)

    async def work() -> ApiKey:
        from goblin.wiring import gateway as gateway_wiring

        key = _only([key for key in await _all() if not key.disabled], which)
        if not await gateway_wiring.key_store().disable(key.digest):
            raise NotFound(f"The key {which!r} was removed meanwhile.")
        return key

    key = run(work())
    if as_json:
        terminal.echo_json(msgspec.json.encode({"revoked": key.digest[:SHOWN], "name": key.name}).decode())
        return
    terminal.echo(f"{key.name} ({key.digest[:SHOWN]}) is revoked and stops working within 60 s; its jobs end.")


async def _all() -> Sequence[ApiKey]:
    from goblin.wiring import gateway as gateway_wiring

    return await gateway_wiring.key_store().all()


def _only(keys: Sequence[ApiKey], which: str) -> ApiKey:
    """Return the only key that `which` names; end the command when several match."""
    found = [key for key in keys if key.name == which] or [
        key for key in keys if len(which) >= 6 and key.digest.startswith(which.lower())
    ]
    if not found:
        raise NotFound(f"There is no active key {which!r}. List the keys with: goblin keys list")
    if len(found) > 1:
        fail(f"{len(found)} keys are called {which!r}. Use a digest: {', '.join(key.digest[:SHOWN] for key in found)}")
    return found[0]


def _state(key: ApiKey, now: datetime) -> str:
    if key.disabled:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "good"


def _limits(key: ApiKey) -> str:
    said = [", ".join(key.scopes) or "nothing"]
    if key.models is not None:
        said.append(f"models {', '.join(key.models)}")
    if key.tenant:
        said.append(f"tenant {key.tenant}")
    if key.rate_per_minute is not None:
        said.append(f"{key.rate_per_minute} a minute")
    if key.parallel_max is not None:
        said.append(f"{key.parallel_max} at once")
    if key.expires_at is not None:
        said.append(f"until {key.expires_at:%Y-%m-%d %H:%M} UTC")
    return "; ".join(said)


def _fields(key: ApiKey) -> dict[str, object]:
    """Return all that is stored of a key, with shortened digests, for JSON output."""
    fields = {**msgspec.to_builtins(key), "digest": key.digest[:SHOWN], "asker": key.asker[:SHOWN]}
    del fields["asker_name"]
    return {**fields, "state": _state(key, datetime.now(UTC))}
