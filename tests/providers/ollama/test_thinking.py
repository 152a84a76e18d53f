"""`reasoning_effort` as `think`: what is sent, and what a model that refuses it is sent instead."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from goblin.core.endpoints import Endpoint
from goblin.core.errors import InvalidRequest
from goblin.gateway.domain import requests
from goblin.providers.ollama import inference as ollama
from goblin.providers.ollama.thinking import think_of

ENDPOINT = Endpoint(name="o", provider="ollama", url="http://o", context_tokens=8192)
DONE = {"message": {"role": "assistant", "content": "Hi"}, "done": True, "done_reason": "stop", "eval_count": 1}


class Model:
    """A model of a server that refuses some values of `think`."""

    def __init__(self, *refuses: type, message: str = "") -> None:
        self._refuses = refuses
        self._message = message
        self.heard: list[Any] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        think = json.loads(request.content).get("think")
        self.heard.append(think)
        if think and type(think) in self._refuses:
            said = 'think value "high" is not supported for this model' if think is not True else ""
            error = self._message or said or '"tiny" does not support thinking'
            return httpx.Response(400, json={"error": error})
        return httpx.Response(200, text=json.dumps(DONE) + "\n")


def chat(**more: Any) -> requests.ChatRequest:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **more}
    return requests.parse(requests.ChatRequest, json.dumps(asked).encode())


async def ask(provider: Any, **more: Any) -> str:
    chunks = [chunk async for chunk in provider.chat(chat(**more), model="tiny")]
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


@pytest.mark.parametrize(
    ("more", "think"),
    [
        ({}, None),
        ({"reasoning_effort": None}, None),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "low"}, "low"),
        ({"reasoning_effort": "medium"}, "medium"),
        ({"reasoning_effort": "high"}, "high"),
        ({"reasoning_effort": "xhigh"}, "high"),
        ({"reasoning_effort": "made-up"}, None),
        ({"reasoning_effort": 7}, None),
        ({"reasoning": {"effort": "low"}}, "low"),
        ({"reasoning": {"effort": ["low"]}}, None),
        ({"reasoning": "low"}, None),
    ],
)
def test_efforts(more: dict[str, Any], think: Any) -> None:
    request = chat(**more)
    assert think_of(request.body) is think or think_of(request.body) == think
    body = ollama.chat_body(request, "tiny", ENDPOINT)
    assert body.get("think") == think
    assert ("think" in body) is (think is not None)


@pytest.mark.parametrize(
    ("model", "heard"),
    [
        (Model(), ["high", "high"]),
        (Model(str), ["high", True, True]),
        (Model(str, bool), ["high", True, None, None]),
    ],
)
async def test_a_model_that_thinks_less_is_asked_for_less_and_remembered(model: Model, heard: list[Any]) -> None:
    async with httpx.AsyncClient(transport=httpx.MockTransport(model)) as client:
        provider = ollama.connect(ENDPOINT, client)
        for _ in range(2):
            assert await ask(provider, reasoning_effort="high") == "Hi"
        assert model.heard == heard
        assert await ask(provider, reasoning_effort="none") == "Hi"
        assert await ask(provider) == "Hi"
        assert model.heard[-2:] == [False, None]


async def test_another_refusal_is_the_callers() -> None:
    model = Model(str, message="invalid format")
    async with httpx.AsyncClient(transport=httpx.MockTransport(model)) as client:
        provider = ollama.connect(ENDPOINT, client)
        with pytest.raises(InvalidRequest):
            await ask(provider, reasoning_effort="high")
    assert model.heard == ["high"]


def test_options_of_other_servers_have_the_same_names_here() -> None:
    options = ollama.chat_body(chat(top_k=7, min_p=0.1, repeat_penalty=1.1), "tiny", ENDPOINT)["options"]
    assert options == {"num_ctx": 8192, "top_k": 7, "min_p": 0.1, "repeat_penalty": 1.1}
