"""`goblin models`: register versions, promote them, roll back, and show what is served."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from goblin.cli import terminal
from goblin.cli.deployment import person, reach, run
from goblin.cli.main import DATA
from goblin.core.errors import InvalidRequest, NotFound
from goblin.registry import promotion as service
from goblin.registry import rollout
from goblin.registry.domain.versions import ModelName, Promotion, Version, parse_version
from goblin.registry.policy.promotion import NONE, PromotionRequest

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
REASON = click.option("--reason", default="", help="Reason, kept in the history.")


WAIT = click.option(
    "--wait", "wait_s", type=click.FloatRange(0, 3600), default=120, show_default=True, metavar="SECONDS",
    help="Longest wait for the model servers.",
)  # fmt: skip
NO_WAIT = click.option("--no-wait", is_flag=True, help="Do not wait for the model servers.")


class _Name(click.ParamType):
    name = "ORG/MODEL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ModelName:
        try:
            return ModelName.parse(value)
        except InvalidRequest as error:
            self.fail(error.message, param, ctx)


class _Version(click.ParamType):
    name = "VERSION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return parse_version(value)
        except InvalidRequest as error:
            self.fail(error.message, param, ctx)


class _Expected(_Version):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return NONE if value == NONE else super().convert(value, param, ctx)


EXPECT = click.option(
    "--expect", type=_Expected(), help="Move only if this version is in production now; `none` means that nothing is."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def models() -> None:
    """Register, promote, roll back and list versions of models."""


@models.command()
@click.argument("name", type=_Name())
@click.argument("version", type=_Version())
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@JSON
@DATA
def register(name: ModelName, version: str, file: Path, as_json: bool, data: Path | None) -> None:
    """Upload the GGUF FILE as VERSION (for example 1.2.0) of ORG/MODEL. A version never changes."""
    reach(data)
    done = run(_register(name, version, file))
    if as_json:
        terminal.echo_json(_json(_version_row(done)))
    else:
        terminal.echo(f"{name} {version} is registered: {done.artifact.uri}\nsha256 {done.artifact.sha256}")


async def _register(name: ModelName, version: str, file: Path) -> Version:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from goblin.wiring import registry as registry_wiring

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    size = file.stat().st_size  # noqa: ASYNC240 - nothing else runs here
    with Progress(*columns, console=terminal.console(stderr=True), transient=True) as shown:
        task = shown.add_task("digest", total=2 * size)

        def progress(done: int) -> None:
            shown.update(task, completed=done, description="upload" if done > size else "digest")

        return await service.register(
            name, version, file, actor=person(), progress=progress, deps=registry_wiring.registry()
        )


@models.command()
@click.argument("name", type=_Name())
@click.argument("version", type=_Version())
@EXPECT
@REASON
@WAIT
@NO_WAIT
@JSON
@DATA
def promote(
    name: ModelName, version: str, expect: str | None, reason: str, wait_s: float, no_wait: bool, as_json: bool,
    data: Path | None,
) -> None:  # fmt: skip
    """Put a registered VERSION of ORG/MODEL into production, and say which model servers serve or refused it."""
    reach(data)

    async def work() -> tuple[service.PromotionOutcome, rollout.Uptake | None]:
        from goblin.wiring import registry as registry_wiring

        deps = registry_wiring.registry()
        moved = await service.promote(name, version, expected=expect, request=_request(reason), deps=deps)
        return moved, None if no_wait else await _uptake(moved, wait_s)

    _show_move(*run(work()), wait_s=wait_s, as_json=as_json)


@models.command()
@click.argument("name", type=_Name())
@EXPECT
@REASON
@WAIT
@NO_WAIT
@JSON
@DATA
def rollback(
    name: ModelName, expect: str | None, reason: str, wait_s: float, no_wait: bool, as_json: bool, data: Path | None
) -> None:
    """Put the previous version back into production. A second rollback goes back one more."""
    reach(data)

    async def work() -> tuple[service.PromotionOutcome, rollout.Uptake | None]:
        from goblin.wiring import registry as registry_wiring

        deps = registry_wiring.registry()
        moved = await service.rollback(name, expected=expect, request=_request(reason), deps=deps)
        return moved, None if no_wait else await _uptake(moved, wait_s)

    _show_move(*run(work()), wait_s=wait_s, as_json=as_json)


@models.command("list")
@JSON
@DATA
def list_models(as_json: bool, data: Path | None) -> None:
    """List every model: the version in production, and the model servers that serve or refused it."""
    reach(data)

    async def work() -> list[rollout.RolloutOverview]:
        from goblin.wiring import registry as registry_wiring

        return await rollout.overview(registry_wiring.rollout())

    found = run(work())
    if as_json:
        terminal.echo_json(_json({"models": [_overview_row(one) for one in found]}))
        return
    _table(
        ("model", "production", "versions", "served by", "refused by"),
        [
            (
                str(one.name),
                f"{one.production.version} (seq {one.production.seq})" if one.production else "-",
                str(len(one.versions)),
                ", ".join(f"{endpoint}: {version}" for endpoint, version in one.served_by.items()),
                ", ".join(f"{endpoint}: {why}" for endpoint, why in one.refused_by.items()),
            )
            for one in found
        ],
    )


@models.command()
@click.argument("name", type=_Name())
@JSON
@DATA
def show(name: ModelName, as_json: bool, data: Path | None) -> None:
    """Show one model: its versions and its promotions."""
    reach(data)

    async def work() -> tuple[rollout.RolloutOverview, list[Promotion]]:
        from goblin.wiring import registry as registry_wiring

        deps = registry_wiring.rollout()
        found = next((one for one in await rollout.overview(deps) if one.name == name), None)
        if found is None:
            raise NotFound(f"There is no model {name}. List the models with: goblin models list")
        return found, await service.history(name, deps.models)

    found, moves = run(work())
    if as_json:
        terminal.echo_json(_json({**_overview_row(found), "history": [_move_row(move) for move in moves]}))
        return
    _table(
        ("version", "size", "sha256", "registered", "by"),
        [
            (v.version, f"{v.artifact.size:,}", v.artifact.sha256[:16], _when(v.registered_at), v.registered_by)
            for v in found.versions
        ],
    )
    _table(
        ("seq", "version", "promoted", "by", "reason"),
        [(str(m.seq), m.version, _when(m.promoted_at), m.promoted_by, m.reason) for m in moves],
    )
    for endpoint, why in found.refused_by.items():
        terminal.echo(f"{endpoint} refused {why}")


def _request(reason: str) -> PromotionRequest:
    return PromotionRequest(event_id=uuid.uuid4().hex, actor=person(), reason=reason, at=datetime.now(UTC))


async def _uptake(moved: service.PromotionOutcome, wait_s: float) -> rollout.Uptake:
    from goblin.wiring import registry as registry_wiring

    return await rollout.wait_for_uptake(moved.promotion, registry_wiring.rollout(), within_s=wait_s)


def _show_move(moved: service.PromotionOutcome, uptake: rollout.Uptake | None, *, wait_s: float, as_json: bool) -> None:
    if as_json:
        row = {**_move_row(moved.promotion), "changed": moved.changed, "announced": moved.announced}
        row |= {"before": moved.before, **(msgspec.to_builtins(uptake) if uptake else {})}
        terminal.echo_json(_json(row))
        return
    _say_move(moved)
    if uptake is not None:
        _say_uptake(uptake, wait_s)


def _say_uptake(uptake: rollout.Uptake, wait_s: float) -> None:
    for endpoint in uptake.served_by:
        terminal.echo(f"{endpoint} serves it")
    for endpoint, why in uptake.refused_by.items():
        terminal.echo(f"{endpoint} refused it: {terminal.plain(why)}")
    waiting = ", ".join(uptake.pending) or ("" if uptake.served_by or uptake.refused_by else "no model server")
    if waiting:
        verb = "has taken" if waiting == "no model server" else "has not taken"
        terminal.echo(f"{waiting} {verb} it within {wait_s:g} s; see: goblin models list", err=True)


def _say_move(moved: service.PromotionOutcome) -> None:
    promotion = moved.promotion
    what = f"{promotion.name} {promotion.version}"
    if not moved.changed:
        terminal.echo(f"{what} is in production already (seq {promotion.seq})")
        return
    terminal.echo(f"{what} is in production (seq {promotion.seq}); before: {moved.before or 'nothing'}")
    if not moved.announced:
        terminal.echo("its event could not be published yet; it is published within a minute", err=True)


def _overview_row(one: rollout.RolloutOverview) -> dict[str, Any]:
    return {
        "model": str(one.name),
        "production": _move_row(one.production) if one.production else None,
        "versions": [_version_row(version) for version in one.versions],
        "served_by": one.served_by,
        "refused_by": one.refused_by,
    }


def _version_row(version: Version) -> dict[str, Any]:
    return {**msgspec.to_builtins(version), "name": str(version.name)}


def _move_row(move: Promotion) -> dict[str, Any]:
    return {**msgspec.to_builtins(move), "name": str(move.name)}


def _when(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table

    table = Table(*titles, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    terminal.console(markup=False).print(table)
