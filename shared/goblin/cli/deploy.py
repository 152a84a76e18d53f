"""`goblin deploy`: from the checkout to a Google Cloud project, by five commands that are printed before they run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from goblin.cli import paths, terminal
from goblin.cli.deployment import person
from goblin.cli.diagnosis import reason_of
from goblin.cli.main import fail

TERRAFORM_MIN = (1, 11)
"""Source: `required_version` in terraform/versions.tf."""
APIS = ("cloudresourcemanager.googleapis.com", "serviceusage.googleapis.com", "storage.googleapis.com")
"""What must be on before Terraform can enable the other APIs and keep its state."""
DEFAULT_REGION = "us-east1"
STEPS = 5
CALL_S = 60
"""Longest wait for a command that only reads."""
TERRAFORM = ("terraform", "-chdir=terraform")


Wanted = TypeVar("Wanted")
Otherwise = TypeVar("Otherwise")


class DeployRefused(Exception):
    """Something is missing or failed; the message says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where to deploy to, and what."""

    root: Path
    project: str
    number: str
    """The project's number; empty when gcloud did not print it."""
    region: str | None
    var_file: str | None
    """Path from the root of the checkout, as the build sees it."""
    commit: str
    approved: bool
    """Whether Terraform applies without asking."""

    @property
    def state_bucket(self) -> str:
        return f"{self.project}-goblin-state"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--plan", "plan_only", is_flag=True, help="Check everything and show what would change. Changes nothing.")
@click.option("--project", metavar="ID", help="Google Cloud project. Default: the one that gcloud is set to.")
@click.option("--region", help=f"Region of everything but GPUs. Default: {DEFAULT_REGION}, or what the file says.")
@click.option(
    "--var-file", type=click.Path(path_type=Path), metavar="FILE",
    help="Terraform variables, in the checkout, for example terraform/my-project.tfvars. Default: none.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Apply without asking.")
def deploy(plan_only: bool, project: str | None, region: str | None, var_file: Path | None, yes: bool) -> None:
    """Deploy this commit to a Google Cloud project, or update it there.

    Each command is printed before it runs, so that you can run it yourself. What is done already is not done again, so
    after a failure you can give the same command.
    """
    root = paths.checkout()
    if root is None:
        fail("Goblin is deployed from a checkout. Clone the repository and run ./goblin there.")
    try:
        target = _target(root, project, region, var_file, approved=yes)
        _Deployment(target, plan_only=plan_only).run()
    except DeployRefused as reason:
        fail(str(reason))


def _target(root: Path, project: str | None, region: str | None, var_file: Path | None, *, approved: bool) -> Target:
    """Check the tools, the login, the project and the checkout. Raises `DeployRefused`."""
    _check_tools(root)
    name = project or _line(_asked(root, "gcloud", "config", "get-value", "project"))
    if not name or name == "(unset)":
        raise DeployRefused("No project is chosen. Name it with --project ID; `gcloud projects list` shows yours.")
    if not re.fullmatch(r"[a-z][a-z0-9-]{4,28}[a-z0-9]", name):
        raise DeployRefused(f"{name!r} is not the id of a project. `gcloud projects list` shows the ids.")
    number = _check_project(root, name)
    file = _in_checkout(root, var_file)
    if file:
        _check_named_project(root / file, name)
    return Target(
        root=root, project=name, number=number, region=region, var_file=file, commit=_commit(root), approved=approved
    )


def _check_tools(root: Path) -> None:
    for tool, where in (
        ("gcloud", "cloud.google.com/sdk/docs/install"),
        ("terraform", "developer.hashicorp.com/terraform/install"),
        ("git", "git-scm.com"),
    ):
        if shutil.which(tool) is None:
            raise DeployRefused(f"Found no {tool} on PATH. Install it: {where}")
    version = str(_json(_asked(root, "terraform", "version", "-json"), dict, {}).get("terraform_version", "0.0"))
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    if tuple(numbers) < TERRAFORM_MIN:
        wanted = ".".join(map(str, TERRAFORM_MIN))
        raise DeployRefused(f"Terraform {version} is too old. Install {wanted} or newer.")
    if not _line(_asked(root, "gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=value(account)")):
        raise DeployRefused("gcloud is not logged in. Run: gcloud auth login")


