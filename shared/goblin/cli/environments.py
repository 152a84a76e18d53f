"""The environment of each process that `goblin up` starts: an allow-list, because a person's shell holds many secrets.

The functions alone get the keys of providers, and no process gets what it does not read. On macOS and Linux the same
names are enough.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from goblin.wiring.settings import BadConfiguration, Settings, named_variables

EVERY_PROCESS = frozenset({
    "HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER", "XDG_CACHE_HOME",
    # Where the dynamic linker finds the libraries of an interpreter that is not the system's.
    "DYLD_FALLBACK_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LD_LIBRARY_PATH",
    # Set by macOS for every process; without it libraries ask a system service for the encoding.
    "__CF_USER_TEXT_ENCODING",
})  # fmt: skip
EVERY_PROCESS_BEGINNINGS = ("LC_", "PYTHON")
"""Locale, and the settings of the interpreter, which hold no secrets."""

OUTWARD = frozenset(
    {name for word in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") for name in (word, word.lower())}
    | {"CURL_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE"}
)
"""Proxies, whose URLs may hold a password, and certificates: for the processes that call out of this machine."""

FUNCTIONS = frozenset({
    "ANTHROPIC_ADMIN_KEY", "ANTHROPIC_BILLING_URL", "CLOUD_RUN_EMULATOR_HOST", "FLYIO_BILLING_URL", "FLY_API_TOKEN",
    "FLY_CHAT_APP", "FLY_MACHINE_USD_PER_MONTH", "GCS_REGION", "GOBLIN_AGENT_IMAGE", "GOBLIN_CONFIG",
    "GOBLIN_CORS_ORIGINS", "GOBLIN_MONTHLY_BUDGET", "OPENAI_ADMIN_KEY", "OPENAI_BILLING_URL", "RUNPOD_API_BASE_URL",
    "RUNPOD_API_KEY", "RUNPOD_BILLING_URL", "RUNPOD_MONTHLY_BUDGET", "VASTAI_API_KEY", "VASTAI_BILLING_URL",
    "VASTAI_MAX_COST_PER_HOUR", "VASTAI_MONTHLY_BUDGET", "VASTAI_WEBHOOK_SECRET", "VAST_API_URL",
})  # fmt: skip
"""What the functions read beside the variables of `goblin.toml` and those that `goblin up` sets."""
FUNCTIONS_BEGINNINGS = ("OTEL_",)
"""OpenTelemetry's exporters read dozens of variables themselves."""

MODEL_SERVER = frozenset(
    {f"GOBLIN_LLAMACPP_{name}" for name in (
        "BATCH", "BODY_BYTES_MAX", "CELLS", "CTX", "GPU_LAYERS", "KV_TYPE", "LORA", "MEMORY_MIB", "PREFILL", "QUEUE",
        "SLOTS", "THREADS",
    )}
)  # fmt: skip
"""Sizes of the model server. What decides who reaches it and what it loads is set by `goblin up`."""
MODEL_SERVER_BEGINNINGS = ("CUDA_", "GGML_", "GOMP_", "KMP_", "OMP_")

EMULATORS = frozenset({"JAVA_HOME"})


def for_functions(here: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the functions: what their settings read, and what `goblin up` gives them."""
    try:
        named = named_variables(Settings.from_env(dict(here) | dict(given)).config_text())
    except BadConfiguration:
        named = frozenset()  # The functions report it, with the reason.
    wanted = EVERY_PROCESS | OUTWARD | FUNCTIONS | named
    return _chosen(here, wanted, (*EVERY_PROCESS_BEGINNINGS, *FUNCTIONS_BEGINNINGS), given)


def for_model_server(here: Mapping[str, str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of the llama.cpp server."""
    beginnings = (*EVERY_PROCESS_BEGINNINGS, *MODEL_SERVER_BEGINNINGS)
    return _chosen(here, EVERY_PROCESS | MODEL_SERVER, beginnings, given or {})


def for_emulator(here: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of one of Google's emulators, which are Java programs."""
    return _chosen(here, EVERY_PROCESS | EMULATORS, EVERY_PROCESS_BEGINNINGS, {})


def for_local_service(here: Mapping[str, str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a process that never leaves this machine: the local cloud, the GPU markets."""
    return _chosen(here, EVERY_PROCESS, EVERY_PROCESS_BEGINNINGS, given or {})


def _chosen(
    here: Mapping[str, str], wanted: Collection[str], beginnings: tuple[str, ...], given: Mapping[str, str]
) -> dict[str, str]:
    passed = {name: value for name, value in here.items() if name in wanted or name.startswith(beginnings)}
    # Without it what a process prints comes a block at a time, after its crash or never.
    return {**passed, "PYTHONUNBUFFERED": "1", **given}
