"""What a deployment lacks, judged from what gcloud prints. Pure: `doctor` reads, this decides.

The six first checks are facts that only a real project can show; each finding says how it was shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Json = Mapping[str, Any]

CLOCK_SKEW_S_MAX = 30.0
"""Tokens are valid from the second they are issued; Goblin and Google allow little more."""
ALERT_CONDITION_USD = "1.50"
GPU_QUOTA = "NvidiaL4GpuAllocNoZonalRedundancyPerProjectRegion"
UNAUTHENTICATED, PERMISSION_DENIED, NOT_FOUND = 16, 7, 5
"""How Cloud Scheduler records 401, 403 and 404. Source: google.rpc.Code."""


class State(StrEnum):
    """What a check found."""

    OK = "ok"
    MISSING = "missing"
    UNKNOWN = "unknown"
    """It could not be read, or nothing has happened yet that would show it."""
    OFF = "off"
    """The deployment does not use it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is right, lacking or not known, and the command that mends it."""

    check: str
    state: State
    what: str
    mend: str = ""
    proof: str = ""
    """How it was shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """An image in use."""

    readable: bool
    reason: str = ""
    provenance: int = 0
    """Signed statements of where it came from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What gcloud prints of a deployment. None: it could not be read, and `unread` has the reason."""

    project: str
    number: str
    region: str
    prefix: str
    declared: Json
    """`cloud.json`."""
    services: Sequence[Json] | None = None
    topics: Sequence[Json] | None = None
    subscriptions: Sequence[Json] | None = None
    schedules: Sequence[Json] | None = None
    secrets: Sequence[Json] | None = None
    alert_policies: Sequence[Json] | None = None
    service_policies: Mapping[str, Json | None] = field(default_factory=dict)
    topic_policies: Mapping[str, Json | None] = field(default_factory=dict)
    subscription_policies: Mapping[str, Json | None] = field(default_factory=dict)
    secret_versions: Mapping[str, Sequence[Json] | None] = field(default_factory=dict)
    images: Mapping[str, Image] = field(default_factory=dict)
    console: tuple[int, str] | None = None
    """Status and Location of the console's answer to a caller without a login."""
    clock_skew_s: float | None = None
    """This machine's clock less Google's."""
    unread: Mapping[str, str] = field(default_factory=dict)

    def service_name(self, function: str) -> str:
        return f"{self.prefix}-{function.replace('_', '-')}"

    def service(self, function: str) -> Json | None:
        return next((it for it in self.services or () if name_of(it) == self.service_name(function)), None)

    def urls(self, function: str) -> set[str]:
        """Both forms of a service's URL; the one with the project's number is known before the service exists."""
        service = self.service(function) or {}
        try:
            listed = json.loads(annotation(service, "run.googleapis.com/urls") or "[]")
        except ValueError:
            listed = []
        found = {url for url in listed if isinstance(url, str)} if isinstance(listed, list) else set()
        return {*found, str(inner(service, "status").get("url", "")), self.audience(function)} - {""}

    def audience(self, function: str) -> str:
        """The URL that Terraform uses as the audience of tokens."""
        return f"https://{self.service_name(function)}-{self.number}.{self.region}.run.app"

    @property
    def invoker(self) -> str:
        return f"{self.prefix}-invoker@{self.project}.iam.gserviceaccount.com"

    @property
    def pubsub_agent(self) -> str:
        return f"service-{self.number}@gcp-sa-pubsub.iam.gserviceaccount.com"

    @property
    def pushed(self) -> dict[str, str]:
        """The function of each topic that has one."""
        return {topic: it["function"] for topic, it in self.declared["topics"].items() if "function" in it}

    @property
    def private(self) -> list[str]:
        """Functions that only Pub/Sub and the scheduler call."""
        return sorted({*self.pushed.values(), *(it["function"] for it in self.declared["schedules"].values())})


