"""The environment and `goblin.toml`: what is read, and what is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from goblin.core.endpoints import Capability, Endpoint, Price
from goblin.core.redaction import redact
from goblin.gateway.domain.catalog import Strategy
from goblin.wiring import endpoints
from goblin.wiring.settings import BadConfiguration, Settings, read_catalog

MINIMAL = '[[endpoints]]\nname = "a"\nprovider = "openai"\nurl = "http://a"\n'


def test_the_environment_names_the_project_as_the_client_does_or_as_google_does() -> None:
    assert Settings.from_env({"GCS_PROJECT_ID": "p", "GOOGLE_CLOUD_PROJECT": "q"}).project == "p"
    assert Settings.from_env({"GOOGLE_CLOUD_PROJECT": "q"}).project == "q"
    assert Settings.from_env({}).region == "us-east1"


def test_what_the_environment_holds_in_secret_is_redacted_from_then_on() -> None:
    variables = ("OPENAI_API_KEY", "FLY_API_TOKEN", "VASTAI_WEBHOOK_SECRET", "SOME_PASSWORD")
    Settings.from_env({name: f"value-of-{name}-1234" for name in variables} | {"GCS_REGION": "us-east4-somewhere"})
    for name in variables:
        assert redact(f"no: value-of-{name}-1234") == "no: [redacted]"
    assert redact("us-east4-somewhere, secret:OPENAI_API_KEY") == "us-east4-somewhere, secret:OPENAI_API_KEY"


def test_callers_are_verified_unless_an_emulator_stands_beside() -> None:
    assert Settings.from_env({}).verify_callers == "on"
    assert Settings.from_env({"GOBLIN_VERIFY_CALLER": "iam"}).verify_callers == "iam"
    beside = {"GOBLIN_VERIFY_CALLER": "off", "PUBSUB_EMULATOR_HOST": "127.0.0.1:1"}
    assert Settings.from_env(beside).verify_callers == "off"
    with pytest.raises(BadConfiguration, match="PUBSUB_EMULATOR_HOST"):
        Settings.from_env({"GOBLIN_VERIFY_CALLER": "off"})
    with pytest.raises(BadConfiguration, match="GOBLIN_VERIFY_CALLER"):
        Settings.from_env({"GOBLIN_VERIFY_CALLER": "no"})


def test_no_secret_is_shown() -> None:
    settings = Settings.from_env({"OPENAI_BASE_URL": "http://o/v1", "OPENAI_API_KEY": "sk-secret"})
    assert settings.catalog().endpoints[0].api_key == "sk-secret"
    assert "sk-secret" not in repr(settings) + repr(settings.catalog())


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ({}, []),
        ({"LLAMACPP_URL": "http://l:8080"}, ["gcp_llamacpp"]),
        ({"LLAMACPP_URL": "", "OLLAMA_URL": "http://o:11434"}, ["gcp_ollama"]),
        ({"OPENAI_API_KEY": "sk"}, []),
        ({"OPENAI_BASE_URL": "http://x/v1", "LLAMACPP_URL": "http://l"}, ["gcp_llamacpp", "openai_compatible"]),
    ],
)
def test_an_endpoint_without_its_variables_is_not_configured(env: dict[str, str], names: list[str]) -> None:
    assert [endpoint.name for endpoint in Settings.from_env(env).catalog().endpoints] == names


def test_every_provider_that_the_file_names_exists() -> None:
    env = {"LLAMACPP_URL": "http://l", "OLLAMA_URL": "http://o", "OPENAI_BASE_URL": "http://x"}
    for endpoint in Settings.from_env(env).catalog().endpoints:
        assert endpoint.provider in endpoints.provider_names()


def test_everything_that_can_be_said() -> None:
    text = """
        [routing]
        strategy = "lowest_cost"
        attempts_max = 2
        first_token_timeout_s = 1.5
        between_tokens_timeout_s = 3

        [[endpoints]]
        name = "a"
        provider = "ollama"
        url = "https://${HOST}:1${PATH:-/x}"
        api_key = "${KEY:-}"
        models = ["m", "n"]
        capabilities = ["chat", "tools"]
        context_tokens = 4096
        price_input_usd_micros_per_mtok = 0
        price_output_usd_micros_per_mtok = 600000
        weight = 3
        parallel = 4
        first_token_prior_ms = 250
        prefill_prior_tokens_per_s = 900
        decode_prior_tokens_per_s = 20
        cold_start_prior_ms = 9000
        sleeps_after_s = 300
        price_usd_micros_per_hour = 700000
        external = true
        options = { keep_alive = "${KEEP:-5m}" }
    """
    catalog = read_catalog(text, {"HOST": "h"})
    assert catalog.routing.strategy is Strategy.LOWEST_COST
    assert (catalog.routing.attempts_max, catalog.routing.first_token_timeout_s) == (2, 1.5)
    assert catalog.endpoints == (
        Endpoint(
            name="a",
            provider="ollama",
            url="https://h:1/x",
            models=("m", "n"),
            capabilities=frozenset({Capability.CHAT, Capability.TOOLS}),
            context_tokens=4096,
            price=Price(input_usd_micros_per_mtok=0, output_usd_micros_per_mtok=600_000),
            weight=3,
            parallel=4,
            first_token_prior_ms=250,
            prefill_prior_tokens_per_s=900,
            decode_prior_tokens_per_s=20,
            cold_start_prior_ms=9000,
            sleeps_after_s=300,
            price_usd_micros_per_hour=700_000,
            external=True,
            options={"keep_alive": "5m"},
        ),
    )


def test_a_model_says_what_is_different_for_it() -> None:
    text = (
        MINIMAL
        + MINIMAL.replace('"a"', '"b"')
        + """
        [[endpoints]]
        name = "c"
        provider = "openai"
        url = "${NOT_SET}"

        [models."org/small"]
        strategy = "lowest_cost"
        deadline_ms = 900
        [models."org/small".endpoints]
        c = {}
        b = { upstream_model = "small:1b", weight = 7, cold_start_prior_ms = 5000, sleeps_after_s = 60 }
        a = {}

        [models.large]
        wake = false
    """
    )
    catalog = read_catalog(text, {})
    small = catalog.routing_of("org/small")
    assert (small.strategy, small.deadline_ms, small.attempts_max) == (Strategy.LOWEST_COST, 900, 3)
    b, a = catalog.endpoints_of("org/small")
    assert (b.name, b.upstream_model, b.weight, b.cold_start_prior_ms, b.sleeps_after_s) == (
        "b",
        "small:1b",
        7,
        5000,
        60,
    )
    assert a == catalog.endpoints[0]
    assert not catalog.routing_of("large").wake
    assert catalog.endpoints_of("large") == catalog.endpoints_of("another") == catalog.endpoints
    assert catalog.routing_of("another") == catalog.routing


def test_what_a_provider_knows_of_its_endpoint_holds_for_every_model() -> None:
    catalog = read_catalog(MINIMAL + "[models.m.endpoints]\na = { weight = 2 }", {})
    known = dataclasses.replace(catalog.endpoints[0], lacks={Capability.AUDIO: "deaf"}, api_key="k")
    (at_model,) = catalog.connected({"a": known}).endpoints_of("m")
    assert (at_model.weight, at_model.lacks, at_model.api_key) == (2, {Capability.AUDIO: "deaf"}, "k")


@pytest.mark.parametrize(("said", "external"), [("", True), ("external = false", False)])
def test_an_api_of_others_is_external_unless_it_says_otherwise(said: str, external: bool) -> None:
    assert read_catalog(MINIMAL + said, {}).endpoints[0].external is external
    assert not read_catalog(MINIMAL.replace("openai", "ollama"), {}).endpoints[0].external
    assert read_catalog(MINIMAL.replace("openai", "newcomer"), {}).endpoints[0].external, "unknown is external"


def test_an_unknown_price_is_absent() -> None:
    assert read_catalog(MINIMAL, {}).endpoints[0].price is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x = ", "goblin.toml"),
        ("strategy = 'failover'", "strategy"),
        ("[routing]\nstrategy = 'cheapest'", r"\$\.routing\.strategy"),
        ("[routing]\nfirst_token_timeout_s = 0", r"\$\.routing\.first_token_timeout_s"),
        ("endpoints = 3", r"\$\.endpoints"),
        (MINIMAL + "wieght = 1", "wieght"),
        (MINIMAL + "weight = -1", r"\$\.endpoints\[0\]\.weight"),
        (MINIMAL + "weight = 1.5", r"\$\.endpoints\[0\]\.weight"),
        (MINIMAL + "models = 'all'", r"\$\.endpoints\[0\]\.models"),
        (MINIMAL + "models = []", r"\$\.endpoints\[0\]\.models"),
        (MINIMAL + "capabilities = ['flying']", r"\$\.endpoints\[0\]\.capabilities"),
        (MINIMAL + "first_token_prior_ms = 0", r"\$\.endpoints\[0\]\.first_token_prior_ms"),
        (MINIMAL + "price_input_usd_micros_per_mtok = 1", "endpoint a"),
        (MINIMAL.replace("http://a", "ftp://a"), r"\$\.endpoints\[0\]\.url"),
        (MINIMAL.replace("http://a", "http://user:pw@a"), r"\$\.endpoints\[0\]\.url"),
        (MINIMAL + MINIMAL, "two endpoints are named a"),
        (MINIMAL + "[models.m]\nstrategy = 'best'", r"\$\.models\[\.\.\.\]\.strategy"),
        (MINIMAL + "[models.m.endpoints]\nz = {}", "names endpoints that do not exist: z"),
        (MINIMAL + "[models.m.endpoints]\na = { url = 'http://b' }", "url"),
    ],
)
def test_a_mistake_is_refused_by_its_key(text: str, named: str) -> None:
    with pytest.raises(BadConfiguration, match=named):
        read_catalog(text, {})


def test_a_mistake_never_shows_a_value() -> None:
    text = MINIMAL.replace("http://a", "${SECRET}")
    with pytest.raises(BadConfiguration) as caught:
        read_catalog(text, {"SECRET": "sk-secret"})
    assert "sk-secret" not in caught.value.message


def test_another_file_may_be_named_and_must_exist(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(MINIMAL)
    assert [e.name for e in Settings.from_env({"GOBLIN_CONFIG": str(other)}).catalog().endpoints] == ["a"]
    with pytest.raises(BadConfiguration, match="gone"):
        Settings.from_env({"GOBLIN_CONFIG": str(tmp_path / "gone.toml")}).catalog()


def test_monthly_budgets_come_from_the_environment_rounded_down() -> None:
    env = {"GOBLIN_MONTHLY_BUDGET": "100", "VASTAI_MONTHLY_BUDGET": "12.3456789", "RUNPOD_MONTHLY_BUDGET": ""}
    found = {account: limit.limit_usd_micros for account, (limit,) in Settings.from_env(env).limits().items()}
    assert found == {"total": 100_000_000, "vastai": 12_345_678}


@pytest.mark.parametrize("said", ["much", "-1", "NaN", "Infinity"])
def test_a_budget_that_is_no_amount_is_refused_by_its_name(said: str) -> None:
    with pytest.raises(BadConfiguration, match="GOBLIN_MONTHLY_BUDGET is not an amount of dollars"):
        Settings.from_env({"GOBLIN_MONTHLY_BUDGET": said}).limits()


@pytest.mark.parametrize(
    ("provider", "url", "more", "reads"),
    [
        ("openai", "https://api.openai.com/v1", "", True),
        ("openai", "https://api.openai.com.evil.example/v1", "", False),
        ("openai", "http://vllm:8000/v1", "", False),
        ("openai", "https://api.openai.com/v1", 'capabilities = ["chat"]', False),
        ("llamacpp", "http://h:8080", "", False),
        ("llamacpp", "http://h:8080", 'capabilities = ["embeddings", "token_ids"]', True),
    ],
)
def test_token_ids_are_for_openai_itself_and_where_the_operator_says_so(
    provider: str, url: str, more: str, reads: bool
) -> None:
    text = f'[[endpoints]]\nname = "e"\nprovider = "{provider}"\nurl = "{url}"\n{more}\n'
    (endpoint,) = read_catalog(text, {}).endpoints
    assert (Capability.TOKEN_IDS in endpoint.capabilities) is reads
