"""`kill -9` at bad moments, and memory under big objects."""

import base64
import os
import socket
import threading
from pathlib import Path
from typing import Any

import google_crc32c
import httpx
import psutil
import pytest
from requests.exceptions import ConnectionError as Lost

from tests.localcloud.storage_server import StorageProcess

KIB, MIB = 1 << 10, 1 << 20


def files_of(folder: Path) -> int:
    return sum(1 for kind in ("objects", "incoming") for path in (folder / kind).rglob("*") if path.is_file())


def test_what_was_acknowledged_is_whole_and_the_rest_was_never_there(tmp_path: Path) -> None:
    with StorageProcess(tmp_path) as server:
        server.client().create_bucket("crash-bucket")
        acknowledged: dict[str, bytes] = {}
        enough = threading.Event()

        def upload(worker: int) -> None:
            bucket = server.client().bucket("crash-bucket")
            for number in range(10_000):
                name, data = f"w{worker}/{number}", os.urandom(200 * KIB + number)
                try:
                    bucket.blob(name).upload_from_string(data, retry=None)
                except (Lost, OSError):
                    return
                acknowledged[name] = data
                if len(acknowledged) > 30:
                    enough.set()

        workers = [threading.Thread(target=upload, args=(worker,)) for worker in range(4)]
        for worker in workers:
            worker.start()
        assert enough.wait(30)
        server.kill()
        for worker in workers:
            worker.join(30)
        server.start()
        bucket = server.client().bucket("crash-bucket")
        found = {blob.name: blob for blob in bucket.list_blobs()}
        assert set(acknowledged) <= set(found)
        for name, blob in found.items():
            data = blob.download_as_bytes()
            assert data == acknowledged.get(name, data)
            assert base64.b64decode(blob.crc32c) == google_crc32c.value(data).to_bytes(4, "big")
        # One more may have been committed by each worker just before it could hear so; nothing else is left.
        assert len(found) <= len(acknowledged) + len(workers)
        assert files_of(tmp_path) == len(found)
        last = max(blob.generation for blob in found.values())
        after = bucket.blob("after")
        after.upload_from_string("x")
        assert after.generation > last


def test_a_resumable_upload_goes_on_after_the_process_died_in_the_middle_of_a_chunk(tmp_path: Path) -> None:
    data = os.urandom(5 * MIB)
    with StorageProcess(tmp_path) as server:
        blob = server.client().create_bucket("crash-bucket").blob("r")
        url = blob.create_resumable_upload_session(size=len(data), if_generation_match=0)
        first = httpx.put(url, content=data[:MIB], headers={"content-range": f"bytes 0-{MIB - 1}/{len(data)}"})
        assert first.headers["range"] == f"bytes=0-{MIB - 1}"
        with socket.create_connection(("127.0.0.1", server.port)) as half:
            head = (
                f"PUT {httpx.URL(url).raw_path.decode()} HTTP/1.1\r\nhost: x\r\ncontent-length: {4 * MIB}\r\n"
                f"content-range: bytes {MIB}-{5 * MIB - 1}/{len(data)}\r\n\r\n"
            )
            half.sendall(head.encode() + data[MIB : 3 * MIB])
            incoming = next((tmp_path / "incoming").iterdir())
            wait_for(lambda: incoming.stat().st_size > MIB)
            server.kill()
        server.start()
        assert not blob.exists()
        status = httpx.put(url, headers={"content-range": f"bytes */{len(data)}"})
        have = int(status.headers["range"].removeprefix("bytes=0-")) + 1
        assert MIB < have <= 3 * MIB
        content_range = f"bytes {have}-{len(data) - 1}/{len(data)}"
        assert httpx.put(url, content=data[have:], headers={"content-range": content_range}).status_code == 200
        assert blob.download_as_bytes() == data
        server.kill()
        server.start()
        again = httpx.put(url, headers={"content-range": f"bytes */{len(data)}"})
        assert again.json()["size"] == str(len(data))
        assert files_of(tmp_path) == 1


def test_parts_survive_and_orphans_are_swept(tmp_path: Path) -> None:
    with StorageProcess(tmp_path) as server:
        bucket = server.client().create_bucket("crash-bucket")
        url = f"{server.url}/crash-bucket/parts"
        upload_id = httpx.post(url + "?uploads").text.partition("<UploadId>")[2].partition("<")[0]
        part = httpx.put(url, params={"partNumber": 1, "uploadId": upload_id}, content=b"part")
        server.kill()
        (tmp_path / "incoming" / "orphan").write_bytes(b"x")
        orphan = tmp_path / "objects" / "aa" / "123"
        orphan.parent.mkdir(exist_ok=True)
        orphan.write_bytes(b"x")
        server.start()
        assert files_of(tmp_path) == 1
        body = f"<C><Part><PartNumber>1</PartNumber><ETag>{part.headers['etag']}</ETag></Part></C>"
        assert httpx.post(url, params={"uploadId": upload_id}, content=body).status_code == 200
        assert bucket.blob("parts").download_as_bytes() == b"part"


@pytest.mark.parametrize("chunk_size", [None, 16 * MIB])
def test_a_big_object_is_never_held_in_memory(tmp_path: Path, chunk_size: int | None) -> None:
    source, target = tmp_path / "up", tmp_path / "down"
    block = os.urandom(MIB)
    with source.open("wb") as file:
        for _ in range(96):
            file.write(block)
    with StorageProcess(tmp_path / "state") as server:
        bucket = server.client().create_bucket("big-bucket")
        bucket.blob("warm").upload_from_string(b"x" * MIB)
        before, peak = rss(server.pid), Peak(server.pid)
        with peak:
            bucket.blob("big", chunk_size=chunk_size).upload_from_filename(str(source))
            bucket.blob("big").download_to_filename(str(target))
        assert target.stat().st_size == 96 * MIB
        assert peak.bytes - before < 24 * MIB


def rss(pid: int) -> int:
    used: int = psutil.Process(pid).memory_info().rss
    return used


class Peak:
    """Looks at a process's memory while the block runs."""

    def __init__(self, pid: int) -> None:
        self._pid, self.bytes, self._over = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.bytes = max(self.bytes, rss(self._pid))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def wait_for(holds: Any, deadline_s: float = 20) -> None:
    pause = threading.Event()
    for _ in range(int(deadline_s / 0.01)):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen in time")
