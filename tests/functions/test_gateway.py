"""The gateway as its callers meet it: the official `openai` SDK, unmodified, against the served function."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar

import httpx
import openai
import pytest

from goblin.gateway.keys import digest_of
from tests.fakes.openai_like import Script
from tests.functions.conftest import API_KEY, OTHER_KEY, Fakes

HELLO: Any = [{"role": "user", "content": "Hi"}]
AUTHORIZED = {"authorization": f"Bearer {API_KEY}"}


def post(url: str, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(url + path, content=content, headers=AUTHORIZED | headers, timeout=20)


def events(response: httpx.Response) -> list[Any]:
    """Data of the events, parsed, the final `[DONE]` as it is."""
    data = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [text if text == "[DONE]" else json.loads(text) for text in data]


def receipt(url: str, request_id: str, key: str = API_KEY) -> httpx.Response:
    return httpx.get(f"{url}/requests/{request_id}", headers={"authorization": f"Bearer {key}"}, timeout=20)


def eventually(question: Callable[[], Any], deadline_s: float = 10) -> Any:
    """What another process has yet to write."""
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        if answer := question():
            return answer
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


class TestAnswers:
    def test_a_chat(self, client: openai.OpenAI) -> None:
        raw = client.chat.completions.with_raw_response.create(model="tiny", messages=HELLO)
        answer = raw.parse()
        assert answer.choices[0].message.content == "Hello, Wörld 🌍"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (11, 5, 16)
        assert answer.model == "tiny"
        assert answer.object == "chat.completion"
        assert raw.headers["x-goblin-provider"] == "gcp_llamacpp"
        assert raw.headers["x-goblin-attempts"] == "1"
        assert answer.id == f"chatcmpl-{raw.headers['x-goblin-request-id']}"
        assert raw.headers["server-timing"].startswith("auth;dur=")

    def test_a_stream(self, client: openai.OpenAI) -> None:
        chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello, Wörld 🌍"
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert len({c.id for c in chunks}) == 1

    def test_usage_in_a_stream_comes_only_when_asked_for_and_to_the_letter(self, url: str) -> None:
        body = {"model": "tiny", "messages": HELLO, "stream": True}
        plain = events(post(url, "/v1/chat/completions", body))
        assert plain[-1] == "[DONE]"
        assert all("usage" not in event and event["choices"] for event in plain[:-1])
        *told, last, done = events(
            post(url, "/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
        )
        assert done == "[DONE]"
        assert all(event["usage"] is None and event["choices"] for event in told)
        assert last["choices"] == []
        assert last["usage"] == {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}

    def test_tool_calls_streamed_and_whole(self, client: openai.OpenAI, fakes: Fakes) -> None:
        first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}}
        pieces = [first, *({"index": 0, "function": {"arguments": piece}} for piece in ('{"a":', "1}"))]
        fakes.llamacpp.script = Script(deltas=[{"tool_calls": [piece]} for piece in pieces], finish="tool_calls")
        tools: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
        with client.chat.completions.stream(model="tiny", messages=HELLO, tools=tools) as stream:
            streamed = stream.get_final_completion().choices[0]
        whole = client.chat.completions.create(model="tiny", messages=HELLO, tools=tools).choices[0]
        for choice in (streamed, whole):
            assert choice.finish_reason == "tool_calls"
            assert choice.message.tool_calls is not None
            (call,) = choice.message.tool_calls
            assert (call.id, call.type) == ("c1", "function")
            assert (call.function.name, call.function.arguments) == ("add", '{"a":1}')
        assert whole.message.content is None

    def test_the_best_of_several_only_where_the_endpoint_chooses(self, fakes: Fakes, url: str) -> None:
        refused = post(url, "/v1/completions", {"model": "tiny", "prompt": "a", "n": 2, "best_of": 3})
        assert refused.status_code == 400
        assert "choices: " in refused.json()["error"]["message"]

    def test_a_text_continued(self, client: openai.OpenAI) -> None:
        whole = client.completions.create(model="tiny", prompt="Once")
        assert (whole.choices[0].text, whole.object) == ("Hello, Wörld 🌍", "text_completion")
        assert whole.usage is not None
        streamed = list(client.completions.create(model="tiny", prompt="Once", stream=True))
        assert "".join(c.choices[0].text for c in streamed) == "Hello, Wörld 🌍"
        assert streamed[-1].choices[0].finish_reason == "stop"

    def test_vectors_in_both_encodings(self, client: openai.OpenAI, url: str) -> None:
        packed = client.embeddings.create(model="tiny", input=["a", "b"])
        floats = client.embeddings.create(model="tiny", input=["a", "b"], encoding_format="float")
        assert [row.embedding for row in packed.data] == [[0.0, 0.5, -1.0], [1.0, 0.5, -1.0]]
        assert [row.embedding for row in floats.data] == [[0.0, 0.5, -1.0], [1.0, 0.5, -1.0]]
        assert packed.usage.prompt_tokens == 6
        wire = post(url, "/v1/embeddings", {"model": "tiny", "input": "a", "encoding_format": "base64"})
        assert wire.json()["data"][0]["embedding"] == "AAAAAAAAAD8AAIC/"

    def test_models(self, client: openai.OpenAI, fakes: Fakes) -> None:
        fakes.llamacpp.models = ["tiny", "org/big:q4"]
        assert [model.id for model in client.models.list()] == ["org/big:q4", "tiny"]
        assert client.models.retrieve("org/big:q4").owned_by == "gcp_llamacpp"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("made-up")

    def test_a_receipt_is_for_its_caller(self, client: openai.OpenAI, url: str) -> None:
        raw = client.chat.completions.with_raw_response.create(model="tiny", messages=HELLO)
        request_id = raw.headers["x-goblin-request-id"]
        written = eventually(
            lambda: receipt(url, request_id).json().get("request_id") and receipt(url, request_id)
        ).json()
        assert (written["outcome"], written["provider"], written["completion_tokens"]) == ("ok", "gcp_llamacpp", 5)
        assert written["attempts"][0]["reason"].startswith("answer in about ")
        assert written["attempts"][0]["predicted_first_token_ms"] > 0
        first = written["candidates"][0]
        assert (first["endpoint"], first["reason"]) == ("gcp_llamacpp", written["attempts"][0]["reason"])
        assert first["predicted_first_token_ms"] > 0
        assert first["predicted_cost_usd_micros"] is not None
        assert "key_digest" not in written
        assert receipt(url, request_id, OTHER_KEY).status_code == 404
        assert receipt(url, "x" * 99).status_code == 404


@pytest.mark.parametrize("status", [400, 401, 429, 500])
@pytest.mark.parametrize("stream", [True, False])
def test_a_key_that_an_endpoint_quotes_reaches_nobody(
    serve_function: Callable[[str], str], served_fakes: Any, fakes: Fakes, api_keys: None,
    monkeypatch: pytest.MonkeyPatch, status: int, stream: bool,
) -> None:  # fmt: skip
    secret = "key/of+the=server-0123"
    monkeypatch.setenv("LLAMACPP_URL", served_fakes[1]["LLAMACPP_URL"])
    monkeypatch.setenv("LLAMACPP_API_KEY", secret)
    url = serve_function("gateway")
    encoded = base64.b64encode(f"x:{secret}".encode()).decode()
    detail = {"message": f"No: {secret}, Basic {encoded}", "type": secret, "code": secret.upper(), "param": secret}
    fakes.llamacpp.script = Script(status=status, error={"error": detail}, headers={"x-request-id": secret})
    said = post(url, "/v1/chat/completions", {"model": "tiny", "messages": HELLO, "stream": stream})
    assert said.status_code == (status if status in (400, 429) else 503)
    request_id = said.headers["x-goblin-request-id"]
    written = eventually(lambda: receipt(url, request_id).status_code == 200 and receipt(url, request_id).text)
    for text in (said.text, str(said.headers), written):
        assert secret not in text.lower()
        assert encoded[:24] not in text


class TestErrors:
    def test_a_wrong_key(self, url: str) -> None:
        client = openai.OpenAI(api_key="sk-wrong", base_url=f"{url}/v1", max_retries=0)
        with pytest.raises(openai.AuthenticationError) as caught:
            client.chat.completions.create(model="tiny", messages=HELLO)
        assert caught.value.code == "invalid_api_key"
        for path in ("/v1/models", "/v1/models/tiny", "/providers", "/metrics", "/requests/x"):
            assert httpx.get(url + path).status_code == 401

    def test_an_unknown_model(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="made-up", messages=HELLO)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
            ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
            ({"temperature": 3}, "temperature"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"n": "two"}, "n"),
            ({"model": ""}, "model"),
            ({"goblin": {"strategy": "cheapest"}}, "goblin.strategy"),
            ({"goblin": {"strtegy": "failover"}}, "goblin"),
        ],
    )
    def test_a_field_that_makes_no_sense_is_named(self, url: str, change: dict[str, Any], param: str) -> None:
        answer = post(url, "/v1/chat/completions", {"model": "tiny", "messages": HELLO} | change)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"messages": HELLO}, "model"),
            ({"model": "tiny"}, "messages"),
            ({"model": "tiny", "messages": [{}]}, "messages[0].role"),
        ],
    )
    def test_a_missing_field_is_named(self, url: str, body: dict[str, Any], param: str) -> None:
        error = post(url, "/v1/chat/completions", body).json()["error"]
        assert (error["param"], error["code"]) == (param, "missing_required_parameter")

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"a":' * 100_000])
    def test_what_is_not_a_json_object_is_400(self, url: str, body: bytes) -> None:
        answer = post(url, "/v1/chat/completions", body)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"

    def test_a_body_without_end_is_413(self, url: str) -> None:
        big = b'{"model": "' + b"x" * (10 << 20) + b'"}'
        assert post(url, "/v1/chat/completions", big).status_code == 413

        def pieces() -> Iterator[bytes]:
            for _ in range(11):
                yield b"x" * (1 << 20)

        answer = httpx.post(f"{url}/v1/chat/completions", content=pieces(), headers=AUTHORIZED, timeout=20)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"

    def test_a_providers_finding_is_the_callers_error(self, client: openai.OpenAI, fakes: Fakes) -> None:
        said = {"code": 400, "message": "too long", "type": "exceed_context_size_error", "n_ctx": 8}
        fakes.llamacpp.script = Script(status=400, error={"error": said})
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="tiny", messages=HELLO)
        assert caught.value.code == "context_length_exceeded"

    def test_a_limit_reached_everywhere(self, client: openai.OpenAI, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(status=429, error={"error": {"message": "slow"}}, headers={"retry-after": "7"})
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        assert caught.value.response.headers["retry-after"] == "7"
        assert caught.value.response.headers["x-goblin-attempts"] == "1"

    @pytest.mark.parametrize("status", [500, 503, 401])
    def test_a_provider_that_fails_is_503_and_keeps_its_words_to_itself(
        self, client: openai.OpenAI, fakes: Fakes, status: int
    ) -> None:
        fakes.llamacpp.script = Script(status=status, error={"error": {"message": "secret sk-123"}})
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="tiny", messages=HELLO)
        assert caught.value.status_code == 503
        assert "secret" not in str(caught.value)

    def test_a_model_nobody_can_tell_about_is_503_and_not_404(self, client: openai.OpenAI, fakes: Fakes) -> None:
        fakes.llamacpp.loading = True
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="tiny", messages=HELLO)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "5"
        assert "gcp_llamacpp answered 503 (loading)" in str(caught.value)

    @pytest.mark.parametrize("script", [Script(break_after=2), Script(error_after=2), Script(finish=None)])
    def test_a_cut_stream_ends_with_an_error_and_never_with_done(
        self, client: openai.OpenAI, url: str, fakes: Fakes, script: Script
    ) -> None:
        fakes.llamacpp.script = replace(script)
        heard = []
        with pytest.raises(openai.APIError) as caught:
            heard.extend(chunk for chunk in client.chat.completions.create(model="tiny", messages=HELLO, stream=True))
        assert caught.value.code == "stream_cut"
        raw = post(url, "/v1/chat/completions", {"model": "tiny", "messages": HELLO, "stream": True})
        assert events(raw)[-1]["error"]["code"] == "stream_cut"
        assert "CUDA" not in raw.text

    def test_a_cut_answer_that_was_not_streamed_is_503(self, client: openai.OpenAI, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(break_after=2)
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="tiny", messages=HELLO)

    def test_unknown_paths_and_methods_in_openais_shape(self, url: str) -> None:
        gone = httpx.get(f"{url}/v1/nothing")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
        wrong = httpx.get(f"{url}/v1/chat/completions")
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "invalid_request_error")
        assert wrong.headers["allow"] == "POST"


class TestLeaving:
    def test_a_caller_who_hangs_up_stops_the_generation(self, client: openai.OpenAI, url: str, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(silent_after=1)
        stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        request_id = stream.response.headers["x-goblin-request-id"]
        assert any(chunk.choices[0].delta.content for chunk in iter(stream.__next__, None))
        stream.close()
        assert fakes.llamacpp.left.wait(10), "the provider still generates"
        written = eventually(lambda: (r := receipt(url, request_id)).status_code == 200 and r.json())
        assert (written["outcome"], written["attempts"][0]["outcome"]) == ("left", "left")

    @pytest.mark.parametrize("stream", [True, False])
    def test_hanging_up_before_the_first_token_stops_it_too(self, url: str, fakes: Fakes, stream: bool) -> None:
        fakes.llamacpp.script = Script(silent_after=0)
        body = {"model": "tiny", "messages": HELLO, "stream": stream}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/chat/completions", json=body, headers=AUTHORIZED, timeout=0.5)
        assert fakes.llamacpp.left.wait(10), "the provider still generates"


class TestOnce:
    """`Idempotency-Key`."""

    BODY: ClassVar[Any] = {"model": "tiny", "messages": HELLO}

    @pytest.mark.parametrize("stream", [True, False])
    def test_the_same_request_is_answered_once(self, url: str, fakes: Fakes, stream: bool) -> None:
        body = self.BODY | {"stream": stream}
        one, two = (post(url, "/v1/chat/completions", body, **{"idempotency-key": "k1"}) for _ in range(2))
        assert (two.status_code, two.content) == (200, one.content)
        assert len(fakes.llamacpp.asked) == 1
        assert "idempotent-replayed" not in one.headers
        assert two.headers["idempotent-replayed"] == "true"
        assert two.headers["x-goblin-request-id"] == one.headers["x-goblin-request-id"]
        assert two.headers["content-type"] == one.headers["content-type"]

    def test_another_request_under_the_key_is_409(self, url: str) -> None:
        assert post(url, "/v1/chat/completions", self.BODY, **{"idempotency-key": "k2"}).status_code == 200
        other = post(url, "/v1/chat/completions", self.BODY | {"seed": 1}, **{"idempotency-key": "k2"})
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")

    def test_an_error_is_not_kept(self, url: str, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(status=400, error={"error": {"message": "x"}})
        assert post(url, "/v1/chat/completions", self.BODY, **{"idempotency-key": "k3"}).status_code == 400
        fakes.llamacpp.script = Script()
        assert post(url, "/v1/chat/completions", self.BODY, **{"idempotency-key": "k3"}).status_code == 200

    def test_hanging_up_stops_the_generation_here_too(self, url: str, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(silent_after=1)
        headers = AUTHORIZED | {"idempotency-key": "k4"}
        body = self.BODY | {"stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=20) as response:
            next(response.iter_bytes())
        assert fakes.llamacpp.left.wait(10), "the provider still generates"
        fakes.llamacpp.script = Script()

        def answered() -> httpx.Response | None:
            answer = post(url, "/v1/chat/completions", body, **{"idempotency-key": "k4"})
            return answer if answer.status_code == 200 else None

        assert "Wörld" in eventually(answered).text


class TestCache:
    def test_a_deterministic_answer_is_given_again(self, url: str, fakes: Fakes) -> None:
        body = {"model": "tiny", "messages": HELLO, "temperature": 0}
        one = post(url, "/v1/chat/completions", body)
        assert one.headers["x-goblin-cache"] == "miss"
        two = post(url, "/v1/chat/completions", body | {"stream": True})
        assert (two.headers["x-goblin-cache"], two.headers["x-goblin-provider"]) == ("hit", "cache")
        *chunks, done = events(two)
        assert done == "[DONE]"
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text == one.json()["choices"][0]["message"]["content"]
        assert len(fakes.llamacpp.asked) == 1

    def test_an_answer_left_to_chance_is_not(self, url: str) -> None:
        for _ in range(2):
            answer = post(url, "/v1/chat/completions", {"model": "tiny", "messages": HELLO})
            assert answer.headers["x-goblin-cache"] == "skip"


class TestKeys:
    @pytest.fixture
    def limit(self, firestore: Any) -> Callable[..., dict[str, str]]:
        def key(name: str, **fields: Any) -> dict[str, str]:
            said = {"name": name, "disabled": False, "created_at": datetime.now(UTC), **fields}
            firestore.collection("keys").document(digest_of(name)).set(said)
            return {"authorization": f"Bearer {name}"}

        return key

    def test_a_key_is_for_its_models(self, url: str, fakes: Fakes, limit: Callable[..., dict[str, str]]) -> None:
        fakes.llamacpp.models = ["tiny", "big"]
        key = limit("sk-tiny", models=["tiny"])
        answer = post(url, "/v1/chat/completions", {"model": "big", "messages": HELLO}, **key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_allowed")
        assert post(url, "/v1/chat/completions", {"model": "tiny", "messages": HELLO}, **key).status_code == 200
        listed = httpx.get(f"{url}/v1/models", headers=key).json()["data"]
        assert [model["id"] for model in listed] == ["tiny"]

    def test_a_key_is_good_for_what_it_is_for(self, url: str, limit: Callable[..., dict[str, str]]) -> None:
        key = limit("sk-inference", scopes=["inference"])
        assert httpx.get(f"{url}/v1/models", headers=key).status_code == 200
        for path in ("/providers", "/metrics"):
            assert httpx.get(url + path, headers=key).status_code == 403
        operator = limit("sk-operator", scopes=["operate"])
        assert httpx.get(f"{url}/metrics", headers=operator).status_code == 200
        body = {"model": "tiny", "messages": HELLO}
        assert post(url, "/v1/chat/completions", body, **operator).status_code == 403

    def test_a_rate_is_told_so_that_the_sdk_can_wait(self, url: str, limit: Callable[..., dict[str, str]]) -> None:
        key = limit("sk-slow", rate_per_minute=1)
        body = {"model": "tiny", "messages": HELLO}
        assert post(url, "/v1/chat/completions", body, **key).status_code == 200
        answer = post(url, "/v1/chat/completions", body, **key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 50 <= int(answer.headers["retry-after"]) <= 60

    def test_a_key_has_only_so_many_requests_under_way(
        self, url: str, fakes: Fakes, limit: Callable[..., dict[str, str]]
    ) -> None:
        key = limit("sk-one", parallel_max=1)
        fakes.llamacpp.script = Script(silent_after=1)
        body = {"model": "tiny", "messages": HELLO, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=key, timeout=20) as response:
            coming = response.iter_bytes()  # Held, or the connection would be closed with it.
            next(coming)
            refused = post(url, "/v1/chat/completions", body, **key)
            assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
            assert int(refused.headers["retry-after"]) >= 1
            assert post(url, "/v1/chat/completions", body | {"model": "made-up"}).status_code == 404
        fakes.llamacpp.script = Script()
        assert eventually(lambda: post(url, "/v1/chat/completions", body, **key).status_code == 200)

    def test_too_many_messages_are_413(self, url: str) -> None:
        answer = post(url, "/v1/chat/completions", {"model": "tiny", "messages": HELLO * 2049})
        assert (answer.status_code, answer.json()["error"]["param"]) == (413, "messages")


class TestSeveralEndpoints:
    @pytest.fixture
    def url(
        self,
        serve_function: Callable[[str], str],
        served_fakes: tuple[Fakes, dict[str, str]],
        fakes: Fakes,
        api_keys: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> str:
        for name, value in served_fakes[1].items():
            monkeypatch.setenv(name, value)
        return serve_function("gateway")

    def test_the_next_one_answers_when_the_first_cannot(self, client: openai.OpenAI, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(status=503, error={"error": {"message": "Loading model"}})
        raw = client.chat.completions.with_raw_response.create(
            model="tiny", messages=HELLO, extra_headers={"x-goblin-strategy": "failover"}
        )
        assert raw.headers["x-goblin-provider"] == "gcp_ollama"
        assert raw.headers["x-goblin-attempts"] == "2"
        assert raw.parse().choices[0].message.content == "Hello, Wörld 🌍"

    def test_the_caller_may_pin_a_provider(self, client: openai.OpenAI) -> None:
        for pin, served in (("openai", "openai_compatible"), ("gcp_ollama", "gcp_ollama")):
            raw = client.chat.completions.with_raw_response.create(
                model="tiny", messages=HELLO, extra_body={"goblin": {"provider": pin}}
            )
            assert raw.headers["x-goblin-provider"] == served

    def test_ollamas_words_arrive_as_openais(self, client: openai.OpenAI, fakes: Fakes) -> None:
        fakes.ollama.script = Script(words=[])
        fakes.ollama.tool_calls = [{"name": "add", "arguments": {"a": 1}}]
        answer = client.chat.completions.create(
            model="tiny",
            messages=HELLO,
            tools=[{"type": "function", "function": {"name": "add"}}],
            extra_body={"goblin": {"provider": "ollama"}},
        )
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.tool_calls is not None
        assert answer.choices[0].message.tool_calls[0].id.startswith("call_")
        assert fakes.ollama.asked[-1]["options"]["num_ctx"] == 8192
        assert fakes.ollama.asked[-1]["keep_alive"] == "5m"

    def test_every_endpoint_is_listed_even_before_it_was_looked_at(self, url: str) -> None:
        listed = httpx.get(f"{url}/providers", headers=AUTHORIZED).json()
        assert list(listed) == ["gcp_llamacpp", "gcp_ollama", "openai_compatible"]
        assert {row["status"] for row in listed.values()} == {"unknown"}
        assert listed["gcp_ollama"]["reason"] == "not checked yet"


class TestKeysOfOneTenant:
    def test_a_key_hears_no_stored_answer_of_a_model_that_it_may_not_ask(self, url: str, firestore: Any) -> None:
        """Neither by `Idempotency-Key` nor from the cache, although both belong to the tenant."""
        for name, models in (("wide", None), ("narrow", ["other"])):
            said = {"name": name, "disabled": False, "created_at": datetime.now(UTC), "tenant": "t", "models": models}
            firestore.collection("keys").document(digest_of(f"sk-{name}")).set(said)
        body = {"model": "tiny", "messages": HELLO, "temperature": 0}
        for extra in ({"idempotency-key": "same"}, {}):
            wide = {**extra, "authorization": "Bearer sk-wide"}
            for status in (200, 200):
                assert post(url, "/v1/chat/completions", body, **wide).status_code == status
            answer = post(url, "/v1/chat/completions", body, **{**extra, "authorization": "Bearer sk-narrow"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_allowed")
            assert answer.headers["x-goblin-cache"] == "skip"

    def test_an_attempts_key_asks_its_items_models_within_its_askers_limits(self, url: str, firestore: Any) -> None:
        keys, made = firestore.collection("keys"), {"disabled": False, "created_at": datetime.now(UTC)}
        attempt = {**made, "name": "job:j", "scopes": ["inference"], "models": ["tiny", "dear"]}
        keys.document(digest_of("attempt")).set({**attempt, "asker": digest_of("ann")})
        keys.document(digest_of("orphan")).set({**attempt, "asker": digest_of("nobody")})
        keys.document(digest_of("ann")).set({**made, "name": "ann", "models": ["tiny", "big"]})
        said: dict[str, Any] = {"messages": HELLO}

        def ask(model: str, token: str = "attempt") -> tuple[int, str | None]:
            answer = post(url, "/v1/chat/completions", {**said, "model": model}, authorization=f"Bearer {token}")
            return answer.status_code, None if answer.is_success else answer.json()["error"]["code"]

        assert ask("tiny") == (200, None)
        assert ask("dear") == (403, "model_not_allowed"), "its asker may not"
        assert ask("big") == (403, "model_not_allowed"), "no item names it"
        assert ask("tiny", "orphan") == (401, "asker_refused")


class TestOperators:
    def test_health_needs_no_key_and_asks_nobody(self, url: str, fakes: Fakes) -> None:
        answer = httpx.get(f"{url}/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "ok")
        assert fakes.llamacpp.paths == []

    def test_metrics_count_by_names_that_callers_cannot_make_up(self, client: openai.OpenAI, url: str) -> None:
        client.chat.completions.create(model="tiny", messages=HELLO)
        for number in range(3):
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model=f"made-up-{number}", messages=HELLO)

        def counted() -> str | None:
            text = httpx.get(f"{url}/metrics", headers=AUTHORIZED).text
            wanted = 'inference_requests_total{model="unknown",outcome="model_not_found",provider="none"} 3.0'
            return text if wanted in text else None

        text = eventually(counted)
        assert 'inference_requests_total{model="tiny",outcome="ok",provider="gcp_llamacpp"} 1.0' in text
        assert 'inference_latency_seconds_count{model="tiny",outcome="ok",provider="gcp_llamacpp"} 1.0' in text
        assert "made-up" not in text

    def test_neither_can_providers(self, url: str, fakes: Fakes) -> None:
        body = {"model": "tiny", "messages": HELLO}
        assert post(url, "/v1/chat/completions", {"model": "tiny"}).status_code == 400
        for number in range(3):
            fakes.llamacpp.script = Script(status=400, error={"error": {"message": "x", "code": f"odd_{number}"}})
            assert post(url, "/v1/chat/completions", body).json()["error"]["code"] == f"odd_{number}"

        def counted() -> str | None:
            text = httpx.get(f"{url}/metrics", headers=AUTHORIZED).text
            wanted = 'inference_requests_total{model="tiny",outcome="invalid_request",provider="none"} 3.0'
            return text if wanted in text else None

        text = eventually(counted)
        assert 'inference_requests_total{model="unknown",outcome="invalid_request",provider="none"} 1.0' in text
        assert "odd_" not in text

    def test_failed_attempts_are_counted(self, client: openai.OpenAI, url: str, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(status=500, error={"error": {"message": "x"}})
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="tiny", messages=HELLO)
        wanted = 'provider_errors_total{model="tiny",outcome="transient",provider="gcp_llamacpp"} 3.0'
        assert eventually(lambda: wanted in httpx.get(f"{url}/metrics", headers=AUTHORIZED).text)


def test_the_gateway_imports_no_library_that_its_requests_do_not_need() -> None:
    code = "import functions.gateway, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "google.cloud.pubsub_v1",
        "google.cloud.storage",
        "google.cloud.secretmanager",
        "numpy",
        "mlflow",
        "llama_cpp",
    }
    assert not heavy & set(loaded)