def inner(value: Any, *names: str) -> Json:
    """Return the object that lies under these names; an empty one if something else lies there."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def rows(value: Any) -> list[Json]:
    """Return the objects of a list; none if it is something else."""
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list | tuple) else []


def by_name(found: Sequence[Json] | None) -> dict[str, Json]:
    """Return resources by the last part of their names."""
    return {last_part(str(it.get("name", ""))): it for it in found or ()}


def name_of(service: Json) -> str:
    return str(inner(service, "metadata").get("name", ""))


def annotation(service: Json, name: str) -> str:
    return str(inner(service, "metadata", "annotations").get(name, ""))


def container(service: Json) -> Json:
    return next(iter(rows(inner(service, "spec", "template", "spec").get("containers"))), {})


def env_of(service: Json) -> dict[str, str]:
    return {str(row["name"]): str(row.get("value", "")) for row in rows(container(service).get("env")) if "name" in row}


def secret_names(services: Iterable[Json]) -> set[str]:
    """The secrets that the services' configuration names, as `secret:NAME`."""
    values = (value for service in services for value in env_of(service).values())
    return {value.removeprefix("secret:") for value in values if value.startswith("secret:")}


def image_names(services: Iterable[Json]) -> set[str]:
    """The images that the services run, and the agent's."""
    found = set()
    for service in services:
        found |= {str(container(service).get("image", "")), env_of(service).get("GOBLIN_AGENT_IMAGE", "")}
    return found - {""}


def reason_of(errors: str) -> str:
    """Return the line of gcloud's errors that says what is wrong: hints stand around it."""
    lines = errors.strip().splitlines() or ["no reason given"]
    return next((line for line in lines if line.startswith("ERROR:")), lines[-1]).rstrip(".")


def last_part(name: str) -> str:
    """Return NAME of `projects/P/kind/NAME`."""
    return name.rpartition("/")[2]


def judge(facts: Facts) -> list[Finding]:
    """Return every finding, the six facts that only a real project can show first."""
    checks = (
        _audience_forms, _internal_ingress, _iap, _alert_prices, _gpu_quota, _provenance,
        _services, _topics, _pushes, _audiences, _verification, _dead_letters, _invokers, _secrets, _images, _clock,
    )  # fmt: skip
    return [finding for check in checks for finding in check(facts)]


def _unread(check: str, facts: Facts, *readings: str) -> list[Finding]:
    """Findings for what could not be read; empty if all of it could."""
    return [
        Finding(check=check, state=State.UNKNOWN, what=f"Could not read {name}: {facts.unread[name]}")
        for name in readings
        if name in facts.unread
    ]


# The six facts.


def _ticks(facts: Facts) -> Iterator[tuple[str, str, int | None]]:
    """Yield each schedule that is on: its name, its function, and the code of its last attempt; None before one."""
    jobs = by_name(facts.schedules)
    for name, declared in facts.declared["schedules"].items():
        job = jobs.get(f"{facts.prefix}-{name}")
        if job is None or job.get("state") != "ENABLED":
            continue
        code = inner(job, "status").get("code", 0) if job.get("lastAttemptTime") else None
        yield name, declared["function"], code if isinstance(code, int) else None


def _audience_forms(facts: Facts) -> Iterator[Finding]:
    check, proof = "audience forms", "a tick whose audience is the URL with the project's number was answered with 2xx"
    if unread := _unread(check, facts, "schedules"):
        yield from unread
        return
    ticks = list(_ticks(facts))
    refused = [(name, function) for name, function, code in ticks if code == UNAUTHENTICATED]
    for name, function in refused:
        url = facts.audience(function)
        yield Finding(
            check=check, state=State.MISSING, proof=proof,
            what=f"Schedule {name} was answered with 401: its token's audience is not accepted.",
            mend=f"gcloud scheduler jobs update http {facts.prefix}-{name} --location={facts.region} "
            f"--project={facts.project} --oidc-service-account-email={facts.invoker} --oidc-token-audience={url}",
        )  # fmt: skip
    if refused:
        return
    if any(code == 0 for _, _, code in ticks):
        yield Finding(check=check, state=State.OK, what="Tokens for the URL with the number are accepted.", proof=proof)
    else:
        yield _not_yet(check, proof, facts)


