"""localcloud as a distribution of its own: built, installed without Goblin, started, and used by a stranger's tests."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from goblin.cli import paths
from tests.flows.conftest import clean_environment

pytestmark = pytest.mark.xdist_group("localcloud-distribution")

COMMAND_S_MAX = 110
STRANGERS_TESTS = """\
import os
from pathlib import Path

import pytest
from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import PreconditionFailed
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore, pubsub_v1, secretmanager_v1, storage


@pytest.mark.parametrize("turn", [1, 2])
def test_every_client_finds_a_fresh_cloud(localcloud, turn):
    project = os.environ["GOOGLE_CLOUD_PROJECT"]
    document = firestore.Client().document("things/one")
    assert not document.get().exists
    document.set({"turn": turn})
    assert document.get().to_dict() == {"turn": turn}

    blob = storage.Client().create_bucket("a-bucket").blob("one.txt")
    blob.upload_from_string("hello", if_generation_match=0)
    with pytest.raises(PreconditionFailed):
        blob.upload_from_string("again", if_generation_match=0)

    with pubsub_v1.SubscriberClient() as subscriber:
        publisher = pubsub_v1.PublisherClient()
        topic, name = publisher.topic_path(project, "things"), subscriber.subscription_path(project, "all-things")
        publisher.create_topic(name=topic)
        subscriber.create_subscription(name=name, topic=topic)
        publisher.publish(topic, b"hello").result(10)
        assert subscriber.pull(subscription=name, max_messages=1).received_messages[0].message.data == b"hello"

    secrets = secretmanager_v1.SecretManagerServiceClient(
        transport="rest",
        credentials=AnonymousCredentials(),
        client_options=ClientOptions(api_endpoint=os.environ["SECRET_MANAGER_EMULATOR_HOST"]),
    )
    assert list(secrets.list_secrets(parent=f"projects/{project}")) == []


def test_the_variables_are_gone_again():
    assert "FIRESTORE_EMULATOR_HOST" not in os.environ


class TestWithIndexes:
    @pytest.fixture
    def localcloud_options(self):
        return {"declaration": Path(__file__).with_name("cloud.json")}

    def test_a_declared_index_answers_its_query(self, localcloud):
        things = firestore.Client().collection("things")
        assert things.where(filter=firestore.FieldFilter("a", "==", 1)).order_by("b").get() == []
"""
DECLARATION = """\
{"indexes": [{"collection": "things", "fields": [
    {"path": "a", "order": "ASCENDING"}, {"path": "b", "order": "ASCENDING"}]}]}
"""


DISTRIBUTIONS = {
    "grpc": "grpcio",
    "google.cloud.firestore_v1.types": "google-cloud-firestore",
    "google.cloud.secretmanager_v1.types": "google-cloud-secret-manager",
    "google.pubsub_v1.types": "google-cloud-pubsub",
}
"""By module, where the name is another; protobuf and googleapis-common-protos come with Google's clients."""


def home() -> Path:
    root = paths.checkout()
    assert root is not None
    return root / "shared" / "localcloud"


def run(*words: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        words, cwd=cwd, env={**clean_environment(), "PYTHONPATH": ""}, capture_output=True, text=True,
        timeout=COMMAND_S_MAX,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the wheel of its own, no Goblin, and the dependencies of this environment."""
    for module in ("pip", "hatchling"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed, so no wheel can be built")
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip")
    offline = ("--quiet", "--no-deps", "--no-index")
    run(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(folder), str(home()))
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    run(*pip, "--python", str(python), "install", *offline, str(next(folder.glob("localcloud-*.whl"))))
    site = run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # Path files of a folder that a path file names are not read, so the checkout is out of reach.
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture
def served(installed: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """`python -m localcloud` in a folder of its own, and the variables that it printed."""
    words = [str(installed), "-m", "localcloud", "--pubsub-port=0", "--firestore-port=0", "--storage-port=0"]
    env = {**clean_environment(), "PYTHONPATH": ""}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env, cwd=tmp_path) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline() for _ in range(5)]
            yield process, dict(shlex.split(line)[1].split("=", 1) for line in lines)
        finally:
            process.kill()


def test_it_stands_alone(installed: Path, tmp_path: Path) -> None:
    for module in ("localcloud", "httpguard"):
        where = run(str(installed), "-c", f"import {module}; print({module}.__file__)", cwd=tmp_path).strip()
        assert Path(where).is_relative_to(installed.parent.parent)
    program = "import importlib.util as u; print([n for n in ('goblin', 'functions', 'tests') if u.find_spec(n)])"
    assert run(str(installed), "-c", program, cwd=tmp_path).strip() == "[]"


def test_the_command_needs_no_words_and_says_what_to_export(
    served: tuple[subprocess.Popen[str], dict[str, str]], installed: Path, tmp_path: Path
) -> None:
    process, variables = served
    assert set(variables) == {
        "PUBSUB_EMULATOR_HOST", "FIRESTORE_EMULATOR_HOST", "STORAGE_EMULATOR_HOST", "SECRET_MANAGER_EMULATOR_HOST",
        "GOOGLE_CLOUD_PROJECT",
    }  # fmt: skip
    program = "from google.cloud import firestore; firestore.Client().document('a/b').set({'c': 1}); print('done')"
    done = subprocess.run(
        [str(installed), "-c", program], env={**os.environ, **variables}, capture_output=True, text=True,
        timeout=COMMAND_S_MAX,
    )  # fmt: skip
    assert done.stdout.strip() == "done", done.stderr
    assert (tmp_path / ".localcloud" / "firestore.db").exists()
    process.send_signal(signal.SIGTERM)
    assert process.wait(COMMAND_S_MAX) == 0


def test_the_fixture_gives_each_test_a_fresh_cloud(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "test_stranger.py").write_text(STRANGERS_TESTS)
    (tmp_path / "cloud.json").write_text(DECLARATION)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    said = run(str(installed), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", cwd=tmp_path)
    assert "4 passed" in said


def test_every_import_has_its_dependency() -> None:
    imported = {
        name.split(".")[0] if not name.startswith("google.") else name
        for folder in (home(), home().parent / "httpguard")
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) and node.module
            else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        )
    }  # fmt: skip
    # pytest loads the plugin, never the other way round.
    ours = {"localcloud", "httpguard", "pytest"}
    foreign = {name for name in imported if name.split(".")[0] not in {*sys.stdlib_module_names, *ours}}
    needed = {
        DISTRIBUTIONS.get(name, name.replace("_", "-"))
        for name in foreign
        # zstd is for servers that accept it. Here none does.
        if not name.startswith(("google.protobuf", "google.rpc", "backports", "compression"))
    } | {"httptools"}  # Of the protocol in uvicorn that httpguard's builds on.
    said = tomllib.loads((home() / "pyproject.toml").read_text())["project"]["dependencies"]
    assert needed == {re.split(r"[<>=]", line)[0] for line in said}


def test_bounds_are_those_of_the_root() -> None:
    root = tomllib.loads((home().parents[1] / "pyproject.toml").read_text())["project"]
    bounds = {*root["dependencies"], *root["optional-dependencies"]["local"]}
    assert set(tomllib.loads((home() / "pyproject.toml").read_text())["project"]["dependencies"]) <= bounds
