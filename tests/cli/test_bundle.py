"""The bundle: the same bytes each time, only what the functions run, and its packages pinned by hash."""

import compileall
import hashlib
import re
import shutil
import tomllib
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from packaging.requirements import Requirement

from goblin.cli import bootstrap, paths
from goblin.cli import bundle as bundling
from goblin.cli.main import main

ROOT = paths.checkout()
pytestmark = pytest.mark.skipif(ROOT is None, reason="a bundle is made from a checkout")
BYTES_MAX = 3_000_000


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["bundle", *map(str, words)])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "made"
    done = run(folder)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def requirements(made: Path) -> dict[str, str]:
    """The blocks of requirements.txt by package."""
    return bootstrap.requirements((made / "requirements.txt").read_text())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout, whose parts a test may change."""
    assert ROOT is not None
    root = tmp_path / "checkout"
    (root / "functions").mkdir(parents=True)
    (root / "functions" / "__init__.py").write_text("")
    (root / "functions" / "gateway.py").write_text("x = 1\n")
    package = root / "shared" / "goblin"
    for name in ("__init__.py", "cloud.json", "cli/main.py", "cli/deep/er.py", "web/page.html", "web/asgi.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    for name in ("goblin.toml", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, root / name)
    return root


def test_two_bundles_have_the_same_bytes(made: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        done = run(tmp_path / name, "--zip", tmp_path / f"{name}.zip")
        assert done.exit_code == 0, done.output
        digests.append(re.findall(r"\b[0-9a-f]{64}\b", done.stdout))
        assert files_of(tmp_path / name) == files_of(made)
    archive = (tmp_path / "one.zip").read_bytes()
    assert archive == (tmp_path / "two.zip").read_bytes()
    assert digests == [[hashlib.sha256(archive).hexdigest()]] * 2


def test_the_zip_holds_the_folder_with_fixed_times_and_modes(made: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "folder", "--zip", tmp_path / "new" / "it.zip").exit_code == 0
    with zipfile.ZipFile(tmp_path / "new" / "it.zip") as archive:
        entries = archive.infolist()
        held = {entry.filename: archive.read(entry) for entry in entries}
    assert held == {name: data for name, data in files_of(made).items() if name != bundling.MARKER}
    assert [entry.filename for entry in entries] == sorted(held)
    assert {(entry.date_time, entry.external_attr >> 16) for entry in entries} == {((1980, 1, 1, 0, 0, 0), 0o100644)}


def test_it_holds_the_functions_and_the_package_and_nothing_else(made: Path) -> None:
    assert ROOT is not None
    files = files_of(made)
    functions = {file.name for file in (ROOT / "functions").glob("*.py")} - {"__init__.py"}
    others = {bundling.MARKER, "requirements.txt", "goblin/_bundle/goblin.toml"}
    package = {
        f"goblin/{name}"
        for name in files_of(ROOT / "shared" / "goblin")
        if not name.startswith("cli/") and "__pycache__" not in name
    }
    guard = {f"httpguard/{name}" for name in files_of(ROOT / "shared" / "httpguard") if "__pycache__" not in name}
    assert files.keys() == functions | others | package | guard
    assert "gateway.py" in functions
    assert {"goblin/cloud.json", "goblin/web/pages/status.html"} <= package
    assert files["goblin/_bundle/goblin.toml"] == (ROOT / "goblin.toml").read_bytes()
    assert files["goblin/cloud.json"] == (ROOT / "shared/goblin/cloud.json").read_bytes()
    assert not any("test" in part for name in files for part in name.split("/"))
    assert sum(map(len, files.values())) < BYTES_MAX


def test_nothing_in_it_imports_what_is_left_out(made: Path) -> None:
    found = re.compile(
        r"^\s*(?:from|import) (?:goblin\.cli|localcloud|localgpus|goblin_llamacpp|tests)\b", re.MULTILINE
    )
    assert not [name for name, data in files_of(made).items() if name.endswith(".py") and found.search(data.decode())]


def test_it_compiles(made: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(made, tmp_path / "copy")
    assert compileall.compile_dir(copy, quiet=1)


def test_every_requirement_is_a_block_of_the_lock_with_hashes(made: Path, requirements: dict[str, str]) -> None:
    assert ROOT is not None
    locked = bootstrap.requirements((ROOT / "requirements.lock").read_text())
    assert all(block == locked[name] for name, block in requirements.items())
    for block in requirements.values():
        pin, *hashes = [part.strip() for part in block.split("\\\n")]
        assert "==" in pin
        assert hashes
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes)
    text = (made / "requirements.txt").read_text()
    rest = text
    for block in requirements.values():
        rest = rest.replace(block, "", 1)
    assert rest.split() == f"{bundling.HEADER}--only-binary :all:".split()
    assert "://" not in text


def test_functions_framework_begins_a_line_as_googles_build_looks_for_it(made: Path) -> None:
    assert re.search(r"^functions-framework==", (made / "requirements.txt").read_text(), re.MULTILINE)


def test_the_requirements_are_the_closure_of_the_runtime(requirements: dict[str, str]) -> None:
    """Each direct dependency is there, each package's own are too, and each is needed by another one."""
    assert ROOT is not None
    direct = {
        Requirement(text).name
        for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    }
    needed = {
        name: {one.name.lower().replace("_", "-").replace(".", "-") for one in bundling._requires(name, version(block))}
        for name, block in requirements.items()
    }
    assert direct <= requirements.keys()
    assert requirements.keys() - direct <= set().union(*needed.values())
    assert {"functions-framework", "google-cloud-firestore", "grpcio", "httptools", "uvloop"} <= requirements.keys()
    local = {"llama-cpp-python", "numpy", "rich", "psutil", "cronsim", "pytest", "hypothesis", "mypy", "openai"}
    assert not local & requirements.keys()


