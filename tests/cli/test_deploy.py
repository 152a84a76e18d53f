"""`goblin deploy`, against fakes of gcloud, terraform and git on PATH that write down how they are called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from goblin.cli import deploy
from tests.clouds import RunningCloud, environment
from tests.fakes.commands import Commands

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
IMAGE = f"us-east1-docker.pkg.dev/my-project/goblin/functions@sha256:{'a' * 64}"
APIS = [{"config": {"name": name}, "state": "ENABLED"} for name in deploy.APIS]
CHANGING = {
    ("gcloud", "auth", "application-default", "login"),
    ("gcloud", "storage", "buckets", "create"),
    ("gcloud", "builds", "submit"),
    ("terraform", "-chdir=terraform", "apply"),
}

Deploy = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCloud]:
    with RunningCloud(tmp_path_factory.mktemp("cloud"), services=("firestore",)) as cloud:
        yield cloud


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    """A project that can be read and billed, with no state yet; the checkout is clean."""
    commands = Commands(tmp_path / "bin", "gcloud", "terraform", "git")
    commands.answer("terraform version -json", {"terraform_version": "1.11.4"})
    commands.answer("gcloud auth list", "ann@example.com\n")
    commands.answer("gcloud config get-value project", "my-project\n")
    commands.answer("gcloud projects describe", {"projectId": "my-project", "lifecycleState": "ACTIVE"})
    commands.answer("gcloud billing projects describe", {"billingEnabled": True})
    commands.answer("gcloud services list", APIS)
    commands.answer("gcloud auth application-default print-access-token", code=1, err="ERROR: no credentials\n")
    commands.answer("gcloud storage buckets describe", code=1, err="ERROR: 404 not found\n")
    commands.answer("terraform -chdir=terraform output", code=1, err="Error: Output not found\n")
    commands.answer("git rev-parse HEAD", f"{COMMIT}\n")
    commands.answer("git check-ignore", code=1)
    return commands


@pytest.fixture
def run(commands: Commands, tmp_path: Path) -> Deploy:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        known = {name: value for name, value in os.environ.items() if not name.startswith(("GOBLIN_", "GCS_"))}
        return subprocess.run(
            [sys.executable, "-m", "goblin.cli", "deploy", *words], cwd=tmp_path, capture_output=True, text=True,
            env={**known, "PATH": commands.path()}, timeout=90, check=False,
        )  # fmt: skip

    return call


def deployed(commands: Commands, cloud: RunningCloud) -> Mapping[str, str]:
    """A project where everything was made before, with a real Firestore behind `output env`."""
    said = {**environment(cloud.addresses), "GOOGLE_CLOUD_PROJECT": cloud.project(), "GOBLIN_BUCKET": "b"}
    commands.answer("gcloud auth application-default print-access-token", "token\n")
    commands.answer("gcloud storage buckets describe", {"name": "my-project-goblin-state"})
    commands.answer("terraform -chdir=terraform output -json images_in_use", {"image": IMAGE})
    commands.answer("terraform -chdir=terraform output -json images", '"europe-west1-docker.pkg.dev/my-project/gob"')
    commands.answer(
        "terraform -chdir=terraform output -raw env", "\n".join(f"export {name}='{said[name]}'" for name in said)
    )
    return said


def changed(commands: Commands) -> list[tuple[str, ...]]:
    found = [next((tuple(call[: len(one)]) for one in CHANGING if tuple(call[: len(one)]) == one), None) for call in
             commands.calls()]  # fmt: skip
    return [one for one in found if one is not None]


def test_the_first_time_five_commands_run_in_their_order(commands: Commands, run: Deploy, cloud: RunningCloud) -> None:
    said = {**environment(cloud.addresses), "GOOGLE_CLOUD_PROJECT": cloud.project(), "GOBLIN_BUCKET": "b"}
    commands.answer(
        "terraform -chdir=terraform output -raw env", "\n".join(f"export {name}='{said[name]}'" for name in said)
    )
    ended = run()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert changed(commands) == [
        ("gcloud", "auth", "application-default", "login"),
        ("gcloud", "storage", "buckets", "create"),
        ("terraform", "-chdir=terraform", "apply"),
        ("gcloud", "builds", "submit"),
    ]
    assert commands.calls("gcloud", "storage", "buckets", "create") == [[
        "gcloud", "storage", "buckets", "create", "gs://my-project-goblin-state", "--project=my-project",
        "--location=us-east1", "--uniform-bucket-level-access", "--public-access-prevention",
    ]]  # fmt: skip
    (init,) = commands.calls("terraform", "-chdir=terraform", "init")
    assert init[3:] == ["-input=false", "-reconfigure", "-backend-config=bucket=my-project-goblin-state"]
    # Without an image: everything but the functions.
    assert commands.calls("terraform", "-chdir=terraform", "apply") == [
        ["terraform", "-chdir=terraform", "apply", "-var=project_id=my-project"]
    ]
    (submit,) = commands.calls("gcloud", "builds", "submit")
    assert submit[3:] == [
        "--project=my-project", "--config=cloudbuild.yaml",
        f"--substitutions=_COMMIT={COMMIT},_APPLY=true,_REGION=us-east1,_PREFIX=goblin",
    ]  # fmt: skip
    # The key is shown once, and works in the Firestore that Terraform named.
    assert [line for line in ended.stdout.splitlines() if line.startswith("gob-")]
    assert "./goblin doctor --project my-project" in ended.stdout


def test_each_command_is_printed_before_it_runs(commands: Commands, run: Deploy) -> None:
    commands.answer("gcloud storage buckets create", code=1, err="ERROR: denied\n")
    ended = run()
    assert ended.returncode == 1
    lines = ended.stdout.splitlines()
    shown = [line.strip().removeprefix("$ ") for line in lines if line.startswith("  $ ")]
    assert shown[-1].startswith("gcloud storage buckets create gs://my-project-goblin-state ")
    assert "[1/5]" in ended.stdout
    assert "[2/5]" in ended.stdout
    assert "[3/5]" not in ended.stdout
    assert "Step 2 of 5 failed (gcloud storage buckets)" in ended.stderr
    assert "same command again" in ended.stderr


def test_what_is_done_is_not_done_again(commands: Commands, run: Deploy, cloud: RunningCloud) -> None:
    deployed(commands, cloud)
    for _ in range(2):
        ended = run("--yes")
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert changed(commands) == 2 * [("terraform", "-chdir=terraform", "apply"), ("gcloud", "builds", "submit")]
    assert "done already; ./goblin keys list shows it" in ended.stdout


def test_an_update_keeps_the_functions_that_run(commands: Commands, run: Deploy, cloud: RunningCloud) -> None:
    deployed(commands, cloud)
    assert run("--yes").returncode == 0
    (apply,) = commands.calls("terraform", "-chdir=terraform", "apply")
    assert f"-var=image={IMAGE}" in apply
    assert "-auto-approve" in apply
    # The build deploys where Terraform is, under its prefix.
    (submit,) = commands.calls("gcloud", "builds", "submit")
    assert "_REGION=europe-west1,_PREFIX=gob" in submit[-1]


@pytest.mark.parametrize("has_state", [False, True])
def test_a_plan_changes_nothing(commands: Commands, run: Deploy, cloud: RunningCloud, has_state: bool) -> None:
    if has_state:
        deployed(commands, cloud)
    ended = run("--plan")
    assert ended.returncode == 0, ended.stderr
    assert changed(commands) == []
    planned = commands.calls("terraform", "-chdir=terraform", "plan")
    assert bool(planned) == has_state
    if has_state:
        assert f"-var=image={IMAGE}" in planned[0]
        assert "-lock=false" in planned[0], "a lock is written into the bucket"
    assert "gcloud builds submit --project=my-project" in ended.stdout
    assert "Nothing was changed." in ended.stdout


def test_a_file_of_variables_reaches_terraform_and_the_build(
    commands: Commands, run: Deploy, cloud: RunningCloud
) -> None:
    deployed(commands, cloud)
    file = ROOT / "terraform" / "examples" / "small.tfvars"
    ended = run("--yes", "--var-file", str(file), "--region", "europe-west1", "--project", "other-project")
    assert ended.returncode == 0, ended.stderr
    (apply,) = commands.calls("terraform", "-chdir=terraform", "apply")
    # Terraform takes the last of two values: the options win over the file, and so do the images in use.
    words = [word.partition("=")[0] for word in apply if word.startswith("-var")]
    assert words == ["-var-file", "-var", "-var", "-var"]
    assert f"-var-file={file}" in apply
    assert {"-var=project_id=other-project", "-var=region=europe-west1"} <= set(apply)
    (submit,) = commands.calls("gcloud", "builds", "submit")
    assert submit[-1].endswith(",_VAR_FILE=terraform/examples/small.tfvars")


REFUSALS: dict[str, tuple[Any, str]] = {
    "no gcloud": (lambda c: c.remove("gcloud"), "Found no gcloud on PATH. Install it: cloud.google.com/sdk"),
    "no terraform": (lambda c: c.remove("terraform"), "Found no terraform on PATH."),
    "an old terraform": (
        lambda c: c.answer("terraform version -json", {"terraform_version": "1.5.7"}),
        "Terraform 1.5.7 is too old. Install 1.11 or newer.",
    ),
    "no login": (lambda c: c.answer("gcloud auth list", ""), "Run: gcloud auth login"),
    "no project": (lambda c: c.answer("gcloud config get-value project", "(unset)\n"), "Name it with --project ID"),
    "a number": (lambda c: c.answer("gcloud config get-value project", "12345\n"), "is not the id of a project"),
    "another's project": (
        lambda c: c.answer("gcloud projects describe", code=1, err="ERROR: (gcloud) PERMISSION_DENIED.\n"),
        "Project my-project cannot be read (ERROR: (gcloud) PERMISSION_DENIED). `gcloud projects list` shows yours",
    ),
    "a deleted project": (
        lambda c: c.answer("gcloud projects describe", {"lifecycleState": "DELETE_REQUESTED"}),
        "gcloud projects undelete my-project",
    ),
    "no billing": (
        lambda c: c.answer("gcloud billing projects describe", {"billingEnabled": False}),
        "gcloud billing projects link my-project --billing-account=ACCOUNT",
    ),
    "an API that is off": (
        lambda c: c.answer("gcloud services list", APIS[1:]),
        "gcloud services enable cloudresourcemanager.googleapis.com --project=my-project",
    ),
    "changes without a commit": (lambda c: c.answer("git diff --quiet HEAD", code=1), "Commit them"),
    "no commit": (lambda c: c.answer("git rev-parse HEAD", code=128), "This checkout has no commit."),
}


@pytest.mark.parametrize(("spoil", "words"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_missing_is_said_with_what_to_do(
    commands: Commands, run: Deploy, spoil: Callable[[Commands], None], words: str
) -> None:
    spoil(commands)
    ended = run()
    assert ended.returncode == 1
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert changed(commands) == []


def test_who_may_not_read_billing_may_deploy(commands: Commands, run: Deploy) -> None:
    commands.answer("gcloud billing projects describe", code=1, err="ERROR: denied\n")
    assert run("--plan").returncode == 0


@pytest.mark.parametrize("kind", ["missing", "outside", "ignored"])
def test_a_file_that_the_build_would_not_see_is_refused(
    commands: Commands, run: Deploy, tmp_path: Path, kind: str
) -> None:
    outside = tmp_path / "my.tfvars"
    if kind == "outside":
        outside.write_text("")
    elif kind == "ignored":
        commands.answer("git check-ignore", code=0)
    file = ROOT / "terraform" / "examples" / "small.tfvars" if kind == "ignored" else outside
    ended = run("--var-file", str(file))
    assert ended.returncode == 1
    assert {"missing": "There is no file", "outside": "is outside the checkout", "ignored": "ignored by git"}[
        kind
    ] in ended.stderr
    assert changed(commands) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('project_id = "other-project"\n', "other-project"),
        ('region = "us-east1"\n  project_id="other-project" # ours\n', "other-project"),
        ('project_id = "my-project"\n', None),
        ('# project_id = "other-project"\nprojects = ["x"]\n', None),
    ],
)
def test_a_file_for_another_project_is_refused(tmp_path: Path, text: str, named: str | None) -> None:
    file = tmp_path / "b.tfvars"
    file.write_text(text)
    if named is None:
        deploy._check_named_project(file, "my-project")
        return
    with pytest.raises(deploy.DeployRefused, match=f"names project {named}, but the deployment is to my-project"):
        deploy._check_named_project(file, "my-project")


SHAPES: dict[str, tuple[str, Any, int, str]] = {
    "services is an object": ("gcloud services list", {"a": 1}, 1, "gcloud services enable"),
    "services without config": ("gcloud services list", [{"config": None}, 1], 1, "gcloud services enable"),
    "billing is a list": ("gcloud billing projects describe", [], 0, ""),
    "the version is a list": ("terraform version -json", [], 1, "Terraform 0.0 is too old."),
    "the project is a list": ("gcloud projects describe", [], 1, "printed no lifecycleState"),
    "the project is empty": ("gcloud projects describe", {}, 1, "printed no lifecycleState"),
    "the bucket is a list": ("gcloud storage buckets describe", [], 0, ""),
    "images are a list": ("terraform -chdir=terraform output -json images_in_use", [1], 1, "The images in use cannot"),
    "an image is null": ("terraform -chdir=terraform output -json images_in_use", {"image": None}, 0, ""),
    "the place is an object": ("terraform -chdir=terraform output -json images", {"a": 1}, 0, ""),
    "secrets are a list": ("terraform -chdir=terraform output -json secrets", [1], 0, ""),
    "an open quote": ("terraform -chdir=terraform output -raw env", "export A='b", 1, "output env cannot be read"),
}


@pytest.mark.parametrize(("command", "printed", "code", "words"), SHAPES.values(), ids=SHAPES)
def test_json_of_another_shape_ends_in_one_line(
    commands: Commands, run: Deploy, cloud: RunningCloud, command: str, printed: Any, code: int, words: str
) -> None:
    deployed(commands, cloud)
    commands.answer(command, printed)
    ended = run("--yes")
    assert ended.returncode == code, ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) <= 1
    assert "=None" not in str(commands.calls("terraform"))


@pytest.mark.parametrize(
    ("state", "code"), [([], 1), ([{"state": "DISABLED"}, None], 1), ([{"state": "ENABLED"}], 0), ({"a": 1}, 0)]
)
def test_a_secret_without_a_value_stops_before_the_build(
    commands: Commands, run: Deploy, cloud: RunningCloud, state: Any, code: int
) -> None:
    deployed(commands, cloud)
    commands.answer("terraform -chdir=terraform output -json secrets", {"OPENAI_API_KEY": "goblin-openai-api-key"})
    commands.answer("gcloud secrets versions list goblin-openai-api-key", state)
    ended = run("--yes")
    assert ended.returncode == code, ended.stderr
    add = "printf %s KEY | gcloud secrets versions add goblin-openai-api-key --project=my-project --data-file=-"
    assert (add in ended.stdout) == bool(code)
    assert ("give the same command again" in ended.stderr) == bool(code)
    assert bool(commands.calls("gcloud", "builds", "submit")) == (not code)
    asked = len(commands.calls("gcloud", "secrets"))
    assert run("--plan").returncode == 0
    assert len(commands.calls("gcloud", "secrets")) == asked


@pytest.mark.parametrize(
    ("bucket", "code"),
    [({"project_number": 12}, 0), ({"projectNumber": "12"}, 0), ({}, 0), ({"projectNumber": "13"}, 1)],
)
def test_a_state_bucket_of_another_project_is_refused(
    commands: Commands, run: Deploy, cloud: RunningCloud, bucket: dict[str, Any], code: int
) -> None:
    deployed(commands, cloud)
    commands.answer("gcloud projects describe", {"lifecycleState": "ACTIVE", "projectNumber": "12"})
    commands.answer("gcloud storage buckets describe", bucket)
    ended = run("--plan")
    assert ended.returncode == code, ended.stderr
    assert ("belongs to project 13, not to my-project (12)" in ended.stderr) == bool(code)


def test_keys_that_cannot_be_listed_make_no_second_one(commands: Commands, run: Deploy, cloud: RunningCloud) -> None:
    deployed(commands, cloud)
    env = "export GOOGLE_CLOUD_PROJECT='p'\nexport FIRESTORE_EMULATOR_HOST='nonsense'\nexport GOBLIN_BUCKET='b'"
    commands.answer("terraform -chdir=terraform output -raw env", env.replace("'p'", "'" + "/" * 3 + "'"))
    ended = run("--yes")
    assert ended.returncode == 1
    assert "The API keys could not be read" in ended.stderr
    assert "gob-" not in ended.stdout


def test_a_command_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "CALL_S", 0.1)
    with pytest.raises(deploy.DeployRefused, match=r"No answer within 0.1 s from: sleep 20\. "):
        deploy._asked(tmp_path, "sleep", "20")


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    assert deploy._asked(tmp_path, "printf", r"a\377b").stdout == "a\ufffdb"


def test_exports_are_read_as_a_shell_would() -> None:
    text = "export A='b c'\nexport B='x=y'\nnonsense\n\nexport C=''"
    assert deploy.exported(text) == {"A": "b c", "B": "x=y", "C": ""}


def test_the_environment_can_be_read_from_what_terraform_declares() -> None:
    declared = (ROOT / "terraform" / "outputs.tf").read_text()
    assert "\"export ${name}='${value}'\"" in declared
    for name in ("images_in_use", "images", "env"):
        assert f'output "{name}"' in declared


def test_the_version_is_that_of_the_configuration() -> None:
    wanted = ".".join(map(str, deploy.TERRAFORM_MIN))
    assert f'required_version = ">= {wanted}"' in (ROOT / "terraform" / "versions.tf").read_text()
    assert json.dumps(list(deploy.APIS)) == json.dumps(sorted(deploy.APIS))
