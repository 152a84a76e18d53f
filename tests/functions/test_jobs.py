"""The doorways of jobs, loaded by the framework, over the local cloud: what Google, hosts and strangers send."""

import asyncio
import base64
import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from goblin.core.events import JobRequested
from goblin.gateway.keys import digest_of
from goblin.gcp.firestore.jobs import FirestoreAttemptKeys, FirestoreJobs
from goblin.jobs import worker_api
from goblin.jobs.domain.instances import AttemptLease
from goblin.jobs.domain.job import Dataset, Job, JobState, spec_digest
from tests.clouds import RunningCloud
from tests.fakes.batch_host import dataset, results
from tests.fakes.jobs import crc32c
from tests.functions.conftest import API_KEY

AUDIENCE = "http://functions"
INVOKER = "invoker@test.iam.gserviceaccount.com"
_numbers = itertools.count()


@dataclass
class Doorways:
    """Functions that are served on demand, in one project with one bucket."""

    cloud: RunningCloud
    serve: Callable[[str], str]
    project: str
    bucket: str
    _served: dict[str, str] = field(default_factory=dict)

    def url(self, function: str) -> str:
        if function not in self._served:
            self._served[function] = self.serve(function)
        return self._served[function]

    def token(self, email: str = INVOKER, audience: str = AUDIENCE) -> str:
        assert self.cloud.cloud is not None
        return self.cloud.cloud.identity.mint(email=email, audience=audience)

    def push(
        self, function: str, data: bytes, *, token: str | None = None, attempt: int = 1, **message: Any
    ) -> httpx.Response:
        """A push as Pub/Sub sends it."""
        said = {"messageId": "1", "publishTime": "2026-11-25T12:00:00Z", **message}
        body: dict[str, Any] = {"message": {**said, "data": base64.b64encode(data).decode()}, "subscription": "s"}
        body["deliveryAttempt"] = attempt
        headers = {} if token == "" else {"authorization": f"Bearer {token or self.token()}"}
        return httpx.post(f"{self.url(function)}/", json=body, headers=headers, timeout=30)

    def ask(self, method: str, path: str, body: Any = None, *, key: str = API_KEY) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.request(method, f"{self.url('jobs')}{path}", json=body, headers=headers, timeout=30)

    def spec(self, job_id: str, **changes: Any) -> dict[str, Any]:
        fields = {
            "job_id": job_id, "kind": "batch", "dataset_uri": f"gs://{self.bucket}/datasets/{job_id}.jsonl",
            "output_uri": f"gs://{self.bucket}/outputs/{job_id}.jsonl", "checkpoint_every": 3,
        }  # fmt: skip
        return {**fields, **changes}

    def upload(self, job_id: str, count: int) -> int:
        blob = self.cloud.storage_client(self.project).bucket(self.bucket).blob(f"datasets/{job_id}.jsonl")
        blob.upload_from_string(dataset(count))
        return int(blob.generation)

    def download(self, name: str) -> bytes:
        found: bytes = self.cloud.storage_client(self.project).bucket(self.bucket).blob(name).download_as_bytes()
        return found

    def write(self, job: Job) -> None:
        """A job as if it had come so far."""

        async def put() -> None:
            from google.cloud.firestore import AsyncClient

            client = AsyncClient(project=self.project)
            assert await FirestoreJobs(client).create(job) is not None
            if job.lease:
                until = datetime.now(UTC) + timedelta(hours=1)
                await FirestoreAttemptKeys(client).open(
                    job.lease.token_sha256, name="job:x", until=until, asker="", models=None
                )

        asyncio.run(put())


