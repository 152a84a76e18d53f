"""Export of the trained model as one file for llama.cpp: shape, vocabulary, chat template and weights."""

import ctypes
import json
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from . import gguf_file
from .gguf_file import Array, TensorType, Value
from .recipe import Recipe, Shape
from .tokenizer import CONTROL_WORDS, END_OF_TEXT, PRE_TOKENIZER, TURN_ENDS, Tokenizer

KINDS = ("q8_0", "f16", "f32", "q4_k_m")

PROMPT_WINDOW = 131_072
"""Prompts up to this length are answered: the first request of an agent can have sixty thousand tokens."""
_NORMAL, _CONTROL = 1, 3
"""llama.cpp's token types."""


def chat_template() -> str:
    return resources.files(__package__).joinpath("chat_template.jinja").read_text(encoding="utf-8")


def export(
    path: Path, recipe: Recipe, tokenizer: Tokenizer, weights: Mapping[str, Array], *, kind: str = "q8_0"
) -> None:
    """Write a GGUF file.

    Args:
        path: The file; replaced if it exists.
        recipe: Stored in the file as `goblin.recipe`, so that the model can be made again.
        tokenizer: Must have the recipe's vocabulary size.
        weights: Weights with the names and shapes of `Shape.tensors`.
        kind: Format of the matrices, one of `KINDS`; llama.cpp's own quantizer makes `q4_k_m`.

    Raises:
        ValueError: The weights or the vocabulary do not fit the shape, or the kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"The kind must be one of {', '.join(KINDS)}, not {kind}.")
    if kind == "q4_k_m":
        _export_q4_k_m(path, recipe, tokenizer, weights)
        return
    _check(recipe.shape, tokenizer, weights)
    matrices = TensorType[kind.upper()]
    tensors = [
        (name, weights[name], matrices if len(shape) == 2 else TensorType.F32) for name, shape in recipe.shape.tensors()
    ]
    gguf_file.write(path, _values(recipe, tokenizer, matrices), tensors)


def _check(shape: Shape, tokenizer: Tokenizer, weights: Mapping[str, Array]) -> None:
    if len(tokenizer.tokens) != shape.vocabulary:
        raise ValueError(f"The vocabulary has {len(tokenizer.tokens)} tokens, but the shape needs {shape.vocabulary}.")
    for name, dimensions in shape.tensors():
        if name not in weights or weights[name].shape != dimensions:
            found = weights[name].shape if name in weights else "missing"
            raise ValueError(f"{name} is {found}, not {dimensions}.")
        if not np.isfinite(weights[name]).all():
            raise ValueError(f"{name} has weights that are not finite: the training diverged.")


def _values(recipe: Recipe, tokenizer: Tokenizer, matrices: TensorType) -> dict[str, Value]:
    shape = recipe.shape
    return {
        "general.architecture": "llama",
        "general.name": "Goblin Tiny",
        "general.description": "synthetic chat model for tests and offline use",
        "general.license": "apache-2.0",
        "general.size_label": f"{shape.parameters / 1e6:.1f}M",
        "general.file_type": gguf_file.FILE_TYPE[matrices],
        "general.quantization_version": 2,
        "goblin.recipe": json.dumps(recipe.to_json()),
        "goblin.prompt_window": PROMPT_WINDOW,
        "llama.vocab_size": shape.vocabulary,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.width,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.feed_forward,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": shape.norm_epsilon,
        "llama.rope.dimension_count": shape.head_width,
        "llama.rope.freq_base": shape.rope_base,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PRE_TOKENIZER,
        "tokenizer.ggml.tokens": tokenizer.tokens,
        "tokenizer.ggml.token_type": [_CONTROL if token in CONTROL_WORDS else _NORMAL for token in tokenizer.tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer.merges],
        "tokenizer.ggml.bos_token_id": END_OF_TEXT,
        "tokenizer.ggml.eos_token_id": TURN_ENDS,
        "tokenizer.ggml.eot_token_id": TURN_ENDS,
        "tokenizer.ggml.padding_token_id": END_OF_TEXT,
        # The template starts with a turn; nothing goes before it.
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": chat_template(),
    }


def _export_q4_k_m(path: Path, recipe: Recipe, tokenizer: Tokenizer, weights: Mapping[str, Array]) -> None:
    import llama_cpp  # The other kinds do not need it.

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole, small = Path(folder) / "f32.gguf", Path(folder) / "q4_k_m.gguf"
        export(whole, recipe, tokenizer, weights, kind="f32")
        wanted = llama_cpp.llama_model_quantize_default_params()
        wanted.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
        wanted.nthread = 1
        failed = llama_cpp.llama_model_quantize(bytes(whole), bytes(small), ctypes.byref(wanted))
        if failed:
            raise ValueError(f"llama.cpp could not quantize the model: it answered {failed}.")
        small.replace(path)