def _internal_ingress(facts: Facts) -> Iterator[Finding]:
    check, proof = "internal ingress", "a tick was answered by a service whose ingress is internal"
    if unread := _unread(check, facts, "schedules", "services"):
        yield from unread
        return
    inside = [
        (function, code)
        for _, function, code in _ticks(facts)
        if annotation(facts.service(function) or {}, "run.googleapis.com/ingress") == "internal"
    ]
    blocked = {function for function, code in inside if code == NOT_FOUND}
    for function in sorted(blocked):
        yield Finding(
            check=check, state=State.MISSING, proof=proof,
            what=f"Cloud Scheduler does not reach {facts.service_name(function)}: its ingress turns the tick away.",
            mend=f"gcloud run services update {facts.service_name(function)} --region={facts.region} "
            f"--project={facts.project} --ingress=all",
        )  # fmt: skip
    if blocked:
        return
    if any(code == 0 for _, code in inside):
        yield Finding(check=check, state=State.OK, what="Cloud Scheduler counts as internal traffic.", proof=proof)
    else:
        yield _not_yet(check, proof, facts)


def _not_yet(check: str, proof: str, facts: Facts) -> Finding:
    return Finding(
        check=check, state=State.UNKNOWN, proof=proof, what="No tick has been answered with 2xx yet.",
        mend=f"gcloud scheduler jobs run {facts.prefix}-reconcile --location={facts.region} --project={facts.project}",
    )  # fmt: skip


def _iap(facts: Facts) -> Iterator[Finding]:
    check, proof = "console behind IAP", "the console sends a caller without a login to Google's login page"
    if unread := _unread(check, facts, "services"):
        yield from unread
        return
    if facts.service("console") is None:
        yield Finding(check=check, state=State.OFF, what="There is no console.", proof=proof)
    elif facts.console is None:
        yield Finding(
            check=check, state=State.UNKNOWN, what="The console did not answer this machine.", proof=proof,
            mend=f"curl -sI {facts.audience('console')}/",
        )  # fmt: skip
    elif facts.console[0] == 302 and facts.console[1].startswith("https://accounts.google.com/"):
        yield Finding(check=check, state=State.OK, what="IAP asks for a login.", proof=proof)
    else:
        state = "opens without a login" if facts.console[0] < 300 else f"answers with {facts.console[0]}"
        yield Finding(
            check=check, state=State.MISSING, what=f"The console {state}.", proof=proof,
            mend=f"gcloud beta services identity create --service=iap.googleapis.com --project={facts.project} && "
            f"gcloud beta run services update {facts.service_name('console')} --iap --region={facts.region} "
            f"--project={facts.project}",
        )  # fmt: skip


def _alert_prices(facts: Facts) -> Iterator[Finding]:
    check, proof = "alert prices", "a person reads the page of prices; no API tells this one"
    if unread := _unread(check, facts, "alert policies"):
        yield from unread
        return
    conditions = sum(len(rows(it.get("conditions"))) for it in facts.alert_policies or ())
    if not conditions:
        yield Finding(check=check, state=State.OFF, what="There is no alert.", proof=proof)
        return
    yield Finding(
        check=check, state=State.UNKNOWN, proof=proof,
        what=f"{conditions} alert conditions, at up to ${ALERT_CONDITION_USD} a month each (copies of 2025).",
        mend="Read https://cloud.google.com/products/observability/pricing; without alerts: alert_emails = []",
    )  # fmt: skip


