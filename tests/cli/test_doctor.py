"""`goblin doctor`, against a fake gcloud on PATH that answers in the shapes of the real one."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from goblin.cli import diagnosis, doctor, paths
from goblin.cli.diagnosis import Image
from goblin.cli.main import main
from tests.fakes.commands import Commands
from tests.fakes.serving import closed_port, serve

CLOUD = json.loads(paths.declaration().read_text())
PROJECT, NUMBER, REGION = "my-project", "123456789012", "us-east1"
IMAGE = f"us-east1-docker.pkg.dev/my-project/goblin/functions@sha256:{'a' * 64}"
AGENT = f"ghcr.io/my-organization/goblin-agent@sha256:{'c' * 64}"
INVOKER = "goblin-invoker@my-project.iam.gserviceaccount.com"
AGENT_OF_PUBSUB = f"service-{NUMBER}@gcp-sa-pubsub.iam.gserviceaccount.com"
SIX = ["audience forms", "internal ingress", "console behind IAP", "alert prices", "GPU quota", "provenance"]
PUSHED = {topic: it["function"] for topic, it in CLOUD["topics"].items() if "function" in it}
PRIVATE = sorted({*PUSHED.values(), *(it["function"] for it in CLOUD["schedules"].values())})
PUBLIC = [name for name, it in CLOUD["http"].items() if it.get("access") == "keys"]

Doctor = Callable[..., Result]


def url(function: str) -> str:
    return f"https://goblin-{function.replace('_', '-')}-{NUMBER}.{REGION}.run.app"


def service(function: str, *, ready: bool = True, **variables: str) -> dict[str, Any]:
    """A service as `gcloud run services list --format=json` prints it."""
    public = function in PUBLIC
    name = f"goblin-{function.replace('_', '-')}"
    said = {
        "FUNCTION_TARGET": function, "GOBLIN_PUSH_AUDIENCE": url(function),
        "GOBLIN_VERIFY_CALLER": "on" if public else "iam", "GOBLIN_AGENT_IMAGE": AGENT,
        "OPENAI_API_KEY": "secret:goblin-openai-api-key", **variables,
    }  # fmt: skip
    annotations = {
        "run.googleapis.com/ingress": "all" if public else "internal",
        "run.googleapis.com/urls": json.dumps([url(function), f"https://{name}-abcdef-ue.a.run.app"]),
        **({"run.googleapis.com/invoker-iam-disabled": "true"} if public else {}),
    }
    condition = {"type": "Ready", "status": "True"} if ready else {
        "type": "Ready", "status": "False", "reason": "HealthCheckContainerError", "message": "it did not start",
    }  # fmt: skip
    return {
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {
            "name": name, "annotations": annotations, "namespace": NUMBER,
            "labels": {"cloud.googleapis.com/location": REGION},
        },
        "spec": {"template": {"spec": {
            "containers": [{"image": IMAGE, "env": [{"name": k, "value": v} for k, v in said.items()]}],
            "serviceAccountName": f"{name}@my-project.iam.gserviceaccount.com",
        }}},
        "status": {"url": f"https://{name}-abcdef-ue.a.run.app", "conditions": [condition]},
    }  # fmt: skip


def push(topic: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": f"projects/{PROJECT}/subscriptions/{topic}-push", "topic": f"projects/{PROJECT}/topics/{topic}",
        "ackDeadlineSeconds": 540, "state": "ACTIVE",
        "pushConfig": {
            "pushEndpoint": url(PUSHED[topic]),
            "oidcToken": {"audience": url(PUSHED[topic]), "serviceAccountEmail": INVOKER},
        },
        "deadLetterPolicy": {
            "deadLetterTopic": f"projects/{PROJECT}/topics/{topic}-dead", "maxDeliveryAttempts": 5,
        },
        **changes,
    }  # fmt: skip


def tick(name: str, **changes: Any) -> dict[str, Any]:
    function = CLOUD["schedules"][name]["function"]
    return {
        "name": f"projects/{PROJECT}/locations/{REGION}/jobs/goblin-{name}", "state": "ENABLED", "status": {},
        "lastAttemptTime": "2026-12-01T10:00:00.123456Z", "schedule": "* * * * *",
        "httpTarget": {
            "uri": url(function), "httpMethod": "POST",
            "oidcToken": {"audience": url(function), "serviceAccountEmail": INVOKER},
        },
        **changes,
    }  # fmt: skip


def policy(role: str, *members: str) -> dict[str, Any]:
    return {"bindings": [{"members": list(members), "role": role}], "etag": "BwY=", "version": 1}


def subscriptions(**changes: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [changes.get(topic.replace("-", "_"), push(topic)) for topic in PUSHED]
    return rows + [{"name": f"projects/{PROJECT}/subscriptions/{topic}-dead"} for topic in PUSHED]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """A deployment that lacks nothing; it has no console, no GPU and no alerts."""
    for name in ("GCS_PROJECT_ID", "GOOGLE_CLOUD_PROJECT", "GCS_REGION"):
        monkeypatch.delenv(name, raising=False)
    commands = Commands(tmp_path / "bin", "gcloud")
    monkeypatch.setenv("PATH", commands.path())
    monkeypatch.setattr(doctor, "clock_skew_s", lambda: 0.4)
    monkeypatch.setattr(doctor, "pull_without_credential", lambda image: Image(readable=True))
    topics = [*CLOUD["topics"], *(f"{topic}-dead" for topic in PUSHED)]
    commands.answer("gcloud config get-value project", f"{PROJECT}\n")
    commands.answer("gcloud projects describe", {"projectId": PROJECT, "projectNumber": NUMBER})
    commands.answer("gcloud run services list", [service(name) for name in (*PRIVATE, *PUBLIC)])
    commands.answer("gcloud pubsub topics list", [{"name": f"projects/{PROJECT}/topics/{name}"} for name in topics])
    commands.answer("gcloud pubsub subscriptions list", subscriptions())
    commands.answer("gcloud scheduler jobs list", [tick(name) for name in CLOUD["schedules"]])
    commands.answer("gcloud secrets list", [{"name": f"projects/{NUMBER}/secrets/goblin-openai-api-key"}])
    commands.answer("gcloud alpha monitoring policies list", [])
    commands.answer("gcloud run services get-iam-policy", policy("roles/run.invoker", f"serviceAccount:{INVOKER}"))
    member = f"serviceAccount:{AGENT_OF_PUBSUB}"
    commands.answer("gcloud pubsub topics get-iam-policy", policy("roles/pubsub.publisher", member))
    commands.answer("gcloud pubsub subscriptions get-iam-policy", policy("roles/pubsub.subscriber", member))
    commands.answer("gcloud secrets versions list", [{"name": "projects/1/secrets/s/versions/1", "state": "ENABLED"}])
    commands.answer(
        "gcloud artifacts docker images describe",
        {
            "image_summary": {"digest": f"sha256:{'a' * 64}", "registry": "us-east1-docker.pkg.dev"},
            "provenance_summary": {"provenance": [{"build": {"inTotoSlsaProvenanceV1": {}}, "kind": "BUILD"}]},
        },
    )
    return commands


@pytest.fixture
def goblin() -> Doctor:
    return lambda *words: CliRunner().invoke(main, ["doctor", *words])


def findings(goblin: Doctor, *words: str) -> list[dict[str, str]]:
    ended = goblin("--json", *words)
    assert ended.exit_code in (0, 1), ended.output
    found: list[dict[str, str]] = json.loads(ended.stdout)
    assert ended.exit_code == any(one["state"] == "missing" for one in found)
    return found


def missing(goblin: Doctor) -> dict[str, dict[str, str]]:
    found = findings(goblin)
    return {one["check"]: one for one in found if one["state"] == "missing"}


def test_a_deployment_that_lacks_nothing(goblin: Doctor, commands: Commands) -> None:
    ended = goblin()
    assert ended.exit_code == 0, ended.output
    assert "MISSING" not in ended.stdout
    assert ended.stderr.startswith("0 missing, 0 unknown")
    states = {one["check"]: one["state"] for one in findings(goblin)}
    assert {states[name] for name in ("console behind IAP", "alert prices", "GPU quota")} == {"off"}
    assert {state for name, state in states.items() if state != "off"} == {"ok"}


def test_the_six_facts_come_first_each_with_its_proof(goblin: Doctor, commands: Commands) -> None:
    found = findings(goblin)
    assert [one["check"] for one in found[:6]] == SIX
    assert all(one["proof"] for one in found[:6])
    lines = goblin().stdout.splitlines()
    assert "audience forms" in lines[0]
    assert lines[1].strip().startswith("shown by: ")


def test_it_only_reads_and_asks_for_json(goblin: Doctor, commands: Commands) -> None:
    goblin("--project", "other-project", "--region", "europe-west1", "--prefix", "goblin")
    calls = commands.calls()
    assert len(calls) > 20
    reads = {"list", "describe", "get-iam-policy", "get-value"}
    for call in calls:
        assert reads & set(call), call
        assert "--format=json" in call
        assert "--project=other-project" in call or call[1] == "projects"


@pytest.mark.parametrize("topic", sorted(PUSHED))
@pytest.mark.parametrize(
    ("kind", "suffix", "role"), [("topics", "dead", "publisher"), ("subscriptions", "push", "subscriber")]
)
def test_a_dead_letter_grant_is_missed(
    goblin: Doctor, commands: Commands, topic: str, kind: str, suffix: str, role: str
) -> None:  # fmt: skip
    commands.answer(f"gcloud pubsub {kind} get-iam-policy {topic}-{suffix}", {"etag": "ACAB"})
    found = missing(goblin)
    assert set(found) == {"dead letter grants"}
    assert found["dead letter grants"]["mend"] == (
        f"gcloud pubsub {kind} add-iam-policy-binding {topic}-{suffix} --project=my-project "
        f"--member=serviceAccount:{AGENT_OF_PUBSUB} --role=roles/pubsub.{role}"
    )


def test_an_invoker_grant_is_missed(goblin: Doctor, commands: Commands) -> None:
    commands.answer("gcloud run services get-iam-policy goblin-reconcile", {"etag": "ACAB"})
    found = missing(goblin)
    assert set(found) == {"invoker grants"}
    assert found["invoker grants"]["mend"].startswith(
        f"gcloud run services add-iam-policy-binding goblin-reconcile --region=us-east1 --project=my-project "
        f"--member=serviceAccount:{INVOKER} --role=roles/run.invoker"
    )


def test_everyone_may_call_a_private_function(goblin: Doctor, commands: Commands) -> None:
    both = policy("roles/run.invoker", f"serviceAccount:{INVOKER}", "allUsers")
    commands.answer("gcloud run services get-iam-policy goblin-job-requested", both)
    assert "remove-iam-policy-binding goblin-job-requested" in missing(goblin)["invoker grants"]["mend"]


@pytest.mark.parametrize("versions", [[], [{"name": "v/1", "state": "DISABLED"}], [{"state": "DESTROYED"}]])
def test_a_secret_without_a_version(goblin: Doctor, commands: Commands, versions: list[Any]) -> None:
    commands.answer("gcloud secrets versions list goblin-openai-api-key", versions)
    found = missing(goblin)
    assert set(found) == {"secrets"}
    assert "| gcloud secrets versions add goblin-openai-api-key --project=my-project" in found["secrets"]["mend"]


def test_a_secret_that_does_not_exist(goblin: Doctor, commands: Commands) -> None:
    commands.answer("gcloud secrets list", [])
    assert "goblin-openai-api-key does not exist" in missing(goblin)["secrets"]["what"]


def test_an_image_that_cannot_be_pulled(goblin: Doctor, commands: Commands) -> None:
    commands.answer("gcloud artifacts docker images describe", code=1, err="ERROR: (gcloud) NOT_FOUND: not there\n")
    found = findings(goblin)
    (image,) = [one for one in found if one["check"] == "images"]
    assert (image["state"], "NOT_FOUND" in image["what"]) == ("missing", True)
    (provenance,) = [one for one in found if one["check"] == "provenance"]
    assert provenance["state"] == "unknown"


def test_an_agent_that_rented_hosts_cannot_pull(
    goblin: Doctor, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refused(image: str) -> Image:
        asked.append(image)
        return Image(readable=False, reason="the registry answers 401 to a caller without a credential.")

    monkeypatch.setattr(doctor, "pull_without_credential", refused)
    found = missing(goblin)
    assert set(found) == {"images"}
    assert "_AGENT_REPOSITORY" in found["images"]["mend"]
    assert asked == [AGENT]


def test_an_image_by_tag(goblin: Doctor, commands: Commands) -> None:
    rows = [service(name) for name in (*PRIVATE, *PUBLIC)]
    rows[0]["spec"]["template"]["spec"]["containers"][0]["image"] = "us-east1-docker.pkg.dev/my-project/goblin/f:1"
    commands.answer("gcloud run services list", rows)
    assert "is used by tag" in missing(goblin)["images"]["what"]


def test_an_image_without_provenance(goblin: Doctor, commands: Commands) -> None:
    commands.answer("gcloud artifacts docker images describe", {"image_summary": {}, "provenance_summary": {}})
    assert set(missing(goblin)) == {"provenance"}


def test_a_push_for_another_audience(goblin: Doctor, commands: Commands) -> None:
    token = {"audience": "https://example.com", "serviceAccountEmail": INVOKER}
    bad = push("job-requested", pushConfig={"pushEndpoint": url("job_requested"), "oidcToken": token})
    commands.answer("gcloud pubsub subscriptions list", subscriptions(job_requested=bad))
    found = missing(goblin)
    assert set(found) == {"audiences"}
    assert found["audiences"]["mend"].startswith("gcloud pubsub subscriptions update job-requested-push ")
    assert found["audiences"]["mend"].endswith(f"--push-auth-token-audience={url('job_requested')}")


def test_a_push_as_another_account(goblin: Doctor, commands: Commands) -> None:
    token = {"audience": url("job_requested"), "serviceAccountEmail": "other@example.com"}
    bad = push("job-requested", pushConfig={"pushEndpoint": url("job_requested"), "oidcToken": token})
    commands.answer("gcloud pubsub subscriptions list", subscriptions(job_requested=bad))
    assert "calls as other@example.com" in missing(goblin)["audiences"]["what"]


def test_a_function_that_expects_another_audience(goblin: Doctor, commands: Commands) -> None:
    rows = [service(name) for name in (*PRIVATE, *PUBLIC) if name != "reconcile"]
    commands.answer(
        "gcloud run services list", [*rows, service("reconcile", GOBLIN_PUSH_AUDIENCE="https://example.com")]
    )
    mend = missing(goblin)["audiences"]["mend"]
    assert mend.startswith("gcloud run services update goblin-reconcile ")
    assert mend.endswith(f"--update-env-vars=GOBLIN_PUSH_AUDIENCE={url('reconcile')}")


def test_both_forms_of_a_url_are_its_own(goblin: Doctor, commands: Commands) -> None:
    other = "https://goblin-reconcile-abcdef-ue.a.run.app"
    rows = [service(name) for name in (*PRIVATE, *PUBLIC) if name != "reconcile"]
    commands.answer("gcloud run services list", [*rows, service("reconcile", GOBLIN_PUSH_AUDIENCE=other)])
    token = {"audience": other, "serviceAccountEmail": INVOKER}
    jobs = [tick(name) for name in CLOUD["schedules"] if name != "reconcile"]
    commands.answer(
        "gcloud scheduler jobs list", [*jobs, tick("reconcile", httpTarget={"uri": other, "oidcToken": token})]
    )
    assert missing(goblin) == {}


@pytest.mark.parametrize(
    ("function", "how", "words"),
    [
        ("gateway", "iam", "believes tokens without a signature, but anyone may call it"),
        ("reconcile", "off", "checks no token"),
        ("reconcile", "on", "checks a signature that Google has removed"),
    ],
)
def test_callers_that_are_checked_wrongly(
    goblin: Doctor, commands: Commands, function: str, how: str, words: str
) -> None:
    rows = [service(name) for name in (*PRIVATE, *PUBLIC) if name != function]
    commands.answer("gcloud run services list", [*rows, service(function, GOBLIN_VERIFY_CALLER=how)])
    assert words in missing(goblin)["token checks"]["what"]


@pytest.mark.parametrize(
    ("code", "check", "words"),
    [
        (16, "audience forms", "--oidc-token-audience=" + url("reconcile")),
        (5, "internal ingress", "gcloud run services update goblin-reconcile --region=us-east1"),
    ],
)
def test_a_tick_that_fails_shows_which_fact_is_wrong(
    goblin: Doctor, commands: Commands, code: int, check: str, words: str
) -> None:
    jobs = [tick(name) for name in CLOUD["schedules"] if name != "reconcile"]
    commands.answer("gcloud scheduler jobs list", [*jobs, tick("reconcile", status={"code": code})])
    found = missing(goblin)
    assert set(found) == {check}
    assert words in found[check]["mend"]


def test_before_the_first_tick_nothing_is_known(goblin: Doctor, commands: Commands) -> None:
    jobs = [tick(name) for name in CLOUD["schedules"]]
    for job in jobs:
        del job["lastAttemptTime"]
    commands.answer("gcloud scheduler jobs list", jobs)
    first, second = findings(goblin)[:2]
    assert (first["state"], second["state"]) == ("unknown", "unknown")
    assert first["mend"] == "gcloud scheduler jobs run goblin-reconcile --location=us-east1 --project=my-project"


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ((302, "https://accounts.google.com/o/oauth2/v2/auth?client_id=1"), "ok"),
        ((200, ""), "missing"),
        ((500, ""), "missing"),
        (None, "unknown"),
    ],
)
def test_the_console_asks_for_a_login(
    goblin: Doctor, commands: Commands, monkeypatch: pytest.MonkeyPatch, answer: Any, state: str
) -> None:
    commands.answer("gcloud run services list", [service(name) for name in (*PRIVATE, *PUBLIC, "console")])
    monkeypatch.setattr(doctor, "_without_login", lambda _: answer)
    found = findings(goblin)[2]
    assert (found["check"], found["state"]) == ("console behind IAP", state)


@pytest.mark.parametrize(("ready", "state"), [(True, "ok"), (False, "missing")])
def test_a_gpu_service_shows_the_quota(goblin: Doctor, commands: Commands, ready: bool, state: str) -> None:
    gpu = service("llamacpp", ready=ready, GOBLIN_VERIFY_CALLER="", OPENAI_API_KEY="")
    gpu["metadata"]["labels"]["cloud.googleapis.com/location"] = "us-east4"
    commands.answer("gcloud run services list", [*(service(name) for name in (*PRIVATE, *PUBLIC)), gpu])
    found = findings(goblin)[4]
    assert (found["check"], found["state"]) == ("GPU quota", state)
    assert ("--dimensions=region=us-east4" in found["mend"]) == (not ready)


def test_alerts_have_a_price_that_a_person_reads(goblin: Doctor, commands: Commands) -> None:
    commands.answer("gcloud alpha monitoring policies list", [{"conditions": [{}, {}]}, {"conditions": [{}]}])
    found = findings(goblin)[3]
    assert (found["state"], found["what"][:18]) == ("unknown", "3 alert conditions")
    assert "pricing" in found["mend"]


def test_what_does_not_exist_is_missed(goblin: Doctor, commands: Commands) -> None:
    rows = [service(name) for name in (*PRIVATE, *PUBLIC) if name not in ("settle_spend", "jobs")]
    commands.answer("gcloud run services list", [*rows, service("jobs", ready=False)])
    commands.answer("gcloud pubsub topics list", [{"name": f"projects/{PROJECT}/topics/{t}"} for t in CLOUD["topics"]])
    commands.answer("gcloud pubsub subscriptions list", subscriptions()[1:])
    found = findings(goblin)
    what = "\n".join(one["what"] for one in found if one["state"] == "missing")
    assert "Service goblin-settle-spend does not exist." in what
    assert "Service goblin-jobs is not ready: it did not start" in what
    assert "Topic job-requested-dead does not exist." in what
    assert f"Subscription {next(iter(PUSHED))}-push does not exist." in what


def test_a_subscription_without_dead_letters(goblin: Doctor, commands: Commands) -> None:
    bad = push("job-requested", deadLetterPolicy={})
    commands.answer("gcloud pubsub subscriptions list", subscriptions(job_requested=bad))
    mend = missing(goblin)["subscriptions"]["mend"]
    assert "--dead-letter-topic=job-requested-dead --max-delivery-attempts=5" in mend


@pytest.mark.parametrize(("skew", "words"), [(90.0, "90 s ahead of"), (-45.0, "45 s behind"), (20.0, "")])
def test_a_wrong_clock(
    goblin: Doctor, commands: Commands, monkeypatch: pytest.MonkeyPatch, skew: float, words: str
) -> None:
    monkeypatch.setattr(doctor, "clock_skew_s", lambda: skew)
    found = missing(goblin)
    assert words in found["clock"]["what"] if words else "clock" not in found


LISTS = {
    "services": "gcloud run services list", "topics": "gcloud pubsub topics list",
    "subscriptions": "gcloud pubsub subscriptions list", "schedules": "gcloud scheduler jobs list",
    "secrets": "gcloud secrets list", "alert policies": "gcloud alpha monitoring policies list",
}  # fmt: skip


@pytest.mark.parametrize(("name", "command"), LISTS.items(), ids=LISTS)
def test_what_may_not_be_read_is_unknown_and_never_missing(
    goblin: Doctor, commands: Commands, name: str, command: str
) -> None:
    commands.answer(command, code=1, err="hint\nERROR: (gcloud) PERMISSION_DENIED: you may not.\nanother hint\n")
    found = findings(goblin)
    assert not [one for one in found if one["state"] == "missing"]
    unknown = [one["what"] for one in found if one["state"] == "unknown"]
    assert f"Could not read {name}: ERROR: (gcloud) PERMISSION_DENIED: you may not" in unknown


SHAPES: list[tuple[str, Any, str]] = [
    ("run services list", {"a": 1}, "services"),
    ("run services list", ["a"], "services"),
    ("pubsub topics list", ["a", "b"], "topics"),
    ("pubsub subscriptions list", "no JSON", "subscriptions"),
    ("scheduler jobs list", [None], "schedules"),
    ("secrets list", 7, "secrets"),
]


@pytest.mark.parametrize(("command", "printed", "name"), SHAPES)
def test_a_list_of_another_shape_is_unknown(
    goblin: Doctor, commands: Commands, command: str, printed: Any, name: str
) -> None:
    commands.answer(f"gcloud {command}", printed)
    found = findings(goblin)
    assert not [one for one in found if one["state"] == "missing"]
    unknown = [one["what"] for one in found if one["state"] == "unknown"]
    assert any(what.startswith(f"Could not read {name}: gcloud {command} ") for what in unknown)


@pytest.mark.parametrize("printed", [{}, [1], None, {"projectNumber": ""}])
def test_a_project_of_another_shape_ends_in_one_line(goblin: Doctor, commands: Commands, printed: Any) -> None:
    commands.answer("gcloud projects describe", printed)
    ended = goblin()
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert len(ended.stderr.splitlines()) == 1
    assert "my-project cannot be read (gcloud projects describe " in ended.stderr


@pytest.mark.parametrize("command", ["get-iam-policy", "versions list", "images describe"])
@pytest.mark.parametrize("printed", [[1], {"bindings": None, "provenance_summary": None}, {"bindings": [1]}])
def test_a_reading_of_another_shape_does_not_stop_the_rest(
    goblin: Doctor, commands: Commands, command: str, printed: Any
) -> None:
    for what in ("run services", "pubsub topics", "pubsub subscriptions", "secrets", "artifacts docker"):
        commands.answer(f"gcloud {what} {command}", printed)
    assert len(findings(goblin)) >= len(SIX)


@pytest.mark.parametrize(
    "service",
    [
        {},
        {"metadata": None, "spec": None, "status": None},
        {"spec": {"template": {"spec": {"containers": []}}}},
        {"spec": {"template": {"spec": {"containers": [None]}}}},
        {"spec": {"template": {"spec": {"containers": [{"env": [{"value": "x"}, None]}]}}}},
        {"metadata": {"annotations": {"run.googleapis.com/urls": "no JSON"}}, "status": {"conditions": [None]}},
        {"metadata": {"annotations": {"run.googleapis.com/urls": "7"}}, "status": []},
    ],
)
def test_a_service_of_another_shape_does_not_stop_the_rest(
    goblin: Doctor, commands: Commands, service: dict[str, Any]
) -> None:
    row = {**service, "metadata": {**(service.get("metadata") or {}), "name": "goblin-reconcile"}}
    commands.answer("gcloud run services list", [service, row])
    assert "functions" in missing(goblin)


def test_bytes_that_are_no_text_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "printf")
    assert doctor._gcloud(r"a\377b").stdout == "a\ufffdb"


def test_policies_that_may_not_be_read_are_unknown(goblin: Doctor, commands: Commands) -> None:
    for command in ("run services", "pubsub topics", "pubsub subscriptions"):
        commands.answer(f"gcloud {command} get-iam-policy", code=1, err="ERROR: denied\n")
    commands.answer("gcloud secrets versions list", code=1, err="ERROR: denied\n")
    states = {one["check"]: one["state"] for one in findings(goblin)}
    assert {states[name] for name in ("dead letter grants", "invoker grants", "secrets")} == {"unknown"}


def test_a_project_that_cannot_be_read_ends_in_one_line(goblin: Doctor, commands: Commands) -> None:
    commands.answer("gcloud projects describe", code=1, err="ERROR: (gcloud) you do not have permission\n")
    ended = goblin()
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert len(ended.stderr.splitlines()) == 1
    assert "my-project cannot be read (ERROR: (gcloud) you do not have permission). Log in with" in ended.stderr


def test_without_gcloud_or_a_project(goblin: Doctor, commands: Commands) -> None:
    commands.answer("gcloud config get-value project", "(unset)\n")
    assert "Name it with --project ID" in goblin().stderr
    commands.remove("gcloud")
    assert "Install it: cloud.google.com/sdk" in goblin().stderr


def test_every_mend_is_a_command_or_says_what_to_do(goblin: Doctor, commands: Commands) -> None:
    """Everything is broken at once: each finding that something is missing has a way out."""
    for command in LISTS.values():
        commands.answer(command, [])
    found = findings(goblin)
    for one in found:
        if one["state"] == "missing":
            assert re.match(r"(gcloud|\./goblin|printf|sudo|Rented|Read) ", one["mend"]), one
    assert sum(one["state"] == "missing" for one in found) > 20


def registry(realm: str, *, public: bool) -> Starlette:
    """A registry as ghcr.io: a token for everyone, which opens public repositories only."""

    async def manifest(request: Request) -> Response:
        if request.headers.get("authorization") == "Bearer all-may-read":
            return Response(status_code=200 if public else 403)
        challenge = f'Bearer realm="{realm}",service="here"'
        return Response(status_code=401, headers={"www-authenticate": challenge} if realm else {})

    async def token(request: Request) -> Response:
        assert request.query_params["scope"] == "repository:me/agent:pull"
        return JSONResponse({"token": "all-may-read"})

    return Starlette(
        routes=[Route("/v2/me/agent/manifests/{digest}", manifest, methods=["HEAD"]), Route("/token", token)]
    )


@pytest.mark.parametrize("public", [True, False])
def test_an_image_is_asked_for_as_a_rented_host_asks(public: bool) -> None:
    with serve(registry("", public=public)) as tokens, serve(registry(f"{tokens}/token", public=public)) as here:
        host = here.removeprefix("http://")
        found = doctor.pull_without_credential(f"{host}/me/agent@sha256:{'c' * 64}", scheme="http")
        assert found.readable == public
        refused = doctor.pull_without_credential(f"{tokens.removeprefix('http://')}/me/agent@sha256:1", scheme="http")
        assert (refused.readable, refused.reason) == (False, "the registry asks for a login.")


def test_a_registry_that_does_not_answer() -> None:
    host = closed_port().removeprefix("http://")
    found = doctor.pull_without_credential(f"{host}/me/agent@sha256:1", scheme="http")
    assert not found.readable
    assert "does not answer" in found.reason


def test_the_clock_is_compared_with_a_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    with serve(Starlette()) as found:
        monkeypatch.setattr(doctor, "TIME_URL", found)
        monkeypatch.setattr(doctor.time, "time", lambda: now() + 100)
        assert doctor.clock_skew_s() == pytest.approx(100, abs=10)
    monkeypatch.setattr(doctor, "TIME_URL", closed_port())
    assert doctor.clock_skew_s() is None


def test_deciding_reads_nothing() -> None:
    source = Path(diagnosis.__file__).read_text()
    assert not re.search(r"^\s*(import|from) (subprocess|httpx|os|time|pathlib)\b", source, re.MULTILINE)
