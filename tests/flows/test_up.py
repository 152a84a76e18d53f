"""`goblin up` as a newcomer meets it: what it prints, what answers, what survives, how it ends."""

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from localcloud import google
from tests.flows.conftest import Running, clean_environment

PORTS = ("GOBLIN_URL", "PUBSUB_EMULATOR_HOST", "FIRESTORE_EMULATOR_HOST", "STORAGE_EMULATOR_HOST")

pytestmark = pytest.mark.xdist_group("flows")


def client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{running.variables['GOBLIN_URL']}/v1", api_key=running.variables["GOBLIN_API_KEY"], max_retries=0
    )


def goblin(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "goblin.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env or clean_environment(), timeout=60)


def google_python(running: Running, program: str) -> str:
    """Run an app's program with Google's clients pointed here, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=running.env(), timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_prints_where_everything_is_once_it_answers(up: Running) -> None:
    said = up.said()
    assert "ready in" in said
    for value in (f"{up.url}/v1", f"{up.url}/", up.variables["PUBSUB_EMULATOR_HOST"], str(up.data)):
        assert value in said
    assert up.variables["GOBLIN_API_KEY"] not in said


def test_env_prints_exports_that_a_shell_takes(up: Running) -> None:
    printed = goblin("env", f"--data={up.data}").stdout
    shell = subprocess.run(
        ["sh", "-c", f"{printed}\necho $GOBLIN_URL $GOBLIN_API_KEY $GOBLIN_BUCKET $STORAGE_EMULATOR_HOST"],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    names = ("GOBLIN_URL", "GOBLIN_API_KEY", "GOBLIN_BUCKET", "STORAGE_EMULATOR_HOST")
    assert shell.stdout.split() == [up.variables[name] for name in names]


def test_the_openai_sdk_gets_an_answer_from_a_real_llamacpp(up: Running) -> None:
    answer = client(up).chat.completions.create(
        model="goblin-tiny", messages=[{"role": "user", "content": "Hello!"}], max_tokens=40, temperature=0
    )
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_the_openai_sdk_streams_with_usage_at_the_end(up: Running) -> None:
    stream = client(up).chat.completions.create(
        model="goblin-tiny",
        messages=[{"role": "user", "content": "Count from 1 to 5."}],
        max_tokens=40,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "3" in text
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_errors_are_the_sdks_own_exceptions(up: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client(up).chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError):
        client(up).chat.completions.create(model="goblin-tiny", messages=[])
    stranger = openai.OpenAI(base_url=f"{up.url}/v1", api_key="not-a-key", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_models_embeddings_completions_and_providers(up: Running) -> None:
    sdk = client(up)
    assert "goblin-tiny" in [model.id for model in sdk.models.list()]
    vectors = sdk.embeddings.create(model="goblin-tiny", input=["hello", "goodbye"]).data
    assert len(vectors) == 2
    assert sum(x * x for x in vectors[0].embedding) == pytest.approx(1, abs=1e-3)
    assert sdk.completions.create(model="goblin-tiny", prompt="1, 2, 3,", max_tokens=4).choices[0].text
    providers = httpx.get(f"{up.url}/providers", headers={"authorization": f"Bearer {sdk.api_key}"}).json()
    assert providers["gcp_llamacpp"]["status"] == "healthy"
    assert providers["gcp_llamacpp"]["latency_ms"] >= 0


def test_the_console_shows_the_providers(up: Running) -> None:
    page = httpx.get(f"{up.url}/")
    assert page.status_code == 200
    assert "gcp_llamacpp" in page.text
    assert up.variables["GOBLIN_API_KEY"] not in page.text


def test_a_second_up_on_the_same_folder_says_who_holds_it(up: Running) -> None:
    second = goblin("up", f"--data={up.data}", f"--port={google.free_port()}")
    assert second.returncode == 1
    assert f"in use by goblin up (process {up.process.pid if up.process else ''}, {up.url})" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = goblin("up", f"--data={tmp_path / 'data'}", f"--port={port}")
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines()[-1] == f"goblin: Port {port} is in use. Choose another with --port PORT."


def test_several_at_once_get_ports_of_their_own(tmp_path: Path) -> None:
    runs = [Running(tmp_path / name) for name in ("one", "two")]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(Running.start, runs))
    try:
        ports = [value for run in runs for name, value in run.variables.items() if name in PORTS]
        assert len(set(ports)) == len(ports) == 2 * len(PORTS)
    finally:
        for run in runs:
            run.close()


def test_a_missing_model_is_one_clear_line(tmp_path: Path) -> None:
    refused = goblin("up", f"--data={tmp_path / 'data'}", f"--port={google.free_port()}", "--model=/no/such.gguf")
    assert refused.returncode == 1
    assert "There is no model file /no/such.gguf" in refused.stderr


def test_env_without_a_running_goblin_says_how_to_start_one(tmp_path: Path) -> None:
    refused = goblin("env", f"--data={tmp_path}")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "./goblin up" in refused.stderr


WRITE = """
import os
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore, pubsub_v1, storage
project = os.environ["GOOGLE_CLOUD_PROJECT"]
firestore.Client(project=project).document("kept/one").set({"n": 41})
firestore.Client(project=project).document("kept/one").update({"n": firestore.Increment(1)})
bucket = storage.Client(project=project, credentials=AnonymousCredentials()).bucket(os.environ["GOBLIN_BUCKET"])
bucket.blob("kept/one").upload_from_string(b"kept", if_generation_match=0)
publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
topic, name = publisher.topic_path(project, "kept"), subscriber.subscription_path(project, "kept-pull")
publisher.create_topic(name=topic)
subscriber.create_subscription(request={"name": name, "topic": topic})
publisher.publish(topic, b"kept").result()
"""

READ = """
import os
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore, pubsub_v1, storage
project = os.environ["GOOGLE_CLOUD_PROJECT"]
number = firestore.Client(project=project).document("kept/one").get().get("n")
bucket = storage.Client(project=project, credentials=AnonymousCredentials()).bucket(os.environ["GOBLIN_BUCKET"])
data = bucket.blob("kept/one").download_as_bytes()
subscriber = pubsub_v1.SubscriberClient()
name = subscriber.subscription_path(project, "kept-pull")
message = subscriber.pull(subscription=name, max_messages=1, timeout=20).received_messages[0].message
print(number, data.decode(), message.data.decode())
"""


def test_nothing_is_lost_when_the_whole_tree_is_killed(start_up: Callable[..., Running], tmp_path: Path) -> None:
    first = start_up()
    google_python(first, WRITE)
    first.kill_tree()
    again = start_up(data=first.data)
    assert again.variables["GOBLIN_API_KEY"] == first.variables["GOBLIN_API_KEY"]
    assert google_python(again, READ) == "42 kept kept"
    answer = client(again).chat.completions.create(
        model="goblin-tiny", messages=[{"role": "user", "content": "Hello!"}]
    )
    assert answer.choices[0].message.content


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_every_child(start_up: Callable[..., Running], number: int) -> None:
    running = start_up()
    tree = running.tree()
    assert len(tree) >= 4
    assert running.stop(number) == 0
    assert not [one for one in tree if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert goblin("env", f"--data={running.data}").returncode == 1


def test_killing_only_the_command_leaves_no_orphan(start_up: Callable[..., Running]) -> None:
    running = start_up()
    tree = running.tree()
    tree[0].kill()
    _, alive = psutil.wait_procs(tree, 20)
    assert not alive


def test_runs_on_googles_emulators_too(start_up: Callable[..., Running]) -> None:
    if reason := google.find().reason:
        pytest.skip(reason)
    running = start_up("--cloud=emulators")
    answer = client(running).chat.completions.create(
        model="goblin-tiny", messages=[{"role": "user", "content": "Hello!"}], max_tokens=20
    )
    assert answer.choices[0].message.content
    google_python(running, WRITE)
    assert google_python(running, READ) == "42 kept kept"
