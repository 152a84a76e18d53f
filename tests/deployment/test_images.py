"""Container images: rules for every Dockerfile, and builds, runs and stops of the images where the tools are there."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.agent import conftest as agents

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "containers").glob("*/Dockerfile"))
IDS = [file.parent.name for file in DOCKERFILES]
GRACE_S = 10.0
"""Time from SIGTERM to SIGKILL on Cloud Run and of `docker stop`."""

# Reading a Dockerfile.


@dataclass(frozen=True)
class Instruction:
    """One instruction, on one line, without its options."""

    word: str
    rest: str
    options: dict[str, str]


@dataclass
class Stage:
    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, *words: str) -> list[Instruction]:
        return [one for one in self.instructions if one.word in words]


@dataclass
class Dockerfile:
    """A Dockerfile, with the arguments before its first stage filled in where they are used in FROM."""

    arguments: dict[str, str]
    stages: dict[str, Stage]

    def images(self) -> list[Stage]:
        """The stages that no other stage uses: those that are run."""
        used = {stage.base for stage in self.stages.values()} | {
            found
            for stage in self.stages.values()
            for one in stage.instructions
            for found in re.findall(r"\bfrom=([^,\s]+)", " ".join(f"{k}={v}" for k, v in one.options.items()))
        }
        return [stage for stage in self.stages.values() if stage.name not in used]

    def chain(self, stage: Stage) -> list[Instruction]:
        """The instructions that a stage's image is made of, with those of the stages it starts from."""
        start = self.stages.get(stage.base)
        return [*(self.chain(start) if start else []), *stage.instructions]

    def all(self, *words: str) -> list[Instruction]:
        return [one for stage in self.stages.values() for one in stage.all(*words)]


