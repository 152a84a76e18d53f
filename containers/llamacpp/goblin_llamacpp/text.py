"""Conversion of token bytes to text for the client: whole characters only, and no part of a stop string.

Pure. The result does not depend on how the bytes were split into tokens.
"""

import codecs


def held_suffix(text: str, stops: tuple[str, ...]) -> int:
    """Count the last characters that could be the start of a stop string and must be held back."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest


def first_stop(text: str, stops: tuple[str, ...]) -> tuple[int, str] | None:
    """Find the stop string that is completed first, and where it starts.

    If two end at the same character, the longer one counts: it starts earlier, so no part of either is shown.
    """
    best: tuple[int, int, str] | None = None
    for stop in stops:
        start = text.find(stop)
        if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
            best = (start + len(stop), start, stop)
    return None if best is None else (best[1], best[2])


class TextStream:
    """Decoder from the bytes of one answer to text, which is returned as early as it is safe.

    `seen` counts the characters decoded so far and `shown` those returned so far, both from the start of the answer.
    The characters between the two are held back.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._stops = stops
        # Invalid UTF-8 becomes U+FFFD. An unfinished character waits for its remaining bytes.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.seen = 0
        self.shown = 0
        self.stopped_by: str | None = None

    def push(self, piece: bytes) -> str:
        """Add the bytes of one token and return the text that may be shown now; empty after a stop string."""
        if self.stopped_by is not None:
            return ""
        new = self._decoder.decode(piece)
        self.seen += len(new)
        if not self._stops:
            self.shown += len(new)
            return new
        text = self._held + new
        if found := first_stop(text, self._stops):
            start, self.stopped_by = found
            self._held = ""
            return self._show(text[:start])
        keep = held_suffix(text, self._stops)
        self._held = text[len(text) - keep :]
        return self._show(text[: len(text) - keep])

    def flush(self) -> str:
        """Return the text held back, at the end of the answer. An unfinished character is dropped."""
        if self.stopped_by is not None:
            return ""
        held, self._held = self._held, ""
        return self._show(held)

    def _show(self, text: str) -> str:
        self.shown += len(text)
        return text
