"""`goblin env`: what a shell takes over."""

import shlex
from pathlib import Path

from click.testing import CliRunner

from goblin.cli import paths
from goblin.cli.main import main


def test_env_spares_googles_clients_what_no_local_cloud_answers(tmp_path: Path) -> None:
    folder = paths.DataFolder(tmp_path)
    folder.hold()
    folder.write_environment({"STORAGE_EMULATOR_HOST": "http://127.0.0.1:4443"})
    result = CliRunner().invoke(main, ["env", f"--data={tmp_path}"])
    assert result.exit_code == 0, result.output
    words = [shlex.split(line) for line in result.output.splitlines()]
    assert {word for word, _ in words} == {"export"}
    said = dict(word.split("=", 1) for _, word in words)
    assert said == {
        "STORAGE_EMULATOR_HOST": "http://127.0.0.1:4443",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # gcsfs: 60 s per call.
        "NO_GCE_CHECK": "true",  # google-auth for Python: 12 s.
        "METADATA_SERVER_DETECTION": "none",  # google-gax for Node: 3 s.
    }
