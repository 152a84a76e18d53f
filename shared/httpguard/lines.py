"""Text from outside, in a log or on a terminal: it cannot begin a line of its own, nor move a cursor."""

from __future__ import annotations

import codecs
import logging
import re

LINE_FORMAT = "%(levelname)s %(name)s: %(message)s"
STACK_MARGIN = "    "
"""Before each line of a stack, so that no line of it looks like a record's first."""
LINE_CHARACTERS_MAX = 32 * 1024
_PERHAPS_ODD = re.compile(r"[^ -~]")


def escape(text: str, *, keep: str = "") -> str:
    r"""Return the text with each character that is not printable as Python writes it: `\n`, `\x1b`, `\u202e`.

    Args:
        text: Anything.
        keep: Characters that stay: a newline and a tab, where a text may have several lines.
    """

    def shown(found: re.Match[str]) -> str:
        sign = found[0]
        return sign if sign.isprintable() or sign in keep else sign.encode("unicode_escape").decode()

    return _PERHAPS_ODD.sub(shown, text)


class OneLine(logging.Formatter):
    """A record as one line of text. A stack follows in lines of its own, each with a margin."""

    def __init__(self, fmt: str = LINE_FORMAT) -> None:
        super().__init__(fmt)

    def format(self, record: logging.LogRecord) -> str:
        try:
            record.message = record.getMessage()
        except (TypeError, ValueError):
            record.message = str(record.msg)  # The call passed the wrong arguments. Its text is better than no line.
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        lines = [escape(_cut(self.formatMessage(record)))]
        raised = self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""
        for part in (raised, record.stack_info):
            # Not `splitlines`: it also splits at what is escaped here.
            lines += [f"{STACK_MARGIN}{escape(line, keep=chr(9))}" for line in _cut(part or "").split("\n") if line]
        return "\n".join(lines)


def log_lines(level: int = logging.INFO) -> None:
    """Write what this process logs to standard error, as `OneLine`. Does nothing where the process has a handler."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    root.addHandler(handler)
    root.setLevel(level)
    # At INFO it logs each request's URL, and a URL may hold a key or a signature.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.captureWarnings(True)


def _cut(text: str) -> str:
    """Return at most about `LINE_CHARACTERS_MAX` characters: beginning and end."""
    if len(text) <= LINE_CHARACTERS_MAX:
        return text
    half = LINE_CHARACTERS_MAX // 2
    return f"{text[:half]} … {len(text) - 2 * half} characters left out … {text[-half:]}"


class Escaper:
    """`escape` for a stream of bytes that comes in pieces: a letter of two bytes may be cut by a piece's end."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def feed(self, piece: bytes, *, last: bool = False) -> bytes:
        """Return the next bytes, with newlines and tabs as they are and all other controls escaped."""
        text = self._decoder.decode(piece, final=last)
        return escape(text, keep="\n\t").encode("utf-8", "backslashreplace")