def _gpu_quota(facts: Facts) -> Iterator[Finding]:
    check, proof = "GPU quota", "the llama.cpp service has a revision that is ready"
    if unread := _unread(check, facts, "services"):
        yield from unread
        return
    service = facts.service("llamacpp")
    if service is None:
        yield Finding(check=check, state=State.OFF, what="There is no GPU service.", proof=proof)
        return
    ready, why = _readiness(service)
    if ready:
        yield Finding(check=check, state=State.OK, what="The GPU service has its L4.", proof=proof)
        return
    region = inner(service, "metadata", "labels").get("cloud.googleapis.com/location", facts.region)
    yield Finding(
        check=check, state=State.MISSING, what=f"The GPU service is not ready: {why}", proof=proof,
        mend=f"gcloud beta quotas preferences create --service=run.googleapis.com --quota-id={GPU_QUOTA} "
        f"--preferred-value=1 --dimensions=region={region} --preference-id=goblin-l4-{region} "
        f"--project={facts.project}",
    )  # fmt: skip


def _provenance(facts: Facts) -> Iterator[Finding]:
    check, proof = "provenance", "Artifact Registry has a signed statement of Cloud Build for the image in use"
    if unread := _unread(check, facts, "services"):
        yield from unread
        return
    image = str(container(facts.service("gateway") or {}).get("image", ""))
    known = facts.images.get(image)
    if known is None or not known.readable:
        yield Finding(check=check, state=State.UNKNOWN, what="The functions' image could not be read.", proof=proof)
    elif known.provenance:
        yield Finding(check=check, state=State.OK, what="The functions' image says where it came from.", proof=proof)
    else:
        yield Finding(
            check=check, state=State.MISSING, what=f"{image} has no provenance.", proof=proof,
            mend=f"gcloud artifacts docker images describe {image} --show-provenance --project={facts.project}; "
            "an image of cloudbuild.yaml has it: ./goblin deploy",
        )  # fmt: skip


# What else may be lacking.


def _readiness(service: Json) -> tuple[bool, str]:
    for condition in rows(inner(service, "status").get("conditions")):
        if condition.get("type") == "Ready":
            return condition.get("status") == "True", str(condition.get("message", condition.get("reason", "")))
    return False, "it has no revision yet"


def _services(facts: Facts) -> Iterator[Finding]:
    check = "functions"
    if unread := _unread(check, facts, "services"):
        yield from unread
        return
    wanted = [*facts.private, *(name for name, it in facts.declared["http"].items() if it.get("access") != "iap")]
    bad = 0
    for function in sorted(wanted):
        service = facts.service(function)
        name = facts.service_name(function)
        if service is None:
            bad += 1
            yield Finding(
                check=check, state=State.MISSING, what=f"Service {name} does not exist.",
                mend=f"./goblin deploy --project {facts.project}",
            )  # fmt: skip
        elif not (ready := _readiness(service))[0]:
            bad += 1
            yield Finding(
                check=check, state=State.MISSING, what=f"Service {name} is not ready: {ready[1]}",
                mend=f"gcloud run services logs read {name} --region={facts.region} --project={facts.project}",
            )  # fmt: skip
    if not bad:
        yield Finding(check=check, state=State.OK, what=f"{len(wanted)} functions are ready.")


def _topics(facts: Facts) -> Iterator[Finding]:
    check = "topics"
    if unread := _unread(check, facts, "topics"):
        yield from unread
        return
    there = set(by_name(facts.topics))
    wanted = {*facts.declared["topics"], *(f"{topic}-dead" for topic in facts.pushed)}
    for topic in sorted(wanted - there):
        yield Finding(
            check=check, state=State.MISSING, what=f"Topic {topic} does not exist.",
            mend=f"./goblin deploy --project {facts.project}",
        )  # fmt: skip
    if wanted <= there:
        yield Finding(check=check, state=State.OK, what=f"{len(wanted)} topics exist.")


