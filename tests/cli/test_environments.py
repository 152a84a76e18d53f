"""What each process of `goblin up` gets of a shell full of secrets."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from goblin.cli import environments, paths
from goblin.wiring.settings import named_variables

SECRETS = dict.fromkeys((
    "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_AUTH_ACCESS_TOKEN",
    "SSH_AUTH_SOCK", "NPM_TOKEN", "HF_TOKEN", "DATABASE_URL", "MY_OWN_KEY", "GOBLIN_LLAMACPP_HOST",
    "GOBLIN_LLAMACPP_API_KEY_FILE", "GOBLIN_LLAMACPP_LOAD_FROM", "LD_PRELOAD", "BASH_ENV", "PS1",
), "secret")  # fmt: skip
PROVIDERS = dict.fromkeys((
    "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GROQ_API_KEY", "RUNPOD_API_KEY", "VASTAI_API_KEY", "FLY_API_TOKEN",
    "OPENAI_ADMIN_KEY", "ANTHROPIC_ADMIN_KEY", "VASTAI_WEBHOOK_SECRET", "VAST_SERVER_KEY",
), "secret")  # fmt: skip
PLAIN = {
    "HOME": "/home/me", "PATH": "/bin", "LANG": "C.UTF-8", "LC_ALL": "C", "TMPDIR": "/t", "PYTHONPATH": "/p",
    "__CF_USER_TEXT_ENCODING": "0x1F5:0x0:0x0", "LD_LIBRARY_PATH": "/l",
}  # fmt: skip
SHELL = {**SECRETS, **PROVIDERS, **PLAIN, "https_proxy": "http://me:secret@proxy", "SSL_CERT_FILE": "/c"}
ALWAYS = {**PLAIN, "PYTHONUNBUFFERED": "1"}


def test_the_functions_alone_get_the_keys_of_providers() -> None:
    got = environments.for_functions(SHELL, {"GOBLIN_URL": "http://here"})
    wanted = {**ALWAYS, **PROVIDERS, "https_proxy": "http://me:secret@proxy", "SSL_CERT_FILE": "/c"}
    assert got == {**wanted, "GOBLIN_URL": "http://here"}


def test_what_up_gives_overrides_what_a_person_has_set() -> None:
    assert environments.for_functions(SHELL, {"VASTAI_API_KEY": "local"})["VASTAI_API_KEY"] == "local"


def test_the_others_get_none() -> None:
    tuned = {**SHELL, "GOBLIN_LLAMACPP_SLOTS": "2", "OMP_NUM_THREADS": "1"}
    assert environments.for_model_server(tuned) == {**ALWAYS, "GOBLIN_LLAMACPP_SLOTS": "2", "OMP_NUM_THREADS": "1"}
    assert environments.for_local_service(SHELL) == ALWAYS
    assert environments.for_local_service(SHELL, {"RUNPOD_API_KEY": "local"}) == {**ALWAYS, "RUNPOD_API_KEY": "local"}
    assert environments.for_emulator({**SHELL, "JAVA_HOME": "/j"}) == {**ALWAYS, "JAVA_HOME": "/j"}


def test_a_configuration_of_ones_own_names_what_else_the_functions_get(tmp_path: Path) -> None:
    text = '[[endpoints]]\nname = "mine"\nurl = "${MY_OWN_URL:-https://x}"\napi_key = "${MY_OWN_KEY}"\n'
    (tmp_path / "goblin.toml").write_text(text)
    assert named_variables(text) == {"MY_OWN_URL", "MY_OWN_KEY"}
    got = environments.for_functions({**SHELL, "GOBLIN_CONFIG": str(tmp_path / "goblin.toml")}, {})
    assert got["MY_OWN_KEY"] == "secret"
    assert "GITHUB_TOKEN" not in got
    # A file that cannot be read is the functions' to report.
    assert "MY_OWN_KEY" not in environments.for_functions({**SHELL, "GOBLIN_CONFIG": "/no/such"}, {})


@pytest.mark.skipif(paths.checkout() is None, reason="the list of production lies in the checkout")
def test_the_functions_get_what_they_read_in_production() -> None:
    root = paths.checkout()
    assert root is not None
    listed = YAML(typ="safe").load(root / "terraform" / "environment.yaml")
    read = {*listed["settings"], *listed["local"], *(name for group in listed["secrets"].values() for name in group)}
    by_up = {  # `goblin up` sets these itself, whatever a person has.
        "FIRESTORE_EMULATOR_HOST", "GOBLIN_PACE", "GOBLIN_LOCAL_INSTANCES", "GOBLIN_OIDC_CERTS_URL",
        "GOOGLE_CLOUD_PROJECT",
        "PUBSUB_EMULATOR_HOST", "SECRET_MANAGER_EMULATOR_HOST", "STORAGE_EMULATOR_HOST",
    }  # fmt: skip
    got = environments.for_functions(dict.fromkeys(read - {"GOBLIN_CONFIG"}, "set"), {})
    assert read - got.keys() - {"GOBLIN_CONFIG"} == by_up


def test_a_machine_that_is_rented_here_has_its_orders_environment_and_no_other(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from localgpus.machines import Processes\n"
        "made = Processes([sys.executable, '-c', 'import os; print(sorted(os.environ))'], Path(sys.argv[1]))\n"
        "made.start('m', image='i', args=(), env={'GOBLIN_URL': 'u'})\n"
        "made._runs['m'].ended.wait(20)\n"
        "while not made.logs('m'): pass\n"
        "print(made.logs('m'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env={**os.environ, **SECRETS, **PROVIDERS},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    found = set(re.findall(r"'(\w+)'", done.stdout))
    assert found - {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"} == {"GOBLIN_URL", "HOME", "TMPDIR"}, done.stderr