def parse(text: str) -> Dockerfile:
    """Parse a Dockerfile without here-documents."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\[ \t]*\n", " ", "\n".join(lines))
    found = Dockerfile({}, {})
    stage: Stage | None = None
    for line in filter(str.strip, joined.splitlines()):
        word, rest = line.strip().split(maxsplit=1)
        options = {}
        while option := re.match(r"--([a-z-]+)(?:=(\S+))?\s+", rest):
            # A RUN may have several mounts.
            options[option[1]] = " ".join(filter(None, [options.get(option[1]), option[2]]))
            rest = rest[option.end() :]
        match word.upper():
            case "FROM":
                base, *name = re.split(r"\s+AS\s+", rest.strip(), flags=re.IGNORECASE)
                stage = Stage(name[0] if name else str(len(found.stages)), fill(base, found.arguments))
                found.stages[stage.name] = stage
            case "ARG" if stage is None:
                argument, _, value = rest.partition("=")
                found.arguments[argument] = value.strip('"')
            case other:
                assert stage is not None, f"{other} stands before FROM"
                stage.instructions.append(Instruction(other, rest.strip(), options))
    return found


def fill(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values.get(found[1], ""), text)


def pairs(one: Instruction) -> dict[str, str]:
    """Names and values of an ENV, LABEL or ARG."""
    return dict(word.partition("=")[::2] for word in shlex.split(one.rest))


# Reading .dockerignore.


WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def ignored(path: str, rules: str) -> bool:
    """Tell whether a path is left out of the build context: the last rule that matches it or a folder above decides."""
    out = False
    for rule in filter(None, (line.strip() for line in rules.splitlines() if not line.startswith("#"))):
        pattern = rule.removeprefix("!").strip("/")
        expression = "".join(
            part if part.startswith("[") else WILD.get(part, re.escape(part))
            for part in re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern)
        )
        if re.fullmatch(f"{expression}(?:/.*)?", path):
            out = not rule.startswith("!")
    return out


RULES = (ROOT / ".dockerignore").read_text()

# The rules.

INSTALLER = re.compile(
    r"\b(apt|apt-get|aptitude|apk|dnf|yum|pip3?|uv|conda|npm)\s+(?:-\S+\s+)*(add|install|update|wheel)\b"
)
FETCHER = re.compile(r"\b(curl|wget|git clone)\b")
SECRET_NAME = re.compile(r"(?i)(token|secret|passw|credential|api_?key|private_?key)")
LABELS = {"title", "description", "licenses", "source", "version", "revision"}


def complaints(file: Dockerfile) -> Iterator[str]:
    """What is wrong with a Dockerfile, one sentence each."""
    yield from of_bases(file)
    yield from of_builds(file)
    for image in file.images():
        yield from of_image(file, image)


def of_bases(file: Dockerfile) -> Iterator[str]:
    for stage in file.stages.values():
        if stage.base in file.stages or stage.base == "scratch":
            continue
        tag = stage.base.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in stage.base and not re.match(r"v?\d+\.\d+", tag):
            yield f"{stage.base} is not named by a version"


def of_builds(file: Dockerfile) -> Iterator[str]:
    for one in file.all("ADD"):
        yield f"ADD {one.rest}: COPY does not unpack and does not download"
    for one in file.all("ARG", "ENV"):
        for name in pairs(one):
            # The name of a file or of a public key's option is no secret; the value of one would be in the history.
            if SECRET_NAME.search(name) and not name.endswith("_FILE"):
                yield f"{one.word} {name} looks like a secret"
    for one in file.all("RUN"):
        for command in re.split(r"&&|\|\||;", one.rest):
            installs = re.search(r"\bpip3?\s+(?:-\S+\s+)*(install|wheel|download)\b", command)
            if installs and "--require-hashes" not in command:
                yield f"pip without --require-hashes: {command.strip()}"
            if FETCHER.search(command):
                yield f"a download that nothing checks: {command.strip()}"
    for one in file.all("COPY"):
        if "from" not in one.options:
            for source in one.rest.split()[:-1]:
                if not (ROOT / source).exists():
                    yield f"COPY {source}: there is no such file"
                elif ignored(source, RULES):
                    yield f"COPY {source}: .dockerignore leaves it out"


def of_image(file: Dockerfile, image: Stage) -> Iterator[str]:
    chain = file.chain(image)
    users = [one.rest for one in chain if one.word == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        yield f"{image.name}: the user is not a number other than 0"
    if any(one.word == "RUN" and INSTALLER.search(one.rest) for one in chain):
        yield f"{image.name}: it installs packages in the stage that runs"
    starts = [one.rest for one in chain if one.word == "ENTRYPOINT"]
    if not starts or not starts[-1].startswith("["):
        yield f"{image.name}: its program is not process 1, which gets SIGTERM"
    labels = {name: value for one in chain if one.word == "LABEL" for name, value in pairs(one).items()}
    if missing := sorted(LABELS - {name.removeprefix("org.opencontainers.image.") for name in labels}):
        yield f"{image.name}: no label {', '.join(missing)}"
    if labels.get("org.opencontainers.image.revision") != "${REVISION}" or "REVISION" not in "".join(
        one.rest for one in image.all("ARG")
    ):
        yield f"{image.name}: the revision is not the argument REVISION"
    elif chain[-1].word != "LABEL":
        yield f"{image.name}: a new revision builds more than the labels anew"


@pytest.mark.parametrize("path", DOCKERFILES, ids=IDS)
def test_a_dockerfile_keeps_the_rules(path: Path) -> None:
    assert list(complaints(parse(path.read_text()))) == []


GOOD = """\
ARG PYTHON=3.13
FROM python:${PYTHON}-slim-trixie AS build
COPY requirements.lock /
RUN pip install --require-hashes -r /requirements.lock
FROM python:${PYTHON}-slim-trixie
COPY --from=build /opt /opt
USER 65534:65534
ENTRYPOINT ["python"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="x" org.opencontainers.image.description="x" \\
      org.opencontainers.image.licenses="x" org.opencontainers.image.source="x" \\
      org.opencontainers.image.version="x" org.opencontainers.image.revision="${REVISION}"
"""


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("ARG PYTHON=3.13\n", "", "python:-slim-trixie is not named by a version"),
        ("python:${PYTHON}-slim-trixie\n", "python:latest\n", "python:latest is not named by a version"),
        ("python:${PYTHON}-slim-trixie\n", "ghcr.io:443/x\n", "ghcr.io:443/x is not named by a version"),
        ("USER 65534:65534", "USER nobody", "1: the user is not a number other than 0"),
        ("USER 65534:65534", "USER 0", "1: the user is not a number other than 0"),
        ("USER 65534:65534\n", "", "1: the user is not a number other than 0"),
        ("--require-hashes ", "", "pip without --require-hashes: pip install -r /requirements.lock"),
        ("COPY requirements.lock /", "ADD https://x.test/y /", "ADD https://x.test/y /: COPY does not"),
        ("COPY requirements.lock /", "COPY none.txt /", "COPY none.txt: there is no such file"),
        ("COPY requirements.lock /", "COPY pyproject.toml /", "COPY pyproject.toml: .dockerignore leaves it out"),
        ("USER", "ENV HF_TOKEN=x\nUSER", "ENV HF_TOKEN looks like a secret"),
        ("USER", "ARG API_KEY\nUSER", "ARG API_KEY looks like a secret"),
        ("USER", "RUN apt-get -y install gcc\nUSER", "1: it installs packages in the stage that runs"),
        ("USER", "RUN curl -O x.test\nUSER", "a download that nothing checks: curl -O x.test"),
        ('["python"]', "python", "1: its program is not process 1"),
        ('org.opencontainers.image.source="x" ', "", "1: no label source"),
        ("${REVISION}", "1", "1: the revision is not the argument REVISION"),
        ("ENTRYPOINT", "LABEL a=b\nENTRYPOINT", ""),
    ],
)
def test_a_broken_rule_is_found(old: str, new: str, found: str) -> None:
    assert list(complaints(parse(GOOD))) == []
    assert old in GOOD
    wrong = list(complaints(parse(GOOD.replace(old, new))))
    assert {one[: len(found)] for one in wrong} == ({found} if found else set())


@pytest.mark.parametrize(
    "path",
    [
        ".env", ".git/config", ".venv/bin/python", "goblin.toml", "containers/chat/.env", "containers/chat/.env.local",
        "containers/trainer/goblin_agent/__pycache__/task.cpython-313.pyc", "containers/worker/x.pyc",
        "containers/llamacpp/README.md", "containers/llamacpp/server.log", "shared/goblin/__init__.py",
        "shared/httpguard/__pycache__/guard.cpython-313.pyc", "shared/localcloud/server.py",
    ],
)  # fmt: skip
def test_the_build_context_leaves_out(path: str) -> None:
    assert ignored(path, RULES)


def test_the_build_context_has_every_file_of_the_packages() -> None:
    ours = ("llamacpp/goblin_llamacpp", "worker/goblin_worker", "trainer/goblin_agent", "../shared/httpguard")
    for package in ours:
        files = [file for file in (ROOT / "containers" / package).resolve().rglob("*") if file.is_file()]
        left_out = [file.name for file in files if ignored(str(file.relative_to(ROOT)), RULES)]
        assert [name for name in left_out if not name.endswith((".pyc", ".md"))] == []


def pinned(path: Path) -> set[str]:
    """The names that a Dockerfile takes from the lock file."""
    text = path.read_text()
    lists = re.findall(r'names="([a-z0-9 -]+)"', text) + re.findall(r'pin \w+ "([a-z0-9 -]+)"', text)
    return {name for words in lists for name in words.split()}


@pytest.mark.parametrize(
    ("container", "packages"),
    [
        ("trainer", ["worker/goblin_worker", "trainer/goblin_agent"]),
        ("llamacpp", ["llamacpp/goblin_llamacpp", "../shared/httpguard"]),
    ],
)
def test_an_image_has_what_its_packages_import_and_the_lock_file_has_it(container: str, packages: list[str]) -> None:
    known = {"llama_cpp": "llama-cpp-python", "google_crc32c": "google-crc32c"}
    imported = set()
    for package in packages:
        for file in (ROOT / "containers" / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {name.name.split(".")[0] for name in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    imported.add(node.module.split(".")[0])
    # httpguard unpacks zstd for servers that accept it, and the model server does not.
    ours = {package.split("/")[-1] for package in packages} | {"backports", "compression"}
    wanted = {known.get(name, name) for name in imported - ours - sys.stdlib_module_names}
    names = pinned(ROOT / "containers" / container / "Dockerfile")
    assert wanted
    assert wanted <= names
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE))
    assert names <= locked


def test_an_argument_chooses_the_gpu_and_one_place_the_cuda() -> None:
    path = ROOT / "containers/llamacpp/Dockerfile"
    file = parse(path.read_text())
    assert [one.rest for one in file.stages["cuda-build"].all("ARG")] == ["CUDA_ARCHITECTURES=89-real"]
    (build,) = [one.rest for one in file.stages["cuda-build"].all("RUN") if "GGML_CUDA=ON" in one.rest]
    assert "-DCMAKE_CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES}" in build
    assert file.stages["toolkit"].base.startswith(f"nvidia/cuda:{file.arguments['CUDA']}-devel-")
    instructions = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert [line for line in instructions if re.search(r"\b1[1-3][.-]\d\b", line)] == [
        f"ARG CUDA={file.arguments['CUDA']}"
    ]


MEASURED = re.compile(
    r"^\| `(?P<image>goblin-[\w:-]+)` \| (?P<mb>\d+) MB \| .*\| (?P<date>\d{4}-\d\d-\d\d) \|$", re.MULTILINE
)


@pytest.mark.parametrize("path", DOCKERFILES, ids=IDS)
def test_the_readme_states_the_size_with_its_date(path: Path) -> None:
    assert MEASURED.search((path.parent / "README.md").read_text())


# Images that are built and run.

IMAGEBUILD = ROOT.parent / "shared/tools/imagebuild/imagebuild"
REVISION = "ab" * 20
BUILDS = {
    "goblin-agent": ("trainer", []),
    "goblin-llamacpp:cpu": ("llamacpp", ["--target", "cpu"]),
}

WANTED = os.environ.get("GOBLIN_IMAGES", "")
"""`1`: every image, however long it takes. `0`: none. Unset: what takes seconds, once the base images are here."""
CACHE = Path(os.environ.get("IMAGEBUILD_CACHE") or Path.home() / ".cache" / "imagebuild") / "storage"

real = [
    pytest.mark.skipif(not IMAGEBUILD.exists(), reason="No imagebuild beside the checkout."),
    pytest.mark.skipif(
        WANTED != "1" and (WANTED == "0" or not CACHE.is_dir()),
        reason="No base images yet; making them takes minutes. Set GOBLIN_IMAGES=1 once.",
    ),
    pytest.mark.timeout(3600),
    # One after the other: each call of imagebuild writes its runtime anew, which breaks a build in progress.
    pytest.mark.xdist_group("images"),
]
slow = pytest.mark.skipif(WANTED != "1", reason="Compiling llama.cpp takes eight minutes. Set GOBLIN_IMAGES=1.")
QUICK = frozenset({"goblin-agent"})
on_images = [
    *real,
    pytest.mark.parametrize("image", [pytest.param(name, marks=[] if name in QUICK else [slow]) for name in BUILDS]),
]


def marked(*marks: pytest.MarkDecorator) -> Any:
    def mark(test: Any) -> Any:
        for one in reversed(marks):
            test = one(test)
        return test

    return mark


def imagebuild(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(["nice", "-n", "10", IMAGEBUILD, *words], capture_output=True, text=True, cwd=ROOT)
    assert not check or ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended


@cache
def built(image: str) -> str:
    """Build an image once and return its name."""
    folder, options = BUILDS[image]
    argument = f"REVISION={REVISION}"
    file = f"containers/{folder}/Dockerfile"
    imagebuild("build", "-f", file, *options, "--build-arg", argument, "-t", f"{image.split(':')[0]}:test", ".")
    return f"{image.split(':')[0]}:test"


def inside(image: str, program: str, *arguments: str) -> str:
    """Run another program in an image, read-only, as the image's user."""
    words = ("run", built(image), "--read-only", "--entrypoint", program, "--", *arguments)
    return imagebuild(*words).stdout


@contextmanager
def running(image: str, *options: str) -> Iterator[str]:
    """A container with a read-only root file system and the host's network; its name."""
    name = f"goblin-test-{os.getpid()}-{time.monotonic_ns()}"
    words = ("--network", "host", "--pull=never", "--read-only", "--name", name, *options, built(image))
    imagebuild("podman", "run", "-d", *words)
    try:
        yield name
    except AssertionError:
        logs = imagebuild("podman", "logs", name, check=False)
        print(logs.stdout, logs.stderr)
        raise
    finally:
        imagebuild("podman", "rm", "-f", name, check=False)


def stop(name: str) -> tuple[float, int]:
    """Stop a container as Cloud Run does; the seconds it took and its exit code."""
    said = imagebuild("stop", "-t", str(int(GRACE_S)), name).stderr
    found = re.search(r"stopped in ([\d.]+) s, exit code (\d+)", said)
    assert found, said
    return float(found[1]), int(found[2])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port: int = door.getsockname()[1]
        return port


def wait_for(happened: Any, deadline_s: float = 30.0) -> float:
    """Wait for something in another process; the seconds it took."""
    started = time.monotonic()
    while not happened():
        assert time.monotonic() - started < deadline_s, "it did not happen in time"
        threading.Event().wait(0.02)
    return time.monotonic() - started


@marked(*on_images)
def test_an_image_has_nothing_that_does_not_belong_there(image: str) -> None:
    facts = json.loads(imagebuild("inspect", built(image), "--json").stdout)
    assert facts["user"] == "65534:65534"
    assert (facts["setuid"], facts["secrets"], facts["odd files"], facts["writable"]) == ([], [], [], [])
    # Not compared: Buildah 1.28 takes a label from its cache when only its argument has changed.
    assert re.fullmatch(r"[0-9a-f]{40}", facts["labels"]["org.opencontainers.image.revision"])
    readme = (ROOT / "containers" / BUILDS[image][0] / "README.md").read_text()
    stated = {found["image"]: int(found["mb"]) for found in MEASURED.finditer(readme)}
    assert stated[image] == pytest.approx(facts["bytes"] / 1e6, rel=0.1)


@marked(*on_images)
def test_an_image_has_no_compiler_and_no_installer_of_python(image: str) -> None:
    tools = "cc gcc g++ c++ ld make cmake ninja nvcc git curl wget pip pip3 uv"
    assert inside(image, "sh", "-c", f"for tool in {tools}; do command -v $tool; done; true") == ""


DOUBLED = """
import hashlib, os
seen, twice = {}, []
for top in ("/app", "/opt", "/usr/local", "/usr/lib"):
    for folder, _, files in os.walk(top):
        for path in (os.path.join(folder, name) for name in files if ".so" in name):
            if not os.path.islink(path):
                digest = hashlib.sha256(open(path, "rb").read()).digest()
                twice += [(path, seen[digest])] if digest in seen else []
                seen[digest] = path
print(len(seen), twice)
"""


@marked(*on_images)
def test_an_image_has_no_library_twice(image: str) -> None:
    number, twice = inside(image, "python", "-c", DOUBLED).strip().split(" ", 1)
    assert twice == "[]"
    assert int(number) > 50


@marked(*on_images)
def test_the_program_s_user_can_write_to_memory_only(image: str) -> None:
    script = "id -u; for folder in / /app /opt /usr/local /tmp; do (echo > $folder/x) 2>&- && echo $folder; done; true"
    assert inside(image, "sh", "-c", script).split() == ["65534", "/tmp"]


@contextmanager
def llamacpp(*options: str) -> Iterator[tuple[str, str]]:
    """A server that is ready; the container's name and the server's URL."""
    port = free_port()
    words = ("-e", f"PORT={port}", "-e", "GOBLIN_LLAMACPP_HOST=127.0.0.1", "--memory", "512m", *options)
    built("goblin-llamacpp:cpu")
    started = time.monotonic()
    with running("goblin-llamacpp:cpu", *words) as name:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: is_ready(url))
        print(f"goblin-llamacpp:cpu: ready {time.monotonic() - started:.1f} s after it was started")
        yield name, url


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def follow(url: str, **changes: Any) -> list[str]:
    """The lines of a streamed answer."""
    body = {"messages": [{"role": "user", "content": "Count from 1 to 9."}], "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body | changes, timeout=60) as answer:
        assert answer.status_code == 200
        return [line for line in answer.iter_lines() if line]


def said(lines: list[str]) -> str:
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]
    return "".join(choice["delta"].get("content") or "" for piece in pieces for choice in piece["choices"])


