"""A loaded GGUF: weights and vocabulary, shared by every context made on it.

Thread-safe after loading, because every method only reads. A failed `GGML_ASSERT` ends the process, so input from
clients and files is checked before it is passed to the library.
"""

import ctypes
import functools
import re
import sys
import weakref
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

LOG_LEVEL_ERROR = 4
"""Value of `ggml_log_level` for errors; the Python binding does not export it."""
SPECIAL_ATTRIBUTES = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
"""Attributes of tokens that the tokenizer recognises in text only when `parse_special` is set."""


class ModelRefused(Exception):
    """The file is not a model that this server can serve."""


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, _data: object) -> None:
    if level == LOG_LEVEL_ERROR:
        sys.stderr.write(text.decode("utf-8", "replace"))


def quiet_llama() -> None:
    """Send the library's errors to stderr and drop its other log lines."""
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))


class Model:
    """The weights, their vocabulary and what the file says about itself."""

    def __init__(self, path: Path, *, gpu_layers: int = -1) -> None:
        """Load the weights; this takes seconds to minutes.

        Args:
            path: The GGUF file.
            gpu_layers: Number of layers to put on the GPU; -1 puts all of them there.

        Raises:
            ModelRefused: The file is truncated, unknown to this llama.cpp, or not a text generator.
        """
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        # Read the file, do not map it: on CPU llama.cpp repacks the weights, and a map would keep both copies resident.
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        self.path = path
        self.handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise ModelRefused(f"llama.cpp cannot load {path.name}. The file is damaged or needs a newer llama.cpp.")
        # The weights are freed with the last reference. A thread that still tokenises or decodes holds one.
        weakref.finalize(self, llama_cpp.llama_model_free, self.handle).atexit = False
        if llama_cpp.llama_model_has_encoder(self.handle) or not llama_cpp.llama_model_has_decoder(self.handle):
            raise ModelRefused(f"{path.name} is not a decoder-only model. Only text generators can be served.")
        self.vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.n_vocab = int(llama_cpp.llama_vocab_n_tokens(self.vocab))
        self.vocab_type = int(llama_cpp.llama_vocab_type(self.vocab))
        self.n_ctx_train = int(llama_cpp.llama_model_n_ctx_train(self.handle))
        self.n_embd = int(llama_cpp.llama_model_n_embd(self.handle))
        self.n_params = int(llama_cpp.llama_model_n_params(self.handle))
        self.size_bytes = int(llama_cpp.llama_model_size(self.handle))
        self.is_recurrent = bool(
            llama_cpp.llama_model_is_recurrent(self.handle) or llama_cpp.llama_model_is_hybrid(self.handle)
        )
        template = llama_cpp.llama_model_chat_template(self.handle, None)
        self.chat_template: str | None = template.decode("utf-8", "replace") if template else None
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(self.vocab))
        self.bos_text = self._special_text(llama_cpp.llama_vocab_bos(self.vocab))
        self.eos_text = self._special_text(llama_cpp.llama_vocab_eos(self.vocab))
        self.adapters: dict[str, Any] = {}
        """LoRA adapters by name. llama.cpp frees them with the weights."""
        self._pieces: dict[int, bytes] = {}

    def add_adapter(self, name: str, path: Path) -> None:
        """Load a LoRA adapter for these weights.

        Raises:
            ModelRefused: The file is damaged, or was made for another model.
        """
        adapter = llama_cpp.llama_adapter_lora_init(self.handle, str(path).encode())
        if not adapter:
            raise ModelRefused(f"llama.cpp cannot load the adapter {path.name}. Was it made for this model?")
        self.adapters[name] = adapter

    @functools.cached_property
    def eog_tokens(self) -> frozenset[int]:
        """Tokens that end an answer. There may be several, such as end of turn and end of text."""
        return frozenset(t for t in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(self.vocab, t))

    @functools.cached_property
    def special_texts(self) -> tuple[str, ...]:
        """Control words of this vocabulary, longest first. Inside a client's message they must have no effect."""
        texts = {
            llama_cpp.llama_vocab_get_text(self.vocab, token).decode("utf-8", "replace")
            for token in range(self.n_vocab)
            if llama_cpp.llama_vocab_get_attr(self.vocab, token) & SPECIAL_ATTRIBUTES
        }
        return tuple(sorted((text for text in texts if text), key=lambda text: (-len(text), text)))

    @functools.cached_property
    def longest_piece_bytes(self) -> int:
        """Upper bound on the bytes of text that one token covers."""
        return max(len(self.piece(token, special=True)) for token in range(self.n_vocab))

    @functools.cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.special_texts)) or r"(?!)")

    def count_specials(self, text: str) -> int:
        """Count the control words in a text."""
        return sum(1 for _ in self._special.finditer(text))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Convert text to token ids.

        Args:
            text: Any text.
            add_special: Add the tokens that the model expects around a text, such as BOS.
            parse_special: Read control words in the text as control tokens, not as plain text.
        """
        # JSON input has no lone surrogates, but a chat template might cut a pair, and a plain `encode` would fail.
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        buffer = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), buffer, room, add_special, parse_special)
        if count < 0:
            room = -count
            buffer = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(self.vocab, data, len(data), buffer, room, add_special, parse_special)
        return np.ctypeslib.as_array(buffer)[: max(count, 0)].tolist()

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes of one token.

        Args:
            token: A token id; it must be in range.
            special: Return the text of a control token, too. Otherwise a control token is empty.
        """
        if not special and (cached := self._pieces.get(token)) is not None:
            return cached
        size = 64
        buffer = ctypes.create_string_buffer(size)
        count = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
        if count < 0:
            size = -count
            buffer = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
        data = buffer.raw[:count]
        if not special:
            self._pieces[token] = data
        return data

    def detokenize(self, tokens: list[int]) -> str:
        return b"".join(self.piece(token, special=True) for token in tokens).decode("utf-8", "replace")

    def _special_text(self, token: int) -> str:
        if token < 0:
            return ""
        return llama_cpp.llama_vocab_get_text(self.vocab, token).decode("utf-8", "replace")
