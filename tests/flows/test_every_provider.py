"""`goblin up` with every provider behind it, each a fake that keeps its vendor's rules, and both SDKs unmodified."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.fakes import every
from tests.fakes.every import FAKES
from tests.fakes.openai_like import Call, Script
from tests.fakes.serving import serve
from tests.flows.conftest import Running

pytestmark = pytest.mark.xdist_group("flows")

TEXT = "Hello, Wörld 🌍"
HELLO: Any = [{"role": "user", "content": "Hi"}]
TOOL: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
PLACE: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module")
def fakes() -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        made = {}
        for name, make in FAKES.items():
            made[name] = make()
            made[name].base = stack.enter_context(serve(made[name].app))
        yield made


@pytest.fixture(scope="module")
def running(fakes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("every")
    config = folder / "goblin.toml"
    config.write_text(every.priced())
    started = Running(folder / "data", env={**every.variables(fakes), "GOBLIN_CONFIG": str(config)})
    try:
        yield started.start()
    finally:
        started.close()


@pytest.fixture
def sdk(running: Running) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{running.url}/v1", api_key=running.variables["GOBLIN_API_KEY"], max_retries=0, timeout=30
    )


@pytest.fixture
def claude(running: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=running.url, api_key=running.variables["GOBLIN_API_KEY"], max_retries=0, timeout=30
    )


def at(name: str) -> dict[str, Any]:
    return {"model": "tiny", "messages": HELLO, "extra_body": {"goblin": {"provider": name}}}


def test_every_provider_is_seen_healthy_without_a_paid_call(running: Running, fakes: dict[str, Any]) -> None:
    headers = {"authorization": f"Bearer {running.variables['GOBLIN_API_KEY']}"}
    seen = httpx.get(f"{running.url}/providers", headers=headers, timeout=20).json()
    assert {name: seen[name]["status"] for name in [*FAKES, "gcp_llamacpp"]} == dict.fromkeys(
        [*FAKES, "gcp_llamacpp"], "healthy"
    )


@pytest.mark.parametrize("name", sorted(FAKES))
def test_the_openai_sdk_at_each(sdk: openai.OpenAI, fakes: dict[str, Any], name: str) -> None:
    fakes[name].script = Script()
    raw = sdk.chat.completions.with_raw_response.create(**at(name))
    assert (raw.headers["x-goblin-provider"], raw.parse().choices[0].message.content) == (name, TEXT)
    chunks = list(sdk.chat.completions.create(stream=True, **at(name)))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT

    fakes[name].script = Script(words=[], calls=[Call("c1", "add", ['{"a":', "1}"])])
    called = sdk.chat.completions.create(tools=TOOL, **at(name)).choices[0]
    assert called.finish_reason == "tool_calls"
    assert json.loads(called.message.tool_calls[0].function.arguments) == {"a": 1}

    words = ['{"city": ', '"Ulm"}']
    as_tool = name == "anthropic"
    fakes[name].script = Script(words=[], calls=[Call("c1", "answer", words)]) if as_tool else Script(words=words)
    schema: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE}}
    answer = sdk.chat.completions.create(response_format=schema, **at(name))
    assert json.loads(answer.choices[0].message.content or "") == {"city": "Ulm"}


@pytest.mark.parametrize("name", sorted(FAKES))
def test_the_anthropic_sdk_at_each(claude: anthropic.Anthropic, fakes: dict[str, Any], name: str) -> None:
    fakes[name].script = Script()
    with claude.messages.stream(max_tokens=50, **at(name)) as stream:
        whole = stream.get_final_message()
    assert [block.text for block in whole.content if block.type == "text"] == [TEXT]
    assert whole.stop_reason == "end_turn"

    fakes[name].script = Script(words=["Well."], calls=[Call("c1", "add", ['{"a":', "1}"])])
    tools: Any = [{"name": "add", "input_schema": {"type": "object", "properties": {}}}]
    called = claude.messages.create(max_tokens=50, tools=tools, **at(name))
    assert called.stop_reason == "tool_use"
    assert called.content[-1].input == {"a": 1}


def test_vectors_and_errors_of_both_sdks(sdk: openai.OpenAI, claude: anthropic.Anthropic, running: Running) -> None:
    vectors = sdk.embeddings.create(model="tiny", input=["a", "b"], extra_body={"goblin": {"provider": "gcp_ollama"}})
    assert len(vectors.data) == 2
    with pytest.raises(openai.BadRequestError, match="embeddings"):
        sdk.embeddings.create(model="tiny", input=["a"], extra_body={"goblin": {"provider": "anthropic"}})
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.create(model="nobody-has-this", messages=HELLO)
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="nobody-has-this", max_tokens=5, messages=HELLO)
    stranger = anthropic.Anthropic(base_url=running.url, api_key="not-a-key", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model="tiny", max_tokens=5, messages=HELLO)