@marked(*real, slow)
def test_the_llamacpp_image_answers_in_a_stream() -> None:
    with llamacpp() as (_, url):
        lines = follow(url)
    assert said(lines) == "1, 2, 3, 4, 5, 6, 7, 8, 9."
    assert lines[-1] == "data: [DONE]"


@marked(*real, slow)
def test_the_llamacpp_image_drains_within_the_grace() -> None:
    endless = {"ignore_eos": True, "temperature": 1}
    sizes = ("-e", "GOBLIN_LLAMACPP_CTX=60000", "-e", "GOBLIN_LLAMACPP_CELLS=60000", "-e", "GOBLIN_LLAMACPP_SLOTS=1")
    with llamacpp(*sizes) as (name, url), ThreadPoolExecutor() as threads:
        answer = threads.submit(follow, url, **endless)
        wait_for(lambda: "llamacpp:requests_processing 1" in httpx.get(f"{url}/metrics").text)
        took_s, code = stop(name)
        lines = answer.result()
    print(f"goblin-llamacpp:cpu: drained in {took_s} s")
    assert (code, took_s < GRACE_S) == (0, True)
    assert lines[-1] == "data: [DONE]"
    last = json.loads(lines[-2].removeprefix("data: "))
    assert (last["choices"][0]["finish_reason"], last["cut_short"]) == ("length", "shutting_down")