def _check_project(root: Path, project: str) -> str:
    """Return the project's number. Raises `DeployRefused` for a project that cannot be deployed to."""
    described = _asked(root, "gcloud", "projects", "describe", project, "--format=json")
    if described.returncode:
        raise DeployRefused(
            f"Project {project} cannot be read ({reason_of(described.stderr)}). `gcloud projects list` shows yours; a "
            f"new one is made with: gcloud projects create {project}"
        )
    about = _json(described, dict, {})
    state = about.get("lifecycleState")
    if not isinstance(state, str):
        raise DeployRefused(f"Project {project} cannot be read: gcloud projects describe printed no lifecycleState.")
    if state != "ACTIVE":
        raise DeployRefused(f"Project {project} is {state}. Bring it back with: gcloud projects undelete {project}")
    billing = _asked(root, "gcloud", "billing", "projects", "describe", project, "--format=json")
    # Without a readable answer nothing is known: who may not read billing may deploy.
    if not _json(billing, dict, {"billingEnabled": True}).get("billingEnabled"):
        raise DeployRefused(
            f"Project {project} has no billing account, so its APIs stay off. Run: "
            f"gcloud billing projects link {project} --billing-account=ACCOUNT (gcloud billing accounts list)"
        )
    listed = _asked(root, "gcloud", "services", "list", "--enabled", f"--project={project}", "--format=json")
    configs = [row.get("config") for row in _json(listed, list, []) if isinstance(row, dict)]
    enabled = [config.get("name") for config in configs if isinstance(config, dict)]
    if missing := [api for api in APIS if api not in enabled]:
        raise DeployRefused(
            f"Terraform needs {len(missing)} more API{'s' if len(missing) > 1 else ''} to begin with. Run: "
            f"gcloud services enable {' '.join(missing)} --project={project}"
        )
    return str(about.get("projectNumber") or "")


def _check_named_project(file: Path, project: str) -> None:
    """Refuse a file that names another project: it was written for that one."""
    found = re.search(
        r'^\s*project_id\s*=\s*"([^"]*)"', file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
    )
    if found and found[1] != project:
        raise DeployRefused(
            f"{file.name} names project {found[1]}, but the deployment is to {project}. Give --project {found[1]}, or "
            "remove project_id from the file."
        )


def _in_checkout(root: Path, var_file: Path | None) -> str | None:
    if var_file is None:
        return None
    file = var_file.absolute()
    if not file.is_file():
        raise DeployRefused(f"There is no file {var_file}. Copy one of terraform/examples/ and change it.")
    try:
        inside = file.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise DeployRefused(
            f"{var_file} is outside the checkout, so the build would not see it. Put it into terraform/."
        ) from None
    if "," in inside or not _asked(root, "git", "check-ignore", "--quiet", inside).returncode:
        raise DeployRefused(f"{inside} is ignored by git, or has a comma, so the build would not see it. Rename it.")
    return inside


def _commit(root: Path) -> str:
    head = _asked(root, "git", "rev-parse", "HEAD")
    if head.returncode:
        raise DeployRefused("This checkout has no commit. Images are named by commit: make one with git commit.")
    if _asked(root, "git", "diff", "--quiet", "HEAD").returncode:
        raise DeployRefused(
            "Tracked files differ from the commit that the images would be named by. Commit them, or put them aside "
            "with: git stash"
        )
    return _line(head)


