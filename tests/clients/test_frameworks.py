"""The frameworks' smoke tests: `programs/` run unmodified packages by their defaults."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clients.conftest import GPT, TINY, Program
from tests.clients.scripted import DONE

AGENT = {"first": DONE, "second": DONE, "stream": DONE, "typed": "Ulm", "asked": ["Ulm", "Ulm"]}
CHAIN = {
    "chat": [{"city": "Ulm"}, DONE],
    "responses": [{"city": "Ulm"}, DONE],
    "stream": DONE,
    "batch": [DONE] * 3,
    "typed": "Ulm",
    "chat_n": [2, 2],
    "texts_n": [2, 2, 2],
}


def paths(program: Program) -> set[str]:
    assert {said["status"] for said in program.sent} <= {200}, [(s["path"], s["status"]) for s in program.sent]
    return {said["path"] for said in program.sent}


@pytest.mark.client("agents")
def test_agents_sdk(program: Program) -> None:
    assert program.script("agents_sdk.py", MODEL=GPT) == AGENT
    assert paths(program) == {"/v1/responses"}


@pytest.mark.client("agents-js")
def test_agents_sdk_js(program: Program) -> None:
    assert program.script("agents_sdk.mjs", MODEL=GPT) == AGENT
    assert paths(program) == {"/v1/responses"}


@pytest.mark.client("ai-sdk")
def test_ai_sdk(program: Program) -> None:
    assert program.script("ai_sdk.mjs", MODEL=GPT) == {**AGENT, "errors": []}
    assert paths(program) == {"/v1/responses"}


@pytest.mark.client("pydantic-ai")
def test_pydantic_ai(program: Program) -> None:
    assert program.script("pydantic_ai_agent.py", MODEL=GPT) == AGENT
    assert paths(program) <= {"/v1/responses", "/v1/chat/completions"}


@pytest.mark.client("langchain")
def test_langchain(program: Program) -> None:
    found = program.script("langchain_chat.py", MODEL=GPT, TINY=TINY)
    usage = found.pop("text_usage")
    assert found == CHAIN
    assert 0 < usage["completion_tokens"] <= 3 * 2 * 4
    lists(program)


@pytest.mark.client("langchain-js")
def test_langchain_js(program: Program) -> None:
    assert program.script("langchain_chat.mjs", MODEL=GPT, TINY=TINY) == CHAIN
    lists(program)


def lists(program: Program) -> None:
    """What `generate` sent: all prompts in one request, and `n`."""
    assert paths(program) == {"/v1/chat/completions", "/v1/completions", "/v1/responses"}
    texts: list[dict[str, Any]] = [said["body"] for said in program.sent if said["path"] == "/v1/completions"]
    assert [len(body["prompt"]) for body in texts] == [3]
    assert [body["n"] for body in texts] == [2]
    assert any(said["body"].get("n") == 2 for said in program.sent if said["path"] == "/v1/chat/completions")


@pytest.mark.client("llama-index")
def test_llama_index(program: Program) -> None:
    found = program.script("llama_index_llm.py", MODEL=GPT, TINY=TINY)
    assert found == {"complete": DONE, "stream": DONE, "tool": "sunny in Ulm", "text": True}
    assert paths(program) == {"/v1/chat/completions", "/v1/completions"}


@pytest.mark.client("instructor")
def test_instructor(program: Program) -> None:
    assert program.script("instructor_typed.py", MODEL=GPT) == {"typed": "Ulm", "partial": "Ulm"}
    assert paths(program) == {"/v1/chat/completions"}


@pytest.mark.client("llm")
def test_llm(program: Program) -> None:
    at = {"api_base": f"{program.gateway.url}/v1", "api_key_name": "goblin"}
    rows = [
        {"model_id": "tiny", "model_name": TINY, **at},
        {"model_id": "gpt", "model_name": GPT, **at, "supports_schema": True, "supports_tools": True},
    ]
    folder = program.home / "llm"
    folder.mkdir()
    (folder / "extra-openai-models.yaml").write_text(json.dumps(rows))
    program.env["LLM_USER_PATH"] = str(folder)
    program.run("llm", "keys", "set", "goblin", "--value", program.gateway.key)
    assert program.run("llm", "-m", "tiny", "-o", "max_tokens", "8", "Hi").strip()
    assert program.run("llm", "-m", "gpt", "Hi").strip() == DONE
    assert json.loads(program.run("llm", "-m", "gpt", "--schema", "city str", "Where?")) == {"city": "Ulm"}
    code = "def get_weather(city: str) -> str:\n    'The weather.'\n    return f'sunny in {city}'\n"
    said = program.run("llm", "-m", "gpt", "--functions", code, "--td", "TOOL: the weather?")
    assert DONE in said
    assert paths(program) == {"/v1/chat/completions"}


TASK = """task: counting
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 4
metric_list:
  - metric: exact_match
"""


@pytest.mark.client("lm-eval")
def test_lm_eval(program: Program) -> None:
    """A task of our own, with four prompts in each request."""
    rows = program.work / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{n} and {n} is", "answer": str(n + n)}) + "\n" for n in range(8)))
    (program.work / "counting.yaml").write_text(TASK.format(file=rows))
    where = f"base_url={program.gateway.url}/v1/completions,model={TINY},tokenizer_backend=None,num_concurrent=1"
    said = program.run(
        "lm-eval", "run", "--model", "local-completions", "--model_args", where, "--include_path", ".", "--tasks",
        "counting", "--batch_size", "4", "--output_path", "found", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1",
    )  # fmt: skip
    assert "exact_match" in said
    assert paths(program) == {"/v1/completions"}
    assert [len(said["body"]["prompt"]) for said in program.sent] == [4, 4]
