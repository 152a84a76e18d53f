"""The log of the task and the agent, uploaded to the bucket in pieces within the controller's limits.

The controller allows large pieces first and small ones later, so that a log is bounded whatever a task writes. Output
that does not fit is left out of the middle of a piece, and the piece says how many bytes are missing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

import httpx

from goblin_worker.controller import Controller, Over, Rejected, Unreachable
from goblin_worker.crc32c import crc32c, text
from goblin_worker.retries import LOST

log = logging.getLogger(__name__)

LARGE_PIECES = 100
PIECE_BYTES_MAX = 256 * 1024
SMALL_PIECE_BYTES_MAX = 8 * 1024
PIECES_MAX = 10_000
PERIOD_S = 1.0
"""Time between the first pieces. It grows with their number, so that the pieces last for weeks."""
TIMEOUT_S = 30.0
LAST_LINES = 20
LINE_CHARACTERS_MAX = 400


def room(number: int) -> int:
    """Return the largest size of the piece with this number; 0: no such piece is allowed."""
    if number >= PIECES_MAX:
        return 0
    return PIECE_BYTES_MAX if number < LARGE_PIECES else SMALL_PIECE_BYTES_MAX


class Log(logging.Handler):
    """Collects the task's output and the agent's log records, and cuts them into pieces."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s goblin: %(message)s"))
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._left_out = 0
        self._rest = b""
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self.number = 0
        """Number of the next piece."""

    def emit(self, record: logging.LogRecord) -> None:
        self._keep(self.format(record).encode(errors="replace") + b"\n")

    def write(self, data: bytes) -> None:
        """Add output of the task."""
        self._keep(data)
        *whole, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-LINE_CHARACTERS_MAX * 4 :]
        self._lines.extend(_shown(line) for line in [line for line in whole if line.strip()][-LAST_LINES:])

    def last_lines(self) -> str:
        """Return the last lines of the task's output."""
        lines = [*self._lines, *([_shown(self._rest)] if self._rest.strip() else [])]
        return "\n".join(lines[-LAST_LINES:])

    def _keep(self, data: bytes) -> None:
        """Add bytes to the next piece: its first half keeps the beginning, its second half the end."""
        half = max(1, (room(self.number) - 100) // 2)
        fits = max(0, half - len(self._head)) if not self._tail else 0
        self._head += data[:fits]
        data = data[fits:]
        if not data:
            return
        self._left_out += max(0, len(data) - half)
        data = data[-half:]
        self._tail.append(data)
        self._tail_bytes += len(data)
        while self._tail_bytes > half:
            oldest = self._tail.popleft()
            over = min(len(oldest), self._tail_bytes - half)
            self._left_out += over
            self._tail_bytes -= over
            if over < len(oldest):
                self._tail.appendleft(oldest[over:])

    def take(self) -> bytes:
        """Take the next piece, within its size limit. Empty if there is no output or no more pieces are allowed."""
        if room(self.number) == 0:
            return b""
        gap = f"\n… {self._left_out} bytes are left out …\n".encode() if self._left_out else b""
        piece = bytes(self._head) + gap + b"".join(self._tail)
        self._head.clear()
        self._tail.clear()
        self._tail_bytes = self._left_out = 0
        return piece


def _shown(line: bytes) -> str:
    return line.decode(errors="replace").strip()[-LINE_CHARACTERS_MAX:]


async def ship(log_: Log, http: httpx.AsyncClient, controller: Controller) -> None:
    """Upload pieces until cancelled or until the attempt is over. A failed upload never stops the work."""
    while True:
        await asyncio.sleep(PERIOD_S + log_.number / 20)
        try:
            await ship_once(log_, http, controller)
        except Unreachable as error:
            log.info("The log is uploaded later, because the controller does not answer: %s", error)
        except Over:
            return


async def ship_once(log_: Log, http: httpx.AsyncClient, controller: Controller) -> None:
    """Upload the next piece, if there is output.

    Raises:
        Over: The attempt is not the current one any more.
        Unreachable: The controller did not answer for too long.
    """
    piece = log_.take()
    if not piece:
        return
    checksum = text(crc32c(piece))
    while room(log_.number) >= len(piece):
        try:
            grant = await controller.log(log_.number, len(piece), checksum)
            answer = await http.put(grant.url, content=piece, headers=grant.headers, timeout=TIMEOUT_S)
        except Over:
            raise
        except (Rejected, *LOST) as error:
            log.warning("A piece of the log is lost: %s", type(error).__name__)
            return
        log_.number += 1
        # 412: a piece of this number exists, because the agent was restarted or an earlier answer was lost.
        if answer.status_code != 412:
            return
