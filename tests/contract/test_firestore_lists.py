"""Lists of documents and collections, recursive deletes, and the async client."""

from typing import Any

import grpc
import pytest
from google.cloud.firestore import FieldFilter


@pytest.fixture
def db(firestore_cloud: Any) -> Any:
    client = firestore_cloud.client()
    for path in ("a/1", "a/1/b/1", "a/2/b/1/c/1", "a-b/1", "ab/1", "m/1/n/1", "z/1"):
        client.document(path).set({"path": path})
    return client


def test_lists_collections(db: Any) -> None:
    assert [collection.id for collection in db.collections()] == ["a", "a-b", "ab", "m", "z"]
    assert [collection.id for collection in db.document("a/2").collections()] == ["b"]
    assert list(db.document("z/1").collections()) == []


def test_lists_documents_and_those_that_are_only_on_the_way(db: Any) -> None:
    assert [document.id for document in db.collection("a").list_documents()] == ["1", "2"]
    assert [document.id for document in db.collection("a").list_documents(page_size=1)] == ["1", "2"]
    assert [document.id for document in db.collection("m").list_documents()] == ["1"]
    assert list(db.collection("none").list_documents()) == []


def test_deletes_a_collection_with_all_below_and_nothing_beside(db: Any) -> None:
    assert db.recursive_delete(db.collection("a")) == 3
    assert [collection.id for collection in db.collections()] == ["a-b", "ab", "m", "z"]


def test_deletes_in_chunks(db: Any) -> None:
    assert db.recursive_delete(db.collection("a"), chunk_size=1) == 3
    assert [collection.id for collection in db.collections()] == ["a-b", "ab", "m", "z"]


def test_deletes_a_document_with_all_below(db: Any) -> None:
    db.recursive_delete(db.document("a/1"))
    assert [document.id for document in db.collection("a").list_documents()] == ["2"]


def test_pages_through_many_documents(firestore_cloud: Any) -> None:
    client = firestore_cloud.client()
    batch = client.batch()
    for number in range(400):
        batch.set(client.document(f"many/{number:03}"), {})
    batch.commit()
    assert len(list(client.collection("many").list_documents())) == 400
    assert len(client.collection("many").get()) == 400


async def test_the_async_client_does_it_all(firestore_cloud: Any) -> None:
    client = firestore_cloud.async_client()
    batch = client.batch()
    for number in range(5):
        batch.set(client.document(f"a/{number}"), {"n": number})
    await batch.commit()
    assert (await client.document("a/3").get()).get("n") == 3
    found = [snapshot.id async for snapshot in client.collection("a").where(filter=FieldFilter("n", ">", 2)).stream()]
    assert found == ["3", "4"]
    ((count,),) = await client.collection("a").count().get()
    assert count.value == 5
    assert [collection.id async for collection in client.collections()] == ["a"]
    assert [snapshot.id async for snapshot in client.get_all([client.document("a/1")])] == ["1"]
    await client.document("a/3").delete()
    assert not (await client.document("a/3").get()).exists


def test_what_is_not_implemented_says_so(firestore_cloud: Any, caplog: pytest.LogCaptureFixture) -> None:
    call = firestore_cloud.channel("firestore").unary_unary("/google.firestore.v1.Firestore/Invent")
    with pytest.raises(grpc.RpcError) as refused:
        call(b"", timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    if firestore_cloud.name == "localcloud":
        assert "/google.firestore.v1.Firestore/Invent, which is not implemented" in caplog.text
