"""From token bytes to text that may be shown: whole characters only, and nothing of a stop string.

Pure. The result never depends on how the bytes were cut into tokens.
"""

import codecs


def held_suffix(text: str, stops: tuple[str, ...]) -> int:
    """How many of the last characters could still become a stop string, and must wait."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest


def first_stop(text: str, stops: tuple[str, ...]) -> tuple[int, str] | None:
    """The start and the words of the stop string that is completed first.

    Two that end together: the longer one, which starts first, so that nothing of either is shown.
    """
    best: tuple[int, int, str] | None = None
    for stop in stops:
        start = text.find(stop)
        if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
            best = (start + len(stop), start, stop)
    return None if best is None else (best[1], best[2])


class TextStream:
    """Turns the bytes of one answer into text, as early as it is safe.

    `seen` counts the characters decoded so far and `shown` those returned so far, both from the start of
    the answer: what lies between is held back.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._stops = stops
        # Bytes that are no UTF-8 at all become U+FFFD; an unfinished character waits for its rest.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.seen = 0
        self.shown = 0
        self.stopped_by: str | None = None

    def push(self, piece: bytes) -> str:
        """Add one token's bytes; returns what may be shown now. After a stop nothing more is."""
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
        """The answer is over: show what was held. An unfinished character is dropped, it says nothing."""
        if self.stopped_by is not None:
            return ""
        held, self._held = self._held, ""
        return self._show(held)

    def _show(self, text: str) -> str:
        self.shown += len(text)
        return text
