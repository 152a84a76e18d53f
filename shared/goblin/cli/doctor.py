"""`goblin doctor`: what a deployed Goblin lacks, with the command that mends it. It reads through gcloud."""

from __future__ import annotations

import email.utils
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import click
import httpx

from goblin.cli import diagnosis, paths, terminal
from goblin.cli.diagnosis import Facts, Finding, Image, State
from goblin.cli.main import fail
from goblin.cli.terminal import plain

READERS = 8
"""Calls of gcloud at a time; each takes about a second."""
CALL_S = 60
HTTP_S = 10.0
TIME_URL = "https://www.googleapis.com/oauth2/v1/certs"
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json",
)  # fmt: skip
GOOGLES = re.compile(r"^[a-z0-9-]+-docker\.pkg\.dev/")
MARKS = {State.OK: "ok     ", State.MISSING: "MISSING", State.UNKNOWN: "unknown", State.OFF: "off    "}


class Unread(Exception):
    """A reading failed; the message says why, in gcloud's words."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--project", metavar="ID", envvar=["GCS_PROJECT_ID", "GOOGLE_CLOUD_PROJECT"], show_envvar=True,
    help="Google Cloud project. Default: the one that gcloud is set to.",
)  # fmt: skip
@click.option("--region", envvar="GCS_REGION", show_envvar=True, default="us-east1", show_default=True,
              help="Region of the functions.")  # fmt: skip
@click.option("--prefix", default="goblin", show_default=True, help="Beginning of the names, as in Terraform.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(project: str | None, region: str, prefix: str, as_json: bool) -> None:
    """Show what a deployed Goblin lacks, with the command that mends it.

    It only reads. The first six lines are facts that only a real project can show; each says how it was shown. Exits
    with 1 if something is missing, also if not everything could be read.
    """
    if shutil.which("gcloud") is None:
        fail("Found no gcloud on PATH. Install it: cloud.google.com/sdk/docs/install")
    try:
        found = diagnosis.judge(Reader(_project(project), region, prefix).facts())
    except Unread as reason:
        fail(str(reason))
    if as_json:
        terminal.echo_json(json.dumps([asdict(one) for one in found]))
    else:
        for one in found:
            _show(one)
    missing = sum(one.state == State.MISSING for one in found)
    unread = sum(one.state == State.UNKNOWN for one in found)
    terminal.echo(f"{missing} missing, {unread} unknown, of {len(found)} findings", err=True)
    if missing:
        raise SystemExit(1)


def _show(finding: Finding) -> None:
    terminal.echo(f"{MARKS[finding.state]}  {finding.check:<18}  {plain(finding.what)}")
    if finding.proof:
        terminal.echo(f"         shown by: {finding.proof}")
    if finding.mend:
        terminal.echo(f"         mend:     {plain(finding.mend)}")


def _project(named: str | None) -> str:
    if named:
        return named
    ended = _gcloud("config", "get-value", "project")
    found = ended.stdout.strip()
    if ended.returncode or found in ("", "(unset)"):
        raise Unread("No project is chosen. Name it with --project ID; `gcloud projects list` shows yours.")
    return found


def _gcloud(*words: str) -> subprocess.CompletedProcess[str]:
    """Run gcloud without questions."""
    environment = {**os.environ, "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
    try:
        return subprocess.run(
            [shutil.which("gcloud") or "gcloud", *words],
            capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=CALL_S, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", f"no answer within {CALL_S} s")


class Reader:
    """Reads a deployment, several calls at a time. What cannot be read is noted, and does not stop the rest."""

    def __init__(self, project: str, region: str, prefix: str) -> None:
        self._project, self._region, self._prefix = project, region, prefix
        self._unread: dict[str, str] = {}

    def facts(self) -> Facts:
        """Read everything. Raises `Unread` when not even the project can be read."""
        try:
            number = self._read("projects", "describe", self._project, scoped=False).get("projectNumber")
            if not number:
                raise Unread("gcloud projects describe printed no projectNumber")
        except Unread as reason:
            raise Unread(
                f"Project {self._project} cannot be read ({reason}). Log in with gcloud auth login, or name another "
                "one with --project ID."
            ) from reason
        place = f"--location={self._region}"
        first: Mapping[str, tuple[str, ...]] = {
            "services": ("run", "services", "list"),
            "topics": ("pubsub", "topics", "list"),
            "subscriptions": ("pubsub", "subscriptions", "list"),
            "schedules": ("scheduler", "jobs", "list", place),
            "secrets": ("secrets", "list"),
            "alert policies": ("alpha", "monitoring", "policies", "list"),
        }
        declared = json.loads(paths.declaration().read_text(encoding="utf-8"))
        facts = Facts(
            project=self._project, number=str(number), region=self._region, prefix=self._prefix,
            declared=declared,
        )  # fmt: skip
        with ThreadPoolExecutor(READERS) as threads:
            lists = dict(zip(first, threads.map(self._listed, first, first.values()), strict=True))
            services = lists["services"] or []
            mine = [it for it in services if diagnosis.name_of(it).startswith(f"{self._prefix}-")]
            there = set(map(diagnosis.name_of, mine))
            more: dict[tuple[str, str], Callable[[], Any]] = {}
            for function in facts.private:
                if (name := facts.service_name(function)) in there:
                    more["service", name] = self._later(
                        "run", "services", "get-iam-policy", name, f"--region={self._region}"
                    )
            for topic in facts.pushed:
                more["topic", f"{topic}-dead"] = self._later("pubsub", "topics", "get-iam-policy", f"{topic}-dead")
                more["subscription", f"{topic}-push"] = self._later(
                    "pubsub", "subscriptions", "get-iam-policy", f"{topic}-push"
                )
            for secret in diagnosis.secret_names(mine):
                more["secret", secret] = self._later("secrets", "versions", "list", secret)
            agents = {diagnosis.env_of(it).get("GOBLIN_AGENT_IMAGE") for it in mine}
            for image in diagnosis.image_names(mine):
                more["image", image] = self._image_reader(image, anonymous=image in agents)
            console = next((it for it in mine if diagnosis.name_of(it) == facts.service_name("console")), None)
            if console is not None:
                more["web", "console"] = lambda: _without_login(str(diagnosis.inner(console, "status").get("url", "")))
            more["web", "clock"] = clock_skew_s
            read = dict(zip(more, threads.map(lambda call: call(), more.values()), strict=True))
        of = lambda kind: {name: value for (what, name), value in read.items() if what == kind}  # noqa: E731
        return Facts(
            project=facts.project, number=facts.number, region=facts.region, prefix=facts.prefix, declared=declared,
            services=None if lists["services"] is None else mine, topics=lists["topics"],
            subscriptions=lists["subscriptions"], schedules=lists["schedules"], secrets=lists["secrets"],
            alert_policies=lists["alert policies"], service_policies=of("service"), topic_policies=of("topic"),
            subscription_policies=of("subscription"), secret_versions=of("secret"), images=of("image"),
            console=read.get(("web", "console")), clock_skew_s=read["web", "clock"], unread=self._unread,
        )  # fmt: skip

    def _read(self, *words: str, scoped: bool = True) -> Any:
        """Return what a gcloud command prints: a list of objects for `list`, else an object. Raises `Unread`."""
        scope = (f"--project={self._project}",) if scoped else ()
        ended = _gcloud(*words, *scope, "--format=json")
        if ended.returncode:
            raise Unread(diagnosis.reason_of(ended.stderr))
        try:
            said = json.loads(ended.stdout or "null")
        except (ValueError, RecursionError) as error:
            raise Unread(f"gcloud {' '.join(words)} printed no JSON") from error
        if "list" in words:
            said = [] if said is None else said
            if not isinstance(said, list) or not all(isinstance(row, dict) for row in said):
                raise Unread(f"gcloud {' '.join(words)} printed no list of objects")
        elif not isinstance(said := {} if said is None else said, dict):
            raise Unread(f"gcloud {' '.join(words)} printed no object")
        return said

    def _listed(self, name: str, words: Sequence[str]) -> list[Any] | None:
        try:
            found: list[Any] = self._read(*words)
            return found
        except Unread as reason:
            self._unread[name] = str(reason)
            return None

    def _later(self, *words: str) -> Callable[[], Any]:
        def read() -> Any:
            try:
                return self._read(*words)
            except Unread:
                return None

        return read

    def _image_reader(self, image: str, *, anonymous: bool) -> Callable[[], Image]:
        def read() -> Image:
            if anonymous:
                # As a rented host pulls it: without a credential.
                return pull_without_credential(image)
            if not GOOGLES.match(image):
                return Image(readable=True)
            try:
                said = self._read("artifacts", "docker", "images", "describe", image, "--show-provenance")
            except Unread as reason:
                return Image(readable=False, reason=str(reason))
            return Image(
                readable=True,
                provenance=len(diagnosis.rows(diagnosis.inner(said, "provenance_summary").get("provenance"))),
            )

        return read


def _without_login(url: str) -> tuple[int, str] | None:
    try:
        answer = httpx.get(f"{url}/", timeout=HTTP_S, follow_redirects=False)
    except (httpx.TransportError, httpx.InvalidURL):
        return None
    return answer.status_code, answer.headers.get("location", "")


def clock_skew_s() -> float | None:
    """Return this machine's clock less Google's; None without an answer."""
    try:
        answer = httpx.head(TIME_URL, timeout=HTTP_S)
        theirs = email.utils.parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (httpx.TransportError, KeyError, ValueError):
        return None
    return time.time() - theirs


def pull_without_credential(image: str, scheme: str = "https") -> Image:
    """Ask a registry for an image's manifest as someone without an account would."""
    host, _, path = image.partition("/")
    name, _, reference = path.rpartition("@" if "@" in path else ":")
    url = f"{scheme}://{host}/v2/{name}/manifests/{reference}"
    headers = {"accept": ", ".join(MANIFESTS)}
    try:
        with httpx.Client(timeout=HTTP_S, follow_redirects=True) as http:
            answer = http.head(url, headers=headers)
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                challenge = dict(re.findall(r'(\w+)="([^"]*)"', answer.headers.get("www-authenticate", "")))
                realm = challenge.pop("realm", "")
                if not realm:
                    return Image(readable=False, reason="the registry asks for a login.")
                token = http.get(realm, params={"scope": f"repository:{name}:pull", **challenge}).json()
                headers["authorization"] = f"Bearer {token.get('token') or token.get('access_token')}"
                answer = http.head(url, headers=headers)
    except (httpx.TransportError, httpx.InvalidURL, ValueError, AttributeError) as error:
        return Image(readable=False, reason=f"the registry does not answer ({type(error).__name__}).")
    if answer.is_success:
        return Image(readable=True)
    return Image(readable=False, reason=f"the registry answers {answer.status_code} to a caller without a credential.")
