"""All configuration: the environment, which is read only here, and `goblin.toml`."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import ROUND_FLOOR, Decimal, InvalidOperation
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from goblin.billing.domain.accounts import Limit, Period
from goblin.billing.domain.ledger import TOTAL
from goblin.core.endpoints import ORDINARY, Capability, Endpoint, Price
from goblin.core.errors import Broken
from goblin.core.money import USD_MICROS
from goblin.core.redaction import learn
from goblin.gateway.domain.catalog import Catalog, ModelSettings, Routing, Strategy
from goblin.gateway.policy.passed_responses import HOST
from httpguard import LOOPBACK

OWN = frozenset({"flyio", "llamacpp", "ollama", "runpod", "vastai"})
"""Providers whose machines are ours, or rented by us. All others are external, so that `allow_external: false` keeps
prompts from them. An endpoint's `external` overrides this."""
DEFAULT_REGION = "us-east1"
MONTHLY_BUDGETS = {
    "GOBLIN_MONTHLY_BUDGET": TOTAL, "VASTAI_MONTHLY_BUDGET": "vastai", "RUNPOD_MONTHLY_BUDGET": "runpod",
}  # fmt: skip
"""Variables with a budget in dollars per month, and the account that each limits."""
_SECRET = re.compile(r"_(?:KEY|TOKEN|SECRET|PASSWORD)\Z")
"""Names of variables that hold credentials."""
GOOGLE_CERTS_URL = "https://www.googleapis.com/oauth2/v1/certs"


class BadConfiguration(Broken):
    """An invalid setting; the message names it."""

    code = "bad_configuration"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings that Goblin reads from the environment."""

    project: str
    region: str = DEFAULT_REGION
    config_path: Path | None = None
    """Path of another `goblin.toml`; None means the included one."""
    verify_callers: Literal["on", "iam", "off"] = "on"
    """How private functions check their callers' tokens: in full; all but the signature, which Cloud Run's invoker
    check has verified and removed; or, beside an emulator that sends no tokens, not at all."""
    caller_audiences: tuple[str, ...] = ()
    """The function's own URL, which a token must name; on a laptop, those of all functions."""
    caller_emails: tuple[str, ...] = ()
    """Service accounts that may call private functions: Pub/Sub's and Cloud Scheduler's."""
    certs_url: str = GOOGLE_CERTS_URL
    secret_manager_emulator: str = ""
    """`http://host:port` of a local Secret Manager; empty means Google's."""
    cloud_run_emulator: str = ""
    """`http://host:port` of a fake of Cloud Run's Admin API; empty means Google's."""
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The whole environment, for `goblin.toml`; it holds secrets."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Read the environment. Raises `BadConfiguration`."""
        env = dict(os.environ if env is None else env)
        verify = env.get("GOBLIN_VERIFY_CALLER", "on")
        if verify not in ("on", "iam", "off"):
            raise BadConfiguration(f"GOBLIN_VERIFY_CALLER is {verify!r}. Set it to `on`, `iam` or `off`.")
        if verify == "off" and not env.get("PUBSUB_EMULATOR_HOST"):
            raise BadConfiguration("GOBLIN_VERIFY_CALLER=off is for emulators, but PUBSUB_EMULATOR_HOST is not set.")
        for name, value in env.items():
            if _SECRET.search(name) and not value.startswith("secret:"):
                learn(value)
        return cls(
            project=env.get("GCS_PROJECT_ID") or env.get("GOOGLE_CLOUD_PROJECT") or "",
            region=env.get("GCS_REGION") or DEFAULT_REGION,
            config_path=Path(path) if (path := env.get("GOBLIN_CONFIG")) else None,
            verify_callers=cast("Literal['on', 'iam', 'off']", verify),
            caller_audiences=_listed(env.get("GOBLIN_PUSH_AUDIENCE", "")),
            caller_emails=_listed(env.get("GOBLIN_INVOKER_EMAIL", "")),
            certs_url=env.get("GOBLIN_OIDC_CERTS_URL") or GOOGLE_CERTS_URL,
            secret_manager_emulator=env.get("SECRET_MANAGER_EMULATOR_HOST", ""),
            cloud_run_emulator=env.get("CLOUD_RUN_EMULATOR_HOST", ""),
            variables=env,
        )

    def limits(self) -> Mapping[str, tuple[Limit, ...]]:
        """Return the monthly limits that the environment declares, by account. Raises `BadConfiguration`."""
        return {
            account: (Limit(period=Period.MONTH, limit_usd_micros=self._micros(name), variable=name),)
            for name, account in MONTHLY_BUDGETS.items()
            if self.variables.get(name)
        }

    def origins(self) -> frozenset[str]:
        """Return the origins, as browsers send them, whose pages may call the API. Raises `BadConfiguration`."""
        return _origins(self.variables.get("GOBLIN_CORS_ORIGINS", ""))

    def _micros(self, name: str) -> int:
        """Convert a variable's dollars to micro-dollars, rounded down: a limit is never higher than written."""
        try:
            dollars = Decimal(self.variables[name])
        except InvalidOperation as error:
            raise BadConfiguration(f"{name} is not an amount of dollars. Write it as 100 or 0.50.") from error
        if not dollars.is_finite() or dollars < 0:
            raise BadConfiguration(f"{name} is not an amount of dollars. Write it as 100 or 0.50.")
        return int((dollars * USD_MICROS).to_integral_value(ROUND_FLOOR))

    def catalog(self) -> Catalog:
        """Read `goblin.toml`. Raises `BadConfiguration`."""
        return self.parse(self.config_text())

    def config_text(self) -> str:
        """The text of `goblin.toml` as it is now. Raises `BadConfiguration`."""
        path = self.config_path or _default_config()
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise BadConfiguration(f"Could not read {path}: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise BadConfiguration(f"{path} is not UTF-8.") from error

    def parse(self, text: str) -> Catalog:
        """Parse the text of a `goblin.toml` with this environment. Raises `BadConfiguration`."""
        return read_catalog(text, self.variables, name=str(self.config_path or _default_config()))


Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Positive = Annotated[int, Meta(ge=1)]
Micros = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0, le=3600)]
_DEFAULT = Routing()


