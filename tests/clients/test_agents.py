"""Coding agents other than Claude Code: each changes a file with a tool of its own, and greets the laptop's model."""

from __future__ import annotations

import json

import pytest

from tests.clients.conftest import GPT, TINY, Program

MODELS = pytest.mark.parametrize("model", [GPT, TINY])


def wrote(program: Program, model: str) -> None:
    """The file is there if the model behind the gateway was the scripted one; the laptop's has only to answer."""
    assert all(said["status"] in (200, 426) for said in program.sent), [(s["path"], s["status"]) for s in program.sent]
    assert any(said["method"] == "POST" for said in program.sent)
    if model == GPT:
        assert (program.work / "a.txt").read_text() == "hello\n"


@MODELS
@pytest.mark.client("codex")
def test_codex(program: Program, model: str) -> None:
    home = program.home / ".codex"
    home.mkdir()
    (home / "config.toml").write_text(
        f'model = "{model}"\nmodel_provider = "goblin"\n[model_providers.goblin]\nname = "Goblin"\n'
        f'base_url = "{program.gateway.url}/v1"\nenv_key = "OPENAI_API_KEY"\nwire_api = "responses"\n'
    )
    program.run("codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox",
                "TOOL: write hello into a.txt.")  # fmt: skip
    wrote(program, model)
    assert "/v1/responses" in {said["path"] for said in program.sent}


@MODELS
@pytest.mark.client("opencode")
def test_opencode(program: Program, model: str) -> None:
    where = {"baseURL": f"{program.gateway.url}/v1", "apiKey": "{env:OPENAI_API_KEY}"}
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "Goblin", "options": where, "models": {model: {}}}
    config = {"provider": {"goblin": provider}, "autoupdate": False, "share": "disabled"}
    (program.work / "opencode.json").write_text(json.dumps(config))
    program.run("opencode", "run", "-m", f"goblin/{model}", "TOOL: write hello into a.txt.")
    wrote(program, model)
    assert {said["path"] for said in program.sent} == {"/v1/chat/completions"}


@MODELS
@pytest.mark.client("aider")
def test_aider(program: Program, model: str) -> None:
    (program.work / "a.txt").write_text("")
    program.run(
        "aider", "--model", f"openai/{model}", "--openai-api-base", f"{program.gateway.url}/v1", "--edit-format",
        "whole", "--no-git", "--yes-always", "--no-show-model-warnings", "--no-check-update", "--analytics-disable",
        "--map-tokens", "0", "--message", "Write hello into a.txt.", "a.txt",
    )  # fmt: skip
    wrote(program, model)
    assert {said["path"] for said in program.sent} == {"/v1/chat/completions"}
