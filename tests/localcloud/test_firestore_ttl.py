"""Expired documents are deleted in time, and nothing else is."""

import datetime as dt
from typing import Any

import pytest

from localcloud.firestore import protos
from localcloud.firestore.commits import Commits
from localcloud.firestore.server import Firestore
from localcloud.firestore.ttl import TtlField
from tests.localcloud.firestore_room import DATABASE, ROOT, FakeClock

TTL = [TtlField.parse({"collection": "events", "field": "meta.expires_at"})]


class Service:
    """A Firestore with a clock of its own."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.firestore = Firestore(None, clock=self.clock, ttl=TTL, **options)
        self.documents = self.firestore._documents
        self.commits: Commits = self.firestore._commits

    async def write(self, path: str, expires_at: Any) -> None:
        value = protos.Value()
        if isinstance(expires_at, dt.datetime):
            value.timestamp_value.FromDatetime(expires_at)
        else:
            value.string_value = expires_at
        document = protos.Document(name=f"{ROOT}/{path}")
        document.fields["meta"].map_value.fields["expires_at"].CopyFrom(value)
        await self.commits.commit(protos.CommitRequest(database=DATABASE, writes=[protos.Write(update=document)]))

    def present(self, *paths: str) -> list[bool]:
        from localcloud.firestore import names

        database = self.documents.database(DATABASE)
        return [self.documents.get(database, names.encode(tuple(path.split("/")))) is not None for path in paths]


async def test_deletes_what_has_expired_and_nothing_else() -> None:
    service = Service()
    soon = service.clock.now + dt.timedelta(seconds=10)
    paths = ["events/a", "x/y/events/b", "others/c", "events/text", "events/later"]
    for path in paths[:3]:
        await service.write(path, soon)
    await service.write("events/text", "2020-01-01")
    await service.write("events/later", soon + dt.timedelta(hours=1))
    service.firestore.sweep()
    assert service.present(*paths) == [True] * 5
    service.clock.pass_s(10)
    assert service.present(*paths) == [True] * 5, "expired documents stay readable until they are swept"
    service.firestore.sweep()
    assert service.present(*paths) == [False, False, True, True, True]


async def test_waits_as_long_as_it_is_told() -> None:
    service = Service(ttl_delay_s=3600)
    await service.write("events/a", service.clock.now)
    service.clock.pass_s(3599)
    service.firestore.sweep()
    assert service.present("events/a") == [True]
    service.clock.pass_s(1)
    service.firestore.sweep()
    assert service.present("events/a") == [False]


async def test_leaves_alone_what_a_transaction_holds() -> None:
    service = Service()
    await service.write("events/a", service.clock.now)
    transactions = service.firestore._transactions
    begun = transactions.begin(service.documents.database(DATABASE), protos.TransactionOptions())
    request = protos.BatchGetDocumentsRequest(
        database=DATABASE, documents=[f"{ROOT}/events/a"], transaction=begun.transaction_id
    )
    assert [one async for one in service.firestore._reads.batch_get(request)]
    service.firestore.sweep()
    assert service.present("events/a") == [True]
    transactions.end(begun)
    service.firestore.sweep()
    assert service.present("events/a") == [False]


def test_a_declaration_without_a_field_is_refused() -> None:
    with pytest.raises(KeyError):
        TtlField.parse({"collection": "events"})
