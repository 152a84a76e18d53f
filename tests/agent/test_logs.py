"""The log on its way to the bucket: bounded whatever is written, and never in the way."""

import logging
from typing import Any

import httpx
import pytest

from goblin.jobs.policy import worker_reports
from goblin_agent import logs
from goblin_agent.logs import Log, room, ship_once
from goblin_worker.controller import Grant, Over, Rejected


@pytest.mark.parametrize("number", [0, 1, 99, 100, 5000, 9_999, 10_000, 10_001])
def test_the_agent_knows_what_the_controller_allows(number: int) -> None:
    assert room(number) == worker_reports.piece_bytes_max(number)


def test_an_attempt_can_write_no_more_than_a_hundred_megabytes() -> None:
    sizes = map(worker_reports.piece_bytes_max, range(worker_reports.PIECES_MAX + 10))
    assert sum(sizes) == 107_315_200


@pytest.mark.parametrize("number", [-1, worker_reports.PIECES_MAX])
def test_there_are_so_many_pieces_and_no_more(number: int) -> None:
    assert worker_reports.piece_bytes_max(number) == 0


def test_what_fits_is_kept_word_for_word() -> None:
    log = Log()
    for word in (b"one\n", b"two", b"\nthree\n"):
        log.write(word)
    assert log.take() == b"one\ntwo\nthree\n"
    assert log.take() == b""


@pytest.mark.parametrize("chunk", [1000, 7, 300_000, 64 * 1024])
@pytest.mark.parametrize("number", [0, 100])
def test_of_too_much_the_beginning_and_the_end_are_kept(chunk: int, number: int) -> None:
    log = Log()
    log.number = number
    data = b"".join(b"%09d\n" % at for at in range(70_000 if chunk > 7 else 30_000))
    for at in range(0, len(data), chunk):
        log.write(data[at : at + chunk])
    piece = log.take()
    assert len(piece) <= room(number)
    head, _, rest = piece.partition("\n… ".encode())
    count, _, tail = rest.partition(" bytes are left out …\n".encode())
    assert data.startswith(head)
    assert data.endswith(tail)
    assert len(head) + int(count) + len(tail) == len(data)
    assert min(len(head), len(tail)) > room(number) // 3


def test_the_last_lines_are_the_tasks_and_short() -> None:
    log = Log()
    log.emit(logging.LogRecord("x", logging.INFO, "", 0, "not the task's", None, None))
    log.write(b"".join(b"line %d\n" % at for at in range(100)) + b"x" * 10_000 + b"\n\n  \n" + b"\xff no newline")
    lines = log.last_lines().split("\n")
    assert len(lines) == logs.LAST_LINES
    assert lines[-3:] == ["line 99", "x" * logs.LINE_CHARACTERS_MAX, "� no newline"]


def test_a_line_that_comes_in_bits_is_one_line() -> None:
    log = Log()
    for bit in (b"the GPU ", b"fell", b" off\n"):
        log.write(bit)
    assert log.last_lines() == "the GPU fell off"


class Controller:
    """Grants pieces; the bucket has some already."""

    def __init__(self, *, there: int = 0, error: Exception | None = None) -> None:
        self.there = there
        self.error = error
        self.pieces: dict[int, bytes] = {}
        self._asked: list[tuple[int, int]] = []

    async def log(self, number: int, size: int, crc32c: str) -> Grant:
        if self.error:
            raise self.error
        self._asked.append((number, size))
        return Grant(url=f"http://bucket/{number}")

    def put(self, request: httpx.Request) -> httpx.Response:
        number = int(request.url.path.removeprefix("/"))
        if number < self.there:
            return httpx.Response(412)
        self.pieces[number] = request.content
        return httpx.Response(200)

    async def ship(self, log: Log) -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(self.put)) as http:
            said: Any = self
            await ship_once(log, http, said)


async def test_pieces_are_numbered_and_nothing_is_shipped_when_nothing_was_written() -> None:
    log, controller = Log(), Controller()
    for word in (b"one\n", b"", b"two\n"):
        log.write(word)
        await controller.ship(log)
    assert controller.pieces == {0: b"one\n", 1: b"two\n"}


async def test_an_agent_that_was_restarted_writes_behind_what_is_there() -> None:
    log, controller = Log(), Controller(there=2)
    log.write(b"again\n")
    await controller.ship(log)
    assert controller.pieces == {2: b"again\n"}


async def test_a_piece_that_is_not_taken_is_lost_and_holds_nothing_up() -> None:
    log = Log()
    log.write(b"one\n")
    await Controller(error=Rejected("no")).ship(log)
    assert log.take() == b""


async def test_a_log_that_learns_that_the_attempt_is_over_says_so() -> None:
    log = Log()
    log.write(b"one\n")
    with pytest.raises(Over):
        await Controller(error=Over("over")).ship(log)


async def test_after_the_last_piece_nothing_is_asked() -> None:
    log, controller = Log(), Controller(error=AssertionError("asked"))
    log.number = logs.PIECES_MAX
    log.write(b"one\n" * 1000)
    await controller.ship(log)


def test_a_log_moves_no_cursor_and_rings_no_bell() -> None:
    data = b"a\x1b[31mred\x1b[0m\x07\x00 \x1b]0;title\x07b\tc\r\nd 10%\rd 20%\n\xff\x9b31m" + "é\x85\x9b2J".encode()
    assert worker_reports.readable(data) == "ared bc\nd 10%\nd 20%\n�31mé2J".replace("bc", "b\tc").replace(
        "�31m", "��31m"
    )
