"""Anthropic's turns and blocks in OpenAI's words: nothing is lost that can be said, and OpenAI's API takes it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.errors import InvalidRequest
from goblin.gateway.domain.requests import ChatRequest
from goblin.web import anthropic_requests
from tests.fakes.openai_like import wrong_chat


def parse(**more: Any) -> ChatRequest:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}], **more}
    return anthropic_requests.parse(json.dumps(body).encode())


def messages(*turns: tuple[str, Any], **more: Any) -> list[dict[str, Any]]:
    """The translation of turns, which OpenAI's API takes."""
    asked = parse(messages=[{"role": role, "content": content} for role, content in turns], **more)
    assert wrong_chat(asked.body) is None
    found: list[dict[str, Any]] = asked.body["messages"]
    return found


def user(*blocks: Any) -> Any:
    """The content of the only message that a user's blocks make."""
    (message,) = messages(("user", list(blocks)))
    return message["content"]


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def use(call_id: str, name: str = "add", **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": name, "input": given}


def result(call_id: str, content: Any = "2", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **more}


PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
SEEN = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


class TestBlocks:
    @pytest.mark.parametrize(
        ("block", "said"),
        [
            ({"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "citations": None}, "a"),
            ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "abc"}}, "abc"),
            (
                {
                    "type": "document",
                    "title": "Minutes",
                    "context": "Of May.",
                    "source": {"type": "text", "media_type": "text/plain", "data": "abc"},
                    "citations": {"enabled": True},
                },
                "Minutes\nOf May.\nabc",
            ),
            ({"type": "document", "source": {"type": "content", "content": "abc"}}, "abc"),
            ({"type": "document", "source": {"type": "content", "content": [text("a"), text("b")]}}, "ab"),
            (
                {
                    "type": "document",
                    "source": {
                        "type": "base64",
                        "media_type": "text/plain",
                        "data": base64.b64encode("wörd".encode()).decode(),
                    },
                },
                "wörd",
            ),
            ({"type": "document", "source": {"type": "url", "url": "https://x/a.pdf"}}, "https://x/a.pdf"),
            ({"type": "document", "source": {"type": "file", "file_id": "file_1"}}, "file_1"),
            ({"type": "image", "source": {"type": "file", "file_id": "file_2"}}, "file_2"),
            ({"type": "container_upload", "file_id": "file_3"}, "container"),
            (
                {"type": "search_result", "source": "https://x", "title": "X", "content": [text("found")]},
                "X — https://x\nfound",
            ),
            ({"type": "block_of_next_year", "text": "new"}, "new"),
            ({"type": "block_of_next_year", "content": [text("new")]}, "new"),
        ],
    )
    def test_what_has_words_is_said(self, block: dict[str, Any], said: str) -> None:
        content = user(text("Look: "), block)
        found = content if isinstance(content, str) else "".join(part["text"] for part in content)
        assert said in found

    def test_images_and_files_are_parts(self) -> None:
        pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}
        link = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
        content = user({"type": "image", "source": PNG}, link, pdf, {**pdf, "title": "Bill"})
        assert content[0] == SEEN
        assert content[1] == {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
        assert [part["file"]["filename"] for part in content[2:]] == ["document.pdf", "Bill.pdf"]
        assert content[2]["file"]["file_data"] == "data:application/pdf;base64,JVBERi0="

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("2", "2"),
            ("", ""),
            (None, ""),
            ([], ""),
            ([text("a"), text("b")], "ab"),
            ([{"type": "tool_reference", "tool_name": "mcp__x__y"}], "[Tool: mcp__x__y]"),
            ([{"type": "document", "source": {"type": "text", "data": "abc"}}], "abc"),
            ([{"type": "search_result", "source": "s", "title": "t", "content": [text("c")]}], "t — s\nc"),
        ],
    )
    def test_results_of_tools(self, content: Any, said: str) -> None:
        made = messages(("user", "Hi"), ("assistant", [use("t1")]), ("user", [result("t1", content)]))
        assert made[-1] == {"role": "tool", "tool_call_id": "t1", "content": said}

    def test_a_result_without_content_and_one_that_failed(self) -> None:
        no_content = {"type": "tool_result", "tool_use_id": "t1"}
        made = messages(
            ("user", "Hi"),
            ("assistant", [use("t1"), use("t2")]),
            ("user", [no_content, result("t2", "no such file", is_error=True)]),
        )
        assert [message["content"] for message in made[-2:]] == ["", "Error: no such file"]

    def test_an_image_in_a_result_joins_the_users_words(self) -> None:
        blocks = [result("t1", [text("seen"), {"type": "image", "source": PNG}]), text("What?")]
        made = messages(("user", "Hi"), ("assistant", [use("t1")]), ("user", blocks))
        assert made[-2]["content"] == "seen"
        assert made[-1]["content"] == [SEEN, {"type": "text", "text": "What?"}]

    def test_what_a_servers_tools_did_is_told(self) -> None:
        turn = [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "xyz"},
            {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {"query": "goblins"}},
            {
                "type": "web_search_tool_result",
                "tool_use_id": "srv_1",
                "content": [
                    {"type": "web_search_result", "title": "Goblin", "url": "https://g", "encrypted_content": "zz"}
                ],
            },
            {
                "type": "bash_code_execution_tool_result",
                "tool_use_id": "srv_2",
                "content": {"type": "bash_code_execution_result", "stdout": "out", "stderr": "", "return_code": 0},
            },
            {"type": "mcp_tool_use", "id": "m1", "name": "ask", "server_name": "s", "input": {}},
            {"type": "mcp_tool_result", "tool_use_id": "m1", "is_error": False, "content": [text("told")]},
            text("So it is."),
        ]
        made = messages(("user", "Hi"), ("assistant", turn), ("user", "Go on."))
        said = made[1]["content"]
        for part in ("goblins", "Goblin — https://g", "out", "told", "So it is."):
            assert part in said
        assert not {"hm", "xyz", "zz"} & set(said.split())

    def test_a_turn_of_thoughts_alone_is_left_out(self) -> None:
        thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
        made = messages(("user", "Hi"), ("assistant", [thought]), ("user", "So?"))
        assert [message["role"] for message in made] == ["user", "user"]

    def test_a_turn_of_nothing_that_is_known_names_it(self) -> None:
        said = parse(messages=[{"role": "user", "content": [{"type": "smell", "strength": 3}]}])
        assert isinstance(said.untranslated, InvalidRequest)
        assert said.untranslated.param == "messages[0].content[0].type"
        beside = parse(messages=[{"role": "user", "content": [{"type": "smell"}, text("Hi")]}])
        assert beside.left_out == ("content[smell]",)


