"""Responses through the gateway to an endpoint that speaks them itself: what goes in and out, and what it may cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.fakes.openai_like import Call, FakeOpenAI, Script
from tests.fakes.openai_responses import REASONING, SEARCH, FakeResponses
from tests.fakes.serving import serve
from tests.functions.conftest import API_KEY
from tests.functions.test_responses import ADD, AUTHORIZED, events, post

FREE = "price_input_usd_micros_per_mtok = 0\nprice_output_usd_micros_per_mtok = 0\nexternal = false\n"
BILLED = "price_input_usd_micros_per_mtok = 1000\nprice_output_usd_micros_per_mtok = 2000\n"
ENDPOINT = """
[[endpoints]]
name = "{name}"
provider = "openai"
url = "{url}/v1"
models = ["tiny"]
options = {{ responses = "{speaks}" }}
{price}
"""


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakeResponses, FakeOpenAI]]:
    native, plain = FakeResponses(), FakeOpenAI()
    with ExitStack() as stack:
        native.base, plain.base = (stack.enter_context(serve(fake.app)) for fake in (native, plain))  # type: ignore[attr-defined]
        yield native, plain


@pytest.fixture
def native(served: tuple[FakeResponses, FakeOpenAI]) -> FakeResponses:
    for fake, made in zip(served, (FakeResponses(), FakeOpenAI()), strict=True):
        fake.__dict__.update(made.__dict__ | {"base": fake.base})  # type: ignore[attr-defined]
    return served[0]


Serve = Callable[[str], str]


@pytest.fixture
def gateway(
    native: FakeResponses,
    served: tuple[FakeResponses, FakeOpenAI],
    serve_function: Serve,
    api_keys: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Serve:
    """Serve the gateway before one endpoint that speaks Responses, at this price, and one that does not."""

    def serving(price: str) -> str:
        first = ENDPOINT.format(name="native", url=native.base, speaks="yes", price=price)  # type: ignore[attr-defined]
        second = ENDPOINT.format(name="plain", url=served[1].base, speaks="auto", price=FREE)  # type: ignore[attr-defined]
        config = tmp_path / "goblin.toml"
        config.write_text(f'[routing]\nstrategy = "failover"\nattempts_max = 2\n{first}{second}')
        monkeypatch.setenv("GOBLIN_CONFIG", str(config))
        return serve_function("gateway")

    return serving


def test_the_request_and_the_answer_pass_unchanged(gateway: Serve, native: FakeResponses) -> None:
    url = gateway(FREE)
    asked = {
        "input": [{"role": "user", "content": "Hi"}, {"type": "compaction", "id": "cmp_1", "encrypted_content": "x"}],
        "tools": [ADD, {"type": "web_search"}],
        "include": ["web_search_call.action.sources"],
        "unheard_of": {"a": 1},
        "store": True,
        "goblin": {"strategy": "failover"},
    }
    said = events(post(url, {**asked, "stream": True}))
    sent = native.asked[-1]
    rest = {name: value for name, value in asked.items() if name not in ("goblin", "store")}
    assert sent == {**rest, "model": "tiny", "stream": True, "store": False}
    final = said[-1]["response"]
    assert [item["type"] for item in final["output"]] == ["reasoning", "web_search_call", "message"]
    assert final["output"][:2] == [REASONING, SEARCH]
    assert (final["id"], final["model"], final["store"], final["unheard_of"]) == ("resp_up", "tiny", False, {"a": 1})
    assert {event["response"]["model"] for event in said if "response" in event} == {"tiny"}
    deltas = [event for event in said if event["type"] == "response.output_text.delta"]
    assert "".join(event["delta"] for event in deltas) == "Hello, Wörld 🌍"
    assert deltas[0]["obfuscation"] == "x"

    answer = post(url, asked)
    assert answer.json() == final
    assert "x-goblin-dropped" not in answer.headers
    receipt = httpx.get(
        f"{url}/requests/{answer.headers['x-goblin-request-id']}", headers=AUTHORIZED, timeout=20
    ).json()
    assert (receipt["prompt_tokens"], receipt["completion_tokens"], receipt["usage_estimated"]) == (11, 5, False)


def test_an_endpoint_that_bills_is_sent_what_a_price_covers(gateway: Serve, native: FakeResponses) -> None:
    url = gateway(BILLED)
    thoughts = {**REASONING, "id": "rs_1"}
    asked = {
        "input": [{"role": "user", "content": "Hi"}, thoughts, {"type": "reasoning", "id": "rs_2", "summary": []}],
        "tools": [
            ADD,
            {"type": "web_search"},
            {"type": "namespace", "name": "n", "description": "d", "tools": [ADD]},
            {"type": "namespace", "name": "n", "description": "d", "tools": [{"type": "mcp"}]},
        ],
        "tool_choice": {"type": "web_search"},
        "reasoning": {"effort": "low", "mode": "pro"},
        "service_tier": "priority",
        "client_metadata": {"a": "b"},
        "prompt_cache_key": "k",
    }
    answer = post(url, asked)
    assert answer.headers["x-goblin-provider"] == "native"
    sent = native.asked[-1]
    assert sent["input"] == [{"role": "user", "content": "Hi"}, thoughts]
    assert [tool["type"] for tool in sent["tools"]] == ["function", "namespace"]
    assert (sent["reasoning"], sent["prompt_cache_key"]) == ({"effort": "low"}, "k")
    assert sent["max_output_tokens"] == 4096
    assert not {"tool_choice", "service_tier", "client_metadata"} & set(sent)
    told = {"client_metadata", "service_tier", "reasoning.mode", "input.reasoning"}
    assert set(answer.headers["x-goblin-dropped"].split(", ")) == told | {"tools[web_search]", "tools[namespace]"}
    assert answer.headers["x-goblin-cost-usd"] != "0"
    assert answer.json()["goblin"]["dropped"] == answer.headers["x-goblin-dropped"].split(", ")


def test_a_strict_client_loops_over_tools(gateway: Serve, native: FakeResponses) -> None:
    url = gateway(FREE)
    native.script = Script(calls=[Call("c1", "add", ['{"a":', "1}"])])
    strict = openai.OpenAI(
        api_key=API_KEY, base_url=f"{url}/v1", max_retries=0, timeout=20, _strict_response_validation=True
    )
    with strict as client:
        with client.responses.stream(model="tiny", input="Hi", tools=[ADD]) as stream:
            first = stream.get_final_response()
        assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
        turn: Any = [{"role": "user", "content": "Hi"}, *first.output]
        turn.append({"type": "function_call_output", "call_id": "c1", "output": "2"})
        assert client.responses.create(model="tiny", input=turn, tools=[ADD]).status == "completed"
    assert native.asked[-1]["input"][1]["encrypted_content"] == REASONING["encrypted_content"]


def test_named_items_are_filled_in(gateway: Serve, native: FakeResponses) -> None:
    url = gateway(FREE)
    first = post(url, {"input": "Hi"}).json()
    named = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
    post(url, {"input": [{"role": "user", "content": "Hi"}, *named, {"role": "user", "content": "More"}]})
    assert native.asked[-1]["input"][1:3] == first["output"]


def test_our_own_thoughts_are_opened_for_it(
    gateway: Serve, native: FakeResponses, served: tuple[FakeResponses, FakeOpenAI]
) -> None:
    url = gateway(FREE)
    served[1].script = Script(deltas=[{"reasoning_content": "Hm."}, {"content": "Yes"}])
    first = post(url, {"input": "Hi", "goblin": {"provider": "plain"}}).json()
    assert first["output"][0]["encrypted_content"].startswith("goblin:")
    post(url, {"input": [*first["output"], {"role": "user", "content": "More"}]})
    sent = native.asked[-1]["input"][0]
    assert sent["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert "encrypted_content" not in sent


def test_another_endpoint_starts_over_with_the_translation(
    gateway: Serve, native: FakeResponses, served: tuple[FakeResponses, FakeOpenAI]
) -> None:
    url = gateway(FREE)
    native.script = Script(status=500, error={"error": {"message": "x"}})
    said = events(post(url, {"input": "Hi", "tools": [{"type": "web_search"}], "stream": True}))
    assert said[-1]["response"]["output"][0]["content"][0]["text"] == "Hello, Wörld 🌍"
    assert served[1].asked[-1]["messages"] == [{"role": "user", "content": "Hi"}]
    assert said[-1]["response"]["goblin"]["dropped"] == ["tools[web_search]"]


@pytest.mark.parametrize("script", [Script(break_after=2), Script(error_after=2)], ids=["cut", "failed"])
def test_a_stream_that_breaks_off_fails(gateway: Serve, native: FakeResponses, script: Script) -> None:
    url = gateway(FREE)
    native.script = script
    answer = post(url, {"input": "Hi", "stream": True})
    said = events(answer)
    assert [event["type"] for event in said[-2:]] == ["error", "response.failed"]
    failed = said[-1]["response"]
    assert (failed["id"], failed["status"], failed["error"]["code"]) == ("resp_up", "failed", "server_error")
    assert failed["output"][0] == REASONING
    assert "secret" not in answer.text


def test_an_answer_that_is_cut_short(gateway: Serve, native: FakeResponses) -> None:
    url = gateway(FREE)
    native.script = Script(finish="length")
    assert post(url, {"input": "Hi", "max_output_tokens": 20}).json()["status"] == "incomplete"
    assert native.asked[-1]["max_output_tokens"] == 20
    assert events(post(url, {"input": "Hi", "stream": True}))[-1]["type"] == "response.incomplete"


def test_a_chat_stays_a_chat(gateway: Serve, native: FakeResponses) -> None:
    url = gateway(FREE)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "responses": {"model": "x"}}
    answer = httpx.post(f"{url}/v1/chat/completions", content=json.dumps(body), headers=AUTHORIZED, timeout=20)
    assert answer.status_code == 200
    assert native.paths[-1] == "/v1/chat/completions"