class _Routing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    strategy: Strategy = _DEFAULT.strategy
    attempts_max: Annotated[int, Meta(ge=1, le=10)] = _DEFAULT.attempts_max
    first_token_timeout_s: Seconds = _DEFAULT.first_token_timeout_s
    between_tokens_timeout_s: Seconds = _DEFAULT.between_tokens_timeout_s
    explore_share: Annotated[float, Meta(ge=0, le=0.5)] = _DEFAULT.explore_share
    wake: bool = _DEFAULT.wake
    deadline_ms: Positive | None = _DEFAULT.deadline_ms


class _Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    provider: Name
    url: Annotated[str, Meta(pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$")]
    api_key: str = ""
    account_key: str = ""
    models: Literal["discover"] | Annotated[tuple[str, ...], Meta(min_length=1)] = "discover"
    capabilities: tuple[Capability, ...] = tuple(ORDINARY)
    context_tokens: Positive | None = None
    cancel_stops_bill: bool = True
    bills: Literal["yes", "no"] = "yes"
    price_input_usd_micros_per_mtok: Micros | None = None
    price_output_usd_micros_per_mtok: Micros | None = None
    output_tokens_default: Positive = 4096
    output_tokens_max: Positive | None = None
    image_tokens_max: Positive = 50_000
    weight: Micros = 1
    parallel: Positive = 1
    first_token_prior_ms: Positive = 1000
    prefill_prior_tokens_per_s: Positive = 2000
    decode_prior_tokens_per_s: Positive = 30
    cold_start_prior_ms: Positive = 30_000
    sleeps_after_s: Positive | None = None
    price_usd_micros_per_hour: Micros | None = None
    request_s_max: Seconds = 300.0
    external: bool | None = None
    options: dict[str, str] = {}


class _ModelEndpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Settings of one model at one endpoint; a missing one is taken from the endpoint."""

    upstream_model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    capabilities: tuple[Capability, ...] | None = None
    context_tokens: Positive | None = None
    weight: Micros | None = None
    parallel: Positive | None = None
    first_token_prior_ms: Positive | None = None
    prefill_prior_tokens_per_s: Positive | None = None
    decode_prior_tokens_per_s: Positive | None = None
    cold_start_prior_ms: Positive | None = None
    sleeps_after_s: Positive | None = None
    price_usd_micros_per_hour: Micros | None = None


class _Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one model; a missing one is taken from `[routing]`."""

    strategy: Strategy | None = None
    attempts_max: Annotated[int, Meta(ge=1, le=10)] | None = None
    first_token_timeout_s: Seconds | None = None
    between_tokens_timeout_s: Seconds | None = None
    explore_share: Annotated[float, Meta(ge=0, le=0.5)] | None = None
    wake: bool | None = None
    deadline_ms: Positive | None = None
    endpoints: Annotated[dict[Name, _ModelEndpoint], Meta(min_length=1)] | None = None


class _Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    provider: Name
    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input_usd_micros_per_mtok: Micros
    output_usd_micros_per_mtok: Micros
    source: str
    read_on: date
    output_tokens_default: Positive = 4096
    output_tokens_max: Positive | None = None
    image_tokens_max: Positive = 50_000
    context_tokens: Positive | None = None
    cache_read_usd_micros_per_mtok: Micros | None = None
    cache_write_usd_micros_per_mtok: Micros | None = None
    cache_write_1h_usd_micros_per_mtok: Micros | None = None
    server_tools: dict[str, Micros] = {}


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    routing: _Routing = _Routing()
    endpoints: tuple[_Endpoint, ...] = ()
    prices: tuple[_Price, ...] = ()
    models: dict[Annotated[str, Meta(min_length=1, max_length=256)], _Model] = {}


def read_catalog(text: str, variables: Mapping[str, str], *, name: str = "goblin.toml") -> Catalog:
    """Parse and check the text of a `goblin.toml`.

    Raises:
        BadConfiguration: The text is invalid. The message has the file's name and the key, such as
            `$.endpoints[0].weight`, and never a value, which may be a secret.
    """
    try:
        raw = tomllib.loads(text)
        filled = {**raw, "endpoints": _configured(raw.get("endpoints", []), variables)}
        parsed = msgspec.convert(filled, _File)
    except tomllib.TOMLDecodeError as error:
        raise BadConfiguration(f"{name}: {error}") from error
    except msgspec.ValidationError as error:
        raise BadConfiguration(f"{name}: {error}") from error
    endpoints = tuple(_endpoint(row, name) for row in parsed.endpoints)
    names = [endpoint.name for endpoint in endpoints]
    if twice := {n for n in names if names.count(n) > 1}:
        raise BadConfiguration(f"{name}: two endpoints are named {', '.join(sorted(twice))}.")
    routing = Routing(**msgspec.structs.asdict(parsed.routing))
    prices = {(row.provider, row.model): _price(row) for row in parsed.prices}
    if len(prices) != len(parsed.prices):
        raise BadConfiguration(f"{name}: a model of a provider has two prices. Remove one [[prices]] table.")
    declared = {row["name"] for row in raw.get("endpoints", ())}
    models = {model: _model(model, row, routing, endpoints, declared, name) for model, row in parsed.models.items()}
    return Catalog(routing=routing, endpoints=endpoints, prices=prices, models=models)


def _model(
    model: str, row: _Model, routing: Routing, endpoints: Sequence[Endpoint], declared: set[str], file: str
) -> ModelSettings:
    """Merge a model's settings with the defaults. Its endpoints keep their order in the file."""
    fields = {key: value for key, value in msgspec.structs.asdict(row).items() if value is not None}
    said = fields.pop("endpoints", None)
    if said is None:
        return ModelSettings(routing=replace(routing, **fields))
    if unknown := sorted(said.keys() - declared):
        raise BadConfiguration(f"{file}: model {model!r} names endpoints that do not exist: {', '.join(unknown)}.")
    configured = {endpoint.name: endpoint for endpoint in endpoints}
    serving = tuple(_endpoint_at(configured[name], at) for name, at in said.items() if name in configured)
    return ModelSettings(routing=replace(routing, **fields), endpoints=serving)


def _endpoint_at(endpoint: Endpoint, at: _ModelEndpoint) -> Endpoint:
    fields = {key: value for key, value in msgspec.structs.asdict(at).items() if value is not None}
    if at.capabilities is not None:
        fields["capabilities"] = _capabilities(at.capabilities)
    return replace(endpoint, **fields)


def _capabilities(declared: tuple[Capability, ...]) -> frozenset[Capability]:
    """Return the capabilities of an endpoint: what sees images is taken to read PDF, unless its adapter cannot."""
    return frozenset(declared) | ({Capability.FILES} if Capability.VISION in declared else frozenset())


def _price(row: _Price) -> Price:
    fields = msgspec.structs.asdict(row)
    return Price(**{key: value for key, value in fields.items() if key not in ("provider", "model")})


def _endpoint(row: _Endpoint, file: str) -> Endpoint:
    inward, outward = row.price_input_usd_micros_per_mtok, row.price_output_usd_micros_per_mtok
    price = None
    if inward is not None and outward is not None:
        price = Price(
            input_usd_micros_per_mtok=inward,
            output_usd_micros_per_mtok=outward,
            output_tokens_default=row.output_tokens_default,
            output_tokens_max=row.output_tokens_max,
            image_tokens_max=row.image_tokens_max,
        )
    elif inward is not None or outward is not None:
        raise BadConfiguration(f"{file}: endpoint {row.name} has one price. Give both, or none.")
    elif row.bills == "no":
        price = Price(input_usd_micros_per_mtok=0, output_usd_micros_per_mtok=0)
    return Endpoint(
        name=row.name,
        provider=row.provider,
        url=row.url,
        api_key=row.api_key or None,
        account_key=row.account_key or None,
        models=None if row.models == "discover" else tuple(row.models),
        capabilities=_capabilities(row.capabilities) | _of_openai_itself(row),
        context_tokens=row.context_tokens,
        cancel_stops_bill=row.cancel_stops_bill,
        price=price,
        weight=row.weight,
        parallel=row.parallel,
        first_token_prior_ms=row.first_token_prior_ms,
        prefill_prior_tokens_per_s=row.prefill_prior_tokens_per_s,
        decode_prior_tokens_per_s=row.decode_prior_tokens_per_s,
        cold_start_prior_ms=row.cold_start_prior_ms,
        sleeps_after_s=row.sleeps_after_s,
        price_usd_micros_per_hour=row.price_usd_micros_per_hour,
        request_s_max=row.request_s_max,
        external=row.provider not in OWN if row.external is None else row.external,
        options=row.options,
    )


def _of_openai_itself(row: _Endpoint) -> frozenset[Capability]:
    """Return what OpenAI's own embedding models can: callers' libraries make token ids with OpenAI's tokenizer."""
    itself = row.provider == "openai" and urlsplit(row.url).hostname == HOST
    return frozenset({Capability.TOKEN_IDS}) if itself and Capability.EMBEDDINGS in row.capabilities else frozenset()


_VARIABLE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)(?::-([^}]*))?\}")


