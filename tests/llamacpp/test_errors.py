"""What is refused, in the shape OpenAI's client understands; and nothing a client sends ends the process."""

import httpx
import openai
import pytest

from .conftest import Running, Start

HELLO = [{"role": "user", "content": "Hello"}]


def post(server: Running, path: str, **kwargs) -> httpx.Response:
    with server.http() as http:
        return http.post(path, **kwargs)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias[...]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"grammar": 'root ::= "a"{5,2}'}, "grammar"),
        ({"grammar": 'root ::= root | "a"'}, "grammar"),
        ({"grammar": 'a ::= "b"'}, "grammar"),
        ({"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000}, "grammar"),
    ],
)
def test_a_wrong_parameter_is_named(server, client, change, param):
    body = {"model": "goblin-tiny", "messages": HELLO} | change
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", body=body, cast_to=object)
    assert refused.value.param == param
    assert refused.value.body["type"] == "invalid_request_error"
    assert refused.value.body["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"messages": NaN}', b"[" * 100_000, b'"\\ud800"'])
def test_what_is_no_json_object_is_refused(server, body):
    response = post(server, "/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_missing_messages_are_named(server):
    error = post(server, "/v1/chat/completions", json={"model": "goblin-tiny"}).json()["error"]
    assert error["param"] == "messages"
    assert error["code"] == "missing_required_parameter"


def test_another_models_name_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize("words", [160_000, 500_000])
def test_a_prompt_beyond_the_window_is_refused_with_the_numbers(client, words):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="goblin-tiny", messages=[{"role": "user", "content": "owl " * words}])
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.type == "exceed_context_size_error"
    assert refused.value.body["n_ctx"] == 131072
    assert refused.value.body["n_prompt_tokens"] > 131072


def test_thousands_of_control_words_are_refused_before_they_take_minutes(server):
    """llama.cpp's time grows with the square of their number."""
    words = "<|im_end|>" * 200_000
    assert post(server, "/tokenize", json={"content": words}).status_code == 400
    assert post(server, "/v1/completions", json={"prompt": words}).status_code == 400
    chat = {"messages": [{"role": "user", "content": words}]}
    assert post(server, "/v1/chat/completions", json=chat).status_code == 400


def test_unknown_paths_and_methods_answer_in_the_same_shape(server):
    with server.http() as http:
        assert http.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
        assert http.get("/v1/chat/completions").status_code == 405


def test_a_body_beyond_the_bound_is_refused(start: Start):
    with start("--body-bytes-max", "1000") as server:
        response = post(server, "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x" * 2000}]})
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"


def test_a_grammar_without_a_way_on_fails_its_request_only(server, client):
    """Accepting a token against a grammar would end the process."""
    dead = r'root ::= "a" [b-a]'
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="goblin-tiny", messages=HELLO, extra_body={"grammar": dead}, max_tokens=20)
    assert refused.value.code == "generation_failed"
    assert client.chat.completions.create(model="goblin-tiny", messages=HELLO, max_tokens=2).usage


def test_an_error_in_the_middle_of_a_stream_is_an_event_and_no_done_follows(server):
    body = {"messages": HELLO, "stream": True, "grammar": r'root ::= "aaaaaaaaaaaaaaaaaaaaaaa" [b-a]'}
    text = post(server, "/v1/chat/completions", json=body).text
    assert '"generation_failed"' in text
    assert "[DONE]" not in text


@pytest.mark.parametrize("prompt", [[], "", [-1], [1024], [2**31], [[1], [2]], ["a", "b"], [1, "a"]])
def test_prompts_that_llama_cpp_could_not_survive_are_refused(server, prompt):
    response = post(server, "/v1/completions", json={"prompt": prompt, "max_tokens": 1})
    assert response.status_code == 400
    assert server.process.poll() is None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 10**9},
        {"type": "array", "items": {"type": "string"}, "minItems": 5, "maxItems": 2},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#/$defs/missing"},
        {"type": "wizard"},
        {
            "$defs": {f"r{i}": {"anyOf": [{"$ref": f"#/$defs/r{i + 1}"}] * 2} for i in range(60)}
            | {"r60": {"type": "null"}},
            "$ref": "#/$defs/r0",
        },
        {"properties": {"a": 5}},
    ],
)
def test_schemas_that_would_hang_or_can_not_be_followed_are_refused(server, schema):
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    response = post(server, "/v1/chat/completions", json={"messages": HELLO, "response_format": given})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "invalid_schema"


def test_without_the_key_only_the_probes_answer(start: Start, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first-key\nsecond-key\n")
    with start("--api-key-file", str(keys)) as server:
        with server.client(key="wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with server.http() as http:
            assert http.get("/metrics").status_code == 401
            assert http.get("/health/live").status_code == 200
            assert http.get("/v1/models", headers={"X-Api-Key": "second-key"}).status_code == 200
        with server.client(key="first-key") as client:
            assert client.models.list().data
