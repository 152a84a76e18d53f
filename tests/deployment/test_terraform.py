"""`terraform/`, checked without a network or a cloud, on both major versions of the provider that it allows.

tfoffline runs the real Terraform against the provider's schema; a pass means well-formed, not that Google accepts it.
"""

from __future__ import annotations

import ast
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "terraform"
TFOFFLINE = ROOT.parent / "shared" / "tools" / "tfoffline" / "tfoffline"
CLOUD = ROOT / "shared" / "goblin" / "cloud.json"
PROJECT = "--var=project_id=my-project"
IMAGE = f"--var=image=us-east1-docker.pkg.dev/my-project/goblin/functions@sha256:{'a' * 64}"
RANGE = '">= 7.45, < 9.0"'
CHECKOV = "checkov==3.3.30"

# The provider's process answers for one configuration at a time; several at once would only wait for each other.
pytestmark = pytest.mark.xdist_group("terraform")


def _missing() -> str:
    if not TFOFFLINE.is_file():
        return "tfoffline is not beside this checkout"
    return "" if shutil.which("terraform") else "terraform is not on PATH"


RUN_S_MAX = 540
"""One run of Terraform takes twenty seconds alone, and minutes on a machine that has much else to do."""
pytestmark = pytest.mark.timeout(RUN_S_MAX + 60)

offline = pytest.mark.skipif(bool(_missing()), reason=_missing() or "it is there")


def read_yaml(name: str) -> Any:
    return YAML(typ="safe", pure=True).load((CONFIGURATION / name).read_text())


