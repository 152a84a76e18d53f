"""Listening: what `on_snapshot` tells, and when."""

import queue
from collections.abc import Callable
from typing import Any

import pytest
from google.cloud.firestore import FieldFilter

WAIT_S = 10


class Heard:
    """What a listener's callback was told, call by call."""

    def __init__(self) -> None:
        self._calls: queue.Queue[tuple[list[str], list[tuple[str, str]]]] = queue.Queue()

    def __call__(self, snapshots: Any, changes: Any, _read_at: Any) -> None:
        told = [(change.type.name, change.document.id) for change in changes]
        self._calls.put(([snapshot.id for snapshot in snapshots if snapshot.exists], told))

    def next(self) -> tuple[list[str], list[tuple[str, str]]]:
        """The next call's documents and changes."""
        return self._calls.get(timeout=WAIT_S)

    def after(self, act: Callable[[], Any]) -> tuple[list[str], list[tuple[str, str]]]:
        """The next call's documents and changes, after an act."""
        act()
        return self.next()


@pytest.fixture
def db(firestore_cloud: Any) -> Any:
    return firestore_cloud.client()


def test_hears_of_a_collection(db: Any) -> None:
    jobs, heard = db.collection("jobs"), Heard()
    jobs.document("a").set({"n": 1})
    watch = jobs.on_snapshot(heard)
    assert heard.next() == (["a"], [("ADDED", "a")])
    assert heard.after(lambda: jobs.document("b").set({"n": 2})) == (["a", "b"], [("ADDED", "b")])
    assert heard.after(lambda: jobs.document("a").update({"n": 3})) == (["a", "b"], [("MODIFIED", "a")])
    assert heard.after(lambda: jobs.document("a").delete()) == (["b"], [("REMOVED", "a")])
    watch.unsubscribe()


def test_hears_that_nothing_is_there(db: Any) -> None:
    heard = Heard()
    watch = db.collection("empty").on_snapshot(heard)
    assert heard.next() == ([], [])
    watch.unsubscribe()


def test_hears_of_a_batch_at_once(db: Any) -> None:
    heard = Heard()
    watch = db.collection("jobs").on_snapshot(heard)
    heard.next()
    batch = db.batch()
    for name in "abc":
        batch.set(db.document(f"jobs/{name}"), {})
    assert heard.after(batch.commit) == (["a", "b", "c"], [("ADDED", "a"), ("ADDED", "b"), ("ADDED", "c")])
    watch.unsubscribe()


def test_documents_come_and_go_with_the_filter(db: Any) -> None:
    jobs, heard = db.collection("jobs"), Heard()
    jobs.document("a").set({"n": 1})
    watch = jobs.where(filter=FieldFilter("n", ">", 5)).on_snapshot(heard)
    assert heard.next() == ([], [])
    assert heard.after(lambda: jobs.document("a").update({"n": 6})) == (["a"], [("ADDED", "a")])
    assert heard.after(lambda: jobs.document("a").update({"n": 2})) == ([], [("REMOVED", "a")])
    watch.unsubscribe()


def test_a_limit_pushes_out_and_lets_in(db: Any) -> None:
    jobs, heard = db.collection("jobs"), Heard()
    jobs.document("a").set({"n": 5})
    jobs.document("b").set({"n": 1})
    top = jobs.order_by("n").limit(2)
    watch = top.on_snapshot(heard)
    assert heard.next()[0] == ["b", "a"]
    assert heard.after(lambda: jobs.document("c").set({"n": 3})) == (["b", "c"], [("REMOVED", "a"), ("ADDED", "c")])
    assert heard.after(lambda: jobs.document("b").delete()) == (["c", "a"], [("REMOVED", "b"), ("ADDED", "a")])
    watch.unsubscribe()


def test_hears_of_one_document(db: Any) -> None:
    job, heard = db.document("jobs/a"), Heard()
    watch = job.on_snapshot(heard)
    assert heard.next() == ([], [])
    assert heard.after(lambda: job.set({"n": 1})) == (["a"], [("ADDED", "a")])
    assert heard.after(lambda: job.update({"n": 2})) == (["a"], [("MODIFIED", "a")])
    assert heard.after(job.delete) == ([], [("REMOVED", "a")])
    watch.unsubscribe()


def test_hears_of_a_group(db: Any) -> None:
    heard = Heard()
    watch = db.collection_group("rooms").on_snapshot(heard)
    heard.next()
    assert heard.after(lambda: db.document("h/1/rooms/a").set({})) == (["a"], [("ADDED", "a")])
    watch.unsubscribe()


def test_hears_nothing_of_other_databases(firestore_cloud: Any) -> None:
    project = firestore_cloud.project()
    db, other = firestore_cloud.client(project=project), firestore_cloud.client(project=project, database="other")
    heard = Heard()
    watch = db.collection("jobs").on_snapshot(heard)
    heard.next()
    other.document("jobs/theirs").set({})
    assert heard.after(lambda: db.document("jobs/ours").set({})) == (["ours"], [("ADDED", "ours")])
    watch.unsubscribe()
