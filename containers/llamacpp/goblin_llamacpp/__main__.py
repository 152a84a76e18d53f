"""Serve one GGUF model over an OpenAI-compatible HTTP API: `python -m goblin_llamacpp --model PATH`.

The server listens at once, loads the model behind the open port, and drains on SIGTERM. Every option can also be set in
the environment: `--api-key-file` as `GOBLIN_LLAMACPP_API_KEY_FILE`.
"""

import os

# libgomp and ggml read these when llama_cpp is imported. Without them, idle threads would spin and take the core from
# those that work, and a failed assertion would try to start a debugger.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import asyncio
import ipaddress
import sys
from pathlib import Path

from httpguard import LOOPBACK

from .fetch import Fetch
from .loaded import KV_TYPES, LoadSettings
from .places import GOOGLE, Places
from .process import ProcessSettings, run
from .server import ServerSettings
from .source import ModelSource

PREFIX = "GOBLIN_LLAMACPP_"


def main(argv: list[str] | None = None) -> int:
    """Run the server and return its exit status."""
    options = _parser().parse_args(argv)
    keys = tuple(options.api_key_file.read_text().split()) if options.api_key_file else ()
    if options.api_key_file and not keys:
        sys.stderr.write("The file of --api-key-file has no key. Write one key per line.\n")
        return 2
    if options.allow_load and not keys:
        sys.stderr.write("--allow-load needs --api-key-file: not everyone who can connect may choose the model.\n")
        return 2
    names = _names(options.host)
    shows_slots = options.slots_endpoint == "on" or (options.slots_endpoint == "auto" and names is not None)
    source = ModelSource(options.model, options.sha256)
    aliases = tuple(options.alias or [source.stem])
    return asyncio.run(
        run(
            ProcessSettings(
                model=source,
                fetch=_fetch(options.models_dir),
                aliases=aliases,
                host=options.host,
                port=options.port,
                port_file=options.port_file,
                grace_s=options.grace_s,
                cores=options.threads or os.cpu_count() or 1,
            ),
            LoadSettings(
                slots=options.slots,
                ctx=options.ctx,
                cells=options.cells,
                batch=options.batch,
                prefill=options.prefill,
                threads=options.threads,
                queue=options.queue,
                gpu_layers=options.gpu_layers,
                kv_type=options.kv_type,
                adapters=tuple(options.lora),
                memory_bytes=options.memory_mib and options.memory_mib * 2**20,
            ),
            ServerSettings(
                api_keys=keys,
                body_bytes_max=options.body_bytes_max,
                hosts=names,
                shows_slots=shows_slots,
                allows_load=options.allow_load,
                places=Places(options.models_dir, tuple(options.load_from or _storage())),
            ),
        )
    )


def _names(host: str) -> frozenset[str] | None:
    """Return the names of a server that only this machine can reach; None if others can."""
    if host == "localhost":
        return LOOPBACK
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if not address.is_loopback:
        return None
    return LOOPBACK | {f"[{address}]" if address.version == 6 else str(address)}


def _storage() -> list[str]:
    """Return where signed URLs of Cloud Storage lead, and those of its emulator."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if not emulator:
        return [GOOGLE]
    return [GOOGLE, emulator if "://" in emulator else f"http://{emulator}"]


def _fetch(folder: Path | None) -> Fetch:
    storage_host = os.environ.get("STORAGE_EMULATOR_HOST")
    return Fetch(folder=folder, storage_host=storage_host) if folder else Fetch(storage_host=storage_host)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="goblin_llamacpp", description=__doc__, allow_abbrev=False)

    def option(name: str, **settings: object) -> None:
        value = os.environ.get(PREFIX + name.removeprefix("--").replace("-", "_").upper())
        if value is not None:
            settings["default"] = [value] if settings.get("action") == "append" else value
            settings["required"] = False
            if settings.get("action") == "store_true":
                settings["default"] = value.lower() in ("1", "true", "yes", "on")
        parser.add_argument(name, **settings)  # type: ignore[arg-type]

    option("--model", required=True, help="GGUF to serve: a path, or an https://, http:// or gs:// URL.")
    option("--sha256", help="SHA-256 of the GGUF, checked before it is loaded. Required for a URL.")
    option("--alias", action="append", help="Model name in requests. Repeatable. Default: the file name without .gguf.")
    option("--lora", action="append", default=[], type=_adapter, metavar="NAME=PATH", help="LoRA adapter. Repeatable.")
    option("--host", default="127.0.0.1")
    option(
        "--port",
        type=int,
        default=os.environ.get("PORT", "8080"),
        help="Port; 0 takes a free one. Default: $PORT or 8080.",
    )
    option("--port-file", type=Path, help="File to write the port to once the server listens.")
    option("--api-key-file", type=Path, help="File of API keys, one per line. Without it, requests need no key.")
    option("--slots", type=_positive, default=8, help="Requests decoded together. Default: 8.")
    option("--ctx", type=_positive, help="Tokens per request, prompt and answer. Default: the model's, at most 4096.")
    option("--cells", type=_positive, help="Tokens in the shared key-value pool. Default: slots x ctx.")
    option("--batch", type=_positive, default=512, help="Tokens per decode. Default: 512.")
    option("--prefill", type=_positive, help="Prompt tokens per decode. Default: 128, on a GPU the batch.")
    option("--threads", type=_positive, help="CPU threads. Default: all cores, or 1 for a small model.")
    option("--queue", type=int, default=64, help="Requests that may wait; further ones get 429. Default: 64.")
    option("--gpu-layers", type=int, default=0, help="Layers on the GPU; -1 puts all there. Default: 0.")
    option("--kv-type", choices=sorted(KV_TYPES), default="f16")
    option("--memory-mib", type=_positive, help="Memory that the model may use, in MiB. Default: what is free.")
    option("--body-bytes-max", type=_positive, default=4 * 2**20)
    option(
        "--slots-endpoint",
        choices=("auto", "on", "off"),
        default="auto",
        help="GET /slots. Default: auto, on for loopback.",
    )
    option("--allow-load", action="store_true", help="Serve POST /models/load. Needs --api-key-file.")
    option(
        "--models-dir",
        type=Path,
        help="Folder that /models/load may read from and downloads go to. Without it, no path is read.",
    )
    option(
        "--load-from",
        action="append",
        metavar="URL",
        help="Beginning of the URLs that /models/load may download from: https://HOST/BUCKET/ or gs://BUCKET. "
        "Repeatable. Default: https://storage.googleapis.com/ and $STORAGE_EMULATOR_HOST.",
    )
    option("--grace-s", type=float, default=8.0, help="Seconds that answers may go on after SIGTERM. Default: 8.")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _adapter(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError("must be NAME=PATH")
    return name, Path(path)


if __name__ == "__main__":
    raise SystemExit(main())