class _Deployment:
    """The five steps, each printed before it runs."""

    def __init__(self, target: Target, *, plan_only: bool) -> None:
        self._to = target
        self._plan_only = plan_only
        self._step = 0

    def run(self) -> None:
        """Run every step, or with `plan_only` those that only read. Raises `DeployRefused`."""
        self._credentials()
        has_state = self._state_bucket()
        self._resources(has_state=has_state)
        self._build()
        self._key()
        if self._plan_only:
            terminal.echo("\nNothing was changed. Deploy with: ./goblin deploy --project " + self._to.project)
        else:
            terminal.echo(f"\nDeployed. What it still lacks: ./goblin doctor --project {self._to.project}")

    def _credentials(self) -> None:
        self._title("credentials for Terraform")
        there = _asked(self._to.root, "gcloud", "auth", "application-default", "print-access-token").returncode == 0
        self._do("gcloud", "auth", "application-default", "login", done=there)

    def _state_bucket(self) -> bool:
        self._title("a bucket for Terraform's state")
        bucket = f"gs://{self._to.state_bucket}"
        asked = _asked(self._to.root, "gcloud", "storage", "buckets", "describe", bucket, "--format=json")
        there = asked.returncode == 0
        about = _json(asked, dict, {})
        owner = str(about.get("project_number") or about.get("projectNumber") or self._to.number)
        if self._to.number and owner != self._to.number:
            raise DeployRefused(
                f"Bucket {bucket} belongs to project {owner}, not to {self._to.project} ({self._to.number}), so its "
                "owner could read Terraform's state. Deploy to a project with another id."
            )
        self._do(
            "gcloud", "storage", "buckets", "create", bucket, f"--project={self._to.project}",
            f"--location={self._to.region or DEFAULT_REGION}", "--uniform-bucket-level-access",
            "--public-access-prevention", done=there,
        )  # fmt: skip
        return there or not self._plan_only

    def _resources(self, *, has_state: bool) -> None:
        self._title("everything that Terraform makes")
        # The folder may be initialised for another project's bucket.
        init = (*TERRAFORM, "init", "-input=false", "-reconfigure", f"-backend-config=bucket={self._to.state_bucket}")
        if not has_state:
            self._show(init)
            self._show((*TERRAFORM, "apply", *self._variables({})))
            terminal.echo("  would run; its plan can be shown once the bucket exists")
            return
        self._run(init)
        words = self._variables(self._images_in_use())
        if self._plan_only:
            self._run((*TERRAFORM, "plan", "-input=false", "-lock=false", *words))
            return
        self._run((*TERRAFORM, "apply", *(("-auto-approve",) if self._to.approved else ()), *words))
        self._secrets()

    def _images_in_use(self) -> dict[str, str]:
        """Return the images in use; empty before the first apply."""
        asked = self._output("images_in_use")
        images = _json(asked, dict, None)
        if images is None and asked.returncode == 0:
            raise DeployRefused(
                "The images in use cannot be read, and an apply without them would remove the functions. See: "
                "terraform -chdir=terraform output -json images_in_use"
            )
        return {name: image for name, image in (images or {}).items() if isinstance(image, str)}

    def _secrets(self) -> None:
        """Check that each secret of Terraform has a version: without one no revision of a function starts."""
        names = _json(self._output("secrets"), dict, {}).values()
        empty = []
        for name in sorted(name for name in names if isinstance(name, str)):
            asked = _asked(
                self._to.root, "gcloud", "secrets", "versions", "list", name, f"--project={self._to.project}",
                "--format=json",
            )  # fmt: skip
            versions = _json(asked, list, None)
            if versions is None:
                terminal.echo(f"  The versions of secret {name} could not be read.")
            elif not any(isinstance(row, dict) and row.get("state") == "ENABLED" for row in versions):
                empty.append(name)
        if empty:
            for name in empty:
                terminal.echo(
                    f"  printf %s KEY | gcloud secrets versions add {name} --project={self._to.project} --data-file=-"
                )
            raise DeployRefused(
                f"Secrets without a value: {', '.join(empty)}. Their functions would not start. Run the commands above "
                "with the values, and give the same command again."
            )

    def _variables(self, images: Mapping[str, str]) -> tuple[str, ...]:
        """Build Terraform's variables. Without the images in use an apply would remove the functions.

        The file comes first: Terraform takes the last of two values.
        """
        region = (f"-var=region={self._to.region}",) if self._to.region else ()
        file = (f"-var-file={self._to.root / self._to.var_file}",) if self._to.var_file else ()
        used = (f"-var={name}={image}" for name, image in sorted(images.items()))
        return (*file, f"-var=project_id={self._to.project}", *region, *used)

    def _build(self) -> None:
        self._title(f"check, build, deploy and try commit {self._to.commit[:12]}")
        # `images` is REGION-docker.pkg.dev/PROJECT/PREFIX, as Terraform has decided.
        where = "" if self._plan_only else _json(self._output("images"), str, "")
        found = re.fullmatch(r"([a-z0-9-]+)-docker\.pkg\.dev/[^/]+/([a-z0-9]+)", where)
        region, prefix = found.groups() if found else (self._to.region or DEFAULT_REGION, "goblin")
        said = {"_COMMIT": self._to.commit, "_APPLY": "true", "_REGION": region, "_PREFIX": prefix}
        if self._to.var_file:
            said["_VAR_FILE"] = self._to.var_file
        substitutions = ",".join(f"{name}={value}" for name, value in said.items())
        self._do(
            "gcloud", "builds", "submit", f"--project={self._to.project}", "--config=cloudbuild.yaml",
            f"--substitutions={substitutions}",
        )  # fmt: skip

    def _key(self) -> None:
        name = person()
        self._title(f"an API key called {name}")
        terminal.echo(f'  $ eval "$(terraform -chdir=terraform output -raw env)" && ./goblin keys create {name}')
        if self._plan_only:
            terminal.echo("  would run")
            return
        said = _asked(self._to.root, *TERRAFORM, "output", "-raw", "env")
        environment = {**os.environ, **exported(said.stdout)}
        goblin = (sys.executable, "-m", "goblin.cli")
        listed = _asked(self._to.root, *goblin, "keys", "list", "--json", env=environment)
        known = _json(listed, dict, {}).get("keys")
        if not isinstance(known, list):
            why = reason_of(listed.stderr) if listed.returncode else "goblin keys list printed no list of keys"
            raise DeployRefused(
                f"The API keys could not be read ({why}), so no second one called {name} is made. Give the same "
                "command again."
            )
        if any(isinstance(key, dict) and (key.get("name"), key.get("state")) == (name, "good") for key in known):
            terminal.echo("  done already; ./goblin keys list shows it")
            return
        if subprocess.run(
            [*goblin, "keys", "create", name], cwd=self._to.root, env=environment, check=False
        ).returncode:
            raise self._failed("goblin keys create")

    def _title(self, text: str) -> None:
        self._step += 1
        terminal.echo(f"\n[{self._step}/{STEPS}] {text}")

    def _show(self, words: Sequence[str]) -> None:
        terminal.echo(f"  $ {shlex.join(words)}")

    def _do(self, *words: str, done: bool = False) -> None:
        """Run a command that changes something, unless it is done, or only planned."""
        if done or self._plan_only:
            self._show(words)
            terminal.echo("  done already" if done else "  would run")
            return
        self._run(words)

    def _run(self, words: Sequence[str]) -> None:
        self._show(words)
        sys.stdout.flush()
        started = time.monotonic()
        if subprocess.run(words, cwd=self._to.root, check=False).returncode:
            raise self._failed(shlex.join(words[:3]))
        terminal.echo(f"  done in {time.monotonic() - started:.0f} s")

    def _output(self, name: str) -> subprocess.CompletedProcess[str]:
        """Ask for an output of Terraform; before the first apply it ends with an error."""
        return _asked(self._to.root, *TERRAFORM, "output", "-json", name)

    def _failed(self, what: str) -> DeployRefused:
        return DeployRefused(
            f"Step {self._step} of {STEPS} failed ({what}); its output is above. Mend it and give the same command "
            "again: what is done is not done twice."
        )


