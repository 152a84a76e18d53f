"""Fakes of all providers, by the endpoint's name in `goblin.toml`, and the environment that selects them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.fakes.anthropic import FakeAnthropic
from tests.fakes.flyio import FakeFly
from tests.fakes.groq import FakeGroq
from tests.fakes.ollama import FakeOllama
from tests.fakes.openai_like import FakeOpenAI
from tests.fakes.runpod import FakeRunPod
from tests.fakes.vastai import FakeVast

FAKES: dict[str, Callable[[], Any]] = {
    "gcp_ollama": FakeOllama,
    "fly_chat": FakeFly,
    "runpod_serverless": FakeRunPod,
    "vast_servers": FakeVast,
    "anthropic": FakeAnthropic,
    "groq": FakeGroq,
    "openai_compatible": FakeOpenAI,
}
_PRICES = "price_input_usd_micros_per_mtok = 1\nprice_output_usd_micros_per_mtok = 1\n"


def variables(fakes: Mapping[str, Any]) -> dict[str, str]:
    """The environment that points `goblin.toml` as it is at running fakes."""
    return {
        "OLLAMA_URL": fakes["gcp_ollama"].url,
        "FLY_CHAT_URL": fakes["fly_chat"].url,
        "RUNPOD_ENDPOINT_URL": fakes["runpod_serverless"].url,
        "RUNPOD_API_KEY": "k",
        "RUNPOD_MODEL": "tiny",
        "VAST_API_URL": fakes["vast_servers"].url,
        "VASTAI_API_KEY": "vast-account",
        "VAST_SERVER_KEY": "k",
        "VAST_SERVER_LABEL": "chat",
        "ANTHROPIC_BASE_URL": fakes["anthropic"].url,
        "ANTHROPIC_API_KEY": "k",
        "GROQ_BASE_URL": fakes["groq"].url,
        "GROQ_API_KEY": "k",
        "OPENAI_BASE_URL": fakes["openai_compatible"].url,
        "OPENAI_API_KEY": "k",
    }


def priced() -> str:
    """`goblin.toml` as it is, with a price for the model of the fakes where the vendor would bill."""
    text = (Path(__file__).parents[2] / "goblin.toml").read_text()
    for name in ("anthropic", "groq", "openai_compatible"):
        text = text.replace(f'[[endpoints]]\nname = "{name}"\n', f'[[endpoints]]\nname = "{name}"\n{_PRICES}')
    return text
