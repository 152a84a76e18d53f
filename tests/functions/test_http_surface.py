"""The gateway's HTTP: addresses that clients make, Azure's client, web pages of other origins, packed bodies, beats."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from goblin.wiring import process
from tests.fakes.openai_like import Script
from tests.fakes.serving import serve
from tests.functions.conftest import API_KEY, Fakes

HELLO: Any = [{"role": "user", "content": "Hi"}]
ASKED: Any = {"model": "tiny", "messages": HELLO}
AUTHORIZED = {"authorization": f"Bearer {API_KEY}"}
PAGE = "https://chat.example.com"
ROUTES = (
    "POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings", "POST /v1/responses",
    "POST /v1/messages", "POST /v1/messages/count_tokens", "GET /v1/models", "GET /health", "POST /api/chat",
)  # fmt: skip


def post(url: str, path: str, body: Any = ASKED, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(url + path, content=content, headers=AUTHORIZED | headers, timeout=20)


class TestAddresses:
    @pytest.mark.parametrize("base", ["", "/", "/v1", "/v1/", "/v1/v1", "/openai/v1", "/api/v1", "/openai"])
    def test_the_openai_sdk_with_any_base_url(self, url: str, base: str) -> None:
        with openai.OpenAI(api_key=API_KEY, base_url=url + base, max_retries=0, timeout=20) as client:
            assert [model.id for model in client.models.list()] == ["tiny"]
            answer = client.chat.completions.create(model="tiny", messages=HELLO)
            assert answer.choices[0].message.content == "Hello, Wörld 🌍"
            chunks = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, Wörld 🌍"
            assert client.models.retrieve("tiny").id == "tiny"

    @pytest.mark.parametrize("base", ["", "/v1", "/anthropic", "/anthropic/v1"])
    def test_the_anthropic_sdk_with_any_base_url(self, url: str, base: str) -> None:
        with anthropic.Anthropic(api_key=API_KEY, base_url=url + base, max_retries=0, timeout=20) as client:
            answer = client.messages.create(model="tiny", max_tokens=9, messages=HELLO)
            assert answer.content[0].type == "text"

    @pytest.mark.parametrize("path", ["/chat/completions", "/v1/v1/chat/completions/", "//v1/chat/completions"])
    def test_another_spelling_opens_no_other_door(self, url: str, path: str) -> None:
        assert httpx.post(url + path, json=ASKED).status_code == 401
        first, second = (post(url, where, **{"idempotency-key": "k"}) for where in (path, "/v1/chat/completions"))
        assert second.headers["idempotent-replayed"] == "true"
        assert first.json() == second.json()

    @pytest.mark.parametrize("path", ["/v1/images/edits", "/v1", "/", "/v2/chat/completions", "/v1/audio/speech", "/x"])
    def test_an_unknown_api_names_what_is_there(self, url: str, path: str) -> None:
        answer = post(url, path)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"]) == (404, "invalid_request_error", "not_found")
        assert error["message"].startswith(f"POST {path} is not served here.")
        assert "/v1/chat/completions, /v1/completions" in error["message"]

    def test_a_misspelled_one_is_told_the_right_one(self, url: str) -> None:
        message = post(url, "/v1/chat/completion").json()["error"]["message"]
        assert "Did you mean /v1/chat/completions" in message
        assert len(post(url, "/" + "x" * 20_000).json()["error"]["message"]) < 2000

    @pytest.mark.parametrize(
        ("method", "path"), [("GET", "/v1/completions"), ("DELETE", "/models"), ("PUT", "/health")]
    )
    def test_a_wrong_method_is_told_the_right_one(self, url: str, method: str, path: str) -> None:
        answer = httpx.request(method, url + path, headers=AUTHORIZED)
        right = "POST" if path.endswith("completions") else "GET"
        assert (answer.status_code, answer.headers["allow"]) == (405, right)
        assert answer.json()["error"]["message"].endswith(f"Send {right}.")


class TestAzure:
    @pytest.fixture
    def client(self, url: str) -> Iterator[openai.AzureOpenAI]:
        with openai.AzureOpenAI(
            azure_endpoint=url, api_key=API_KEY, api_version="2024-10-21", max_retries=0, timeout=20
        ) as client:
            yield client

    def test_its_client_works_unmodified(self, client: openai.AzureOpenAI) -> None:
        answer = client.chat.completions.create(model="tiny", messages=HELLO)
        assert answer.choices[0].message.content == "Hello, Wörld 🌍"
        chunks = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, Wörld 🌍"
        assert client.completions.create(model="tiny", prompt="Once").choices[0].text == "Hello, Wörld 🌍"
        assert client.embeddings.create(model="tiny", input="a").data[0].embedding == [0.0, 0.5, -1.0]
        assert client.responses.create(model="tiny", input="Hi").output_text == "Hello, Wörld 🌍"
        assert [model.id for model in client.models.list()] == ["tiny"]

    def test_the_deployment_in_the_path_is_the_model(self, url: str, fakes: Fakes) -> None:
        fakes.llamacpp.models = ["tiny", "org/big:q4"]
        with openai.AzureOpenAI(
            azure_endpoint=url,
            azure_deployment="org/big:q4",
            api_key=API_KEY,
            api_version="1",
            max_retries=0,
            timeout=20,
        ) as client:
            assert client.chat.completions.create(model="gpt-4o", messages=HELLO).model == "org/big:q4"
        assert fakes.llamacpp.asked[-1]["model"] == "org/big:q4"
        bare = httpx.post(
            f"{url}/openai/deployments/tiny/chat/completions?api-version=2024-10-21",
            json={"messages": HELLO}, headers={"api-key": API_KEY}, timeout=20,
        )  # fmt: skip
        assert (bare.status_code, bare.json()["model"]) == (200, "tiny")

    def test_its_errors(self, url: str, client: openai.AzureOpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="made-up", messages=HELLO)
        assert caught.value.code == "model_not_found"
        path = "/openai/deployments/tiny/chat/completions"
        assert httpx.post(url + path, json=ASKED, headers={"api-key": "wrong"}).status_code == 401
        assert httpx.post(url + path, json=ASKED).status_code == 401
        assert post(url, path, b"[]").status_code == 400
        assert post(url, "/openai/deployments/tiny/images/edits").status_code == 404


class TestOrigins:
    @pytest.fixture
    def origins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GOBLIN_CORS_ORIGINS", f"{PAGE}, http://localhost:3000")

    @pytest.fixture
    def open_url(self, origins: None, url: str) -> str:
        process.settings.cache_clear()
        return url

    def preflight(self, url: str, path: str, origin: str = PAGE, method: str = "POST") -> httpx.Response:
        asked = {
            "origin": origin,
            "access-control-request-method": method,
            "access-control-request-headers": "authorization,content-type,x-stainless-os",
        }
        return httpx.options(url + path, headers=asked, timeout=20)

    @pytest.mark.parametrize("route", ROUTES)
    @pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
    def test_a_preflight_needs_no_key(self, open_url: str, route: str, origin: str) -> None:
        method, path = route.split()
        answer = self.preflight(open_url, path, origin, method)
        assert answer.status_code == 204
        said = answer.headers
        assert said["access-control-allow-origin"] == origin
        assert method in said["access-control-allow-methods"]
        assert said["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
        assert "access-control-allow-credentials" not in said
        assert "Origin" in said["vary"]

    @pytest.mark.parametrize(
        "origin",
        ["https://evil.example", "null", f"{PAGE}.evil.example", f"{PAGE}:444", "http://chat.example.com", "*"],
    )
    def test_other_pages_may_not(self, open_url: str, origin: str) -> None:
        refused = self.preflight(open_url, "/v1/chat/completions", origin)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "origin_not_allowed")
        answer = post(open_url, "/v1/chat/completions", origin=origin)
        for response in (refused, answer):
            assert not [name for name in response.headers if name.startswith("access-control-")]
            assert response.headers["vary"] == "Origin"

    def test_a_page_reads_answers_streams_and_errors(self, open_url: str) -> None:
        whole = post(open_url, "/v1/chat/completions", origin=PAGE)
        stream = post(open_url, "/v1/chat/completions", ASKED | {"stream": True}, origin=PAGE)
        wrong = post(open_url, "/v1/chat/completions", {}, origin=PAGE)
        gone = post(open_url, "/v1/nothing", origin=PAGE)
        keyless = httpx.post(f"{open_url}/v1/chat/completions", json=ASKED, headers={"origin": PAGE})
        models = httpx.get(f"{open_url}/v1/models", headers=AUTHORIZED | {"origin": PAGE})
        assert [r.status_code for r in (whole, stream, wrong, gone, keyless, models)] == [200, 200, 400, 404, 401, 200]
        for response in (whole, stream, wrong, gone, keyless, models):
            assert response.headers["access-control-allow-origin"] == PAGE
            assert "x-goblin-request-id" in response.headers["access-control-expose-headers"]
            assert response.headers["vary"] == "Origin"
        assert stream.text.endswith("data: [DONE]\n\n")

    def test_the_host_of_jobs_allows_them_too(
        self, origins: None, serve_function: Callable[[str], str], api_keys: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GOBLIN_BUCKET", "nothing-is-read-here")
        monkeypatch.setenv("GOBLIN_URL", "http://goblin")
        url = serve_function("jobs")
        assert self.preflight(url, "/jobs").headers["access-control-allow-origin"] == PAGE
        keyless = httpx.get(f"{url}/jobs", headers={"origin": PAGE}, timeout=20)
        assert (keyless.status_code, keyless.headers["access-control-allow-origin"]) == (401, PAGE)
        wrong = httpx.put(f"{url}/jobs", headers={"origin": PAGE}, timeout=20)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, POST")

    def test_without_origins_nothing_is_said(self, url: str) -> None:
        assert self.preflight(url, "/v1/chat/completions").status_code == 405
        answer = post(url, "/v1/chat/completions", origin=PAGE)
        assert not [name for name in answer.headers if name.startswith("access-control-") or name == "vary"]

    def test_a_misspelled_origin_is_told(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GOBLIN_CORS_ORIGINS", "*")
        process.settings.cache_clear()
        answer = post(url, "/v1/chat/completions")
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "bad_configuration")


class TestPackedBodies:
    @staticmethod
    def packed(encoding: str, body: bytes) -> bytes:
        if encoding == "gzip":
            return gzip.compress(body)
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        made: bytes = zstd.compress(body)
        return made

    @pytest.mark.parametrize("encoding", ["gzip", "zstd"])
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/chat/completions", ASKED),
            ("/v1/completions", {"model": "tiny", "prompt": "Once"}),
            ("/v1/embeddings", {"model": "tiny", "input": "a"}),
            ("/v1/messages", ASKED | {"max_tokens": 9}),
            ("/v1/messages/count_tokens", ASKED),
            ("/v1/responses", {"model": "tiny", "input": "Hi"}),
            ("/openai/deployments/tiny/chat/completions", {"messages": HELLO}),
        ],
    )
    def test_every_route_unpacks(self, url: str, encoding: str, path: str, body: Any) -> None:
        answer = post(url, path, self.packed(encoding, json.dumps(body).encode()), **{"content-encoding": encoding})
        assert answer.status_code == 200, answer.text

    @pytest.mark.parametrize("encoding", ["gzip", "zstd"])
    def test_a_bomb_is_413_and_damage_is_400(self, url: str, encoding: str) -> None:
        bomb = self.packed(encoding, b" " * (64 << 20))
        assert len(bomb) < 1 << 20
        said = {"content-encoding": encoding}
        assert post(url, "/v1/chat/completions", bomb, **said).status_code == 413
        assert post(url, "/v1/chat/completions", b"not packed", **said).json()["error"]["code"] == "invalid_encoding"

    def test_another_encoding_is_415(self, url: str) -> None:
        assert post(url, "/v1/chat/completions", b"{}", **{"content-encoding": "br"}).status_code == 415


class TestHeartbeats:
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
    def test_the_status_goes_out_while_the_model_is_silent(self, url: str, fakes: Fakes, path: str) -> None:
        fakes.llamacpp.script = Script(silent_after=0)
        body = {**ASKED, "input": "Hi", "max_tokens": 9, "stream": True}
        asked = AUTHORIZED | {"x-goblin-heartbeat": "1"}
        with httpx.stream("POST", url + path, json=body, headers=asked, timeout=20) as stream:
            assert (stream.status_code, stream.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            assert "x-goblin-request-id" in stream.headers
            first = next(stream.iter_text())
        assert first == ('event: ping\ndata: {"type":"ping"}\n\n' if path == "/v1/messages" else ": ping\n\n")
        assert fakes.llamacpp.left.wait(10)

    def test_a_header_that_makes_no_sense_is_400(self, url: str) -> None:
        answer = post(url, "/v1/chat/completions", ASKED | {"stream": True}, **{"x-goblin-heartbeat": "soon"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-goblin-heartbeat")


class TestOllama:
    """The wire; that the official client reads it was tried with ollama-python 0.6.3 on 2026-12-01."""

    def test_a_chat_streams_by_default(self, url: str) -> None:
        answer = post(url, "/api/chat")
        assert answer.headers["content-type"] == "application/x-ndjson"
        rows = [json.loads(line) for line in answer.text.splitlines()]
        assert "".join(row["message"]["content"] for row in rows) == "Hello, Wörld 🌍"
        assert [row["done"] for row in rows] == [False] * 5 + [True]
        assert (rows[-1]["prompt_eval_count"], rows[-1]["eval_count"], rows[-1]["done_reason"]) == (11, 5, "stop")

    def test_whole_answers_under_either_name_of_the_model(self, url: str, fakes: Fakes) -> None:
        for model in ("tiny", "tiny:latest"):
            chat = post(url, "/api/chat", ASKED | {"model": model, "stream": False}).json()
            assert (chat["model"], chat["message"]["content"]) == (model, "Hello, Wörld 🌍")
            assert fakes.llamacpp.asked[-1]["model"] == "tiny"
            said = {"model": model, "prompt": "Once", "stream": False}
            assert post(url, "/api/generate", said).json()["response"] == "Hello, Wörld 🌍"
            assert post(url, "/api/generate", said | {"raw": True}).json()["response"] == "Hello, Wörld 🌍"
            assert fakes.llamacpp.paths[-1] == "/v1/completions"
            vectors = post(url, "/api/embed", {"model": model, "input": ["a", "b"]}).json()
            assert vectors["embeddings"] == [[0.0, 0.5, -1.0], [1.0, 0.5, -1.0]]
            assert post(url, "/api/embeddings", {"model": model, "prompt": "a"}).json() == {
                "embedding": [0.0, 0.5, -1.0]
            }
            shown = post(url, "/api/show", {"model": model}).json()
            assert {"completion", "tools", "embedding"} <= set(shown["capabilities"])

    def test_options_reach_the_model_and_the_rest_is_named(self, url: str, fakes: Fakes) -> None:
        options = {"temperature": 0.5, "top_k": 7, "num_predict": 9, "num_ctx": 4096}
        answer = post(url, "/api/chat", ASKED | {"options": options, "keep_alive": -1})
        sent = fakes.llamacpp.asked[-1]
        assert (sent["temperature"], sent["top_k"], sent["max_tokens"]) == (0.5, 7, 9)
        assert answer.headers["x-goblin-dropped"] == "options.num_ctx, keep_alive"

    def test_lists_and_loading_cost_nothing(self, url: str, fakes: Fakes) -> None:
        headers = AUTHORIZED
        tags = httpx.get(f"{url}/api/tags", headers=headers).json()
        assert [row["name"] for row in tags["models"]] == ["tiny:latest"]
        loaded = httpx.get(f"{url}/api/ps", headers=headers).json()
        assert [row["name"] for row in loaded["models"]] == ["tiny:latest"]
        assert httpx.get(f"{url}/api/version").json()["version"].count(".") == 2
        assert post(url, "/api/chat", {"model": "tiny"}).json()["done_reason"] == "load"
        assert post(url, "/api/generate", {"model": "tiny", "keep_alive": 0}).json()["done_reason"] == "unload"
        assert fakes.llamacpp.asked == []

    def test_errors_in_its_words(self, url: str, fakes: Fakes) -> None:
        keyless = httpx.post(f"{url}/api/chat", json=ASKED)
        assert (keyless.status_code, "OLLAMA_API_KEY" in keyless.json()["error"]) == (401, True)
        assert (httpx.get(f"{url}/api/tags").status_code, httpx.get(f"{url}/api/ps").status_code) == (401, 401)
        for path, body in (("/api/chat", {"messages": HELLO}), ("/api/generate", {"prompt": "x"}), ("/api/show", {})):
            for model in ({"model": "made-up"}, {"model": "made-up:latest"}):
                answer = post(url, path, body | model)
                assert (answer.status_code, type(answer.json()["error"])) == (404, str), path
        assert post(url, "/api/chat", {"model": "made-up"}).status_code == 404
        assert post(url, "/api/chat", b"[]").status_code == 400
        gone = post(url, "/api/pull", {"model": "tiny"})
        assert (gone.status_code, "/api/chat" in gone.json()["error"]["message"]) == (404, True)
        fakes.llamacpp.script = Script(break_after=2)
        *_, last = post(url, "/api/chat").text.splitlines()
        assert "broke off" in json.loads(last)["error"]


class TestTokenIds:
    @pytest.mark.parametrize("ids", [[1, 2, 3], [[1, 2], [3]]])
    def test_a_model_with_another_tokenizer_gets_none(self, url: str, fakes: Fakes, ids: Any) -> None:
        answer = post(url, "/v1/embeddings", {"model": "tiny", "input": ids})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "unsupported_by_endpoints")
        assert "tokenizer" in error["message"]
        assert "send text" in error["message"]
        assert fakes.llamacpp.asked == []


RANKED: Any = {"model": "tiny", "query": "q", "documents": ["a", "b"]}
CONFIGURED = """
[[endpoints]]
name = "ranks"
provider = "llamacpp"
url = "{url}"
models = ["tiny"]
capabilities = ["rerank", "images", "transcriptions"]
{price}
"""


class TestPassedRoutes:
    """Rerank and images reach endpoints that declare them; nothing is sent where no price covers it."""

    @pytest.fixture
    def server(self) -> Iterator[tuple[str, list[Any]]]:
        heard: list[Any] = []

        async def answer(request: Request) -> Response:
            if request.url.path.startswith("/v1/audio"):
                heard.append((request.url.path, await request.body()))
                text = b'"verbose_json"' not in heard[-1][1] and b"\r\nsrt\r\n" in heard[-1][1]
                return PlainTextResponse("1\nHello") if text else JSONResponse({"text": "Hello"})
            heard.append((request.url.path, await request.json()))
            if request.url.path.endswith("rerank"):
                rows = [{"index": 0, "relevance_score": 0.1}, {"index": 1, "relevance_score": 0.9}]
                return JSONResponse({"object": "list", "results": rows, "usage": {"total_tokens": 100}})
            return JSONResponse({"created": 1, "data": [{"b64_json": "AA=="}]})

        with serve(Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])) as url:
            yield url, heard

    @pytest.fixture
    def at(
        self,
        server: tuple[str, list[Any]],
        serve_function: Callable[[str], str],
        api_keys: None,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Callable[[str], str]:
        def configured(price: str) -> str:
            (tmp_path / "goblin.toml").write_text(CONFIGURED.format(url=server[0], price=price))
            monkeypatch.setenv("GOBLIN_CONFIG", str(tmp_path / "goblin.toml"))
            return serve_function("gateway")

        return configured

    def test_documents_are_ranked(self, at: Callable[[str], str], server: tuple[str, list[Any]]) -> None:
        url = at('bills = "no"')
        for path in ("/v1/rerank", "/rerank"):
            answer = post(url, path, RANKED | {"top_n": 1})
            assert answer.status_code == 200
            assert answer.json()["results"] == [{"index": 1, "relevance_score": 0.9}]
            assert answer.headers["x-goblin-provider"] == "ranks"
        assert server[1][0] == ("/v1/rerank", RANKED | {"top_n": 1})

    def test_tokens_are_paid_for(self, at: Callable[[str], str]) -> None:
        url = at("price_input_usd_micros_per_mtok = 1_000_000\nprice_output_usd_micros_per_mtok = 0")
        answer = post(url, "/v1/rerank", RANKED)
        assert (answer.status_code, answer.headers["x-goblin-cost-usd"]) == (200, "0.000100")

    def test_images_are_free_or_refused(self, at: Callable[[str], str], server: tuple[str, list[Any]]) -> None:
        said = {"model": "tiny", "prompt": "A goblin"}
        url = at('bills = "no"')
        with openai.OpenAI(api_key=API_KEY, base_url=f"{url}/v1", max_retries=0, timeout=20) as client:
            made = client.images.generate(**said)
        assert made.data is not None
        assert made.data[0].b64_json == "AA=="
        sent = len(server[1])
        url = at("price_input_usd_micros_per_mtok = 1\nprice_output_usd_micros_per_mtok = 1")
        refused = post(url, "/v1/images/generations", said)
        assert (refused.status_code, refused.json()["error"]["code"]) == (402, "price_unknown")
        unpriced = post(at(""), "/v1/rerank", RANKED)
        assert (unpriced.status_code, unpriced.json()["error"]["code"]) == (402, "price_unknown")
        assert len(server[1]) == sent

    def test_recordings_are_written_down_or_refused(
        self, at: Callable[[str], str], server: tuple[str, list[Any]]
    ) -> None:
        sound = ("a.wav", b"RIFF\x00\xff\r\n--not the end\x80", "audio/wav")
        url = at('bills = "no"')
        with openai.OpenAI(api_key=API_KEY, base_url=f"{url}/v1", max_retries=0, timeout=20) as client:
            made = client.audio.transcriptions.create(model="tiny", file=sound, language="de")
            assert made.text == "Hello"
            path, form = server[1][-1]
            assert path == "/v1/audio/transcriptions"
            assert sound[1] in form
            assert b"\r\ntiny\r\n" in form
            with pytest.deprecated_call():
                assert client.audio.translations.create(model="tiny", file=sound).text == "Hello"
            subtitles = client.audio.transcriptions.create(model="tiny", file=sound, response_format="srt")
            assert str(subtitles) == "1\nHello"
            with pytest.raises(openai.BadRequestError) as caught:
                client.audio.transcriptions.create(model="tiny", file=sound, stream=True)
            assert caught.value.param == "stream"
            with pytest.raises(openai.NotFoundError):
                client.audio.transcriptions.create(model="made-up", file=sound)
        sent = len(server[1])
        url = at("price_input_usd_micros_per_mtok = 1\nprice_output_usd_micros_per_mtok = 1")
        with openai.OpenAI(api_key=API_KEY, base_url=f"{url}/v1", max_retries=0, timeout=20) as client:
            with pytest.raises(openai.APIStatusError) as refused:
                client.audio.transcriptions.create(model="tiny", file=sound)
            assert (refused.value.status_code, refused.value.code) == (402, "price_unknown")
        assert post(url, "/v1/audio/transcriptions", b"{}").status_code == 400
        assert len(server[1]) == sent

    def test_what_no_endpoint_has_is_400_and_what_is_missing_is_named(self, url: str) -> None:
        for path, body in (("/v1/rerank", RANKED), ("/v1/images/generations", {"model": "tiny", "prompt": "x"})):
            answer = post(url, path, body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_by_endpoints")
            assert "not among its capabilities" in answer.json()["error"]["message"]
        missing = post(url, "/v1/rerank", {"model": "tiny", "query": "q"}).json()["error"]
        assert (missing["param"], missing["code"]) == ("documents", "missing_required_parameter")
        speech = post(url, "/v1/audio/speech", b"")
        assert (speech.status_code, "/v1/audio/transcriptions" in speech.json()["error"]["message"]) == (404, True)
