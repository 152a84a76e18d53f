"""A loaded GGUF: weights and vocabulary, shared by every context made on it.

Thread-safe after loading: everything here only reads. `GGML_ASSERT` ends the process, so whatever comes from
outside is checked before it is passed on.
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
"""`ggml_log_level`, which the binding does not name."""
SPECIAL_ATTRIBUTES = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
"""What a tokenizer reads as one token only when asked to parse specials."""


class ModelRefused(Exception):
    """The file is no model that this server can serve."""


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, _data: object) -> None:
    if level == LOG_LEVEL_ERROR:
        sys.stderr.write(text.decode("utf-8", "replace"))


def quiet_llama() -> None:
    """Errors of the library go to stderr, its chatter nowhere."""
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))


class Model:
    """The weights, their vocabulary and what the file says about itself."""

    def __init__(self, path: Path, *, gpu_layers: int = -1) -> None:
        """Load `path`; takes seconds to minutes.

        Raises:
            ModelRefused: The file is torn, unknown to this llama.cpp, or not a text generator.
        """
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        # Read, not mapped: on CPU the weights are repacked, and a map would keep both copies resident.
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        self.path = path
        self.handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise ModelRefused(f"llama.cpp can not load {path.name}")
        # Freed with the last reference: whoever tokenises or decodes still holds one.
        weakref.finalize(self, llama_cpp.llama_model_free, self.handle).atexit = False
        if llama_cpp.llama_model_has_encoder(self.handle) or not llama_cpp.llama_model_has_decoder(self.handle):
            raise ModelRefused(f"{path.name} is not a decoder-only model")
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
        """LoRA adapters by name; they are freed with the weights."""
        self._pieces: dict[int, bytes] = {}

    def add_adapter(self, name: str, path: Path) -> None:
        """Load a LoRA adapter for these weights.

        Raises:
            ModelRefused: The file is torn, or made for another model.
        """
        adapter = llama_cpp.llama_adapter_lora_init(self.handle, str(path).encode())
        if not adapter:
            raise ModelRefused(f"llama.cpp can not load the adapter {path.name}")
        self.adapters[name] = adapter

    @functools.cached_property
    def eog_tokens(self) -> frozenset[int]:
        """Tokens that end an answer; there may be several (end of turn, end of text)."""
        return frozenset(t for t in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(self.vocab, t))

    @functools.cached_property
    def special_texts(self) -> tuple[str, ...]:
        """The control words of this vocabulary, longest first; none of them may act from inside a message."""
        texts = {
            llama_cpp.llama_vocab_get_text(self.vocab, token).decode("utf-8", "replace")
            for token in range(self.n_vocab)
            if llama_cpp.llama_vocab_get_attr(self.vocab, token) & SPECIAL_ATTRIBUTES
        }
        return tuple(sorted((text for text in texts if text), key=lambda text: (-len(text), text)))

    @functools.cached_property
    def longest_piece_bytes(self) -> int:
        """No token covers more bytes of a text than this."""
        return max(len(self.piece(token, special=True)) for token in range(self.n_vocab))

    @functools.cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.special_texts)) or r"(?!)")

    def count_specials(self, text: str) -> int:
        """How many control words a text has."""
        return sum(1 for _ in self._special.finditer(text))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`; with `add_special` what the model wants around it (BOS), too."""
        # JSON can not carry lone surrogates here, but a template might cut a pair; NUL would end the text.
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
        """The bytes of one token; control tokens are empty unless `special`. `token` must be in range."""
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