class TestConversations:
    def test_system_messages_keep_their_place(self) -> None:
        made = messages(
            ("user", "Hi"), ("system", "Be brief."), ("assistant", "Yes."), ("system", [text("In rhyme.")]),
            system=[text("You help."), {**text("Always."), "cache_control": {"type": "ephemeral"}}],
        )  # fmt: skip
        assert made == [
            {"role": "system", "content": "You help.\n\nAlways."},
            {"role": "user", "content": "Hi"},
            {"role": "system", "content": "Be brief."},
            {"role": "assistant", "content": "Yes."},
            {"role": "system", "content": "In rhyme."},
        ]

    def test_between_a_call_and_its_result_there_is_nothing(self) -> None:
        made = messages(
            ("user", "Hi"),
            ("assistant", [use("t1"), use("t2")]),
            ("system", "Note."),
            ("user", [text("Wait."), result("t2", "b")]),
            ("user", [result("t1", "a"), text("Now.")]),
        )
        assert [(message["role"], message.get("content")) for message in made[2:]] == [
            ("tool", "b"),
            ("tool", "a"),
            ("system", "Note."),
            ("user", "Wait."),
            ("user", "Now."),
        ]

    def test_a_call_without_a_result_gets_one_and_a_result_without_a_call_is_told(self) -> None:
        made = messages(
            ("user", [result("gone", "old")]), ("assistant", [use("t1")]), ("assistant", "So."), ("user", "Stop.")
        )
        assert [message["role"] for message in made] == ["user", "assistant", "tool", "assistant", "user"]
        assert "old" in made[0]["content"]
        assert "interrupted" in made[2]["content"]
        assert messages(("user", "Hi"), ("assistant", [use("t1")]))[-1]["role"] == "tool"

    def test_empty_words_are_left_out(self) -> None:
        made = messages(
            ("user", [text(""), text("Hi"), text("  \n")]),
            ("assistant", [text(" "), use("t1")]),
            ("user", [result("t1")]),
            ("assistant", ""),
            ("user", None),
            ("user", "So?"),
        )
        assert made[0] == {"role": "user", "content": "Hi"}
        assert made[1]["content"] is None
        assert [message["role"] for message in made] == ["user", "assistant", "tool", "user"]

    def test_long_names_and_odd_ids_are_narrowed_alike_everywhere(self) -> None:
        name, call_id = "mcp__" + "n" * 90, "functions.add:0" + "9" * 60
        made = messages(
            ("user", "Hi"), ("assistant", [use(call_id, name)]), ("user", [result(call_id)]),
            tools=[{"name": name, "input_schema": {}}], tool_choice={"type": "tool", "name": name},
        )  # fmt: skip
        call = made[1]["tool_calls"][0]
        assert made[2]["tool_call_id"] == call["id"]
        asked = parse(tools=[{"name": name, "input_schema": {}}], tool_choice={"type": "tool", "name": name})
        (tool,) = asked.body["tools"]
        assert tool["function"]["name"] == call["function"]["name"] == asked.body["tool_choice"]["function"]["name"]
        assert anthropic_requests.tool_names([{"name": name}]) == {call["function"]["name"]: name}

    @pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"properties": {}}, {"type": None}, {"type": "array"}])
    def test_a_tools_schema_is_an_object(self, schema: dict[str, Any]) -> None:
        (tool,) = parse(tools=[{"name": "a", "input_schema": schema}]).body["tools"]
        assert tool["function"]["parameters"] == {"type": "object", "properties": {}}

    def test_a_user_is_hashed_where_the_field_is_narrower(self) -> None:
        long = json.dumps({"device_id": "d" * 64, "account_uuid": "", "session_id": "s" * 36})
        hashed = parse(metadata={"user_id": long}).body["user"]
        assert len(hashed) == 64
        assert (
            hashed
            == parse(metadata={"user_id": long}).body["user"]
            != parse(metadata={"user_id": long + "x"}).body["user"]
        )
        assert parse(metadata={"user_id": "u" * 64}).body["user"] == "u" * 64
        assert "user" not in parse(metadata={"user_id": None}).body
        assert "user" not in parse(metadata={}).body

    def test_what_has_no_place_is_named(self) -> None:
        asked = parse(
            thinking={"type": "adaptive"}, context_management={"edits": []}, output_config={"effort": "high"},
            tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}], top_k=None,
            tool_choice={"type": "tool", "name": "web_search"},
        )  # fmt: skip
        assert asked.left_out == (
            "thinking",
            "context_management",
            "output_config.effort",
            "tools[web_search_20250305]",
        )
        assert not {"tools", "tool_choice", "thinking"} & set(asked.body)
        assert "web_search_20250305" in asked.body["messages"][0]["content"]

    def test_words_for_a_vendors_billing_are_not_for_the_model(self) -> None:
        made = messages(
            ("user", "Hi"), system=[text("x-anthropic-billing-header: cc_version=2; cch=1;"), text("Help.")]
        )
        assert made[0] == {"role": "system", "content": "Help."}


