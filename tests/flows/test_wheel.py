"""The wheel, installed outside the checkout, brings the same Goblin up."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from goblin.cli import paths
from goblin.cli.paths import DataFolder
from localcloud.google import free_port
from tests.flows.conftest import clean_environment

pytestmark = pytest.mark.xdist_group("flows")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the wheel from its own folder and the dependencies from this environment."""
    root, folder = paths.checkout(), tmp_path_factory.mktemp("wheel")
    assert root is not None
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(root)], check=True, timeout=110)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    wheel = next(folder.glob("gpu_goblin-*.whl"))
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, timeout=110)
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    # Path files of a folder that a path file names are not read: only the wheel can bring `goblin`.
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_the_wheel_brings_goblin_up_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    env = {**clean_environment(), "PYTHONPATH": ""}
    where = subprocess.run(
        [str(installed), "-c", "import goblin; print(goblin.__file__)"],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
    ).stdout.strip()
    assert Path(where).is_relative_to(installed.parent.parent)
    command = [str(installed.parent / "goblin"), "up", f"--port={free_port()}", f"--data={tmp_path / 'data'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=tmp_path) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "Stop: Ctrl-C" in line:
                    break
            variables = DataFolder(tmp_path / "data").environment()
            assert variables is not None
            program = (
                "import os, openai; c = openai.OpenAI(base_url=os.environ['GOBLIN_URL'] + '/v1',"
                " api_key=os.environ['GOBLIN_API_KEY']); print(c.models.list().data[0].id)"
            )
            done = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **variables}
            )
            assert done.stdout.strip() == "goblin-tiny", done.stderr
        finally:
            process.terminate()
