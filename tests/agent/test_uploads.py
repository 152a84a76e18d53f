"""Checkpoints on their way: the newest first, torn tries in nobody's way, nothing that cannot be one."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from goblin_agent.uploads import BadCheckpoint, NotUploaded, Uploader
from goblin_worker import retries
from goblin_worker.controller import Grant


class World:
    """A controller and a bucket."""

    def __init__(self) -> None:
        self.puts: list[tuple[str, bytes]] = []
        self.commits: list[tuple[int, int, str, float | None]] = []
        self.begun = 0
        self.statuses: list[int] = []
        """What the bucket answers first."""

    async def begin_checkpoint(self, step: int, files: list[dict[str, Any]]) -> tuple[str, dict[str, Grant]]:
        self.begun += 1
        upload_id = f"u{self.begun}"
        return upload_id, {
            file["name"]: Grant(url=f"http://bucket/{upload_id}/{file['name']}", headers={"x-signed": "yes"})
            for file in files
        }

    async def commit_checkpoint(
        self, step: int, previous_step: int, upload_id: str, files: list[dict[str, Any]], *, loss: float | None
    ) -> None:
        self.commits.append((step, previous_step, upload_id, loss))

    async def put(self, request: httpx.Request) -> httpx.Response:
        data = await request.aread()
        assert request.headers["content-length"] == str(len(data))
        assert (request.headers["x-signed"], "transfer-encoding" in request.headers) == ("yes", False)
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            return httpx.Response(status)
        self.puts.append((request.url.path, data))
        return httpx.Response(200)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(retries, "BACKOFF_S_MAX", 0.001)
    return World()


def write(folder: Path, step: int, **files: str) -> None:
    (folder / f"step-{step}").mkdir()
    for name, text in files.items():
        (folder / f"step-{step}" / name).write_text(text)


def saving(world: World, folder: Path, step: int, *, saved: int = 0) -> Uploader:
    """An uploader that has saved a step."""
    controller: Any = world

    async def save() -> Uploader:
        async with httpx.AsyncClient(transport=httpx.MockTransport(world.put)) as http:
            uploader = Uploader(http, controller, folder, saved)
            uploader.losses = {step: 0.5, step + 1: 0.25}
            await uploader.save(step)
            return uploader

    return asyncio.run(save())


def test_a_checkpoint_goes_up_whole_and_off_the_disk_with_the_older_ones(world: World, tmp_path: Path) -> None:
    write(tmp_path, 2, a="old")
    write(tmp_path, 4, a="weights", b="momentum")
    write(tmp_path, 6, a="newer")
    uploader = saving(world, tmp_path, 4, saved=1)
    assert sorted(world.puts) == [("/u1/a", b"weights"), ("/u1/b", b"momentum")]
    assert world.commits == [(4, 1, "u1", 0.5)]
    assert (uploader.saved, uploader.losses, uploader.newest()) == (4, {5: 0.25}, 6)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-6"]


@pytest.mark.parametrize("names", [["step-2.tmp"], ["draft"], ["step-x"], ["step--2"], ["step-123456789"], ["step-1"]])
def test_what_is_not_whole_or_not_new_is_not_there_yet(world: World, tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    controller: Any = world
    assert Uploader(httpx.AsyncClient(), controller, tmp_path, 1).newest() is None


@pytest.mark.parametrize("status", [400, 412, 503])
def test_a_torn_try_is_left_behind_and_the_next_one_is_whole(world: World, tmp_path: Path, status: int) -> None:
    write(tmp_path, 4, a="weights", b="momentum")
    world.statuses = [200, status]
    saving(world, tmp_path, 4)
    assert sorted(world.puts)[1:] == [("/u2/a", b"weights"), ("/u2/b", b"momentum")]
    assert world.commits == [(4, 0, "u2", 0.5)]


@pytest.mark.parametrize("status", [403, 404, 412])
def test_a_bucket_that_refuses_is_asked_a_few_times(world: World, tmp_path: Path, status: int) -> None:
    write(tmp_path, 4, a="weights")
    world.statuses = [status] * 100
    with pytest.raises(NotUploaded, match=str(status)):
        saving(world, tmp_path, 4)
    assert (world.commits, world.begun) == ([], retries.REFUSED_MAX)


@pytest.mark.parametrize("status", [408, 429, 500, 503, 520])
def test_a_bucket_that_is_away_is_tried_for_minutes_before_the_job_is_given_back(
    world: World, tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds

    monkeypatch.setattr(retries, "BACKOFF_S_MAX", 15.0)
    monkeypatch.setattr(retries, "now", lambda: slept)
    monkeypatch.setattr(retries, "sleep", sleep)
    write(tmp_path, 4, a="weights")
    world.statuses = [status] * 1000
    with pytest.raises(NotUploaded, match=str(status)):
        saving(world, tmp_path, 4)
    assert slept == pytest.approx(retries.BUCKET_S_MAX)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has 0 files"),
        ({f"f{number}": "x" for number in range(65)}, "has 65 files"),
        ({"a": ""}, "0 bytes"),
        ({".hidden": "x"}, "'.hidden'"),
        ({"a b": "x"}, "'a b'"),
    ],
)
def test_what_cannot_be_a_checkpoint_is_the_tasks_fault(
    world: World, tmp_path: Path, files: dict[str, str], words: str
) -> None:
    write(tmp_path, 4, **files)
    with pytest.raises(BadCheckpoint, match=words):
        saving(world, tmp_path, 4)
    assert world.begun == 0


@pytest.mark.parametrize("what", ["folder", "link"])
def test_only_plain_files_leave_the_machine(world: World, tmp_path: Path, what: str) -> None:
    write(tmp_path, 4, a="x")
    extra = tmp_path / "step-4" / "b"
    extra.mkdir() if what == "folder" else extra.symlink_to("/etc/passwd")
    with pytest.raises(BadCheckpoint, match="'b'"):
        saving(world, tmp_path, 4)
    assert world.puts == []
