"""Headers, memory and downloads, without a model in memory."""

import asyncio
import struct

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin_llamacpp.fetch import Fetch, FetchFailed, download
from goblin_llamacpp.gguf import Header, NotGguf, read_header
from goblin_llamacpp.machine import main_memory_free
from goblin_llamacpp.memory import DoesNotFit, kv_bytes_per_token, plan_memory

from .conftest import MODEL


def llama_8b(**changes) -> Header:
    """Llama-3.1-8B in Q4_K_M, by its published shape."""
    shape = {
        "block_count": 32,
        "embedding_length": 4096,
        "feed_forward_length": 14336,
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
        "vocab_size": 128256,
        "context_length": 131072,
    } | changes
    metadata = {"general.architecture": "llama"} | {f"llama.{key}": value for key, value in shape.items()}
    return Header(metadata, n_tensors=291, file_bytes=round(4.6 * 2**30))


def test_the_shipped_models_header_is_read():
    header = read_header(MODEL)
    assert header.architecture == "llama"
    assert header.number("context_length") == 1024
    assert header.number("block_count") == 4
    assert "<|im_start|>" in header.metadata["tokenizer.chat_template"]
    assert kv_bytes_per_token(header, "f16") == 2048


@pytest.mark.parametrize(
    ("change", "kib"),
    [
        ({}, 128),
        ({"attention.head_count_kv": 32}, 512),
        ({"attention.head_count_kv": [8] * 16 + [4] * 16}, 96),
        ({"attention.key_length": 256, "attention.value_length": 256}, 256),
    ],
)
def test_keys_and_values_take_what_the_shape_says(change, kib):
    assert kv_bytes_per_token(llama_8b(**change), "f16") == kib * 1024


def test_an_l4_holds_eight_requests_of_16k_but_not_of_32k():
    available = 22 * 2**30
    sizes = {"slots": 8, "batch": 512, "kv_type": "f16", "available": available}
    plan = plan_memory(llama_8b(), cells=8 * 16384 - 4096, **sizes)
    assert plan.needed <= available
    with pytest.raises(DoesNotFit, match=r"32768\.0 MiB|32768 MiB") as refused:
        plan_memory(llama_8b(), cells=8 * 32768, **sizes)
    assert "At most" in str(refused.value)
    assert plan_memory(llama_8b(), cells=8 * 30000, **(sizes | {"kv_type": "q8_0"})).kv < plan.kv * 1.1


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("noise") / "noise.gguf"
    path.write_bytes(data)
    with pytest.raises(NotGguf):
        read_header(path)


@given(st.integers(4, 60_000), st.binary(min_size=1, max_size=8))
def test_a_damaged_header_is_read_or_refused(tmp_path_factory, at, damage):
    data = bytearray(MODEL.read_bytes()[:60_000])
    data[at : at + len(damage)] = damage
    path = tmp_path_factory.mktemp("damaged") / "damaged.gguf"
    path.write_bytes(data)
    try:
        assert read_header(path).architecture
    except NotGguf as refused:
        assert str(refused)  # noqa: PT017 - either way is right.


def test_counts_that_can_not_be_are_refused(tmp_path):
    path = tmp_path / "huge.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 2**60))
    with pytest.raises(NotGguf, match="header is damaged"):
        read_header(path)


def test_the_smaller_of_the_kernels_and_the_containers_memory_counts(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert main_memory_free(meminfo, tmp_path) == 2 * 2**20
    (tmp_path / "memory.current").write_text("100\n")
    (tmp_path / "memory.max").write_text("1100\n")
    assert main_memory_free(meminfo, tmp_path) == 1000
    (tmp_path / "memory.max").write_text("max\n")
    assert main_memory_free(meminfo, tmp_path) == 2 * 2**20
    assert main_memory_free(tmp_path / "none", tmp_path / "none") is None


class Body(httpx.AsyncByteStream):
    """A body that can be streamed."""

    def __init__(self, data: bytes):
        self.data = data

    async def __aiter__(self):
        for start in range(0, len(self.data), 4096):
            yield self.data[start : start + 4096]


class Files(httpx.AsyncBaseTransport):
    """Answers from memory, with or without ranges, breaking off where told to."""

    def __init__(self, data: bytes, *, ranges: bool = True, breaks: int = 0, status: int | None = None):
        self.data, self.ranges, self.breaks, self.status = data, ranges, breaks, status
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.url} {request.headers.get('Range')}")
        if self.status:
            return httpx.Response(self.status)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if not self.ranges:
            return httpx.Response(200, stream=Body(self.data))
        start, end = (int(part) for part in request.headers["Range"].removeprefix("bytes=").split("-"))
        part = self.data[start : end + 1]
        if self.breaks:
            self.breaks -= 1
            part = part[: len(part) // 2]
        headers = {"Content-Range": f"bytes {start}-{end}/{len(self.data)}"}
        return httpx.Response(206, stream=Body(part), headers=headers)


DATA = bytes(i * 7 % 251 for i in range(100_000))


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_download_is_whole_with_and_without_ranges(tmp_path, ranges):
    files = Files(DATA, ranges=ranges)
    seen = []
    fetch = Fetch(
        folder=tmp_path, range_bytes=9_000, transport=files, on_progress=lambda done, total: seen.append((done, total))
    )
    path = await download("https://models.test/a.gguf", fetch)
    assert path.read_bytes() == DATA
    if ranges:
        assert files.most_at_once > 1
        assert seen[-1] == (100_000, 100_000)
        assert seen == sorted(seen)


async def test_a_broken_range_goes_on_where_it_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("goblin_llamacpp.fetch.BACKOFF_S", 0)
    files = Files(DATA, breaks=5)
    path = await download("https://models.test/a.gguf", Fetch(folder=tmp_path, range_bytes=30_000, transport=files))
    assert path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("address", "files"),
    [
        ("file:///etc/passwd", Files(DATA)),
        ("https://models.test/a", Files(DATA, status=404)),
        ("https://models.test/a", Files(DATA, breaks=10_000)),
        ("https://models.test/a", Files(DATA * 20)),
        ("https://models.test/a", Files(DATA * 20, ranges=False)),
    ],
)
async def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch, address, files):
    monkeypatch.setattr("goblin_llamacpp.fetch.BACKOFF_S", 0)
    fetch = Fetch(folder=tmp_path, range_bytes=30_000, bytes_max=1_000_000, transport=files)
    with pytest.raises(FetchFailed):
        await download(address, fetch)
    assert list(tmp_path.iterdir()) == []