def exported(text: str) -> dict[str, str]:
    """Read lines of the form `export NAME='value'`, as a shell would. Raises `DeployRefused` for an open quote."""
    found = {}
    for line in text.splitlines():
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise DeployRefused(
                f"Terraform's output env cannot be read ({error}). See: terraform -chdir=terraform output -raw env"
            ) from error
        if len(words) == 2 and words[0] == "export" and "=" in words[1]:
            name, _, value = words[1].partition("=")
            found[name] = value
    return found


def _asked(root: Path, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that changes nothing, and keep what it prints. Raises `DeployRefused` without an answer in time."""
    try:
        return subprocess.run(
            words, cwd=root, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=CALL_S,
            stdin=subprocess.DEVNULL, env=None if env is None else dict(env),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DeployRefused(
            f"No answer within {CALL_S} s from: {shlex.join(words)}. Run it yourself to see why, then give the same "
            "command again."
        ) from None


def _json(ended: subprocess.CompletedProcess[str], wanted: type[Wanted], otherwise: Otherwise) -> Wanted | Otherwise:
    """Return the JSON that a command printed; `otherwise` if it failed, or printed something of another type."""
    try:
        found = json.loads(ended.stdout) if ended.returncode == 0 else None
    except (ValueError, RecursionError):
        return otherwise
    return found if isinstance(found, wanted) else otherwise


def _line(ended: subprocess.CompletedProcess[str]) -> str:
    return ended.stdout.strip() if ended.returncode == 0 else ""
