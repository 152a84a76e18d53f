"""`cloudbuild.yaml` and the workflows: their schemas, the order of the steps, and which images are pushed and used."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from goblin.cli import image_digests
from goblin.cli.main import main

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DIGEST = f"sha256:{'ab' * 32}"


def read(file: Path) -> Any:
    return YAML(typ="safe", pure=True).load(file.read_text())


BUILD = read(ROOT / "cloudbuild.yaml")
STEPS: dict[str, dict[str, Any]] = {step["id"]: step for step in BUILD["steps"]}


def words(step: str) -> str:
    return " ".join(STEPS[step]["args"])


def before(step: str) -> set[str]:
    """Every step that has ended when a step begins."""
    direct = set(STEPS[step]["waitFor"]) - {"-"}
    return direct.union(*(before(name) for name in direct))


@pytest.mark.parametrize(
    ("schema", "files"),
    [("cloudbuild", [ROOT / "cloudbuild.yaml"]), ("github-workflows", WORKFLOWS)],
    ids=["cloudbuild", "workflows"],
)
def test_the_files_have_the_shape_that_their_readers_expect(schema: str, files: list[Path]) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    ended = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_misspelt_field_would_be_found(tmp_path: Path) -> None:
    bad = tmp_path / "cloudbuild.yaml"
    bad.write_text((ROOT / "cloudbuild.yaml").read_text().replace("    waitFor: [check]", "    waitfor: [check]", 1))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.cloudbuild", str(bad)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "waitfor" in ended.stdout


def test_every_step_has_an_id_and_waits_for_earlier_ones() -> None:
    earlier: set[str] = set()
    for step in BUILD["steps"]:
        assert step["waitFor"], "a step without waitFor waits for all"
        assert set(step["waitFor"]) - {"-"} <= earlier, step["id"]
        earlier.add(step["id"])
    assert len(earlier) == len(BUILD["steps"])


def test_the_order_is_check_bundle_images_digests_plan_apply_smoke() -> None:
    assert STEPS["check"]["waitFor"] == ["-"]
    line = ["check", "bundle", "functions", "digests", "plan", "apply", "smoke"]
    for earlier, later in itertools.pairwise(line):
        assert earlier in before(later)
    for name in ("llamacpp", "agent"):  # Beside the functions: they wait for the check, and for nothing that is built.
        assert "check" in before(name)
        assert not before(name) & {"bundle", "functions", "digests"}
        assert name in before("digests")
    assert all("check" in before(name) for name in STEPS if name != "check")


def test_no_image_is_the_latest() -> None:
    for step in BUILD["steps"]:
        assert re.search(r":[\w.-]+$|@sha256:[0-9a-f]{64}$", step["name"]), f"{step['id']} names no version"
    builder = re.search(r"--builder=(\S+)", words("functions"))
    assert builder is not None
    assert re.search(r":[\w.-]+$|@sha256:", builder[1])
    text = "\n".join(line for line in (ROOT / "cloudbuild.yaml").read_text().splitlines() if "#" not in line)
    assert "latest" not in text


def test_each_image_is_pushed_by_commit_and_used_by_digest() -> None:
    pushed = {
        re.sub(r":\$\{_COMMIT\}$", "", found)
        for found in re.findall(r"(?:--tag=|build )(\$\{\S+)", " ".join(map(words, ("functions", "llamacpp", "agent"))))
        if found.endswith(":${_COMMIT}")
    }
    assert len(pushed) == 3
    read_from = dict(re.findall(r"--(?:pack|buildx)=(\w+)=(\S+)=build/", words("digests")))
    assert set(read_from.values()) == pushed
    variables = (ROOT / "terraform" / "variables.tf").read_text()
    for variable in read_from:
        block = variables.partition(f'variable "{variable}" {{')[2].partition("\n}")[0]
        assert '"@sha256:[0-9a-f]{64}$"' in block, f"{variable} takes an image without a digest"
    # The reports are those that the steps write.
    assert "--report-output-dir=build" in words("functions")
    for name in ("llamacpp", "agent"):
        assert f"--metadata-file=build/{name}.json" in words(name)
        assert f"=build/{name}.json" in words("digests")
    assert all("${_COMMIT}" in image for image in BUILD["images"])


def test_the_images_of_machines_are_built_from_files_that_are_there() -> None:
    for name in ("llamacpp", "agent"):
        file = re.search(r"--file=(\S+)", words(name))
        assert file is not None
        target = re.search(r"--target=(\S+)", words(name))
        stages = re.findall(r"^FROM \S+ AS (\S+)", (ROOT / file[1]).read_text(), re.MULTILINE)
        assert target is None or target[1] in stages


def test_terraform_sees_no_tag() -> None:
    assert "--out=terraform/image.auto.tfvars.json" in words("digests")
    assert "_COMMIT" not in words("plan") + words("apply")


def test_images_have_a_cache_in_the_registry() -> None:
    assert "--cache-image=" in words("functions")
    for name in ("llamacpp", "agent"):
        assert "--cache-to=type=registry,mode=max," in words(name)


def test_the_functions_image_is_a_function_built_from_the_bundle() -> None:
    assert "--publish" in words("functions")
    assert "--env=GOOGLE_FUNCTION_TARGET=gateway" in words("functions")
    folder = re.search(r"--path=(\S+)", words("functions"))
    assert folder is not None
    assert STEPS["bundle"]["args"] == ["bundle", folder[1]]


@pytest.mark.parametrize(("said", "code"), [("true", 0), ("false", 1), ("", 1), ("yes", 1)])
def test_apply_refuses_unless_it_is_asked(said: str, code: int, tmp_path: Path) -> None:
    assert BUILD["substitutions"]["_APPLY"] == "false"
    (tmp_path / "build").mkdir()
    terraform = tmp_path / "terraform"
    terraform.write_text('#!/bin/sh\necho "$@" >> ran\n')
    terraform.chmod(0o755)
    script = STEPS["apply"]["args"][-1].replace("${_APPLY}", said).replace("$$", "$")
    ended = subprocess.run(
        [STEPS["apply"]["entrypoint"], "-ec", script], cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout=20,
    )  # fmt: skip
    assert ended.returncode == code, ended.stderr
    ran = tmp_path / "ran"
    assert ran.exists() == (code == 0)
    if code == 0:
        assert "apply -input=false /workspace/build/terraform.plan" in ran.read_text()
    else:
        assert "_APPLY=true" in ended.stderr


def test_what_is_applied_is_what_was_planned() -> None:
    planned = re.search(r"-out=(\S+)", words("plan"))
    assert planned is not None
    assert f"apply -input=false {planned[1]}" in words("apply")
    assert "-auto-approve" not in words("apply")


@pytest.mark.parametrize("file", ["", "terraform/b.tfvars"])
def test_the_plan_takes_the_project_of_the_build_and_not_that_of_the_file(file: str, tmp_path: Path) -> None:
    terraform = tmp_path / "terraform"
    terraform.write_text('#!/bin/sh\necho "$@" >> ran\n')
    terraform.chmod(0o755)
    script = STEPS["plan"]["args"][-1].replace("${_VAR_FILE}", file).replace("$$", "$")
    script = re.sub(r"\$\{_?([A-Z_]+)\}", r"\1", script)
    subprocess.run(
        [STEPS["plan"]["entrypoint"], "-ec", script], cwd=tmp_path, check=True, timeout=20,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )  # fmt: skip
    init, plan = ((tmp_path / "ran").read_text()).splitlines()
    assert "init -input=false -reconfigure -backend-config=bucket=STATE_BUCKET" in init
    values = [word for word in plan.split() if word.startswith("-var")]
    ours = ["-var=project_id=PROJECT_ID", "-var=region=REGION", "-var=prefix=PREFIX"]
    assert values == [*([f"-var-file=/workspace/{file}"] if file else []), *ours]


def test_the_trigger_needs_an_approval() -> None:
    trigger = (ROOT / "terraform" / "images.tf").read_text().partition('resource "google_cloudbuild_trigger"')[2]
    assert "approval_required = true" in trigger
    assert 'filename        = "cloudbuild.yaml"' in trigger


@pytest.mark.parametrize("commit", ["", "main", "abc1234"])
def test_an_unknown_commit_is_refused_before_anything_runs(commit: str, tmp_path: Path) -> None:
    script = STEPS["check"]["args"][-1].replace("${_COMMIT}", commit).replace("$$", "$")
    ended = subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False
    )
    assert ended.returncode == 1
    assert "--substitutions=_COMMIT=$(git rev-parse HEAD)" in ended.stderr


def test_substitutions_are_declared_and_used() -> None:
    text = (ROOT / "cloudbuild.yaml").read_text()
    used = set(re.findall(r"\$\{?(_[A-Z_]+)", text))
    assert used == set(BUILD["substitutions"])
    built_in = set(re.findall(r"(?<!\$)\$\{?([A-Z][A-Z_]+)", text))
    assert built_in <= {"PROJECT_ID", "COMMIT_SHA"}
    # A variable of the shell is written with two dollars, or Cloud Build would replace it.
    assert not re.findall(r"(?<!\$)\$\{?[a-z@]", text)


def test_the_build_has_its_own_account_logs_a_limit_and_provenance() -> None:
    assert BUILD["serviceAccount"].endswith("${_PREFIX}-build@${PROJECT_ID}.iam.gserviceaccount.com")
    assert BUILD["options"]["logging"] == "CLOUD_LOGGING_ONLY"
    assert BUILD["options"]["requestedVerifyOption"] == "VERIFIED"
    assert BUILD["options"]["dynamicSubstitutions"] is True
    assert re.fullmatch(r"[1-9][0-9]*s", BUILD["timeout"])


def test_the_commands_of_the_steps_exist() -> None:
    for command in ("bundle", "smoke"):
        assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0
    assert "./goblin smoke --batch ${_BATCH}" in words("smoke")


def test_digests_are_written_for_terraform(tmp_path: Path) -> None:
    report, metadata, out = (tmp_path / name for name in ("report.toml", "agent.json", "image.auto.tfvars.json"))
    report.write_text(f'[image]\n  tags = ["r/functions:1"]\n  digest = "{DIGEST}"\n  manifest-size = 1083\n')
    metadata.write_text(json.dumps({"containerimage.config.digest": "sha256:0", "containerimage.digest": DIGEST}))
    said = ["--out", str(out), f"--pack=image=r/functions={report}", f"--buildx=agent_image=r/agent={metadata}"]
    assert image_digests.main(said) == 0
    assert json.loads(out.read_text()) == {"image": f"r/functions@{DIGEST}", "agent_image": f"r/agent@{DIGEST}"}


@pytest.mark.parametrize("report", ["", "[image]\n", '[image]\ndigest = "sha256:1"\n', "{", "image = 1\n"])
def test_without_a_digest_nothing_is_written(report: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.toml").write_text(report)
    out = tmp_path / "out.json"
    assert image_digests.main(["--out", str(out), f"--pack=image=r/functions={tmp_path / 'report.toml'}"]) == 1
    assert not out.exists()
    assert "report.toml of r/functions" in capsys.readouterr().err


def test_the_second_door_submits_the_same_file_and_does_nothing_else() -> None:
    workflow = read(ROOT / ".github" / "workflows" / "deploy.yml")
    assert workflow["permissions"] == {"contents": "read", "id-token": "write"}
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert len(commands) == 1
    assert commands[0].split()[:3] == ["gcloud", "builds", "submit"]
    assert "--config=cloudbuild.yaml" in commands[0]
    (auth,) = [step for step in job["steps"] if step.get("uses", "").startswith("google-github-actions/auth@")]
    assert "workload_identity_provider" in auth["with"]
    assert "credentials_json" not in auth["with"]
    assert job["environment"], "reviewers of the environment approve"
    inputs = workflow.get("on", workflow.get(True))["workflow_dispatch"]["inputs"]
    assert inputs["apply"]["default"] is False
    # The credential file of the action lies in the checkout, which is uploaded.
    assert "gha-creds-*.json" in (ROOT / ".gcloudignore").read_text()


def test_ci_runs_what_is_run_here() -> None:
    workflow = read(ROOT / ".github" / "workflows" / "ci.yml")
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert workflow["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_actions_are_named_by_commit(file: Path) -> None:
    for uses in re.findall(r"uses: (\S+)", file.read_text()):
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", uses), uses
    # What an event says is data: it reaches a script through the environment only.
    for step in (step for job in read(file)["jobs"].values() for step in job["steps"]):
        assert "${{" not in step.get("run", "")
