"""LoRA adapters by request: each batch has one set, and nobody hears another's."""

import asyncio
import struct

import httpx
import numpy as np
import pytest

from .conftest import MODEL, Start

WIDTH, WIDE, RANK = 256, 768, 4


def write_adapter(path, *, seed: int, strength: float) -> None:
    """A random low-rank change of one layer, as llama.cpp's converter lays it out (GGUF 3)."""
    rng = np.random.default_rng(seed)
    tensors = {
        "blk.3.ffn_down.weight.lora_a": rng.normal(size=(RANK, WIDE)).astype("<f4"),
        "blk.3.ffn_down.weight.lora_b": (rng.normal(size=(WIDTH, RANK)) * strength).astype("<f4"),
    }

    def text(words: str) -> bytes:
        return struct.pack("<Q", len(words)) + words.encode()

    pairs = b"".join(
        text(key) + struct.pack("<I", 8) + text(value)
        for key, value in {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}.items()
    )
    pairs += text("adapter.lora.alpha") + struct.pack("<If", 6, float(RANK))
    infos, data = b"", b""
    for name, values in tensors.items():
        shape = values.shape[::-1]
        infos += text(name) + struct.pack("<I", 2) + struct.pack("<QQ", *shape) + struct.pack("<IQ", 0, len(data))
        data += values.tobytes() + b"\0" * (-values.nbytes % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 4) + pairs + infos
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)


@pytest.fixture
def adapters(tmp_path):
    paths = {name: tmp_path / f"{name}.gguf" for name in ("poet", "clerk")}
    for seed, path in enumerate(paths.values()):
        write_adapter(path, seed=seed, strength=0.3)
    return [word for name, path in paths.items() for word in ("--lora", f"{name}={path}")]


async def test_adapters_are_applied_by_request_and_not_mixed_in_a_batch(start: Start, adapters):
    with start(*adapters) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:

            async def first_logprobs(lora: list[dict]) -> dict[str, float]:
                request = {"messages": [{"role": "user", "content": "What is Goblin?"}], "temperature": 0, "lora": lora}
                request |= {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
                answer = await http.post("/v1/chat/completions", json=request)
                (entry,) = answer.json()["choices"][0]["logprobs"]["content"]
                return {top["token"]: top["logprob"] for top in entry["top_logprobs"][:3]}

            sets = [[], [{"id": "poet"}], [{"id": "clerk"}], [{"id": "poet", "scale": 0}], [{"id": 1, "scale": 1.0}]]
            alone = [await first_logprobs(lora) for lora in sets]
            assert alone[3] == pytest.approx(alone[0], abs=0.05)
            assert alone[4] == pytest.approx(alone[2], abs=0.05)
            for one, other in ((0, 1), (0, 2), (1, 2)):
                assert alone[one] != pytest.approx(alone[other], abs=0.5)
            together = await asyncio.gather(*(first_logprobs(lora) for lora in sets * 3))
            for one, other in zip(together, alone * 3, strict=True):
                assert one == pytest.approx(other, abs=0.05)
            models = (await http.get("/v1/models")).json()
            assert models["data"][0]["meta"]["adapters"] == ["poet", "clerk"]
            unknown = await http.post(
                "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], "lora": [{"id": 7}]}
            )
            assert unknown.json()["error"]["param"] == "lora"


def test_an_adapter_that_is_none_is_refused(start: Start):
    with start("--lora", f"self={MODEL}", ready=False) as server:
        assert server.process.wait(timeout=30) == 1
