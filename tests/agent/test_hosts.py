"""Hosts that are no agents: what they try with a real token and a real signed URL, against a real bucket."""

import base64
import hashlib
from typing import Any

import google_crc32c
import httpx
import pytest

from goblin.jobs.domain.job import JobState
from tests.agent.conftest import TEXT, Controller


def announce(data: bytes, name: str = "weights", **said: Any) -> dict[str, Any]:
    checksum = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
    digest = hashlib.sha256(data).hexdigest()
    return {"name": name, "size": len(data), "crc32c": checksum, "sha256": digest, **said}


class Host:
    """One attempt that has claimed."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.token = controller.place()
        self.work = controller.say(self.token, "claim").json()

    def begin(self, step: int, *files: dict[str, Any]) -> dict[str, Any]:
        answer = self.controller.say(self.token, "checkpoints", {"step": step, "files": list(files)})
        assert answer.is_success, answer.text
        said: dict[str, Any] = answer.json()
        return said

    def commit(self, step: int, upload_id: str, *files: dict[str, Any]) -> httpx.Response:
        body = {"previous_step": 0, "upload_id": upload_id, "files": list(files)}
        return self.controller.say(self.token, f"checkpoints/{step}/commit", body)

    def save(self, step: int, data: bytes = b"weights") -> httpx.Response:
        said = self.begin(step, announce(data))
        assert put(said["grants"]["weights"], data).is_success
        return self.commit(step, said["upload_id"], announce(data))


def put(grant: dict[str, Any], data: bytes, **changes: Any) -> httpx.Response:
    return httpx.put(changes.get("url", grant["url"]), content=data, headers=changes.get("headers", grant["headers"]))


@pytest.fixture
def host(controller: Controller) -> Host:
    controller.submit(task="t")
    return Host(controller)


def test_a_grant_takes_one_object_of_one_size_and_one_checksum_once(controller: Controller, host: Host) -> None:
    grant = host.begin(10, announce(b"weights"))["grants"]["weights"]
    assert put(grant, b"weights and more").status_code == 400
    assert put(grant, b"weight").status_code == 400
    assert put(grant, b"forgery").status_code == 400
    for name in ("x-goog-content-length-range", "x-goog-hash", "x-goog-if-generation-match"):
        assert put(grant, b"weights", headers={**grant["headers"], name: "7"}).status_code in (400, 403)
        assert put(grant, b"weights", headers={k: v for k, v in grant["headers"].items() if k != name}).status_code in (
            400, 403,
        )  # fmt: skip
    for elsewhere in ("a1", "weights"):
        assert put(grant, b"weights", url=grant["url"].replace(elsewhere, "other", 1)).status_code == 403
    assert httpx.get(grant["url"], headers=grant["headers"]).status_code == 403
    assert controller.names("checkpoints/") == []
    assert put(grant, b"weights").status_code == 200
    assert put(grant, b"weights").status_code == 412


def test_an_input_is_read_and_nothing_beside_it(controller: Controller, host: Host) -> None:
    controller.write("datasets/secret.txt", b"secret")
    [given] = host.work["inputs"]["files"]
    grant = given["grant"]
    assert httpx.get(grant["url"], headers=grant["headers"]).content == TEXT
    assert httpx.get(grant["url"].replace("j.txt", "secret.txt"), headers=grant["headers"]).status_code == 403
    assert httpx.put(grant["url"], content=b"x", headers=grant["headers"]).status_code == 403
    assert httpx.delete(grant["url"], headers=grant["headers"]).status_code == 403


@pytest.mark.parametrize(
    "said", [{"size": 6}, {"crc32c": "AAAAAA=="}, {"sha256": "0" * 64}, {"name": "never-uploaded"}]
)
def test_a_commit_of_what_does_not_lie_there_is_a_lie(controller: Controller, host: Host, said: dict[str, Any]) -> None:
    begun = host.begin(10, announce(b"weights"))
    assert put(begun["grants"]["weights"], b"weights").is_success
    refused = host.commit(10, begun["upload_id"], announce(b"weights", **said))
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "untrue")
    assert (controller.job().invalid_reports, controller.job().checkpoint) == (1, None)
    assert not [name for name in controller.names("checkpoints/") if name.endswith("MANIFEST.json")]


def test_an_upload_that_was_announced_and_never_came_is_no_checkpoint(controller: Controller, host: Host) -> None:
    begun = host.begin(10, announce(b"weights"), announce(b"momentum", "momentum"))
    assert put(begun["grants"]["weights"], b"weights").is_success
    refused = host.commit(10, begun["upload_id"], announce(b"weights"), announce(b"momentum", "momentum"))
    assert refused.status_code == 409
    assert controller.job().checkpoint is None


def test_the_uploads_of_an_old_attempt_are_no_checkpoint_of_the_new_one(controller: Controller, host: Host) -> None:
    begun = host.begin(10, announce(b"weights"))
    assert put(begun["grants"]["weights"], b"weights").is_success
    new = Host(controller)
    assert new.commit(10, begun["upload_id"], announce(b"weights")).status_code == 409
    assert host.commit(10, begun["upload_id"], announce(b"weights")).status_code == 403
    assert controller.job().checkpoint is None
    assert new.save(10).is_success
    assert (controller.job().saved_step, controller.manifest().attempt) == (10, 2)


def test_a_replayed_token_opens_nothing_and_is_written_down(controller: Controller, host: Host) -> None:
    assert host.save(10).is_success
    new = Host(controller)
    bodies: dict[str, Any] = {
        "heartbeat": {"step": 99}, "checkpoints": {"step": 20, "files": [announce(b"weights")]},
        "withdraw": {"reason": "x"}, "fail": {"reason": "x"}, "finish": {"step": 10},
        "logs": {"number": 0, "size": 1, "crc32c": "AAAAAA=="},
    }  # fmt: skip
    for what in ("claim", "inputs", *bodies):
        assert controller.say(host.token, what, bodies.get(what)).status_code == 403
    job = controller.job()
    assert (job.state, job.attempt, job.saved_step, job.invalid_reports) == (JobState.RUNNING, 2, 10, 3)
    assert new.save(20).is_success


@pytest.mark.parametrize(
    "numbers", [{"gpu_share": 7}, {"total": -1}, {"total": 5}, {"steps_per_s": -3}, {"save_s": 1e9}, {"step": 10**9}]
)
def test_impossible_numbers_are_refused_and_written_down(
    controller: Controller, host: Host, numbers: dict[str, Any]
) -> None:
    refused = controller.say(host.token, "heartbeat", {"step": 10, **numbers})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "untrue")
    assert (controller.job().invalid_reports, controller.job().step) == (1, 0)


@pytest.mark.parametrize("body", ['{"step": 1, "loss": NaN}', '{"step": 1, "loss": 1e999}', '{"step": "x"}', "[]"])
def test_what_is_no_number_at_all_is_not_understood(controller: Controller, host: Host, body: str) -> None:
    headers = {"authorization": f"Bearer {host.token}"}
    answer = httpx.post(f"{controller.url}/jobs/j/heartbeat", content=body, headers=headers)
    assert answer.status_code == 400
    assert controller.job().progress is None


def test_a_checkpoint_that_rots_in_the_bucket_is_passed_over(controller: Controller, host: Host) -> None:
    assert host.save(10, b"good").is_success
    assert host.save(20, b"rots").is_success
    [rotten] = [name for name in controller.names("checkpoints/j/00000020/") if name.endswith("weights")]
    controller.write(rotten, b"rust")
    new = Host(controller)
    assert (new.work["step"], controller.job().saved_step) == (10, 10)
    [given] = new.work["inputs"]["checkpoint"]
    assert httpx.get(given["grant"]["url"], headers=given["grant"]["headers"]).content == b"good"


def test_a_file_over_the_disk_of_its_host_is_refused_before_a_byte_of_it(controller: Controller, host: Host) -> None:
    files = [announce(b"x", size=21 * 1024**3)]
    refused = controller.say(host.token, "checkpoints", {"step": 10, "files": files})
    assert (refused.status_code, controller.job().invalid_reports) == (409, 1)


def test_a_piece_of_the_log_is_bounded_and_its_own(controller: Controller, host: Host) -> None:
    piece = {"number": 0, "size": 3, "crc32c": announce(b"log")["crc32c"]}
    grant = controller.say(host.token, "logs", piece).json()
    assert put(grant, b"a longer log").status_code == 400
    assert put(grant, b"log").is_success
    assert controller.names("logs/") == ["logs/j/a1/000000"]
    for number, size in ((0, 300_000), (100, 9000), (10_000, 1), (-1, 1)):
        assert controller.say(host.token, "logs", {**piece, "number": number, "size": size}).status_code == 400