@pytest.fixture
def doors(
    cloud: RunningCloud, environ: dict[str, str], api_keys: None, serve_function: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> Doorways:  # fmt: skip
    assert cloud.cloud is not None
    project, bucket = environ["GOOGLE_CLOUD_PROJECT"], f"jobs-{next(_numbers)}"
    cloud.storage_client(project).create_bucket(bucket)
    credentials = tmp_path / "service-account.json"
    credentials.write_text(json.dumps(cloud.cloud.identity.service_account))
    said = {
        "GOBLIN_BUCKET": bucket, "GOBLIN_URL": "http://goblin", "GOBLIN_PUSH_AUDIENCE": AUDIENCE,
        "GOBLIN_INVOKER_EMAIL": INVOKER, "GOBLIN_OIDC_CERTS_URL": f"{cloud.addresses.http}/oauth2/v1/certs",
        "GOOGLE_APPLICATION_CREDENTIALS": str(credentials),
    }  # fmt: skip
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GOBLIN_LOCAL_INSTANCES", raising=False)
    create_topic(project)
    return Doorways(cloud, serve_function, project, bucket)


def create_topic(project: str) -> None:
    from google.cloud import pubsub_v1

    publisher = pubsub_v1.PublisherClient()
    publisher.create_topic(name=publisher.topic_path(project, "checkpoint-saved"))
    publisher.transport.close()


def test_an_event_becomes_a_job_once_however_often_it_comes(doors: Doorways) -> None:
    doors.upload("j", 5)
    event = json.dumps(doors.spec("j")).encode()
    assert [doors.push("job_requested", event).status_code for _ in range(3)] == [204, 204, 204]
    job = doors.ask("GET", "/jobs/j").json()
    assert (job["state"], job["total"], job["attempt"]) == ("queued", 5, 0)
    assert [one["job_id"] for one in doors.ask("GET", "/jobs").json()["data"]] == ["j"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not json", "JobRequested"),
        (b"{}", "job_id"),
        (b'{"job_id": "../x", "kind": "batch"}', "job_id"),
        (b'{"job_id": "j\\n", "kind": "batch"}', "job_id"),
        (b'{"job_id": "j", "kind": "batch", "dataset_uri": "http://x"}', "dataset_uri"),
    ],
)
def test_a_malformed_event_is_sent_back_until_it_is_a_dead_letter(doors: Doorways, data: bytes, words: str) -> None:
    answer = doors.push("job_requested", data)
    assert answer.status_code == 400, "whatever is not 2xx comes again"
    assert words in answer.json()["error"]["message"]


def test_another_job_under_a_taken_id_is_sent_back_and_not_lost_silently(doors: Doorways) -> None:
    doors.upload("j", 5)
    doors.push("job_requested", json.dumps(doors.spec("j")).encode())
    other = doors.push("job_requested", json.dumps(doors.spec("j", checkpoint_every=7)).encode())
    assert other.status_code == 409
    assert doors.ask("POST", "/jobs", doors.spec("j", checkpoint_every=7)).status_code == 409


@pytest.mark.parametrize("function", ["job_requested", "checkpoint_saved", "reconcile"])
@pytest.mark.parametrize("who", ["nobody", "a stranger", "another audience", "an API key"])
def test_private_functions_let_only_the_invoker_in(doors: Doorways, function: str, who: str) -> None:
    token = {
        "nobody": "", "a stranger": doors.token(email="eve@evil"), "another audience": doors.token(audience="http://x"),
        "an API key": API_KEY,
    }[who]  # fmt: skip
    answer = doors.push(function, json.dumps(doors.spec("j")).encode(), token=token)
    assert answer.status_code in (401, 403)
    assert doors.ask("GET", "/jobs/j").status_code == 404


def test_a_refused_event_leaves_a_job_that_says_why(doors: Doorways) -> None:
    assert doors.push("job_requested", json.dumps(doors.spec("j", kind="dance")).encode()).status_code == 204
    job = doors.ask("GET", "/jobs/j").json()
    assert (job["state"], "dance" in job["reason"]) == ("refused", True)


