"""A writer of the part of GGUF version 3 that a small llama needs: keys and values, then tensors.

It is written here in a screenful, so that exporting a model needs only NumPy.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and ggml-quants.c, read 2026-11-25.
"""

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Value = str | bool | int | float | Sequence[str] | Sequence[int]
"""A metadata value. Integers take 32 bits, unsigned alone and signed in a list. Floats take 32 bits."""

ALIGNMENT = 32
BLOCK = 32
"""Number of weights that share one scale in Q8_0."""


class TensorType(IntEnum):
    """Tensor types, by ggml's numbers."""

    F32 = 0
    F16 = 1
    Q8_0 = 8


FILE_TYPE = {TensorType.F32: 0, TensorType.F16: 1, TensorType.Q8_0: 7}
"""`general.file_type` of a file whose matrices are mostly of this type."""


class _ValueType(IntEnum):
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9


def quantize_q8_0(weights: Array) -> bytes:
    """Quantize weights in blocks of 32: a half-precision scale, then 32 signed bytes.

    Each weight is its byte times the scale.

    Raises:
        ValueError: The last dimension is not a multiple of 32.
    """
    if weights.shape[-1] % BLOCK:
        raise ValueError(f"Q8_0 needs rows of a multiple of {BLOCK} weights, not {weights.shape}.")
    blocks = weights.astype(np.float32).reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    scaled = blocks * inverse
    # Like C's roundf: halves round away from zero. NumPy rounds them to even.
    rounded = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    packed = np.empty(len(blocks), dtype=[("scale", "<f2"), ("weights", "i1", BLOCK)])
    packed["scale"] = scales[:, 0]
    packed["weights"] = rounded
    return packed.tobytes()


def encode_tensor(weights: Array, kind: TensorType) -> bytes:
    match kind:
        case TensorType.F32:
            return weights.astype("<f4").tobytes()
        case TensorType.F16:
            return weights.astype("<f2").tobytes()
        case TensorType.Q8_0:
            return quantize_q8_0(weights)


def write(path: Path, values: Mapping[str, Value], tensors: Sequence[tuple[str, Array, TensorType]]) -> None:
    """Write the file atomically. The same arguments give the same bytes."""
    encoded = [encode_tensor(weights, kind) for _, weights, kind in tensors]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for key, value in values.items():
        head += _text(key) + _value(value)
    offset = 0
    for (name, weights, kind), data in zip(tensors, encoded, strict=True):
        # ggml lists the contiguous dimension first.
        shape = weights.shape[::-1]
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += len(data) + _padding(len(data))
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        for part in (head, *encoded):
            file.write(part + bytes(_padding(len(part))))
    partial.replace(path)


def _padding(length: int) -> int:
    return -length % ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    match value:
        case str():
            return struct.pack("<I", _ValueType.STRING) + _text(value)
        case bool():
            return struct.pack("<I?", _ValueType.BOOL, value)
        case int():
            return struct.pack("<II", _ValueType.UINT32, value)
        case float():
            return struct.pack("<If", _ValueType.FLOAT32, value)
    items = b"".join(_text(item) if isinstance(item, str) else struct.pack("<i", item) for item in value)
    kind = _ValueType.STRING if value and isinstance(value[0], str) else _ValueType.INT32
    return struct.pack("<IIQ", _ValueType.ARRAY, kind, len(value)) + items
