"""The native batch, allocated once per engine and filled with slices."""

import ctypes

import llama_cpp
import numpy as np


class Batch:
    """Tokens of several sequences for one `llama_decode`."""

    def __init__(self, capacity: int) -> None:
        self._tokens = np.zeros(capacity, dtype=np.int32)
        self._positions = np.zeros(capacity, dtype=np.int32)
        self._sequence_counts = np.ones(capacity, dtype=np.int32)
        self._sequences = np.zeros(capacity, dtype=np.int32)
        self._logits = np.zeros(capacity, dtype=np.int8)
        # llama.cpp wants a pointer per token, because a token may belong to several sequences. Here each has one.
        start = self._sequences.ctypes.data
        sequence = ctypes.POINTER(llama_cpp.llama_seq_id)
        self._pointers = (sequence * capacity)(*(ctypes.cast(start + 4 * i, sequence) for i in range(capacity)))
        self._rows: dict[int, int] = {}
        self.native = llama_cpp.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token)),
            embd=None,
            pos=self._positions.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_pos)),
            n_seq_id=self._sequence_counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=ctypes.cast(self._pointers, ctypes.POINTER(sequence)),
            logits=self._logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def clear(self) -> None:
        self.native.n_tokens = 0
        self._rows.clear()

    def add(self, sequence: int, tokens: list[int], *, at: int, logits: bool, every_row: bool = False) -> None:
        """Append a run of tokens that starts at position `at`.

        Args:
            sequence: The sequence that the tokens belong to.
            tokens: At least one token id.
            at: Position of the first token in the sequence.
            logits: Whether to compute the output of the last token, to sample from it.
            every_row: Whether to compute the output of every token, which pooling needs.
        """
        start = self.native.n_tokens
        end = start + len(tokens)
        self._tokens[start:end] = tokens
        self._positions[start:end] = range(at, at + len(tokens))
        self._sequences[start:end] = sequence
        self._logits[start:end] = every_row
        self._logits[end - 1] = logits
        self._rows[sequence] = end - 1
        self.native.n_tokens = end

    def row_of(self, sequence: int) -> int:
        """Return the index in the batch of a sequence's last token."""
        return self._rows[sequence]