def _pushes(facts: Facts) -> Iterator[Finding]:
    """Each topic with a function is pushed to it, with a token, and has a dead letter topic that keeps its messages."""
    check = "subscriptions"
    if unread := _unread(check, facts, "subscriptions"):
        yield from unread
        return
    there = by_name(facts.subscriptions)
    bad = 0
    for topic in sorted(facts.pushed):
        for name in (f"{topic}-push", f"{topic}-dead"):
            if name not in there:
                bad += 1
                yield Finding(
                    check=check, state=State.MISSING, what=f"Subscription {name} does not exist.",
                    mend=f"./goblin deploy --project {facts.project}",
                )  # fmt: skip
        push = there.get(f"{topic}-push")
        if push is not None and last_part(str(inner(push, "deadLetterPolicy").get("deadLetterTopic", ""))) != (
            f"{topic}-dead"
        ):
            bad += 1
            yield Finding(
                check=check, state=State.MISSING, what=f"Subscription {topic}-push has no dead letter topic.",
                mend=f"gcloud pubsub subscriptions update {topic}-push --project={facts.project} "
                f"--dead-letter-topic={topic}-dead --max-delivery-attempts="
                f"{facts.declared['push']['delivery_attempts_max']}",
            )  # fmt: skip
    if not bad:
        yield Finding(check=check, state=State.OK, what=f"{len(facts.pushed)} topics are pushed to their functions.")


def _audiences(facts: Facts) -> Iterator[Finding]:
    """A token's audience is what its function expects: GOBLIN_PUSH_AUDIENCE, one of its own URLs."""
    check = "audiences"
    if unread := _unread(check, facts, "services", "subscriptions", "schedules"):
        yield from unread
        return
    bad = 0
    for caller, function, token, fix in _callers(facts):
        service = facts.service(function)
        if service is None:
            continue
        expected = [part.strip() for part in env_of(service).get("GOBLIN_PUSH_AUDIENCE", "").split(",")]
        said = token.get("audience", "")
        if not set(expected) & facts.urls(function):
            bad += 1
            yield Finding(
                check=check, state=State.MISSING,
                what=f"{facts.service_name(function)} expects tokens for {expected[0] or 'nothing'}, not its own URL.",
                mend=f"gcloud run services update {facts.service_name(function)} --region={facts.region} "
                f"--project={facts.project} --update-env-vars=GOBLIN_PUSH_AUDIENCE={facts.audience(function)}",
            )  # fmt: skip
        elif said not in expected:
            bad += 1
            yield Finding(
                check=check, state=State.MISSING, mend=fix,
                what=f"{caller} sends tokens for {said or 'nothing'}, but its function expects {expected[0]}.",
            )  # fmt: skip
        elif token.get("serviceAccountEmail") != facts.invoker:
            bad += 1
            yield Finding(
                check=check, state=State.MISSING, mend=fix,
                what=f"{caller} calls as {token.get('serviceAccountEmail') or 'nobody'}, not as {facts.invoker}.",
            )  # fmt: skip
    if not bad:
        yield Finding(check=check, state=State.OK, what="Tokens are meant for the functions that they are sent to.")


def _callers(facts: Facts) -> Iterator[tuple[str, str, Json, str]]:
    """Yield what calls a private function: its name, the function, its token, and the command that sets it right."""
    for topic, function in facts.pushed.items():
        push = by_name(facts.subscriptions).get(f"{topic}-push")
        if push is not None:
            url = facts.audience(function)
            yield (
                f"Subscription {topic}-push",
                function,
                inner(push, "pushConfig", "oidcToken"),
                (
                    f"gcloud pubsub subscriptions update {topic}-push --project={facts.project} --push-endpoint={url} "
                    f"--push-auth-service-account={facts.invoker} --push-auth-token-audience={url}"
                ),
            )
    jobs = by_name(facts.schedules)
    for name, declared in facts.declared["schedules"].items():
        if (job := jobs.get(f"{facts.prefix}-{name}")) is not None:
            url = facts.audience(declared["function"])
            yield (
                f"Schedule {name}",
                declared["function"],
                inner(job, "httpTarget", "oidcToken"),
                (
                    f"gcloud scheduler jobs update http {facts.prefix}-{name} --location={facts.region} "
                    f"--project={facts.project} --uri={url} --oidc-service-account-email={facts.invoker} "
                    f"--oidc-token-audience={url}"
                ),
            )


