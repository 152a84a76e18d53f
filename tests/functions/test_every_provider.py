"""Both SDKs, unmodified, against a gateway with every provider behind it, each a fake that keeps its vendor's rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from goblin.wiring import endpoints
from tests.clouds import RunningCloud
from tests.fakes import every
from tests.fakes.openai_like import Call, FakeOpenAI, Script
from tests.fakes.serving import serve
from tests.functions.conftest import API_KEY

FAKES = {"gcp_llamacpp": lambda: FakeOpenAI(owner="llamacpp"), **every.FAKES}
HELLO: Any = [{"role": "user", "content": "Hi"}]
ADD: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module")
def fakes() -> Iterator[dict[str, Any]]:
    made = {name: make() for name, make in FAKES.items()}
    with ExitStack() as stack:
        for fake in made.values():
            fake.base = stack.enter_context(serve(fake.app))
        yield made


@pytest.fixture
def url(
    fakes: dict[str, Any],
    serve_function: Callable[[str], str],
    api_keys: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    for name, make in FAKES.items():
        fakes[name].__dict__.update(make().__dict__ | {"base": fakes[name].base})
    said = {"LLAMACPP_URL": fakes["gcp_llamacpp"].base, **every.variables(fakes)}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    for name in ("FLY_API_TOKEN", "FLY_CHAT_APP", "RUNPOD_WORKER", "VAST_SERVER_PORT", "CLOUDRUN_LLAMACPP_URL"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "goblin.toml"
    config.write_text(every.priced())
    monkeypatch.setenv("GOBLIN_CONFIG", str(config))
    return serve_function("gateway")


@pytest.fixture
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key=API_KEY, base_url=url, max_retries=0, timeout=20) as client:
        yield client


def at(name: str) -> dict[str, Any]:
    return {"extra_body": {"goblin": {"provider": name}}}


def test_every_provider_stands_in_the_file() -> None:
    text = (Path(__file__).parents[2] / "goblin.toml").read_text()
    for name in endpoints.provider_names():
        assert f'provider = "{name}"' in text
    for name in FAKES:
        assert f'name = "{name}"' in text


def test_every_endpoint_is_found_well(url: str) -> None:
    headers = {"authorization": f"Bearer {API_KEY}"}
    assert httpx.get(f"{url}/v1/models", headers=headers, timeout=20).json()["data"][0]["id"] == "tiny"
    listed = httpx.get(f"{url}/providers", headers=headers, timeout=20).json()
    assert sorted(listed) == sorted(FAKES)


@pytest.mark.parametrize("name", sorted(FAKES))
def test_the_openai_sdk_at_each(client: openai.OpenAI, fakes: dict[str, Any], name: str) -> None:
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=HELLO, **at(name))
    assert raw.headers["x-goblin-provider"] == name
    whole = raw.parse()
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("Hello, Wörld 🌍", "stop")
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (11, 5)
    chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, stream=True, **at(name)))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello, Wörld 🌍"

    fakes[name].script = Script(words=[], calls=[Call("c1", "add", ['{"a":', "1}"])])
    with client.chat.completions.stream(model="tiny", messages=HELLO, tools=ADD, **at(name)) as stream:
        called = stream.get_final_completion().choices[0]
    assert called.finish_reason == "tool_calls"
    assert called.message.tool_calls is not None
    assert json.loads(called.message.tool_calls[0].function.arguments) == {"a": 1}


@pytest.mark.parametrize("name", sorted(FAKES))
def test_the_responses_api_at_each(url: str, fakes: dict[str, Any], name: str) -> None:
    strict = openai.OpenAI(
        api_key=API_KEY, base_url=f"{url}/v1", max_retries=0, timeout=20, _strict_response_validation=True
    )
    with strict as client:
        whole = client.responses.create(model="tiny", input="Hi", **at(name))
        assert (whole.output_text, whole.status) == ("Hello, Wörld 🌍", "completed")
        assert whole.usage is not None
        assert (whole.usage.input_tokens, whole.usage.output_tokens) == (11, 5)
        fakes[name].script = Script(words=["Well."], calls=[Call("c1", "add", ['{"a":', "1}"])])
        tools: Any = [{"type": "function", **ADD[0]["function"], "strict": False}]
        with client.responses.stream(model="tiny", input="Hi", tools=tools, **at(name)) as stream:
            text, call = stream.get_final_response().output
        assert (text.type, call.type) == ("message", "function_call")
        assert isinstance(call, openai.types.responses.ResponseFunctionToolCall)
        assert json.loads(call.arguments) == {"a": 1}
        fakes[name].script = Script()
        turn: Any = [
            {"role": "user", "content": "Hi"},
            text.to_dict(),
            call.to_dict(),
            {"type": "function_call_output", "call_id": call.call_id, "output": "2"},
        ]
        assert client.responses.create(model="tiny", input=turn, tools=tools, **at(name)).status == "completed"


@pytest.mark.parametrize("name", sorted(FAKES))
def test_the_anthropic_sdk_at_each(claude: anthropic.Anthropic, fakes: dict[str, Any], name: str) -> None:
    with claude.messages.stream(model="tiny", max_tokens=50, messages=HELLO, **at(name)) as stream:
        whole = stream.get_final_message()
    assert [block.text for block in whole.content if block.type == "text"] == ["Hello, Wörld 🌍"]
    assert (whole.stop_reason, whole.usage.input_tokens, whole.usage.output_tokens) == ("end_turn", 11, 5)

    fakes[name].script = Script(words=["Well."], calls=[Call("c1", "add", ['{"a":', "1}"])])
    tools: Any = [{"name": "add", "input_schema": {"type": "object", "properties": {}}}]
    called = claude.messages.create(model="tiny", max_tokens=50, messages=HELLO, tools=tools, **at(name))
    assert called.stop_reason == "tool_use"
    text, use = called.content
    assert text.type == "text"
    assert use.type == "tool_use"
    assert (use.name, use.input) == ("add", {"a": 1})


@pytest.mark.parametrize("name", sorted(FAKES))
def test_json_of_a_schema_at_each(client: openai.OpenAI, fakes: dict[str, Any], name: str) -> None:
    words = ['{"city": ', '"Ulm"}']
    as_tool = name == "anthropic"
    fakes[name].script = Script(words=[], calls=[Call("c1", "answer", words)]) if as_tool else Script(words=words)
    answer = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}},
        **at(name),
    )
    assert json.loads(answer.choices[0].message.content or "") == {"city": "Ulm"}
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", sorted(FAKES))
def test_several_answers_to_a_chat_at_each(
    client: openai.OpenAI, fakes: dict[str, Any], name: str, stream: bool
) -> None:
    if stream:
        options: Any = {"include_usage": True}
        texts, usage = dict.fromkeys(range(3), ""), None
        for chunk in client.chat.completions.create(
            model="tiny", messages=HELLO, n=3, stream=True, stream_options=options, **at(name)
        ):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    else:
        whole = client.chat.completions.create(model="tiny", messages=HELLO, n=3, **at(name))
        texts, usage = {c.index: c.message.content or "" for c in whole.choices}, whole.usage
        assert {c.finish_reason for c in whole.choices} == {"stop"}
    assert texts == dict.fromkeys(range(3), "Hello, Wörld 🌍")
    assert usage is not None
    # One prompt and three answers, as OpenAI counts them, however many requests it were.
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (11, 15, 26)
    if name != "vast_servers":  # Its servers are counted elsewhere.
        assert len(fakes[name].asked) == (1 if name == "openai_compatible" else 3)


COMPLETES = ["fly_chat", "gcp_llamacpp", "gcp_ollama", "openai_compatible", "runpod_serverless", "vast_servers"]


@pytest.mark.parametrize(
    ("name", "prompts"),
    # Ollama takes no token ids.
    [(name, ["one", "two"]) for name in COMPLETES] + [(n, [[1, 2], [3]]) for n in COMPLETES if n != "gcp_ollama"],
)
def test_a_list_of_prompts_at_each(client: openai.OpenAI, fakes: dict[str, Any], name: str, prompts: Any) -> None:
    echoes = name not in ("gcp_ollama", "vast_servers")
    if echoes:
        fakes[name].script = Script(echo=True)
    whole = client.completions.create(model="tiny", prompt=prompts, n=2, **at(name))
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    said = [str(prompt) for prompt in prompts for _ in range(2)] if echoes else ["Hello, Wörld 🌍"] * 4
    assert [choice.text for choice in whole.choices] == said
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (22, 4 if echoes else 20)
    streamed = client.completions.create(model="tiny", prompt=prompts, n=2, stream=True, **at(name))
    texts = dict.fromkeys(range(4), "")
    for chunk in streamed:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == said


def test_one_refusal_among_several_is_the_answer(client: openai.OpenAI, fakes: dict[str, Any]) -> None:
    said = {"message": "Too hot.", "type": "invalid_request_error", "param": "temperature", "code": None}
    fakes["groq"].script = Script(status=400, error={"error": said})
    with pytest.raises(openai.BadRequestError, match="Too hot"):
        client.chat.completions.create(model="tiny", messages=HELLO, n=4, **at("groq"))


def test_a_hang_up_reaches_the_endpoint_of_several_requests(url: str, fakes: dict[str, Any]) -> None:
    fakes["gcp_llamacpp"].script = Script(silent_after=2)
    body = {"model": "tiny", "prompt": ["a", "b", "c"], "stream": True, "goblin": {"provider": "gcp_llamacpp"}}
    headers = {"authorization": f"Bearer {API_KEY}"}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=20) as response:
        next(response.iter_text())
    assert fakes["gcp_llamacpp"].left.wait(10)
    assert len(fakes["gcp_llamacpp"].asked) < 3


@pytest.mark.parametrize("name", ["gcp_llamacpp", "gcp_ollama", "openai_compatible"])
def test_vectors_where_there_are_some(client: openai.OpenAI, name: str) -> None:
    vectors = client.embeddings.create(model="tiny", input=["a", "b"], **at(name))
    assert [row.embedding for row in vectors.data] == [[0.0, 0.5, -1.0], [1.0, 0.5, -1.0]]


@pytest.mark.parametrize("name", ["anthropic", "groq", "runpod_serverless"])
def test_vectors_where_there_are_none_are_refused_with_the_reason(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError, match="embeddings"):
        client.embeddings.create(model="tiny", input=["a"], **at(name))


def test_a_refused_key_goes_to_the_next(client: openai.OpenAI, fakes: dict[str, Any]) -> None:
    client.chat.completions.create(model="tiny", messages=HELLO, **at("gcp_ollama"))  # Now all have been looked at.
    fakes["gcp_llamacpp"].api_key = "rotated"
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=HELLO, extra_headers={"x-goblin-strategy": "failover"}
    )
    assert (raw.headers["x-goblin-provider"], raw.headers["x-goblin-attempts"]) == ("gcp_ollama", "2")


class TestKeysInSecretManager:
    @pytest.fixture
    def secrets(self, cloud: RunningCloud, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
        """The local cloud's Secret Manager, where `up` says it is; one key is in it."""
        monkeypatch.setenv("SECRET_MANAGER_EMULATOR_HOST", cloud.storage_url)
        monkeypatch.setattr("goblin.gcp.secret_manager.LOOK_AGAIN_S", 0.0)
        client = cloud.secrets_client()
        parent, secret = f"projects/{environ['GOOGLE_CLOUD_PROJECT']}", {"replication": {"automatic": {}}}
        created = client.create_secret(request={"parent": parent, "secret_id": "groq", "secret": secret})

        def rotate(key: str) -> None:
            client.add_secret_version(request={"parent": created.name, "payload": {"data": key.encode()}})

        rotate("gsk-one")
        return rotate

    def test_a_key_is_rotated_while_the_gateway_runs(
        self, secrets: Callable[[str], None], url: str, fakes: dict[str, Any], client: openai.OpenAI
    ) -> None:
        def ask() -> str | None:
            answer = client.chat.completions.create(model="tiny", messages=HELLO, **at("groq"))
            return answer.choices[0].message.content

        fakes["groq"].api_key = "gsk-one"
        assert ask() == "Hello, Wörld 🌍"
        fakes["groq"].api_key = "gsk-two"
        secrets("gsk-two")
        assert ask() == "Hello, Wörld 🌍"

    @pytest.fixture
    def url(self, secrets: Any, monkeypatch: pytest.MonkeyPatch, url: str, serve_function: Any) -> str:
        monkeypatch.setenv("GROQ_API_KEY", "secret:groq")
        return str(serve_function("gateway"))