def tfoffline(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    options = words[: words.index("--")] if "--" in words else words
    rest = words[len(options) :]
    return subprocess.run(
        [sys.executable, str(TFOFFLINE), *options, str(folder), *rest], capture_output=True, text=True, check=False,
        timeout=RUN_S_MAX,
    )  # fmt: skip


def copy(
    to: Path, *, provider: str = RANGE, change: Callable[[dict[str, Any]], None] | None = None
) -> Path:  # fmt: skip
    """Copy what Terraform reads, with another provider or another cloud.json; returns the configuration's folder."""
    folder = to / "terraform"
    shutil.copytree(CONFIGURATION, folder, ignore=shutil.ignore_patterns(".terraform*", "*.auto.tfvars.json"))
    versions = folder / "versions.tf"
    text = versions.read_text()
    assert RANGE in text
    versions.write_text(text.replace(RANGE, provider))
    declared = json.loads(CLOUD.read_text())
    if change:
        change(declared)
    cloud = to / "shared" / "goblin" / "cloud.json"
    cloud.parent.mkdir(parents=True)
    cloud.write_text(json.dumps(declared))
    return folder


@offline
def test_it_is_formatted_valid_and_planned_on_the_newest_provider(tmp_path: Path) -> None:
    ended = tfoffline(copy(tmp_path), "--fmt", "--plan", PROJECT, IMAGE)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr
    assert re.search(r"Plan: \d+ to add, 0 to change, 0 to destroy\.", ended.stdout)
    assert "Warning" not in ended.stdout


@offline
def test_its_own_tests_pass_and_a_second_plan_of_the_same_state_is_empty(tmp_path: Path) -> None:
    ended = tfoffline(copy(tmp_path), "--test", "--", "-verbose")
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr
    written = [file.read_text() for file in CONFIGURATION.glob("tests/*.tftest.hcl")]
    runs = sum(len(re.findall(r"^run ", text, re.MULTILINE)) for text in written)
    assert f"Success! {runs} passed, 0 failed." in ended.stdout
    # everything.tftest.hcl turns everything on, applies it, and plans again.
    second = ended.stdout.partition('run "a_second_plan_is_empty"')[2].partition("tearing down")[0]
    assert "No changes." in second
    assert "will be" not in second


@offline
def test_it_is_valid_and_planned_on_the_oldest_provider(tmp_path: Path) -> None:
    ended = tfoffline(copy(tmp_path, provider='"7.45.0"'), "--plan", PROJECT, IMAGE)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr
    assert "0 to change, 0 to destroy" in ended.stdout


@offline
@pytest.mark.parametrize("name", ["small", "gpu"])
def test_the_examples_are_planned(tmp_path: Path, name: str) -> None:
    ended = tfoffline(
        copy(tmp_path), "--plan", PROJECT, IMAGE, f"--var-file={CONFIGURATION / 'examples' / f'{name}.tfvars'}"
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr


def _declare_more(declared: dict[str, Any]) -> None:
    declared["topics"]["extra-topic"] = {}
    declared["schedules"]["extra-tick"] = {
        "function": "reconcile", "schedule": "3 * * * *", "attempt_deadline_s": 60,
    }  # fmt: skip
    declared["indexes"].append(
        {"collection": "extras", "fields": [{"path": "a", "order": "ASCENDING"}, {"path": "b", "order": "DESCENDING"}]}
    )
    declared["ttl"].append({"collection": "extras", "field": "gone_at"})
    declared["unindexed"].append("extra_logs")


@offline
def test_what_is_declared_in_cloud_json_alone_is_planned(tmp_path: Path) -> None:
    ended = tfoffline(copy(tmp_path, change=_declare_more), "--plan", PROJECT, IMAGE)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr
    for address in (
        'google_pubsub_topic.event["extra-topic"]',
        'google_cloud_scheduler_job.tick["extra-tick"]',
        'google_firestore_index.query["extras/a/b"]',
        'google_firestore_field.ttl["extras"]',
        'google_firestore_field.unindexed["extra_logs"]',
    ):
        assert f"# {address} will be created" in ended.stdout, address


@offline
def test_a_function_without_a_role_fails_the_check(tmp_path: Path) -> None:
    def change(declared: dict[str, Any]) -> None:
        declared["http"]["extra"] = {"paths": ["/extra"], "access": "keys"}

    ended = tfoffline(copy(tmp_path, change=change), "--plan", PROJECT, IMAGE)
    assert "A function in cloud.json has no row in roles.yaml." in ended.stdout


# The lists that Terraform reads, against the code.


def _function_files() -> set[str]:
    return {file.stem for file in (ROOT / "functions").glob("*.py")} - {"__init__"}


def _declared(cloud: Mapping[str, Any]) -> set[str]:
    rows = (*cloud["topics"].values(), *cloud["schedules"].values())
    return {row["function"] for row in rows if "function" in row} | set(cloud["http"])


def differences(files: Collection[str], roles: Collection[str], declared: Collection[str]) -> list[str]:
    """What is not in all three of functions/, roles.yaml and cloud.json."""
    places = {"functions/": set(files), "terraform/roles.yaml": set(roles), "cloud.json": set(declared)}
    names = set().union(*places.values())
    return [f"{name} is not in {place}" for name in sorted(names) for place, held in places.items() if name not in held]


def test_each_function_file_has_a_row_and_a_declaration() -> None:
    assert differences(_function_files(), read_yaml("roles.yaml"), _declared(json.loads(CLOUD.read_text()))) == []


def test_a_function_that_is_somewhere_only_is_found() -> None:
    assert differences(["a", "b"], ["a"], ["a"]) == ["b is not in terraform/roles.yaml", "b is not in cloud.json"]
    assert differences(["a"], ["a", "b"], ["a"]) == ["b is not in functions/", "b is not in cloud.json"]
    assert differences(["a"], ["a"], ["a", "b"]) == ["b is not in functions/", "b is not in terraform/roles.yaml"]


def test_targets_are_what_the_files_define() -> None:
    """Terraform derives FUNCTION_TARGET: `on_NAME` for a function of a topic, else NAME."""
    topics = {row.get("function") for row in json.loads(CLOUD.read_text())["topics"].values()}
    for name in _function_files():
        tree = ast.parse((ROOT / "functions" / f"{name}.py").read_text())
        defined = {node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)}
        defined |= {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
                    if isinstance(target, ast.Name)}  # fmt: skip
        assert (f"on_{name}" if name in topics else name) in defined, name


ROOMS = ("wiring", "providers", "gcp", "web")
HOLDERS = {"env", "variables", "environ"}
"""Names of mappings that hold the environment."""
LIBRARIES = {
    "FIRESTORE_EMULATOR_HOST": "google-cloud-firestore",
    "STORAGE_EMULATOR_HOST": "google-cloud-storage",
    "PUBSUB_EMULATOR_HOST": "google-cloud-pubsub",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "OpenTelemetry's exporter",
}
"""Variables that a library reads and our code need not."""
NAME = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _names(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions that name a variable of the environment."""
    match node:
        case ast.Call(func=ast.Attribute(attr="get" | "pop", value=holder), args=[name, *_]):
            if _last_name(holder) in HOLDERS:
                yield name
        case ast.Call(func=ast.Attribute(attr="setting" | "getenv"), args=[name, *_]):
            yield name
        case ast.Subscript(value=holder, slice=name) if _last_name(holder) in HOLDERS:
            yield name
        case ast.Compare(left=name, ops=[ast.In() | ast.NotIn()], comparators=[holder]):
            if _last_name(holder) in HOLDERS:
                yield name
        case ast.Assign(targets=[ast.Name(id="VARIABLE")], value=name):
            yield name
        case ast.Assign(targets=[ast.Name(id="MONTHLY_BUDGETS")], value=ast.Dict(keys=keys)):
            yield from (key for key in keys if key is not None)


def variables_of(source: str) -> set[str]:
    """The variables that a Python file reads; a name that is put together is a pattern with `*`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        for name in _names(node):
            match name:
                case ast.Constant(value=str(text)) if NAME.fullmatch(text):
                    found.add(text)
                case ast.JoinedStr(values=parts):
                    found.add("".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts))
    return found


def _in_toml(value: Any) -> Iterator[str]:
    """The variables that the values of goblin.toml name; comments have none."""
    if isinstance(value, str):
        yield from re.findall(r"\$\{([A-Z][A-Z0-9_]*)", value)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _in_toml(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _in_toml(inner)


def _read_by_the_code() -> set[str]:
    found = set(_in_toml(tomllib.loads((ROOT / "goblin.toml").read_text())))
    for room in ROOMS:
        for file in (ROOT / "shared" / "goblin" / room).rglob("*.py"):
            found |= variables_of(file.read_text())
    return found


def _listed() -> list[str]:
    listed = read_yaml("environment.yaml")
    secrets = sorted({name for group in listed["secrets"].values() for name in group})
    return [*secrets, *listed["settings"], *listed["computed"], *listed["local"]]


def _matches(name: str, pattern: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", "[A-Z0-9]+"), name) is not None


def test_every_variable_that_the_code_reads_is_listed() -> None:
    listed = _listed()
    assert sorted(one for one in _read_by_the_code() if not any(_matches(name, one) for name in listed)) == []


def test_every_variable_that_is_listed_is_read() -> None:
    read = _read_by_the_code()
    unread = [name for name in _listed() if not any(_matches(name, one) for one in read)]
    assert sorted(set(unread) - LIBRARIES.keys()) == []


def test_a_variable_is_listed_once() -> None:
    listed = _listed()
    assert sorted({name for name in listed if listed.count(name) > 1}) == []


def test_reading_a_variable_is_noticed_however_it_is_written() -> None:
    source = """
VARIABLE = "A_ONE"
MONTHLY_BUDGETS = {"A_TWO": 1}
process.settings.variables.get("A_THREE", "")
env["A_FOUR"]
"A_FIVE" in os.environ
os.getenv("A_SIX")
process.setting("A_SEVEN", "what it is for")
variables.get(f"{name}_EIGHT")
other.get("NOT_ONE")
"NOT_ONE_EITHER"
"""
    assert variables_of(source) == {
        "A_ONE", "A_TWO", "A_THREE", "A_FOUR", "A_FIVE", "A_SIX", "A_SEVEN", "*_EIGHT",
    }  # fmt: skip


def test_what_terraform_computes_is_set() -> None:
    text = "".join(file.read_text() for file in CONFIGURATION.glob("*.tf"))
    for name in read_yaml("environment.yaml")["computed"]:
        assert re.search(rf"^\s+{name}\s+= ", text, re.MULTILINE), f"{name} is set nowhere"


def test_secret_groups_are_those_of_the_roles() -> None:
    groups = set(read_yaml("environment.yaml")["secrets"])
    used = {group for role in read_yaml("roles.yaml").values() for group in role.get("secrets", ())}
    assert used == groups


def test_variables_and_outputs_are_described_and_in_order() -> None:
    for name, kind in (("variables.tf", "variable"), ("outputs.tf", "output")):
        text = (CONFIGURATION / name).read_text()
        names = re.findall(rf'^{kind} "(\w+)" {{\n  description = ', text, re.MULTILINE)
        assert len(names) == len(re.findall(rf"^{kind} ", text, re.MULTILINE)), f"{name}: one has no description"
        assert names == sorted(names), name


# The README, against what it is about.


def test_the_readme_names_every_variable_and_every_fact() -> None:
    from goblin.cli import diagnosis

    readme = (CONFIGURATION / "README.md").read_text()
    variables = re.findall(r'^variable "(\w+)"', (CONFIGURATION / "variables.tf").read_text(), re.MULTILINE)
    assert [name for name in variables if f"| `{name}` |" not in readme] == []
    facts = diagnosis.Facts(
        project="p", number="1", region="r", prefix="goblin", declared=json.loads(CLOUD.read_text())
    )
    six = [finding.check for finding in diagnosis.judge(facts)][:6]
    assert [name for name in six if f"| {name} |" not in readme] == []


def test_the_readme_says_how_to_leave_what_is_kept() -> None:
    readme = (CONFIGURATION / "README.md").read_text()
    data = (CONFIGURATION / "data.tf").read_text()
    assert 'deletion_policy                   = "ABANDON"' in data
    assert "force_destroy = false" in data
    assert "terraform -chdir=terraform destroy" in readme
    for kept in ("bucket", "Firestore"):
        assert kept in readme.partition("## Leave")[2]


INSTALL_S_MAX = 300


IDLE, BUSY = '{"models":[]}', '{"models":[{"name":"tinyllama:latest"}]}'


@pytest.mark.parametrize(
    ("answers", "logged_in", "minutes"),
    [
        ([IDLE] * 9, "", 6),
        ([BUSY] * 3 + [IDLE] * 9, "", 9),
        ([IDLE] * 5 + [BUSY] + [IDLE] * 9, "", 12),
        ([""] * 9, "", 6),
        ([BUSY] * 9, "", None),
        ([IDLE] * 9, "ann pts/0", None),
    ],
)
def test_the_ollama_vm_powers_itself_off_when_idle(
    tmp_path: Path, answers: list[str], logged_in: str, minutes: int | None
) -> None:
    """The script runs with commands of ours: each `sleep` is a minute, after the last answer it fails."""
    (tmp_path / "script").write_text((CONFIGURATION / "ollama-idle.sh").read_text().replace("${idle_min}", "6"))
    for minute, answer in enumerate(answers, 1):
        (tmp_path / f"answer-{minute}").write_text(answer)
    (tmp_path / "minute").write_text("0")
    commands = {
        "systemd-run": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "sleep": 'now=$(($(cat minute) + 1)); echo $now > minute; [ -f "answer-$now" ]',
        "curl": 'cat "answer-$(cat minute)"',
        "who": f"printf %s '{logged_in}'",
        "poweroff": "cp minute off",
    }
    for name, body in commands.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    subprocess.run(["sh", "script"], cwd=tmp_path, env={"PATH": path}, check=True, timeout=30)
    off = tmp_path / "off"
    assert (int(off.read_text()) if off.exists() else None) == minutes


@pytest.fixture(scope="session")
def checkov() -> Path:
    """Checkov in a virtual environment of its own, made once per machine: it pins packages that ours has newer."""
    version = f"py{sys.version_info[0]}{sys.version_info[1]}"
    folder = Path(tempfile.gettempdir()) / f"goblin-{CHECKOV.replace('==', '-')}-{version}"
    python, ready = folder / "bin" / "python", folder / "ready"
    with Path(f"{folder}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            install = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", CHECKOV]
            try:
                for words in ([sys.executable, "-m", "venv", str(folder)], install):
                    subprocess.run(words, capture_output=True, text=True, timeout=INSTALL_S_MAX, check=True)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"checkov cannot be installed here: {' '.join(error.stderr.strip().splitlines()[-1:])}")
            except (subprocess.TimeoutExpired, OSError) as error:
                pytest.skip(f"checkov cannot be installed here: {type(error).__name__}")
            ready.touch()
    return folder / "bin" / "checkov"


@pytest.mark.timeout(INSTALL_S_MAX + 120)
def test_checkov_finds_nothing(checkov: Path) -> None:
    words = [str(checkov), "--directory", str(CONFIGURATION), "--framework", "terraform", "--skip-download"]
    ended = subprocess.run(
        [*words, "--quiet", "--compact", "--output", "json"], capture_output=True, text=True, check=False,
        env={**os.environ, "LOG_LEVEL": "ERROR"}, timeout=RUN_S_MAX,
    )  # fmt: skip
    found = json.loads(ended.stdout)
    assert found["summary"]["failed"] == 0, [
        f"{one['check_id']} {one['resource']}" for one in found["results"]["failed_checks"]
    ]
    assert found["summary"]["parsing_errors"] == 0
    assert found["summary"]["passed"] > 20
    # Each skipped check says why.
    reasons = re.findall(r"checkov:skip=(\w+)(: \S.*)?", "".join(f.read_text() for f in CONFIGURATION.glob("*.tf")))
    assert reasons
    assert [check for check, reason in reasons if not reason] == []
