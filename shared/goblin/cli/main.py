"""The `goblin` command line. Each command imports what it needs when it runs, so that `--help` is fast."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, NoReturn

import click

from goblin import __version__
from goblin.cli import paths, terminal

NO_PROBES = {
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    "NO_GCE_CHECK": "true",
    "METADATA_SERVER_DETECTION": "none",
}
"""Variables for `goblin env` that keep Google's clients from waiting for what no local cloud has.

In this order: gcsfs asks a gRPC API over TLS for each bucket's kind (60 s per call); Python's clients (12 s) and Node's
(3 s) look for the metadata server of a Compute Engine instance. Measured 2026-12-01 with gcsfs 2026.10.1, google-auth
2.63.0 and google-gax 5.
"""

DATA = click.option(
    "--data", type=click.Path(file_okay=False, path_type=Path), envvar="GOBLIN_DATA",
    help="Folder of all local state. Default: .goblin in the checkout.",
)  # fmt: skip


class BadWords(click.ClickException):
    """A command line that cannot be understood; printed as one line, exit code 2."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        terminal.echo(f"goblin: {self.message}", err=True)


@contextmanager
def _one_line() -> Iterator[None]:
    """Print a usage error as one line, without the whole usage text."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        where = f" (see: {error.ctx.command_path} --help)" if error.ctx else ""
        raise BadWords(f"{' '.join(error.format_message().split()).rstrip('.')}{where}") from error


class _Commands(click.Group):
    """Command group that imports a command's module when the command is used."""

    lazy: ClassVar[dict[str, tuple[str, str]]] = {
        "audit": ("goblin.cli.audit", "audit"),
        "budget": ("goblin.cli.budget", "budget"),
        "bundle": ("goblin.cli.bundle", "bundle"),
        "costs": ("goblin.cli.costs", "costs"),
        "dead-letters": ("goblin.cli.dead_letters", "dead_letters"),
        "deploy": ("goblin.cli.deploy", "deploy"),
        "doctor": ("goblin.cli.doctor", "doctor"),
        "jobs": ("goblin.cli.jobs", "jobs"),
        "keys": ("goblin.cli.keys", "keys"),
        "market": ("goblin.cli.market", "market"),
        "models": ("goblin.cli.models", "models"),
        "sbom": ("goblin.cli.sbom", "sbom"),
        "smoke": ("goblin.cli.smoke", "smoke"),
    }

    def make_context(self, *words: Any, **more: Any) -> click.Context:
        with _one_line():
            return super().make_context(*words, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self.lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.lazy:
            module, name = self.lazy[cmd_name]
            found: click.Command = getattr(importlib.import_module(module), name)
            return found
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="goblin")
def main() -> None:
    """Run Goblin: one OpenAI-compatible endpoint and one job topic in front of many GPU clouds."""


def fail(message: str) -> NoReturn:
    """Print one line that says what is wrong and what to do; exit with 1."""
    terminal.echo(f"goblin: {message}", err=True)
    raise SystemExit(1)


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Port for HTTP.")
@DATA
@click.option(
    "--cloud", type=click.Choice(["embedded", "emulators"]), default="embedded", show_default=True,
    help="Goblin's own local cloud, or Google's emulators of Pub/Sub and Firestore, which lose all data when stopped "
    "and answer pages in this machine's browser.",
)  # fmt: skip
@click.option(
    "--model", type=click.Path(path_type=Path), envvar="GOBLIN_MODEL",
    help="GGUF file to serve. Default: goblin-tiny, which is included.",
)  # fmt: skip
@click.option(
    "--fakes", is_flag=True, help="Also run simulated GPU markets (Vast.ai and RunPod) on this machine, for jobs."
)
@click.option(
    "--pace", type=click.FloatRange(0.1, 1000), default=1.0, show_default=True,
    help="With --fakes: speed-up of machine boots, preemptions and heartbeats against real time.",
)  # fmt: skip
@click.option(
    "--throttle", is_flag=True,
    help="Give functions other than the gateway no CPU between requests, as Cloud Run does with request-based billing.",
)  # fmt: skip
def up(
    port: int, data: Path | None, cloud: Literal["embedded", "emulators"], model: Path | None, fakes: bool, pace: float,
    throttle: bool,
) -> None:  # fmt: skip
    """Run all of Goblin on this machine until Ctrl-C."""
    from goblin.cli import up as running

    def say(text: str) -> None:
        terminal.echo(f"goblin: {text}", err=True)

    def ready(variables: dict[str, str], seconds: float) -> None:
        _show_ready(variables, folder, seconds)

    folder = paths.data_folder(data)
    say(f"starting; data folder: {folder}")
    try:
        choice = running.UpOptions(
            port=port, data=folder, cloud=cloud, model=model, fakes=fakes, pace=pace, throttle=throttle
        )
        code = running.main(choice, say, ready)
    except (running.UpRefused, OSError) as reason:
        fail(str(reason))
    else:
        raise SystemExit(code)