def _verification(facts: Facts) -> Iterator[Finding]:
    """A token without its signature may be believed only where Google checks who calls."""
    check = "token checks"
    if unread := _unread(check, facts, "services"):
        yield from unread
        return
    bad = 0
    for service in facts.services or ():
        name, how = name_of(service), env_of(service).get("GOBLIN_VERIFY_CALLER", "")
        open_to_all = annotation(service, "run.googleapis.com/invoker-iam-disabled") == "true"
        wrong = (
            "believes tokens without a signature, but anyone may call it" if how == "iam" and open_to_all
            else "checks no token" if how == "off"
            else "" if how != "on" or open_to_all or name not in map(facts.service_name, facts.private)
            else "checks a signature that Google has removed, so that every push is refused"
        )  # fmt: skip
        if wrong:
            bad += 1
            yield Finding(
                check=check, state=State.MISSING, what=f"{name} {wrong}.",
                mend=f"gcloud run services update {name} --region={facts.region} --project={facts.project} "
                f"--update-env-vars=GOBLIN_VERIFY_CALLER={'on' if open_to_all else 'iam'}",
            )  # fmt: skip
    if not bad:
        yield Finding(check=check, state=State.OK, what="Each function checks its callers as it should.")


def _dead_letters(facts: Facts) -> Iterator[Finding]:
    """Pub/Sub's agent publishes into each dead topic and subscribes to each source; without both nothing is moved."""
    check, bad, unknown = "dead letter grants", 0, 0
    member = f"serviceAccount:{facts.pubsub_agent}"
    for topic in sorted(facts.pushed):
        for kind, name, role, policies in (
            ("topics", f"{topic}-dead", "roles/pubsub.publisher", facts.topic_policies),
            ("subscriptions", f"{topic}-push", "roles/pubsub.subscriber", facts.subscription_policies),
        ):
            policy = policies.get(name)
            if policy is None:
                unknown += 1
            elif not _grants(policy, role, member):
                bad += 1
                yield Finding(
                    check=check, state=State.MISSING,
                    what=f"Pub/Sub may not {'publish to topic' if kind == 'topics' else 'take from subscription'} "
                    f"{name}: what fails five times is delivered for ever.",
                    mend=f"gcloud pubsub {kind} add-iam-policy-binding {name} --project={facts.project} "
                    f"--member={member} --role={role}",
                )  # fmt: skip
    if unknown:
        yield Finding(check=check, state=State.UNKNOWN, what=f"{unknown} policies of Pub/Sub could not be read.")
    elif not bad:
        yield Finding(check=check, state=State.OK, what="What fails five times becomes a dead letter.")


def _invokers(facts: Facts) -> Iterator[Finding]:
    check, bad, unknown = "invoker grants", 0, 0
    member, role = f"serviceAccount:{facts.invoker}", "roles/run.invoker"
    for function in facts.private:
        name = facts.service_name(function)
        if facts.services is not None and facts.service(function) is None:
            continue
        policy = facts.service_policies.get(name)
        if policy is None:
            unknown += 1
            continue
        if not _grants(policy, role, member):
            bad += 1
            yield Finding(
                check=check, state=State.MISSING,
                what=f"{facts.invoker} may not call {name}: every push and tick is answered with 403.",
                mend=f"gcloud run services add-iam-policy-binding {name} --region={facts.region} "
                f"--project={facts.project} --member={member} --role={role}",
            )  # fmt: skip
        for everyone in ("allUsers", "allAuthenticatedUsers"):
            if _grants(policy, role, everyone):
                bad += 1
                yield Finding(
                    check=check, state=State.MISSING, what=f"{everyone} may call the private function {name}.",
                    mend=f"gcloud run services remove-iam-policy-binding {name} --region={facts.region} "
                    f"--project={facts.project} --member={everyone} --role={role}",
                )  # fmt: skip
    if unknown:
        yield Finding(check=check, state=State.UNKNOWN, what=f"{unknown} policies of Cloud Run could not be read.")
    elif not bad:
        yield Finding(check=check, state=State.OK, what="Only the invoker may call the private functions.")


