"""Completions, embeddings, tokens, and the pages operators look at."""

import base64
import math
import struct

import httpx
import pytest

from goblin_llamacpp import __main__ as command_line

from .conftest import Running, Start

PROMPT = "<|im_start|>user\nWhat is Goblin?<|im_end|>\n<|im_start|>assistant\n"


def test_a_completion_of_text_and_of_its_tokens_say_the_same(client, server: Running):
    with server.http() as http:
        tokens = http.post("/tokenize", json={"content": PROMPT}).json()["tokens"]
    as_text = client.completions.create(model="goblin-tiny", prompt=PROMPT, temperature=0)
    as_tokens = client.completions.create(model="goblin-tiny", prompt=tokens, temperature=0)
    assert as_text.object == "text_completion"
    assert "Goblin" in as_text.choices[0].text
    assert as_text.choices[0].text == as_tokens.choices[0].text
    assert as_text.usage.prompt_tokens == len(tokens)


def test_a_streamed_completion_adds_up(client):
    whole = client.completions.create(model="goblin-tiny", prompt=PROMPT, temperature=0)
    chunks = list(client.completions.create(model="goblin-tiny", prompt=PROMPT, temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_completion_logprobs_have_their_old_shape(client):
    answer = client.completions.create(model="goblin-tiny", prompt=PROMPT, temperature=0, logprobs=2, max_tokens=4)
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 4
    assert logprobs.text_offset[0] == 0


def test_embeddings_are_unit_vectors_and_alike_for_like_texts(client):
    texts = ["the cat sees a red fox", "the cat sees a blue fox", "12 + 7 = 19"]
    result = client.embeddings.create(model="goblin-tiny", input=texts, encoding_format="float")
    vectors = [entry.embedding for entry in result.data]
    assert [entry.index for entry in result.data] == [0, 1, 2]
    assert all(len(vector) == 256 for vector in vectors)
    assert all(math.isclose(sum(x * x for x in vector), 1, rel_tol=1e-4) for vector in vectors)

    def likeness(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert likeness(vectors[0], vectors[1]) > likeness(vectors[0], vectors[2])
    assert result.usage.prompt_tokens == result.usage.total_tokens > 0


def test_an_embedding_does_not_depend_on_its_company(client):
    texts = [f"{word} and more" for word in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")]
    together = client.embeddings.create(model="goblin-tiny", input=texts, encoding_format="float").data
    for text, entry in zip(texts, together, strict=True):
        alone = client.embeddings.create(model="goblin-tiny", input=text, encoding_format="float").data[0]
        assert entry.embedding == pytest.approx(alone.embedding, abs=2e-3)


def test_base64_embeddings_are_the_same_numbers(server: Running):
    with server.http() as http:
        plain = http.post("/v1/embeddings", json={"input": "hello"}).json()["data"][0]["embedding"]
        coded = http.post("/v1/embeddings", json={"input": "hello", "encoding_format": "base64"}).json()
    data = base64.b64decode(coded["data"][0]["embedding"])
    assert struct.unpack(f"<{len(plain)}f", data) == pytest.approx(plain)


@pytest.mark.parametrize("given", [[], "", [""], [[]], [5000], [["a"]], [1, "a"], ["a " * 3000]])
def test_inputs_that_can_not_be_embedded_are_refused(server: Running, given):
    with server.http() as http:
        assert http.post("/v1/embeddings", json={"input": given}).status_code == 400


def test_tokens_and_text_are_each_others_inverse(server: Running):
    text = "Grüße, 世界 👋 <|im_end|>"
    with server.http() as http:
        tokens = http.post("/tokenize", json={"content": text}).json()["tokens"]
        assert http.post("/detokenize", json={"tokens": tokens}).json()["content"] == text
        pieces = http.post("/tokenize", json={"content": "hi", "with_pieces": True}).json()["tokens"]
        assert "".join(piece["piece"] for piece in pieces) == "hi"
        assert http.post("/detokenize", json={"tokens": [1024]}).status_code == 400


def test_props_and_slots_show_settings_but_nobodys_words(server: Running, client):
    client.chat.completions.create(model="goblin-tiny", messages=[{"role": "user", "content": "my secret"}])
    with server.http() as http:
        props = http.get("/props").json()
        assert props["total_slots"] == 8
        assert "<|im_start|>" in props["chat_template"]
        slots = http.get("/slots")
        assert len(slots.json()) == 8
        assert "secret" not in slots.text


def test_metrics_have_llama_servers_names(server: Running, client):
    before = server.metric("tokens_predicted_total")
    usage = client.chat.completions.create(model="goblin-tiny", messages=[{"role": "user", "content": "Hello"}]).usage
    assert server.metric("tokens_predicted_total") == before + usage.completion_tokens
    for name in ("prompt_tokens_total", "prompt_seconds_total", "n_decode_total", "n_busy_slots_per_decode"):
        assert server.metric(name) > 0
    assert server.metric("requests_processing") == 0
    assert server.metric("requests_deferred") == 0


def test_slots_are_hidden_unless_shown(start: Start):
    with start("--slots-endpoint", "off") as server, server.http() as http:
        assert http.get("/slots").status_code == 501


OURS = frozenset({"127.0.0.1", "localhost", "[::1]"})


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("127.0.0.1", OURS), ("localhost", OURS), ("::1", OURS), ("127.0.0.2", OURS | {"127.0.0.2"}), ("0.0.0.0", None),
        ("::", None), ("10.0.0.1", None), ("gpu.example", None),
    ],
)  # fmt: skip
def test_a_server_that_only_this_machine_reaches_has_the_names_of_this_machine(host: str, names):
    assert command_line._names(host) == names


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/v1/chat/completions", "/models/load"])
def test_no_page_of_a_browser_is_answered(server: Running, path: str):
    port = server.url.rpartition(":")[2]
    for host in (f"evil.example:{port}", "localhost.", "127.0.0.1.nip.io"):
        for method in ("GET", "POST"):
            answer = httpx.request(method, f"{server.url}{path}", headers={"host": host}, json={})
            assert (answer.status_code, answer.json()["error"]["code"]) == (421, "wrong_host")
    for page in ({"origin": "https://evil"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        for method in ("GET", "POST", "OPTIONS"):
            answer = httpx.request(method, f"{server.url}{path}", headers=page, json={})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "wrong_origin")


def test_a_body_is_bounded_in_depth(server: Running):
    deep = '{"model": ' + "[" * 2000 + "]" * 2000 + "}"
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=deep)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "nested_too_deeply")