_TEXTS = st.sampled_from(["", " ", "\n\t", "a", " b "])
_IDS = st.sampled_from(["t1", "t2", "functions.x:0", "t" * 50, ""])
_BLOCKS = st.one_of(
    st.builds(text, _TEXTS),
    st.builds(lambda call_id, content, failed: result(call_id, content, is_error=failed), _IDS, _TEXTS, st.booleans()),
    st.sampled_from(
        [
            {"type": "image", "source": PNG},
            {"type": "thinking", "thinking": "x", "signature": ""},
            {"type": "document", "source": {"type": "url", "url": "https://x"}},
            {"type": "unknown"},
        ]
    ),
)
_ASSISTANTS = st.one_of(
    st.builds(text, _TEXTS),
    st.builds(use, st.sampled_from(["t1", "t2", "functions.x:0", "t" * 50])),
    st.sampled_from(
        [{"type": "thinking", "thinking": "x", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}]
    ),
)
_TURNS = st.one_of(
    st.tuples(st.just("user"), st.one_of(_TEXTS, st.none(), st.lists(_BLOCKS, max_size=4))),
    st.tuples(st.just("assistant"), st.one_of(_TEXTS, st.none(), st.lists(_ASSISTANTS, max_size=4))),
    st.tuples(st.just("system"), _TEXTS),
)


@given(st.lists(_TURNS, min_size=1, max_size=8))
def test_whatever_was_said_openais_api_takes_it_or_the_caller_is_told(turns: list[tuple[str, Any]]) -> None:
    try:
        made = messages(*turns)
    except InvalidRequest as error:
        made = [{"refused": error.param}]
    assert made
    assert made[0].get("refused", "messages").startswith("messages")