def _show_ready(variables: dict[str, str], folder: Path, seconds: float) -> None:
    """Print that everything is ready, the addresses, and how to use them."""
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    url = variables["GOBLIN_URL"]
    rows = [("inference", f"{url}/v1"), ("console", f"{url}/")]
    rows += [(name, value) for name, value in variables.items() if name.endswith("_EMULATOR_HOST")]
    rows += [("market", f"{variables[name]}/market") for name in variables if name == "GOBLIN_MARKET_URL"]
    rows += [("data", str(folder))]
    for row in rows:
        table.add_row(*row)
    console = terminal.console(soft_wrap=True)
    console.print(f"\n[bold green]ready[/] in {seconds:.1f} s\n")
    console.print(table)
    command = "./goblin" if paths.checkout() else "goblin"
    console.print(f'\nPoint an app here:  eval "$({command} env)"      Stop: Ctrl-C\n')


@main.command()
@DATA
def env(data: Path | None) -> None:
    """Print the variables that point an app at the running Goblin; use with: eval "$(./goblin env)"."""
    folder = paths.data_folder(data)
    variables = paths.DataFolder(folder).environment()
    if variables is None:
        fail(f"No Goblin is ready on {folder}. Start it with: ./goblin up")
        return
    for name, value in (variables | NO_PROBES).items():
        terminal.echo(f"export {name}={shlex.quote(value)}")


def _checkout() -> Path:
    root = paths.checkout()
    if root is None:
        fail("Tests and benches need a checkout. Clone the repository and run ./goblin there.")
    return root


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def test(words: tuple[str, ...]) -> None:
    """Run the tests; further arguments go to pytest. With `clients`, run real programs against one Goblin instead."""
    os.chdir(_checkout())
    if words[:1] == ("clients",):
        words = ("-n0", "tests/clients", *words[1:])
    # One worker more than the two cores of the smallest supported machine: a third of the suite waits for processes.
    workers = () if any(word.startswith(("-n", "--pdb")) for word in words) else ("-n", "3", "--dist", "loadgroup")
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *workers, *words])  # noqa: S606 - ourselves


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on the last line.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Image file to draw the result into.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def bench(name: str | None, as_json: bool, plot: Path | None, words: tuple[str, ...]) -> None:
    """Run the benchmark NAME, side by side with what it is compared to; without NAME, list the benchmarks."""
    folder = _checkout() / "tests" / "bench"
    known = sorted(file.stem for file in folder.glob("[a-z]*.py"))
    if name is None:
        terminal.echo("\n".join(known))
        return
    if name not in known:
        fail(f"There is no benchmark {name!r}. Choose one of: {', '.join(known)}.")
    sys.path.insert(0, str(folder.parent.parent))
    measured: dict[str, Any] = runpy.run_path(str(folder / f"{name}.py"))
    result = measured["run"](list(words))
    terminal.echo(measured["table"](result))
    if plot is not None:
        if "plot" not in measured:
            fail(f"The benchmark {name} has no plot. Run it without --plot.")
        measured["plot"](result, plot)
        terminal.echo(f"plot: {plot}")
    if as_json:
        terminal.echo_json(json.dumps(result))
