"""Claude Code, unmodified, against `goblin up`: its first word, a tool loop that edits a file, a session that compacts.

The model behind the gateway follows a script, once on Anthropic's wire and once on OpenAI's, and refuses what the real
API would refuse. The laptop's own model gets a first word, too.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import CLAUDE, GPT, TINY, Program
from tests.fakes.anthropic import FakeAnthropic, signature_of
from tests.fakes.openai_like import Call, FakeOpenAI, Script

pytestmark = pytest.mark.client("claude-code")


class Model:
    """The script of the model: a file is written, read, edited and shown, a call a turn, unless it is only greeted."""

    def __init__(self, file: Path, *, full_after: int | None = None, pictures: tuple[Path, ...] = ()) -> None:
        self.file = str(file)
        self.pictures = pictures
        """Files to read instead."""
        self.full_after = full_after
        """After so many calls the context is full, until the conversation was compacted."""
        self.compacted = False

    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        if self.pictures:
            return [("Read", {"file_path": str(path)}) for path in self.pictures]
        return [
            ("Write", {"file_path": self.file, "content": "one\n"}),
            ("Read", {"file_path": self.file}),
            ("Edit", {"file_path": self.file, "old_string": "one", "new_string": "two"}),
            ("Bash", {"command": f"cat {self.file}", "description": "Show the file"}),
        ]

    def next(self, body: dict[str, Any], results: int) -> str | tuple[str, dict[str, Any]] | None:
        """The words or the call of the next answer; None when the context is full."""
        said = json.dumps(body["messages"])
        if "detailed summary of the conversation" in said:
            self.compacted = True
            return "<summary>A file is being edited.</summary>"
        if self.full_after is not None and results >= self.full_after and not self.compacted:
            return None
        if "EDIT" not in said and not self.compacted:
            return "Hello."
        return self.calls()[results] if results < len(self.calls()) and not self.compacted else "All done."


def on_anthropics_wire(model: Model, fake: FakeAnthropic) -> None:
    def prepare(body: dict[str, Any]) -> None:
        turns = [turn["content"] for turn in body["messages"] if isinstance(turn["content"], list)]
        results = sum(block["type"] == "tool_result" for turn in turns for block in turn)
        fake.script = Script()
        match model.next(body, results):
            case None:
                said = {
                    "type": "invalid_request_error",
                    "message": "prompt is too long: 200123 tokens > 200000 maximum",
                }
                fake.script = Script(status=400, error={"type": "error", "error": said})
            case str(words):
                fake.blocks, fake.stop_reason = [{"type": "text", "text": words}], "end_turn"
            case name, given:
                hint = f"Step {results}."
                thought = {"type": "thinking", "thinking": hint, "signature": signature_of(hint)}
                call = {"type": "tool_use", "id": f"toolu_{results}", "name": name, "input": given}
                fake.blocks, fake.stop_reason = [thought, call], "tool_use"

    fake.prepare = prepare


def on_openais_wire(model: Model, fake: FakeOpenAI) -> None:
    def prepare(body: dict[str, Any]) -> None:
        results = sum(message["role"] == "tool" for message in body["messages"])
        match model.next(body, results):
            case None:
                said = "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens."
                error = {"message": said, "type": "invalid_request_error", "code": "context_length_exceeded"}
                fake.script = Script(status=400, error={"error": error})
            case str(words):
                fake.script = Script(words=[words])
            case name, given:
                arguments = json.dumps(given)
                call = Call(f"call_{results}", name, [arguments[:9], arguments[9:]])
                fake.script = Script(deltas=[{"reasoning_content": f"Step {results}."}], calls=[call])

    fake.prepare = prepare


Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(program: Program) -> Ask:
    """One turn of a session in a folder of its own; what the program says of it."""

    def asking(model: str, words: str, *options: str) -> dict[str, Any]:
        said = program.run(
            "claude", "-p", words, "--output-format", "json", "--dangerously-skip-permissions", *options,
            ANTHROPIC_BASE_URL=program.gateway.url,
            ANTHROPIC_AUTH_TOKEN=program.gateway.key,
            ANTHROPIC_MODEL=model,
            ANTHROPIC_DEFAULT_HAIKU_MODEL=model,
            CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
            DISABLE_AUTOUPDATER="1",
            DISABLE_TELEMETRY="1",
            IS_SANDBOX="1",
        )  # fmt: skip
        found: dict[str, Any] = json.loads(said)
        assert not found["is_error"], found
        return found

    return asking


WIRES = pytest.mark.parametrize("model", [CLAUDE, GPT])


def script(program: Program, model: str, script: Model) -> None:
    if model == CLAUDE:
        on_anthropics_wire(script, program.gateway.claude)
    else:
        on_openais_wire(script, program.gateway.gpt)


def test_the_laptops_model_takes_the_first_request(ask: Ask, program: Program) -> None:
    assert ask(TINY, "Say hello.")["result"]
    assert any(said["path"].startswith("/v1/messages") for said in program.sent)


@WIRES
def test_the_first_word_and_the_next(ask: Ask, program: Program, tmp_path: Path, model: str) -> None:
    script(program, model, Model(tmp_path / "unused"))
    assert ask(model, "Say hello.")["result"] == "Hello."
    assert ask(model, "Again.", "--continue")["result"] == "Hello."


@WIRES
def test_a_tool_loop_edits_a_file(ask: Ask, program: Program, tmp_path: Path, model: str) -> None:
    file = tmp_path / "work" / "file.txt"
    script(program, model, Model(file))
    found = ask(model, "EDIT the file.")
    assert (found["result"], found["num_turns"], file.read_text()) == ("All done.", 5, "two\n")
    if model == CLAUDE:
        last = program.gateway.claude.asked[-1]
        assert [b["type"] for turn in last["messages"] if turn["role"] == "assistant" for b in turn["content"]] == [
            "thinking",
            "tool_use",
        ] * 4
        assert '"cache_control"' in json.dumps(last)
        assert last["thinking"]


@WIRES
def test_a_long_session_compacts_and_goes_on(ask: Ask, program: Program, tmp_path: Path, model: str) -> None:
    plan = Model(tmp_path / "work" / "file.txt", full_after=3)
    script(program, model, plan)
    assert ask(model, "EDIT the file.")["result"] == "All done."
    assert plan.compacted
    assert ask(model, "And?", "--continue")["result"] == "All done."


@WIRES
def test_a_picture_and_a_pdf_do_not_end_a_session(ask: Ask, program: Program, tmp_path: Path, model: str) -> None:
    picture, paper = tmp_path / "work" / "red.png", tmp_path / "work" / "paper.pdf"
    picture.write_bytes(png(32, 32))
    paper.write_bytes(PDF)
    script(program, model, Model(tmp_path, pictures=(picture, paper)))
    assert ask(model, "EDIT nothing, look at the files.")["result"] == "All done."
    assert ask(model, "EDIT still nothing.", "--continue")["result"] == "All done."
    fake: Any = program.gateway.claude if model == CLAUDE else program.gateway.gpt
    last = json.dumps(fake.asked[-1]["messages"])
    assert ('"type": "image"' in last) if model == CLAUDE else ('"type": "image_url"' in last)
    assert ('"type": "document"' in last) if model == CLAUDE else ('"type": "file"' in last)


def png(width: int, height: int) -> bytes:
    """A red picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + b"\xff\0\0" * width) * height)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PDF = b"""%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]>>endobj
trailer<</Root 1 0 R>>
%%EOF
"""