async def test_cloud_storage_is_asked_through_its_api(tmp_path):
    files = Files(DATA)
    fetch = Fetch(folder=tmp_path, transport=files, storage_host="127.0.0.1:4443")
    await download("gs://bucket/models/org/tiny/1/model.gguf", fetch)
    assert files.asked[0].startswith(
        "http://127.0.0.1:4443/storage/v1/b/bucket/o/models%2Forg%2Ftiny%2F1%2Fmodel.gguf?alt=media "
    )


def gguf(*pairs: tuple[str, bytes], tensors: int = 1, count: int | None = None, after: bytes = b"\0" * 64) -> bytes:
    """A header of keys, each with its type and value as they are written."""
    said = [struct.pack("<Q", len(key)) + key.encode() + value for key, value in pairs]
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(pairs) if count is None else count) + b"".join(said) + after


def of(kind: str, value: object) -> bytes:
    if kind == "string":
        data = str(value).encode()
        return struct.pack("<IQ", 8, len(data)) + data
    number, layout = {"u32": (4, "<I"), "i32": (5, "<i"), "f32": (6, "<f"), "u64": (10, "<Q"), "bool": (7, "?")}[kind]
    return struct.pack("<I", number) + struct.pack(layout, value)


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IIQ", 9, kind, count) + data


NAME = ("general.architecture", of("string", "llama"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gguf(NAME, tensors=2**20), "counts 1048576 tensors"),
        (gguf(NAME, tensors=2**63), "tensors"),
        (gguf(NAME, count=4097), "4097 keys"),
        (gguf(NAME, count=2, after=b"\0" * 10), "ends inside its header"),
        (gguf(NAME, NAME), "one key twice"),
        (gguf(("general.architecture", of("u32", 7))), r"general\.architecture"),
        (gguf(("general.architecture", of("string", "a" * 65))), r"general\.architecture"),
        (gguf(NAME, ("k" * 65_536, of("u32", 1))), "a string of 65536 bytes"),
        (gguf(NAME, ("a", struct.pack("<IQ", 8, 2**63))), "too long"),
        (gguf(NAME, ("a", struct.pack("<IQ", 8, 2**20))), "ends inside its header"),
        (gguf(NAME, ("a", struct.pack("<I", 99))), "unknown type 99"),
        (gguf(NAME, ("a", array(0, 2**23 + 1))), "more than 8388608 items"),
        (gguf(NAME, ("a", array(0, 2**63))), "items together"),
        (gguf(NAME, ("a", array(10, 2**22))), "ends inside its header"),
        (gguf(NAME, ("a", array(8, 2**22))), "ends inside its header"),
        (gguf(NAME, ("a", array(8, 1, struct.pack("<Q", 2**62)))), "too long"),
        (gguf(NAME, ("a", array(9, 1))), "type 9"),
        (
            gguf(NAME, ("a", array(0, 2**22, b"\0" * 2**22)), ("b", array(0, 2**22 + 1, b"\0" * 2**22))),
            "items together",
        ),
    ],
)
def test_what_a_header_claims_is_compared_with_what_the_file_has(tmp_path, data, words):
    path = tmp_path / "claims.gguf"
    path.write_bytes(data)
    with pytest.raises(NotGguf, match=words):
        read_header(path)


def test_strings_together_have_a_limit(tmp_path):
    path = tmp_path / "wide.gguf"
    text = of("string", "a" * (16 * 2**20))
    path.write_bytes(gguf(NAME, *((f"key{number}", text) for number in range(4))))
    with pytest.raises(NotGguf, match="64 MiB together"):
        read_header(path)


def test_long_arrays_are_left_out_and_short_ones_kept(tmp_path):
    path = tmp_path / "arrays.gguf"
    scores, heads = array(6, 2**14 + 1, b"\0" * 4 * (2**14 + 1)), array(4, 2, struct.pack("<2I", 4, 8))
    path.write_bytes(gguf(NAME, ("scores", scores), ("llama.attention.head_count_kv", heads)))
    header = read_header(path)
    assert "scores" not in header.metadata
    assert header.numbers("attention.head_count_kv", 2) == [4, 8]
    assert header.number("attention.head_count_kv") == 8


@pytest.mark.parametrize("value", ["text", 2**63, -1, 0.5, float("nan"), float("inf"), [1, "x"], [-1]])
def test_a_size_that_is_none_is_refused(value):
    with pytest.raises(NotGguf, match="whole number"):
        llama_8b(block_count=value).number("block_count")
    with pytest.raises(NotGguf, match="whole number"):
        kv_bytes_per_token(llama_8b(**{"attention.head_count_kv": value}), "f16")


def test_layers_are_not_made_up():
    with pytest.raises(NotGguf, match="2000000000 layers"):
        kv_bytes_per_token(llama_8b(block_count=2_000_000_000), "f16")
