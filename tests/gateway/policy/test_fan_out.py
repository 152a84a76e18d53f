"""Which requests an endpoint is sent for one with several prompts or answers, and what the caller is told of usage."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from goblin.core.endpoints import ORDINARY, Capability, Endpoint, Price
from goblin.gateway.domain import requests
from goblin.gateway.domain.chat import Usage
from goblin.gateway.policy import fan_out
from goblin.gateway.policy.worst_case import CostBound, worst_case
from goblin.gateway.router import demand_of

BOTH = frozenset({Capability.CHOICES, Capability.PROMPTS})
PRICE = Price(input_usd_micros_per_mtok=1_000_000, output_usd_micros_per_mtok=1_000_000)


def endpoint(can: frozenset[Capability], **more: Any) -> Endpoint:
    return Endpoint(name="a", provider="p", url="http://x", capabilities=(ORDINARY - BOTH) | can, price=PRICE, **more)


def completion(**more: Any) -> requests.CompletionRequest:
    body = {"model": "m", "prompt": "a", "max_tokens": 5, **more}
    return requests.parse(requests.CompletionRequest, json.dumps(body).encode())


def chat(**more: Any) -> requests.ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, **more}
    return requests.parse(requests.ChatRequest, json.dumps(body).encode())


CAPABILITIES = st.sampled_from([frozenset(), *(frozenset({one}) for one in BOTH), BOTH])
TEXTS = st.text(alphabet="abc", min_size=1, max_size=3)
IDS = st.lists(st.integers(0, 99), min_size=1, max_size=3)
PROMPTS = TEXTS | IDS | st.lists(TEXTS, min_size=1, max_size=5) | st.lists(IDS, min_size=1, max_size=5)


@given(prompt=PROMPTS, n=st.none() | st.integers(1, 5), can=CAPABILITIES, seed=st.none() | st.integers(0, 9))
def test_every_index_is_answered_once_with_its_own_prompt(
    prompt: Any, n: int | None, can: frozenset[Capability], seed: int | None
) -> None:
    more = {"prompt": prompt} | ({} if n is None else {"n": n}) | ({} if seed is None else {"seed": seed})
    asked = completion(**more)
    prompts = requests.prompts_of(asked)
    parts = fan_out.split(asked, endpoint(can))
    if len(parts) == 1 and parts[0].request is asked:
        assert (n or 1) == 1 or Capability.CHOICES in can
        assert len(prompts) == 1 or Capability.PROMPTS in can
        return
    seen: dict[int, Any] = {}
    for part in parts:
        sent = part.request
        assert isinstance(sent, requests.CompletionRequest)
        assert len(requests.prompts_of(sent)) == 1
        assert (sent.n or 1) == part.choices == sent.body.get("n", 1)
        assert (sent.n or 1) == 1 or Capability.CHOICES in can
        assert sent.body["prompt"] == sent.prompt
        assert sent.body.get("seed") == sent.seed
        assert {**sent.body, "n": 0, "prompt": 0, "seed": 0} == {**asked.body, "n": 0, "prompt": 0, "seed": 0}
        for index in range(part.first_index, part.first_index + part.choices):
            assert index not in seen
            seen[index] = (sent.prompt, sent.seed)
    # OpenAI's order: all answers to the first prompt, then those to the next.
    assert [seen[index][0] for index in range(len(seen))] == [one for one in prompts for _ in range(n or 1)]
    assert sum(not part.repeats for part in parts) == len(prompts)
    if seed is not None and Capability.CHOICES not in can:
        assert [seen[index][1] for index in range(n or 1)] == [seed + copy for copy in range(n or 1)]


def test_a_chat_is_repeated_whole() -> None:
    asked = chat(n=3, temperature=0.5)
    first, *_, last = fan_out.split(asked, endpoint(frozenset()))
    assert isinstance(last.request, requests.ChatRequest)
    assert last.request.messages == asked.messages
    assert last.request.body == {name: value for name, value in asked.body.items() if name != "n"}
    assert (first.repeats, last.repeats, last.first_index) == (False, True, 2)


def test_what_the_adapter_lacks_is_not_sent() -> None:
    lacking = endpoint(BOTH, lacks={Capability.CHOICES: "one at a time"})
    assert len(fan_out.split(chat(n=3), lacking)) == 3


def test_the_best_of_several_stays_one_request() -> None:
    (part,) = fan_out.split(completion(n=2, best_of=4), endpoint(frozenset()))
    assert part.request.n == 2


def usage(asked: int, answered: int, **details: int) -> Usage:
    return Usage(
        prompt_tokens=asked,
        completion_tokens=answered,
        total_tokens=asked + answered,
        prompt_tokens_details=details or UNSET,
    )


def test_the_caller_is_told_each_prompt_once_and_the_bill_has_all() -> None:
    parts = fan_out.split(completion(prompt=["a", "b"], n=2), endpoint(frozenset()))
    used = [usage(5, 1, cached_tokens=1), usage(5, 2, cached_tokens=5), usage(7, 4), usage(7, 8)]
    assert fan_out.told_usage(dict(zip(parts, used, strict=True))) == usage(12, 15, cached_tokens=1)
    assert fan_out.added_usage(used) == usage(24, 15, cached_tokens=6)


def cost(request: requests.InferenceRequest, where: Endpoint) -> int:
    found = worst_case(request, where)
    assert isinstance(found, CostBound)
    return found.cost_usd_micros


@pytest.mark.parametrize("asked", [chat(n=4), completion(n=4), completion(prompt=["a", "b", "c"], n=3)])
def test_the_worst_case_covers_every_request(asked: Any) -> None:
    apart = endpoint(frozenset())
    parts = fan_out.split(asked, apart)
    prompts = len(requests.prompts_of(asked))
    assert cost(asked, apart) > cost(asked, endpoint(BOTH))
    # The answers in full, and more for each prompt than its text.
    assert cost(asked, apart) >= 5 * len(parts) + len(parts) * 64
    assert len(parts) == prompts * asked.n


def test_a_context_bounds_each_prompt_and_not_all_together() -> None:
    short = Price(input_usd_micros_per_mtok=1_000_000, output_usd_micros_per_mtok=0, context_tokens=100)
    for asked in (
        completion(prompt=["x" * 500] * 3),
        requests.parse(requests.EmbeddingsRequest, json.dumps({"model": "m", "input": ["x" * 500] * 3}).encode()),
    ):
        assert cost(asked, Endpoint(name="a", provider="p", url="http://x", price=short)) == 300
        assert demand_of(asked).prompt_tokens_min == demand_of(completion(prompt="x" * 500)).prompt_tokens_min


def test_the_router_knows_how_many_answers_are_paid() -> None:
    found = demand_of(completion(prompt=["a", "b"], n=3))
    assert (found.n, found.choices) == (3, 6)
    assert fan_out.readings(3, endpoint(frozenset())) == 3
    assert fan_out.readings(3, endpoint(BOTH)) == 1