def test_a_caller_submits_shows_lists_and_cancels(doors: Doorways) -> None:
    doors.upload("j", 5)
    submitted = doors.ask("POST", "/jobs", doors.spec("j"))
    assert (submitted.status_code, submitted.json()["state"]) == (202, "queued")
    assert doors.ask("POST", "/jobs", doors.spec("j")).status_code == 202, "twice is once"
    assert doors.ask("POST", "/jobs/j/cancel").json()["state"] == "cancelled"
    assert doors.ask("POST", "/jobs/j/cancel").status_code == 200
    refused = doors.ask("POST", "/jobs", doors.spec("k", dataset_uri="gs://elsewhere/d.jsonl"))
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
    assert doors.ask("GET", "/jobs/k").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/jobs/nobody", None, 404),
        ("GET", "/jobs/__all__", None, 404),
        ("GET", "/jobs/%2e%2e", None, 404),
        ("GET", "/jobs/a%0a", None, 400),
        ("GET", "/jobs?limit=0", None, 400),
        ("GET", "/jobs?limit=many", None, 400),
        ("GET", "/jobs/a/b/c", None, 404),
        ("DELETE", "/jobs/j", None, 405),
        ("POST", "/jobs", {"job_id": "x"}, 400),
        ("POST", "/jobs", {"job_id": "x", "kind": "batch", "parameters": {"x": "y" * 300_000}}, 413),
    ],
)
def test_errors_have_openais_shape(doors: Doorways, method: str, path: str, body: Any, status: int) -> None:
    answer = doors.ask(method, path, body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("key", ["", "gob-attempt-guess.1.j", "sk-wrong"])
def test_strangers_are_told_nothing(doors: Doorways, key: str) -> None:
    running(doors)
    people = (
        ("GET", "/jobs"),
        ("GET", "/jobs/j"),
        ("GET", "/jobs/j/logs"),
        ("POST", "/jobs/j/cancel"),
        ("POST", "/jobs"),
    )
    for method, path in people:
        assert doors.ask(method, path, {}, key=key).status_code == 401
    hosts = (
        "claim",
        "inputs",
        "heartbeat",
        "checkpoints",
        "checkpoints/3/commit",
        "logs",
        "finish",
        "withdraw",
        "fail",
    )
    for what in hosts:
        body = {
            "step": 1, "reason": "x", "previous_step": 0, "upload_id": "12345678", "files": [announce(b"x")],
            "number": 0, "size": 1, "crc32c": "AAAAAA==",
        }  # fmt: skip
        assert doors.ask("POST", f"/jobs/j/{what}", body, key=key).status_code in (401, 403)
    assert doors.ask("GET", "/jobs/j").json()["state"] == "starting"


def test_a_key_sees_and_cancels_its_own_tenants_jobs_and_operate_all(doors: Doorways, firestore: Any) -> None:
    keys = {"ann": ("ann", ["jobs"]), "ann2": ("ann", ["jobs"]), "bob": ("", ["jobs"]), "op": ("ops", ["operate"])}
    for name, (tenant, scopes) in keys.items():
        made = {"name": name, "disabled": False, "created_at": datetime.now(UTC), "tenant": tenant, "scopes": scopes}
        firestore.collection("keys").document(digest_of(f"sk-{name}")).set({**made, "models": ["m"]})

    def ask(who: str, method: str, path: str, body: Any = None) -> httpx.Response:
        return doors.ask(method, path, body, key=f"sk-{who}")

    def listed(who: str, limit: int = 50) -> list[str]:
        return [job["job_id"] for job in ask(who, "GET", f"/jobs?limit={limit}").json()["data"]]

    for job_id, who in (("a", "ann"), ("b1", "bob"), ("b2", "bob"), ("b3", "bob")):
        doors.upload(job_id, 2)
        assert ask(who, "POST", "/jobs", doors.spec(job_id)).status_code == 202
    doors.push("job_requested", json.dumps(doors.spec("t", tenant="ann")).encode())
    doors.push("job_requested", json.dumps(doors.spec("o")).encode())
    assert listed("ann") == listed("ann2") == ["t", "a"]
    assert listed("bob", 2) == ["b3", "b2"]
    assert listed("ann", 1) == ["t"]
    assert listed("op") == ["o", "t", "b3", "b2", "b1", "a"]
    for job_id in ("a", "t", "o", "never"):
        for method, path in (("GET", ""), ("GET", "/logs"), ("GET", "/logs?attempt=7"), ("POST", "/cancel")):
            answer = ask("bob", method, f"/jobs/{job_id}{path}", {} if method == "POST" else None)
            assert answer.status_code == 404
            never = ask("bob", "GET", "/jobs/never").text
            assert answer.text == never.replace("'never'", f"'{job_id}'")
    taken = set()
    for job_id in ("a", "t", "o"):
        for other in ({}, {"retries": 9}):
            answer = ask("bob", "POST", "/jobs", doors.spec(job_id, **other))
            taken.add((answer.status_code, answer.json()["error"]["message"].replace(f"'{job_id}'", "X")))
    assert taken == {(409, "Job id X is taken. Choose another job_id.")}
    assert ask("ann", "POST", "/jobs", doors.spec("x", tenant="bob")).status_code == 400
    assert ask("op", "POST", "/jobs", doors.spec("x")).status_code == 403
    assert ask("ann2", "POST", "/jobs/a/cancel", {}).json()["state"] == "cancelled"
    assert ask("op", "POST", "/jobs/b1/cancel", {}).json()["state"] == "cancelled"
    assert ask("op", "GET", "/jobs/b2").json()["state"] == "queued"


def test_an_item_that_the_key_may_not_ask_is_refused_by_line(doors: Doorways, firestore: Any) -> None:
    made = {"name": "ann", "disabled": False, "created_at": datetime.now(UTC), "models": ["other"]}
    firestore.collection("keys").document(digest_of("sk-ann")).set(made)
    doors.upload("j", 3)
    job = doors.ask("POST", "/jobs", doors.spec("j"), key="sk-ann").json()
    assert job["state"] == "refused"
    assert "line 1: the API key that asked for the job may not use the model 'm'" in job["reason"]


def test_a_revoked_key_ends_its_jobs_and_they_say_so(doors: Doorways, firestore: Any) -> None:
    made = {"name": "ann", "disabled": False, "created_at": datetime.now(UTC)}
    firestore.collection("keys").document(digest_of("sk-ann")).set(made)
    doors.upload("j", 3)
    assert doors.ask("POST", "/jobs", doors.spec("j"), key="sk-ann").json()["state"] == "queued"
    firestore.collection("keys").document(digest_of("sk-ann")).update({"disabled": True})
    headers = {"authorization": f"Bearer {doors.token()}"}
    assert httpx.post(f"{doors.url('reconcile')}/", json={}, headers=headers, timeout=30).is_success
    job = doors.ask("GET", "/jobs/j").json()
    assert (job["state"], job["reason"]) == ("failed", "the API key 'ann', which asked for the job, was revoked")


def running(doors: Doorways, count: int = 5) -> str:
    """A job whose first attempt has a lease; its token."""
    generation = doors.upload("j", count)
    token, now = worker_api.new_token("j", 1, "secret"), datetime.now(UTC)
    spec = JobRequested(**doors.spec("j"))
    lease = AttemptLease(
        provider="elsewhere", label="goblin-j-a1", token_sha256=worker_api.digest(token), placed_at=now,
        until=now + timedelta(minutes=1), instance_id="i-1",
    )  # fmt: skip
    uri = str(spec.dataset_uri)
    doors.write(
        Job(
            job_id="j",
            spec=spec,
            spec_sha256=spec_digest(spec),
            state=JobState.STARTING,
            requested_at=now,
            updated_at=now,
            attempt=1,
            lease=lease,
            dataset=Dataset(uri=uri, generation=generation, size=len(dataset(count)), items=count),
        )
    )
    return token


def announce(data: bytes) -> dict[str, Any]:
    return {
        "name": "part.jsonl", "size": len(data), "crc32c": crc32c(data), "sha256": hashlib.sha256(data).hexdigest()
    }  # fmt: skip


def test_an_attempt_goes_all_the_way_over_http(doors: Doorways) -> None:
    token = running(doors, 5)

    def say(path: str, body: Any) -> Any:
        answer = doors.ask("POST", f"/jobs/j/{path}", body, key=token)
        assert answer.is_success, answer.text
        return answer.json()

    work = say("claim", {})
    assert (work["step"], work["total"], work["checkpoint_every"], work["attempt"]) == (0, 5, 3, 1)
    given = httpx.get(work["dataset"]["url"], headers={**work["dataset"]["headers"], "range": "bytes=0-9"})
    assert (given.status_code, given.content) == (206, dataset(5)[:10])
    assert say("heartbeat", {"step": 1}) == {"state": "running", "stop": None, "checkpoint_s": None}
    for start, end in ((0, 3), (3, 5)):
        data = results(start, end, 1)
        said = say("checkpoints", {"step": end, "files": [announce(data)]})
        grant = said["grants"]["part.jsonl"]
        assert httpx.put(grant["url"], content=data, headers=grant["headers"]).status_code == 200
        commit = {"previous_step": start, "upload_id": said["upload_id"], "files": [announce(data)]}
        saved = say(f"checkpoints/{end}/commit", commit)
        event = {"job_id": "j", "attempt": 1, "step": end, "manifest_uri": saved["manifest_uri"]}
        assert doors.push("checkpoint_saved", json.dumps(event).encode()).status_code == 204
        assert doors.push("checkpoint_saved", json.dumps(event).encode()).status_code == 204
        assert doors.ask("GET", "/jobs/j").json()["checkpoint"]["step"] == end
    assert say("finish", {}) == {"state": "succeeded"}
    assert doors.download("outputs/j.jsonl") == results(0, 5, 1)
    assert doors.ask("POST", "/jobs/j/heartbeat", {"step": 5}, key=token).status_code == 409


def test_an_attempts_token_is_no_api_key_here(doors: Doorways) -> None:
    """It opens the gateway, and so it is known; it must not submit, list or cancel."""
    token = running(doors)
    for method, path in (("GET", "/jobs"), ("GET", "/jobs/j"), ("POST", "/jobs/j/cancel"), ("POST", "/jobs")):
        assert doors.ask(method, path, {}, key=token).status_code == 403


def test_a_host_writes_its_log_and_a_person_reads_it(doors: Doorways) -> None:
    token = running(doors)
    doors.ask("POST", "/jobs/j/claim", {}, key=token)
    for number, text in enumerate([b"one\n", b"two \x1b[31mred\n"]):
        piece = {"number": number, "size": len(text), "crc32c": crc32c(text)}
        grant = doors.ask("POST", "/jobs/j/logs", piece, key=token).json()
        assert httpx.put(grant["url"], content=text, headers=grant["headers"]).status_code == 200
    expected = {"object": "log", "attempt": 1, "text": "one\ntwo red\n", "whole": True}
    assert doors.ask("GET", "/jobs/j/logs").json() == expected
    assert doors.ask("GET", "/jobs/j/logs?attempt=1").json() == expected
    assert doors.ask("GET", "/jobs/j/logs", key=token).status_code == 403
    for attempt, status in (("0", 404), ("2", 404), ("x", 400), ("-1", 400), ("1" * 20, 400), ("²", 400)):
        assert doors.ask("GET", f"/jobs/j/logs?attempt={attempt}").status_code == status
    assert doors.ask("GET", "/jobs/nobody/logs").status_code == 404


def test_nothing_of_a_lease_is_shown(doors: Doorways) -> None:
    token = running(doors)
    shown = doors.ask("GET", "/jobs/j").text
    assert token not in shown
    assert worker_api.digest(token) not in shown


def test_a_forged_checkpoint_event_moves_nothing(doors: Doorways) -> None:
    running(doors)
    forged = {"job_id": "j", "attempt": 1, "step": 5, "manifest_uri": f"gs://{doors.bucket}/outputs/MANIFEST.json"}
    assert doors.push("checkpoint_saved", json.dumps(forged).encode()).status_code == 400
    missing = {**forged, "manifest_uri": f"gs://{doors.bucket}/checkpoints/j/00000005/a1/MANIFEST.json"}
    assert doors.push("checkpoint_saved", json.dumps(missing).encode()).status_code == 500
    assert doors.ask("GET", "/jobs/j").json()["checkpoint"] is None


def test_reconcile_says_what_it_did(doors: Doorways) -> None:
    doors.upload("j", 5)
    doors.push("job_requested", json.dumps(doors.spec("j")).encode())
    answer = httpx.post(f"{doors.url('reconcile')}/", headers={"authorization": f"Bearer {doors.token()}"}, timeout=30)
    assert answer.json() == {"moved": 0, "placed": 0, "released": 0, "errors": []}