cloud, url, controller = agents.cloud, agents.url, agents.controller
WORK = ("--tmpfs", "/work")
PACED = {"steps": 100_000, "seed": 7, "context": 4, "width": 4, "hidden": 8, "rows": 8, "save_every": 10, "pace": 50}


@marked(*real)
def test_the_agent_s_image_saves_and_gives_the_job_back_within_the_grace(controller: agents.Controller) -> None:
    controller.submit(parameters=PACED)
    token = controller.place()
    built("goblin-agent")
    started = time.monotonic()
    with running(
        "goblin-agent", *WORK, "-e", f"GOBLIN_URL={controller.url}", "-e", f"GOBLIN_ATTEMPT_TOKEN={token}"
    ) as name:
        wait_for(lambda: controller.job().state == agents.JobState.RUNNING)
        print(f"goblin-agent: claimed its job {time.monotonic() - started:.1f} s after it was started")
        wait_for(lambda: controller.job().saved_step > 0)
        took_s, code = stop(name)
    print(f"goblin-agent: drained in {took_s} s")
    assert (code, took_s < GRACE_S) == (0, True)
    assert "the host was taken away" in controller.reasons()


@marked(*real)
def test_the_agent_s_image_says_what_it_was_not_told() -> None:
    ended = imagebuild("run", built("goblin-agent"), "--read-only", check=False)
    assert ended.returncode == 2
    assert "GOBLIN_URL or GOBLIN_ATTEMPT_TOKEN is not set. Set both." in ended.stderr
