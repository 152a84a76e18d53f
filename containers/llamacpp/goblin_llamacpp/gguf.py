"""Reader for the header of a GGUF file, which describes the model before its gigabytes are read.

Source: ggml's gguf.h, versions 2 and 3 (little endian): magic, version, counts, then key-value pairs; strings and
arrays carry 64-bit lengths. Every size is checked against a limit, because the file is not trusted.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

PAIRS_MAX = 4096
STRING_BYTES_MAX = 16 * 2**20
ARRAY_ITEMS_MAX = 4 * 2**20
TENSORS_MAX = 2**20
WINDOW_MAX = 2**20

_SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


class NotGguf(ValueError):
    """The file is not a GGUF that can be served. The message says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata from the header of a file."""

    metadata: dict[str, Any]
    """Values by key. Arrays of numbers are lists; arrays of strings, such as the vocabulary, are left out."""
    n_tensors: int
    file_bytes: int

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def prompt_window(self) -> int | None:
        """Return how long a prompt the model's maker lets it answer with its middle left out; None: not at all."""
        value = self.metadata.get("goblin.prompt_window")
        return value if type(value) is int and 0 < value <= WINDOW_MAX else None

    def number(self, key: str, default: int = 0) -> int:
        """Return a number of this architecture, such as `block_count`. Of an array, return the largest."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list):
            return max((int(item) for item in value), default=default)
        return int(value)

    def numbers(self, key: str, count: int) -> list[int]:
        """Return one number per layer. A single number in the file counts for all layers."""
        value = self.metadata.get(f"{self.architecture}.{key}", 0)
        return [int(item) for item in value] if isinstance(value, list) else [int(value)] * count


def read_header(path: Path) -> Header:
    """Read and check the header.

    Raises:
        NotGguf: The header is damaged or unsupported; the message says why.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        try:
            return _read(file, path.stat().st_size)
        except (struct.error, UnicodeDecodeError) as error:
            raise NotGguf(f"{path.name} ends inside its header, or its header is damaged.") from error


def _read(file: BinaryIO, file_bytes: int) -> Header:
    if file.read(4) != b"GGUF":
        raise NotGguf("The file is not a GGUF: it does not start with GGUF.")
    version, n_tensors, n_pairs = struct.unpack("<IQQ", file.read(20))
    if version not in (2, 3):
        raise NotGguf(f"GGUF version {version} is not supported. Versions 2 and 3 are.")
    if not 0 < n_tensors <= TENSORS_MAX or n_pairs > PAIRS_MAX:
        raise NotGguf(f"The header is damaged: it counts {n_tensors} tensors and {n_pairs} keys.")
    metadata: dict[str, Any] = {}
    for _ in range(n_pairs):
        key = _read_string(file)
        kind = _read_scalar(file, 4)
        value = _read_value(file, kind)
        if value is not None:
            metadata[key] = value
    header = Header(metadata, n_tensors, file_bytes)
    if not header.architecture:
        raise NotGguf("The header is missing the key general.architecture.")
    return header


def _read_value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _read_string(file)
    if kind == _ARRAY:
        return _read_array(file)
    return _read_scalar(file, kind)


def _read_scalar(file: BinaryIO, kind: int) -> Any:
    layout = _SCALARS.get(kind)
    if layout is None:
        raise NotGguf(f"The header has a value of unknown type {kind}.")
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def _read_string(file: BinaryIO) -> str:
    (size,) = struct.unpack("<Q", file.read(8))
    if size > STRING_BYTES_MAX:
        raise NotGguf(f"The header has a string of {size} bytes, which is too long.")
    data = file.read(size)
    if len(data) != size:
        raise NotGguf("The file ends inside its header.")
    return data.decode("utf-8", "replace")


def _read_array(file: BinaryIO) -> list[Any] | None:
    kind, count = struct.unpack("<IQ", file.read(12))
    if count > ARRAY_ITEMS_MAX or kind == _ARRAY:
        raise NotGguf(f"The header has an array of {count} values of type {kind}, which is not supported.")
    if kind == _STRING:
        for _ in range(count):
            (size,) = struct.unpack("<Q", file.read(8))
            if size > STRING_BYTES_MAX:
                raise NotGguf(f"The header has a string of {size} bytes, which is too long.")
            file.seek(size, 1)
        return None
    return [_read_scalar(file, kind) for _ in range(count)]
