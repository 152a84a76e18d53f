"""Reader for the header of a GGUF file, which describes the model before its gigabytes are read.

Source: ggml's gguf.h, versions 2 and 3 (little endian): magic, version, counts, then key-value pairs; strings and
arrays carry 64-bit lengths. The file is not trusted: every size is checked against a limit and against the file.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

PAIRS_MAX = 4096
KEY_BYTES_MAX = 2**16 - 1
STRING_BYTES_MAX = 16 * 2**20
ARRAY_ITEMS_MAX = 8 * 2**20
"""Of all arrays together; the largest vocabularies have three arrays of a quarter of a million."""
KEPT_ITEMS_MAX = 2**14
"""Numbers of one array that are kept: one per layer, and some."""
KEPT_BYTES_MAX = 64 * 2**20
"""Keys and strings together."""
HEADER_BYTES_MAX = 256 * 2**20
TENSORS_MAX = 2**20
TENSOR_BYTES_MIN = 32
"""What a tensor takes in the file at least: a name, dimensions, a type, an offset."""
LAYERS_MAX = 4096
SIZE_MAX = 2**40
ARCHITECTURE_LENGTH_MAX = 64
WINDOW_MAX = 2**20

_SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_UINT32, _UINT64 = 4, 10


class NotGguf(ValueError):
    """The file is not a GGUF that can be served. The message says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata from the header of a file."""

    metadata: dict[str, Any]
    """Values by key. Short arrays of numbers are lists. Long ones are left out, and arrays of strings, such as the
    vocabulary."""
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
        """Return a number of this architecture, such as `block_count`. Of an array, return the largest.

        Raises:
            NotGguf: The file has another value there than a size can be.
        """
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list):
            return max((self._size(key, item) for item in value), default=default)
        return self._size(key, value)

    def numbers(self, key: str, count: int) -> list[int]:
        """Return one number per layer. A single number in the file counts for all layers.

        Raises:
            NotGguf: As of `number`; or there are more layers than any model has.
        """
        value = self.metadata.get(f"{self.architecture}.{key}", 0)
        if isinstance(value, list):
            return [self._size(key, item) for item in value]
        if count > LAYERS_MAX:
            raise NotGguf(f"The header counts {count} layers; the most are {LAYERS_MAX}.")
        return [self._size(key, value)] * count

    def _size(self, key: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or not 0 <= value <= SIZE_MAX:
            raise NotGguf(f"The header's {key} is not a whole number from 0 to {SIZE_MAX}.")
        return int(value)


def read_header(path: Path) -> Header:
    """Read and check the header.

    Raises:
        NotGguf: The header is damaged or unsupported; the message says why.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return _read(_Reader(file, path.stat().st_size))


class _Reader:
    """The bytes of a header. What the file claims is compared with what it has before anything is read or made."""

    def __init__(self, file: BinaryIO, file_bytes: int) -> None:
        self._file = file
        self.file_bytes = file_bytes
        self._left = min(file_bytes, HEADER_BYTES_MAX)
        self._keeps = KEPT_BYTES_MAX
        self._items = ARRAY_ITEMS_MAX

    def take(self, size: int) -> bytes:
        """Read so many bytes."""
        self._claim(size)
        data = self._file.read(size)
        if len(data) != size:
            raise NotGguf("The file ends inside its header.")
        return data

    def skip(self, size: int) -> None:
        """Leave out so many bytes."""
        self._claim(size)
        self._file.seek(size, 1)

    def keep(self, size: int) -> None:
        """Count bytes that stay in memory."""
        self._keeps -= size
        if self._keeps < 0:
            raise NotGguf(f"The header's values are over {KEPT_BYTES_MAX // 2**20} MiB together.")

    def count(self, items: int) -> None:
        """Count items of arrays."""
        self._items -= items
        if self._items < 0:
            raise NotGguf(f"The header's arrays have more than {ARRAY_ITEMS_MAX} items together.")

    def number(self, kind: int) -> Any:
        """Read one value of a fixed size."""
        layout = _SCALARS.get(kind)
        if layout is None:
            raise NotGguf(f"The header has a value of unknown type {kind}.")
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def length(self, most: int) -> int:
        """Read the length of a string."""
        size: int = self.number(_UINT64)
        if size > most:
            raise NotGguf(f"The header has a string of {size} bytes, which is too long.")
        return size

    def string(self, most: int = STRING_BYTES_MAX) -> str:
        """Read a string."""
        size = self.length(most)
        self.keep(size)
        return self.take(size).decode("utf-8", "replace")

    def _claim(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise NotGguf(f"The file ends inside its header, or its header is over {HEADER_BYTES_MAX // 2**20} MiB.")


def _read(reader: _Reader) -> Header:
    if reader.take(4) != b"GGUF":
        raise NotGguf("The file is not a GGUF: it does not start with GGUF.")
    version, n_tensors, n_pairs = struct.unpack("<IQQ", reader.take(20))
    if version not in (2, 3):
        raise NotGguf(f"GGUF version {version} is not supported. Versions 2 and 3 are.")
    if not 0 < n_tensors <= TENSORS_MAX or n_tensors * TENSOR_BYTES_MIN > reader.file_bytes or n_pairs > PAIRS_MAX:
        raise NotGguf(f"The header is damaged: it counts {n_tensors} tensors and {n_pairs} keys.")
    metadata: dict[str, Any] = {}
    for _ in range(n_pairs):
        key = reader.string(KEY_BYTES_MAX)
        if key in metadata:
            raise NotGguf("The header is damaged: it has one key twice.")
        metadata[key] = _read_value(reader)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not 0 < len(architecture) <= ARCHITECTURE_LENGTH_MAX:
        raise NotGguf("The header is missing the key general.architecture.")
    kept = {key: value for key, value in metadata.items() if value is not None}
    return Header(kept, n_tensors, reader.file_bytes)


def _read_value(reader: _Reader) -> Any:
    kind: int = reader.number(_UINT32)
    if kind == _STRING:
        return reader.string()
    if kind == _ARRAY:
        return _read_array(reader)
    return reader.number(kind)


def _read_array(reader: _Reader) -> list[Any] | None:
    kind, count = struct.unpack("<IQ", reader.take(12))
    if kind not in _SCALARS and kind != _STRING:
        raise NotGguf(f"The header has an array of values of type {kind}, which is not supported.")
    reader.count(count)
    if kind == _STRING:
        for _ in range(count):
            reader.skip(reader.length(STRING_BYTES_MAX))
        return None
    layout = _SCALARS[kind].lstrip("<")
    size = struct.calcsize(_SCALARS[kind]) * count
    if count > KEPT_ITEMS_MAX:
        reader.skip(size)
        return None
    return list(struct.unpack(f"<{count}{layout}", reader.take(size)))