def named_variables(text: str) -> frozenset[str]:
    """Return the names of the variables that the text of a `goblin.toml` refers to."""
    return frozenset(found[1] for found in _VARIABLE.finditer(text))


class _NotSet(Exception):
    """A variable that is not set and has no default."""


def _configured(rows: Any, variables: Mapping[str, str]) -> Any:
    """Fill in the variables of each row; leave out rows with a variable that is not set."""
    if not isinstance(rows, list):
        return rows  # The parser reports the error.
    filled = []
    for row in rows:
        try:
            filled.append(_filled(row, variables))
        except _NotSet:
            continue
    return filled


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    def lookup(found: re.Match[str]) -> str:
        name, default = found.groups()
        value = variables.get(name) or default
        if value is None:
            raise _NotSet
        return value

    match value:
        case str():
            return _VARIABLE.sub(lookup, value)
        case dict():
            return {key: _filled(inner, variables) for key, inner in value.items()}
        case list():
            return [_filled(inner, variables) for inner in value]
    return value


def _listed(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


@lru_cache(maxsize=8)
def _origins(text: str) -> frozenset[str]:
    return frozenset(map(_origin, _listed(text)))


def _origin(text: str) -> str:
    """Return an origin as browsers send it. Raises `BadConfiguration`: a page without TLS may be anybody's."""
    said = text.lower()
    try:
        parts = urlsplit(said)
        port, host = parts.port, parts.hostname or ""
    except ValueError as error:
        raise BadConfiguration(f"GOBLIN_CORS_ORIGINS: {text!r} is not an origin.") from error
    if "*" in said or not host or "@" in said or said != f"{parts.scheme}://{parts.netloc}":
        raise BadConfiguration(
            f"GOBLIN_CORS_ORIGINS: {text!r} is not an origin. Write each as https://chat.example.com, without a path "
            "and without `*`, with commas between them."
        )
    host = f"[{host}]" if ":" in host else host
    if parts.scheme != "https" and not (parts.scheme == "http" and host in LOOPBACK):
        raise BadConfiguration(
            f"GOBLIN_CORS_ORIGINS: {text!r} is not safe. Use https, or http for a page on this machine."
        )
    usual = {"https": 443, "http": 80}[parts.scheme]  # Browsers leave it out.
    return f"{parts.scheme}://{host}" + ("" if port in (None, usual) else f":{port}")


def _default_config() -> Path:
    """Return the included `goblin.toml`: inside the package in a wheel, at the root in a checkout."""
    bundled = Path(str(resources.files("goblin"))) / "_bundle" / "goblin.toml"
    return bundled if bundled.exists() else Path(__file__).parents[3] / "goblin.toml"
