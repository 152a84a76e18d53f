"""The file, written with NumPy alone and read by llama.cpp itself."""

import json

import llama_cpp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goblin_tiny import gguf_file
from goblin_tiny.gguf_export import chat_template, export
from goblin_tiny.gguf_file import TensorType, quantize_q8_0
from goblin_tiny.recipe import Recipe, Shape


def random_weights(shape, seed=0):
    dice = np.random.default_rng(seed)
    return {
        name: dice.normal(0, 0.2, size).astype(np.float32) if len(size) == 2 else np.ones(size, np.float32)
        for name, size in shape.tensors()
    }


@pytest.fixture(scope="module")
def exported(small, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    export(path, small, tokenizer, random_weights(small.shape))
    return path


@pytest.fixture(scope="module")
def loaded(exported):
    llama = llama_cpp.Llama(str(exported), n_ctx=128, n_threads=1, n_threads_batch=1, verbose=False)
    yield llama
    llama.close()


def test_the_same_weights_give_the_same_bytes(exported, small, tokenizer, tmp_path):
    again = tmp_path / "again.gguf"
    export(again, small, tokenizer, random_weights(small.shape))
    assert again.read_bytes() == exported.read_bytes()
    assert list(tmp_path.iterdir()) == [again]


def test_llama_cpp_reads_the_shape_and_the_recipe(loaded, small):
    metadata = loaded.metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.embedding_length"] == str(small.shape.width)
    assert metadata["llama.attention.head_count_kv"] == str(small.shape.kv_heads)
    assert Recipe.from_json(json.loads(metadata["goblin.recipe"])) == small
    assert metadata["tokenizer.chat_template"] == chat_template()
    assert loaded.n_vocab() == small.shape.vocabulary
    assert loaded.token_eos() == 2


def test_llama_cpp_answers_with_it(loaded):
    choice = loaded.create_chat_completion([{"role": "user", "content": "Hi"}], max_tokens=4, temperature=0)["choices"]
    assert choice[0]["finish_reason"] in ("stop", "length")


@given(
    text=st.text(st.characters(codec="utf-8", max_codepoint=0x24F, exclude_categories=["Cc", "Cn"]), max_size=40)
    | st.text(" \n'aés12AZ_-.,!?こПр👋", max_size=40)
)
@settings(max_examples=300, deadline=None)
def test_llama_cpp_cuts_text_as_training_did(loaded, tokenizer, text):
    assert loaded.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)


def test_control_words_of_the_template_become_their_tokens(loaded):
    text = b"<|im_start|>user\nHi<|im_end|>"
    tokens = loaded.tokenize(text, add_bos=False, special=True)
    assert (tokens[0], tokens[-1]) == (1, 2)


def test_llama_cpp_computes_what_the_weights_say(small, tokenizer, tmp_path):
    """One layer of arithmetic by hand: with zero attention and feed-forward, logits are the embedding's own."""
    weights = random_weights(small.shape)
    for name in weights:
        if name.endswith(("attn_output.weight", "ffn_down.weight")):
            weights[name] = np.zeros_like(weights[name])
    path = tmp_path / "plain.gguf"
    export(path, small, tokenizer, weights, kind="f32")
    llama = llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, logits_all=True, verbose=False)
    try:
        llama.eval([40, 41, 42])
        found = np.array(llama.scores[:3])
    finally:
        llama.close()
    embedded = weights["token_embd.weight"][[40, 41, 42]]
    normed = embedded / np.sqrt((embedded**2).mean(axis=1, keepdims=True) + small.shape.norm_epsilon)
    np.testing.assert_allclose(found, normed @ weights["token_embd.weight"].T, rtol=1e-3, atol=1e-3)


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e3))
@settings(max_examples=50)
def test_q8_0_is_off_by_half_a_step_at_most(seed, size):
    weights = (np.random.default_rng(seed).normal(size=(3, 64)) * size).astype(np.float32)
    blocks = np.frombuffer(quantize_q8_0(weights), dtype=[("scale", "<f2"), ("weights", "i1", 32)])
    read = (blocks["scale"][:, None].astype(np.float32) * blocks["weights"]).reshape(weights.shape)
    step = np.abs(weights.reshape(-1, 32)).max(axis=1).repeat(32).reshape(weights.shape) / 127
    # Beside the half step: the scale itself is rounded to half precision, which for tiny ones has few digits.
    assert (np.abs(read - weights) <= step * (0.5 + 127 / 1024) + 127 * 2.0**-24).all()