def version(block: str) -> str:
    return re.match(r"[^=]+==([^\s;]+)", block)[1]  # type: ignore[index]


LOCK = """\
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:cc
functions-framework==1 \\
    --hash=sha256:aa
old==1 ; python_full_version < '3.12' \\
    --hash=sha256:bb
old==2 ; python_full_version >= '3.12' \\
    --hash=sha256:dd
unused==1 \\
    --hash=sha256:ee
"""


def test_markers_and_extras_are_read_for_googles_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = {
        "functions-framework": ["old[fast]>=1; python_version >= '3.13'", "colorama; sys_platform == 'win32'"],
        "old": ["unused; extra == 'slow'", "functions_framework; extra == 'fast'"],
    }
    asked = []

    def installed(name: str, version: str) -> list[Requirement]:
        asked.append((name, version))
        return [Requirement(text) for text in requires[name]]

    monkeypatch.setattr(bundling, "_requires", installed)
    text = bundling.requirements('[project]\ndependencies = ["Functions.Framework>=1"]', LOCK)
    assert re.findall(r"^\S+==\S+", text, re.MULTILINE) == ["functions-framework==1", "old==2"]
    assert ("old", "2") in asked


def test_a_package_that_the_lock_does_not_have_is_refused() -> None:
    with pytest.raises(bundling.BundleRefused, match=r"requirements\.lock has no colorama"):
        bundling.requirements('[project]\ndependencies = ["colorama"]', LOCK)


@pytest.mark.parametrize(
    ("package", "message"),
    [("no-such-package", "no-such-package is not installed"), ("click", "click .* is installed, but .* pins 0.0.1")],
)
def test_an_environment_that_is_not_the_locks_is_refused(package: str, message: str) -> None:
    with pytest.raises(bundling.BundleRefused, match=message):
        bundling.requirements(
            f'[project]\ndependencies = ["{package}"]', f"{package}==0.0.1 \\\n    --hash=sha256:aa\n"
        )


def test_what_lies_about_in_the_package_is_left_out(checkout: Path) -> None:
    package = checkout / "shared" / "goblin"
    for stray in (
        ".env",
        "key.pem",
        "web/__pycache__/asgi.cpython-313.pyc",
        "web/__pycache__/x.py",
        "_bundle/goblin.toml",
    ):
        (package / stray).parent.mkdir(parents=True, exist_ok=True)
        (package / stray).write_text("stray")
    (package / "link.py").symlink_to(checkout / "pyproject.toml")
    (checkout / "functions" / "key.json").write_text("stray")
    names = bundling.contents(checkout).keys()
    assert sorted(names) == [
        "gateway.py", "goblin/__init__.py", "goblin/_bundle/goblin.toml", "goblin/cloud.json", "goblin/web/asgi.py",
        "goblin/web/page.html", "requirements.txt",
    ]  # fmt: skip


@pytest.mark.parametrize("line", ['api_key = "sk-1"', 'account_key = "${X:-sk-1}"', 'options = {api_token = "sk-1"}'])
def test_a_key_in_the_configuration_is_refused(checkout: Path, line: str) -> None:
    (checkout / "goblin.toml").write_text(f'[[endpoints]]\nname = "x"\n{line}\n')
    with pytest.raises(bundling.BundleRefused, match=r"goblin\.toml holds the value of a key") as refused:
        bundling.contents(checkout)
    assert "sk-1" not in str(refused.value)


@pytest.mark.parametrize("key", ["${X}", "${X:-}", "secret:x", "${X:-secret:x}", ""])
def test_the_name_of_a_key_in_the_configuration_is_taken(checkout: Path, key: str) -> None:
    (checkout / "goblin.toml").write_text(f'[[endpoints]]\nname = "x"\napi_key = "{key}"\n')
    assert "goblin/_bundle/goblin.toml" in bundling.contents(checkout)


def test_an_earlier_bundle_is_replaced_whole(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    assert run(folder).exit_code == 0
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "jobs.pyc").write_text("")
    (folder / "gone.py").write_text("")
    (folder / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    (folder / "gateway.py").write_text("changed")
    assert run(folder).exit_code == 0
    assert files_of(folder) == files_of(made)


def test_a_folder_with_other_things_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    done = run(tmp_path)
    assert done.exit_code == 1
    assert re.fullmatch(r"goblin: .* is not empty and was not written by an earlier bundle\. .*\n", done.output)
    assert files_of(tmp_path) == {"mine": b"precious"}


def test_a_file_in_place_of_the_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file")
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "is not a folder" in done.output


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty").exit_code == 0


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file" / "below")
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "Could not write" in done.output
