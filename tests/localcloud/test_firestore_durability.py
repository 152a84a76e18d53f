"""What was acknowledged is there after `kill -9`, and a batch is there whole or not at all."""

import os
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from google.api_core import exceptions
from google.cloud import firestore

from tests.clouds import CloudProcess

ACKNOWLEDGED_MIN = 40
WRITERS = 3
WAIT_S = 30


def connect(cloud: CloudProcess) -> Any:
    with mock.patch.dict(os.environ, {"FIRESTORE_EMULATOR_HOST": str(cloud.addresses.firestore)}):
        client = firestore.Client(project="durable")
        _ = client._firestore_api
    return client


class Writer(threading.Thread):
    """Commits pairs of documents, as fast as it can, until the server is gone."""

    def __init__(self, client: Any, number: int, enough: threading.Semaphore) -> None:
        super().__init__(daemon=True)
        self.client, self.number, self.enough = client, number, enough
        self.acknowledged: list[str] = []

    def run(self) -> None:
        for step in range(100_000):
            name = f"{self.number}-{step}"
            batch = self.client.batch()
            batch.set(self.client.document(f"left/{name}"), {"step": step, "total": firestore.Increment(1)})
            batch.set(self.client.document(f"right/{name}"), {"step": step})
            batch.set(self.client.document(f"totals/{self.number}"), {"n": firestore.Increment(1)}, merge=True)
            try:
                batch.commit(retry=None, timeout=WAIT_S)
            except exceptions.GoogleAPICallError:
                return
            self.acknowledged.append(name)
            self.enough.release()


def test_acknowledged_commits_survive_kill_9(tmp_path: Path) -> None:
    cloud = CloudProcess(tmp_path, "--services", "firestore")
    cloud.start()
    client, enough = connect(cloud), threading.Semaphore(0)
    writers = [Writer(client, number, enough) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for _ in range(ACKNOWLEDGED_MIN):
        assert enough.acquire(timeout=WAIT_S)
    cloud.kill()
    for writer in writers:
        writer.join(WAIT_S)
    client.close()

    with cloud:
        client = connect(cloud)
        left = {snapshot.id for snapshot in client.collection("left").stream()}
        right = {snapshot.id for snapshot in client.collection("right").stream()}
        totals = {snapshot.id: snapshot.get("n") for snapshot in client.collection("totals").stream()}
        client.close()
    acknowledged = {name for writer in writers for name in writer.acknowledged}
    assert len(acknowledged) >= ACKNOWLEDGED_MIN
    assert left == right, "a batch was torn"
    assert acknowledged <= left, "an acknowledged commit is gone"
    assert sum(totals.values()) == len(left), "a total disagrees with its documents"
    # At most the one commit that each writer was waiting for may be there unacknowledged.
    assert len(left - acknowledged) <= WRITERS


@pytest.mark.parametrize("path", ["a/b", "a/b/c/d"])
def test_a_stopped_server_starts_where_it_was(tmp_path: Path, path: str) -> None:
    with CloudProcess(tmp_path, "--services", "firestore") as cloud:
        client = connect(cloud)
        client.document(path).set({"n": 1})
        before = client.document(path).get()
        client.close()
    with CloudProcess(tmp_path, "--services", "firestore") as cloud:
        client = connect(cloud)
        after = client.document(path).get()
        client.document(path).update({"n": 2}, option=client.write_option(last_update_time=before.update_time))
        client.close()
    assert (after.to_dict(), after.update_time) == (before.to_dict(), before.update_time)
