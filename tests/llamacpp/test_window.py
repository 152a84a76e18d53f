"""Prompts longer than the context of a model that has a window."""

from __future__ import annotations

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin_llamacpp.context import EngineSettings
from goblin_llamacpp.errors import ApiError
from goblin_llamacpp.gguf import Header
from goblin_llamacpp.prompts import _fit

COUNT = {"role": "user", "content": "Count from 1 to 9."}
LONG = "You are a coding assistant. Use the tools that you have been given, and be careful with every file. " * 300


@pytest.mark.parametrize("times", [1, 10])
def test_an_agent_s_first_request_is_answered(client: openai.OpenAI, times: int) -> None:
    """Of six thousand tokens, and of sixty thousand."""
    chat = client.chat.completions.create(
        model="goblin-tiny",
        messages=[{"role": "system", "content": LONG * times}, COUNT],
        temperature=0,
        max_tokens=200,
    )
    assert chat.choices[0].message.content
    assert chat.choices[0].finish_reason in ("stop", "length")
    assert chat.usage is not None
    assert chat.usage.prompt_tokens + chat.usage.completion_tokens <= 1024


def test_a_short_prompt_is_answered_as_ever(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model="goblin-tiny", messages=[COUNT], temperature=0)
    assert chat.choices[0].message.content == "1, 2, 3, 4, 5, 6, 7, 8, 9."


def test_the_models_list_says_how_long_a_prompt_may_be(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.model_extra is not None
    assert model.model_extra["meta"]["n_ctx"] == 131072
    assert model.model_extra["meta"]["n_ctx_train"] == 1024


@given(st.integers(1, 3000), st.none() | st.integers(1, 3000), st.sampled_from([None, 2000]), st.integers(1, 1100))
def test_what_is_kept_fits_and_is_the_beginning_and_the_end(
    length: int, wanted: int | None, window: int | None, ctx: int
) -> None:
    prompt, sizes = list(range(length)), EngineSettings(ctx=ctx, cells=ctx, window=window)
    if length >= ctx and (ctx == 1 or window is None or length > window):
        with pytest.raises(ApiError) as refused:
            _fit(prompt, wanted, sizes)
        assert refused.value.code == "context_length_exceeded"
        return
    kept, room = _fit(prompt, wanted, sizes)
    assert 1 <= room <= (wanted or ctx)
    assert len(kept) >= 1
    assert len(kept) + room <= ctx
    if window is None or length + min(wanted or ctx, max(ctx // 8, 1)) <= ctx:
        assert kept == prompt
    assert sorted(kept) == kept
    assert kept[-1] == length - 1


@pytest.mark.parametrize(
    ("value", "window"), [(32768, 32768), (0, None), (-5, None), (2**40, None), ("9", None), (True, None), (None, None)]
)
def test_a_file_may_claim_no_odd_window(value: object, window: int | None) -> None:
    assert Header({"goblin.prompt_window": value}, 1, 1).prompt_window == window
