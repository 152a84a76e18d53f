"""A job from an app's own Google clients to its output, through everything real, and through `kill -9` of all of it."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai.types.chat
import psutil
import pytest

from tests.flows.conftest import Running

pytestmark = pytest.mark.xdist_group("flows")

END_S_MAX = 90
ENDED = {"succeeded", "failed", "cancelled", "refused"}

# Ten lines, as an app would write them.
SUBMIT = """
import json, os, sys
from google.cloud import pubsub_v1, storage
job, count, every, bucket = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), os.environ["GOBLIN_BUCKET"]
say = lambda n: {"model": "goblin-tiny", "max_tokens": 8, "messages": [{"role": "user", "content": f"Say {n}"}]}
row = lambda n: {"custom_id": f"item-{n}", "method": "POST", "url": "/v1/chat/completions", "body": say(n)}
rows = [row(n) for n in range(count)]
storage.Client().bucket(bucket).blob(f"datasets/{job}.jsonl").upload_from_string("\\n".join(map(json.dumps, rows)))
event = {"job_id": job, "kind": "batch", "dataset_uri": f"gs://{bucket}/datasets/{job}.jsonl",
         "output_uri": f"gs://{bucket}/outputs/{job}.jsonl", "checkpoint_every": every}
publisher = pubsub_v1.PublisherClient()
topic = publisher.topic_path(os.environ["GOOGLE_CLOUD_PROJECT"], "job-requested")
print(publisher.publish(topic, json.dumps(event).encode()).result())
"""
OUTPUT = """
import os, sys
from google.cloud import storage
sys.stdout.write(storage.Client().bucket(os.environ["GOBLIN_BUCKET"]).blob(sys.argv[1]).download_as_text())
"""
PUBLISH = """
import os, sys
from google.cloud import pubsub_v1
publisher = pubsub_v1.PublisherClient()
publisher.publish(publisher.topic_path(os.environ["GOOGLE_CLOUD_PROJECT"], sys.argv[1]), sys.argv[2].encode()).result()
"""


def app(running: Running, program: str, *words: str) -> str:
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=running.env(), timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def goblin(running: Running, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "goblin.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=running.env(), timeout=END_S_MAX)


def ask(running: Running, path: str) -> Any:
    headers = {"authorization": f"Bearer {running.variables['GOBLIN_API_KEY']}"}
    url = running.variables.get("GOBLIN_JOBS_URL", running.url)
    return httpx.get(f"{url}{path}", headers=headers, timeout=20).json()


def until(running: Running, job_id: str, reached: Callable[[Any], bool]) -> Any:
    """Ask until the job is so far: other processes bring it on, and HTTP is how one learns of it."""
    deadline = time.monotonic() + END_S_MAX
    while not reached(job := ask(running, f"/jobs/{job_id}")):
        assert time.monotonic() < deadline, f"{job}\n{running.logs()}"
        time.sleep(0.1)
    return job


def ended(job: Any) -> bool:
    return job.get("state") in ENDED


def results(running: Running, job_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in app(running, OUTPUT, f"outputs/{job_id}.jsonl").splitlines()]


def test_every_output_once_through_a_kill_of_the_whole_tree(start_up: Callable[..., Running]) -> None:
    running = start_up()
    app(running, SUBMIT, "killed", "200", "10")
    until(running, "killed", lambda job: (job.get("checkpoint") or {"step": 0})["step"] >= 30)
    running.kill_tree()
    running.start()
    job = until(running, "killed", ended)
    assert (job["state"], job["step"], job["total"]) == ("succeeded", 200, 200), job["history"]
    assert job["attempt"] > 1, "it was killed in the middle"
    [resumed] = [line["reason"] for line in job["history"] if line["reason"].startswith("attempt 2 begins")]
    assert resumed != "attempt 2 begins at step 0"
    assert [line["custom_id"] for line in results(running, "killed")] == [f"item-{n}" for n in range(200)]


def test_openais_own_batch_file_in_and_its_own_types_out(up: Running) -> None:
    app(up, SUBMIT, "typed", "5", "2")
    assert until(up, "typed", ended)["state"] == "succeeded"
    for line in results(up, "typed"):
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        assert line["response"]["request_id"]
        answer = openai.types.chat.ChatCompletion.model_validate(line["response"]["body"], strict=True)
        assert answer.choices[0].message.content


def test_the_same_event_twice_is_one_job(up: Running) -> None:
    app(up, SUBMIT, "twice", "3", "2")
    until(up, "twice", ended)
    app(up, SUBMIT.replace("storage.Client().bucket", "# storage.Client().bucket"), "twice", "3", "2")
    app(up, SUBMIT, "marker", "1", "1")
    until(up, "marker", ended)
    job = ask(up, "/jobs/twice")
    assert (job["state"], job["attempt"]) == ("succeeded", 1)
    assert [one["job_id"] for one in ask(up, "/jobs?limit=200")["data"]].count("twice") == 1


def test_a_malformed_event_is_a_dead_letter_with_its_reason_that_can_be_replayed(up: Running) -> None:
    event = '{"job_id": "not a job id", "kind": "batch"}'
    app(up, PUBLISH, "job-requested", event)
    letter = dead_letter(up)
    assert letter["data"] == event
    assert letter["delivery_count"] == "1", "each further delivery would be refused too"
    assert letter["reason"].endswith("- at `$.job_id`.")
    shown = goblin(up, "dead-letters", "list").stdout
    assert event in shown, "looking leaves it there"
    assert letter["reason"] in shown
    [replayed] = json.loads(goblin(up, "dead-letters", "replay", "--force", "--json").stdout)
    assert replayed["message_id"] == letter["message_id"]
    again = dead_letter(up)
    assert (again["data"], again["reason"]) == (event, letter["reason"])
    assert (again["first_at"], again["delivery_count"], again["replays"]) == (letter["first_at"], "2", 1)
    assert again["message_id"] != letter["message_id"]


def dead_letter(up: Running) -> Any:
    """The one dead letter of `job-requested`, once it is there."""
    deadline = time.monotonic() + END_S_MAX
    while not (letters := json.loads(goblin(up, "dead-letters", "list", "job-requested", "--json").stdout)):
        assert time.monotonic() < deadline
    [letter] = letters
    return letter


def test_the_command_line_submits_follows_lists_and_refuses(up: Running, tmp_path: Path) -> None:
    rows = [
        {"custom_id": f"row-{n}", "method": "POST", "url": url, "body": body}
        for n, (url, body) in enumerate(
            [
                ("/v1/completions", {"prompt": "Once", "max_tokens": 4}),
                ("/v1/embeddings", {"input": "words"}),
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}),
                ("/v1/chat/completions", {"model": "no-such-model", "messages": [{"role": "user", "content": "hi"}]}),
            ]
        )
    ]
    file = tmp_path / "batch.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    done = goblin(
        up, "jobs", "submit", str(file), "--job-id", "typed-by-hand", "--model", "goblin-tiny", "--watch", "--json"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["state"], last["step"]) == ("succeeded", 4)
    statuses = [line["response"]["status_code"] for line in results(up, "typed-by-hand")]
    assert statuses == [200, 200, 200, 404], "an item's own fault is its result"
    assert "typed-by-hand" in goblin(up, "jobs", "list").stdout
    assert "4 of 4" in goblin(up, "jobs", "show", "typed-by-hand").stdout
    for words, said in (
        (("jobs", "cancel", "typed-by-hand"), "too late to cancel"),
        (("jobs", "show", "nobody"), "no job 'nobody'"),
        (("jobs", "submit", "nowhere.jsonl"), "There is no file nowhere.jsonl"),
        (("jobs", "submit", "gs://elsewhere/x.jsonl"), "must be in"),
    ):
        refused = goblin(up, *words)
        assert refused.returncode == 1
        assert refused.stderr.startswith("goblin: ")
        assert said in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


# An app that wants to know what becomes of its job.
LISTEN = """
import json, os, sys
from google.cloud import pubsub_v1
subscriber, project = pubsub_v1.SubscriberClient(), os.environ["GOOGLE_CLOUD_PROJECT"]
topic = f"projects/{project}/topics/job-status-changed"
name = f"projects/{project}/subscriptions/an-app"
subscriber.create_subscription(name=name, topic=topic)
print("listening", flush=True)
heard = []
while not heard or heard[-1]["state"] not in ("succeeded", "failed"):
    got = subscriber.pull(subscription=name, max_messages=50, timeout=60).received_messages
    subscriber.acknowledge(subscription=name, ack_ids=[one.ack_id for one in got])
    heard += [event for one in got if (event := json.loads(one.message.data))["job_id"] == sys.argv[1]]
    heard.sort(key=lambda event: event["seq"])
