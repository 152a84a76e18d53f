"""A byte-level BPE tokenizer and its training: what llama.cpp calls `gpt2` with the pre-tokenizer `smollm`.

Text is cut into words, words into bytes, and the pairs that were most frequent in the corpus are joined again. Every
digit is a token of its own, so that sums are done digit by digit. Merges never cross words.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

END_OF_TEXT, TURN_STARTS, TURN_ENDS = 0, 1, 2
CONTROL_WORDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Control words. Their index is their token; ordinary text never becomes one."""

PRE_TOKENIZER = "smollm"

# GPT-2's pattern. `[^\W\d_]` is "a letter" here because numbers were taken out before.
_WORD = re.compile(r"'(?:ve|re|ll|[stmd])| ?[^\W\d_]+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


def split(text: str) -> Iterator[str]:
    """Cut text into words with their leading space, and single digits. Joined, the pieces are the text again."""
    start = 0
    for place, character in enumerate(text):
        if unicodedata.category(character).startswith("N"):
            yield from _WORD.findall(text[start:place])
            yield character
            start = place + 1
    yield from _WORD.findall(text[start:])


def _printable_bytes() -> list[str]:
    """Return GPT-2's visible character for each byte, because a vocabulary in a file is text."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {byte: chr(byte) for byte in shown} | {byte: chr(256 + index) for index, byte in enumerate(hidden)}
    return [table[byte] for byte in range(256)]


BYTES = _printable_bytes()
_BYTE_OF = {character: byte for byte, character in enumerate(BYTES)}


class Tokenizer:
    """A vocabulary: control words, the 256 bytes, then the merged tokens in their order."""

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        self.merges = list(merges)
        # Two merges may make the same text; it is one token.
        self.tokens = list(dict.fromkeys([*CONTROL_WORDS, *sorted(BYTES), *(left + right for left, right in merges)]))
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._id = {token: index for index, token in enumerate(self.tokens)}
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in split(text):
            found = self._known.get(word)
            if found is None:
                found = self._encode_word(word)
                # The grammar has a few thousand words. The limit keeps other text from filling the memory.
                if len(self._known) < 50_000:
                    self._known[word] = found
            ids += found
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Decode tokens to text. Control words are left out; bytes that are no UTF-8 become U+FFFD."""
        characters = "".join(self.tokens[index] for index in ids if index >= len(CONTROL_WORDS))
        return bytes(_BYTE_OF[character] for character in characters).decode(errors="replace")

    def _encode_word(self, word: str) -> list[int]:
        parts = [BYTES[byte] for byte in word.encode()]
        while len(parts) > 1:
            pair = min(pairwise(parts), key=lambda pair: self._rank.get(pair, len(self._rank)))
            if pair not in self._rank:
                break
            parts = _joined(parts, pair)
        return [self._id[part] for part in parts]


def learn(texts: Iterable[str], *, vocabulary: int) -> Tokenizer:
    """Learn a tokenizer: join the most frequent pair until there are `vocabulary` tokens.

    Ties go to the pair that sorts first.

    Raises:
        ValueError: The texts have too few pairs, or `vocabulary` is too small for the bytes.
    """
    missing = vocabulary - len(CONTROL_WORDS) - len(BYTES)
    if missing < 0:
        raise ValueError(f"A vocabulary of {vocabulary} has no room for {len(BYTES)} bytes and the control words.")
    counts = Counter(word for text in texts for word in split(text))
    words = [([BYTES[byte] for byte in word.encode()], count) for word, count in sorted(counts.items())]

    frequency: Counter[tuple[str, str]] = Counter()
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)

    def count_pairs(index: int, sign: int) -> None:
        parts, count = words[index]
        for pair in pairwise(parts):
            frequency[pair] += sign * count
            if sign > 0:
                places[pair].add(index)

    for index in range(len(words)):
        count_pairs(index, +1)

    merges: list[tuple[str, str]] = []
    made: set[str] = set()
    while len(made) < missing:
        pair = min(frequency, key=lambda pair: (-frequency[pair], pair), default=None)
        if pair is None or frequency[pair] <= 0:
            raise ValueError(f"The texts have pairs for {len(made)} tokens only, not for {missing}.")
        for index in places.pop(pair):
            count_pairs(index, -1)
            words[index] = (_joined(words[index][0], pair), words[index][1])
            count_pairs(index, +1)
        del frequency[pair]
        merges.append(pair)
        made.add("".join(pair))
    return Tokenizer(merges)


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined, index = [], 0
    while index < len(parts):
        if tuple(parts[index : index + 2]) == pair:
            joined.append(parts[index] + parts[index + 1])
            index += 2
        else:
            joined.append(parts[index])
            index += 1
    return joined