def _grants(policy: Json, role: str, member: str) -> bool:
    return any(it.get("role") == role and member in (it.get("members") or ()) for it in rows(policy.get("bindings")))


def _secrets(facts: Facts) -> Iterator[Finding]:
    check = "secrets"
    if unread := _unread(check, facts, "services", "secrets"):
        yield from unread
        return
    there = set(by_name(facts.secrets))
    used = secret_names(facts.services or ())
    bad = 0
    for name in sorted(used):
        versions = facts.secret_versions.get(name)
        if name not in there:
            bad += 1
            yield Finding(
                check=check, state=State.MISSING, what=f"Secret {name} does not exist, but a function reads it.",
                mend=f"./goblin deploy --project {facts.project}",
            )  # fmt: skip
        elif versions is None:
            bad += 1
            yield Finding(check=check, state=State.UNKNOWN, what=f"The versions of secret {name} could not be read.")
        elif not any(it.get("state") == "ENABLED" for it in versions):
            bad += 1
            yield Finding(
                check=check, state=State.MISSING, what=f"Secret {name} has no version, so its endpoint has no key.",
                mend=f"printf %s VALUE | gcloud secrets versions add {name} --project={facts.project} --data-file=-",
            )  # fmt: skip
    if not bad:
        yield Finding(check=check, state=State.OK, what=f"{len(used)} secrets have a version.")


def _images(facts: Facts) -> Iterator[Finding]:
    check = "images"
    if unread := _unread(check, facts, "services"):
        yield from unread
        return
    agents = {env_of(service).get("GOBLIN_AGENT_IMAGE", "") for service in facts.services or ()}
    bad = 0
    for name, image in sorted(facts.images.items()):
        if re.search(r"@sha256:[0-9a-f]{64}$", name) is None:
            bad += 1
            yield Finding(
                check=check, state=State.MISSING, what=f"{name} is used by tag, so it may change by itself.",
                mend=f"./goblin deploy --project {facts.project}",
            )  # fmt: skip
        elif not image.readable:
            bad += 1
            rented = "Rented hosts pull it without a credential: push it to a public repository (_AGENT_REPOSITORY)."
            yield Finding(
                check=check, state=State.MISSING, what=f"{name} cannot be pulled: {image.reason}",
                mend=rented if name in agents else f"./goblin deploy --project {facts.project}",
            )  # fmt: skip
    if not bad:
        yield Finding(check=check, state=State.OK, what=f"{len(facts.images)} images can be pulled.")


def _clock(facts: Facts) -> Iterator[Finding]:
    check = "clock"
    if facts.clock_skew_s is None:
        yield Finding(check=check, state=State.UNKNOWN, what="Google's clock could not be read.")
    elif abs(facts.clock_skew_s) > CLOCK_SKEW_S_MAX:
        yield Finding(
            check=check, state=State.MISSING,
            what=f"This machine's clock is {abs(facts.clock_skew_s):.0f} s "
            f"{'ahead of' if facts.clock_skew_s > 0 else 'behind'} Google's; signed URLs and tokens of it are refused.",
            mend="sudo timedatectl set-ntp true",
        )  # fmt: skip
    else:
        yield Finding(check=check, state=State.OK, what=f"This machine's clock is right to {CLOCK_SKEW_S_MAX:.0f} s.")