print(json.dumps(heard))
"""


def test_an_app_hears_of_every_state_of_its_job(up: Running) -> None:
    command = [sys.executable, "-c", LISTEN, "heard"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=up.env()) as listener:
        try:
            assert listener.stdout
            assert listener.stdout.readline() == "listening\n"
            app(up, SUBMIT, "heard", "5", "2")
            heard = json.loads(listener.communicate(timeout=END_S_MAX)[0])
        finally:
            listener.kill()
    states = list(dict.fromkeys(event["state"] for event in heard))
    assert states[-1] == "succeeded"
    assert {"running", "succeeded"} <= set(states)
    assert heard[-1]["output_uri"].endswith("/outputs/heard.jsonl")
    assert (heard[-1]["step"], heard[-1]["total"]) == (5, 5)


def test_a_cancelled_job_ends_and_its_process_with_it(up: Running) -> None:
    app(up, SUBMIT, "unwanted", "5000", "1000")
    until(up, "unwanted", lambda job: job.get("state") == "running" and job["step"] >= 0)
    assert goblin(up, "jobs", "cancel", "unwanted", "--json").returncode == 0
    assert ask(up, "/jobs/unwanted")["state"] == "cancelled"
    deadline = time.monotonic() + END_S_MAX
    while any("goblin-unwanted-a1" in words for words in map(command_line, up.tree())):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_host_that_is_taken_away_saves_what_it_has_done(up: Running) -> None:
    before = answered(up)
    app(up, SUBMIT, "taken", "400", "400")
    until(up, "taken", lambda job: job.get("state") == "running" and answered(up) >= before + 10)
    [worker] = [one for one in up.tree() if "goblin-taken-a1" in command_line(one)]
    worker.terminate()
    job = until(up, "taken", ended)
    assert (job["state"], job["attempt"]) == ("succeeded", 2)
    reasons = [line["reason"] for line in job["history"]]
    assert "the host was taken away" in reasons
    assert "attempt 2 begins at step 0" not in reasons, "it saved what it had, though no checkpoint was due"
    assert [line["custom_id"] for line in results(up, "taken")] == [f"item-{n}" for n in range(400)]


def test_ctrl_c_lets_jobs_save_before_it_stops_what_they_save_through(start_up: Callable[..., Running]) -> None:
    running = start_up()
    app(running, SUBMIT, "stopped", "300", "300")
    until(running, "stopped", lambda job: job.get("state") == "running" and answered(running) >= 10)
    assert running.stop(signal.SIGINT) == 0
    job = until(running.start(), "stopped", ended)
    assert (job["state"], job["attempt"]) == ("succeeded", 2)
    reasons = [line["reason"] for line in job["history"]]
    assert "the host was taken away" in reasons
    assert "attempt 2 begins at step 0" not in reasons, "it saved what it had, though no checkpoint was due"


TRAIN = """
import json, os, sys
from google.cloud import pubsub_v1, storage
job, parameters, bucket = sys.argv[1], json.loads(sys.argv[2]), os.environ["GOBLIN_BUCKET"]
text = "the goblin counts its coins, and the coins count on the goblin. " * 20
storage.Client().bucket(bucket).blob(f"datasets/{job}.txt").upload_from_string(text)
event = {"job_id": job, "kind": "training", "dataset_uri": f"gs://{bucket}/datasets/{job}.txt",
         "output_uri": f"gs://{bucket}/outputs/{job}", "task": "char-lm", "parameters": parameters}