def test_q8_0_rounds_halves_away_from_zero_as_c_does():
    weights = np.zeros((1, 32), np.float32)
    weights[0, :6] = [127, 0.5, 1.5, 2.5, -0.5, -2.5]
    assert np.frombuffer(quantize_q8_0(weights)[2:8], np.int8).tolist() == [127, 1, 2, 3, -1, -3]


def test_q8_0_of_zeros_is_zeros_and_odd_rows_are_refused():
    assert quantize_q8_0(np.zeros((1, 32), np.float32)) == bytes(34)
    with pytest.raises(ValueError, match="multiple of 32"):
        quantize_q8_0(np.zeros((2, 33), np.float32))


def test_q8_0_and_the_layout_are_those_of_the_gguf_package(exported, small, tokenizer):
    gguf = pytest.importorskip("gguf", reason="the gguf package is the trainer's yardstick, not the runtime's")
    weights = random_weights(small.shape)
    reader = gguf.GGUFReader(exported)
    assert reader.fields["tokenizer.ggml.merges"].contents() == [" ".join(pair) for pair in tokenizer.merges]
    assert [tensor.name for tensor in reader.tensors] == [name for name, _ in small.shape.tensors()]
    for tensor in reader.tensors:
        wanted = weights[tensor.name]
        if wanted.ndim == 2:
            assert tensor.tensor_type.name == "Q8_0"
            wanted = gguf.quants.quantize(wanted, gguf.GGMLQuantizationType.Q8_0)
        assert tensor.data.tobytes() == wanted.tobytes()


def test_q4_k_m_comes_from_llama_cpps_own_quantizer(tokenizer, small, tmp_path):
    # Its blocks are 256 weights wide.
    shape = Shape(vocabulary=300, width=256, layers=1, heads=4, kv_heads=2, feed_forward=256, context=128)
    recipe = Recipe(shape=shape, row_tokens=32)
    path, whole = tmp_path / "q4.gguf", tmp_path / "q8.gguf"
    export(path, recipe, tokenizer, random_weights(shape), kind="q4_k_m")
    export(whole, recipe, tokenizer, random_weights(shape))
    assert path.stat().st_size < 0.75 * whole.stat().st_size
    llama = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, verbose=False)
    try:
        assert llama.metadata["general.file_type"] == "15"
    finally:
        llama.close()
    assert sorted(tmp_path.iterdir()) == [path, whole]


def test_weights_that_do_not_fit_are_refused_and_nothing_is_written(small, tokenizer, tmp_path):
    path = tmp_path / "never.gguf"
    weights = random_weights(small.shape)
    name = "blk.0.attn_k.weight"
    for wrong, message in (
        ({key: value for key, value in weights.items() if key != name}, "missing"),
        ({**weights, name: weights[name].T}, "is \\(64, 32\\)"),
        ({**weights, name: np.full_like(weights[name], np.nan)}, "diverged"),
    ):
        with pytest.raises(ValueError, match=message):
            export(path, small, tokenizer, wrong)
    with pytest.raises(ValueError, match="one of"):
        export(path, small, tokenizer, weights, kind="q2")
    with pytest.raises(ValueError, match="vocabulary has 300"):
        export(path, Recipe(), tokenizer, weights)
    assert not list(tmp_path.iterdir())


def test_every_kind_of_value_is_written_as_the_format_says(tmp_path):
    path = tmp_path / "values.gguf"
    gguf_file.write(path, {"a": True, "b": 7, "c": 0.5, "d": "x", "e": ["y"], "f": [-1]}, [])
    assert path.read_bytes().rstrip(b"\0") == (
        b"GGUF\3\0\0\0" + bytes(8) + b"\6" + bytes(7) + b"\1\0\0\0\0\0\0\0a"
        b"\7\0\0\0\1" + b"\1\0\0\0\0\0\0\0b"
        b"\4\0\0\0\7\0\0\0" + b"\1\0\0\0\0\0\0\0c"
        b"\6\0\0\0\0\0\0\x3f" + b"\1\0\0\0\0\0\0\0d"
        b"\x08\0\0\0\1\0\0\0\0\0\0\0x" + b"\1\0\0\0\0\0\0\0e"
        b"\x09\0\0\0\x08\0\0\0\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0y" + b"\1\0\0\0\0\0\0\0f"
        b"\x09\0\0\0\5\0\0\0\1\0\0\0\0\0\0\0\xff\xff\xff\xff"
    )
    assert path.stat().st_size % 32 == 0


def test_tensor_kinds_are_encoded_little_endian():
    ones = np.ones((1, 32), np.float32)
    assert gguf_file.encode_tensor(ones, TensorType.F32) == b"\0\0\x80\x3f" * 32
    assert gguf_file.encode_tensor(ones, TensorType.F16) == b"\0\x3c" * 32