publisher = pubsub_v1.PublisherClient()
topic = publisher.topic_path(os.environ["GOOGLE_CLOUD_PROJECT"], "job-requested")
publisher.publish(topic, json.dumps(event).encode()).result()
"""


def test_a_training_goes_on_where_its_host_was_taken_away(up: Running) -> None:
    app(up, TRAIN, "trained", json.dumps({"steps": 150, "pace": 40, "save_every": 20}))
    until(up, "trained", lambda job: (job.get("checkpoint") or {"step": 0})["step"] >= 20)
    [agent] = [one for one in up.tree() if "goblin-trained-a1" in command_line(one)]
    agent.terminate()
    job = until(up, "trained", ended)
    assert (job["state"], job["attempt"], job["step"], job["total"]) == ("succeeded", 2, 150, 150), job["history"]
    reasons = [line["reason"] for line in job["history"]]
    assert "the host was taken away" in reasons
    assert json.loads(app(up, OUTPUT, "outputs/trained/facts.json"))["step"] == 150
    assert "char-lm: ends at step 150" in ask(up, "/jobs/trained/logs")["text"]


def answered(running: Running) -> float:
    """Requests that the gateway has answered, as it counts them itself."""
    headers = {"authorization": f"Bearer {running.variables['GOBLIN_API_KEY']}"}
    lines = httpx.get(f"{running.url}/metrics", headers=headers, timeout=20).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("inference_requests_total{"))


def command_line(process: psutil.Process) -> list[str]:
    """Nothing for a process that has just ended."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
