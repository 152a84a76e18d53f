"""What a cold start pays: each function's import in a fresh process, as functions-framework loads it."""

import json
import subprocess
import sys
from typing import Any

from goblin.cli import paths
from tests.bench._show import text_table

RUNS = 5

PROGRAM = """\
import json, resource, sys, time
start = time.process_time()
from pathlib import Path
from goblin.cli.loading import load
load(Path(sys.argv[1]))
cpu_s = time.process_time() - start
models = {"mlflow", "wandb", "llama_cpp", "numpy", "torch", "pandas"}
heavy = sorted({name.split(".")[0] for name in sys.modules} & models)
unit = 1024 if sys.platform != "darwin" else 1024 * 1024
rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
print(json.dumps({"cpu_s": round(cpu_s, 3), "rss_mib": round(rss_mib, 1), "modules": len(sys.modules), "heavy": heavy}))
"""


def measure(source: str) -> dict[str, Any]:
    """One import in a fresh process."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, source], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def run(words: list[str]) -> dict[str, Any]:
    """Import each function five times; CPU is the best of them, memory the largest."""
    functions = {}
    for source in sorted(paths.functions_folder().glob("[a-z]*.py")):
        runs = [measure(str(source)) for _ in range(RUNS)]
        functions[source.stem] = {
            "cpu_s": min(one["cpu_s"] for one in runs),
            "rss_mib": max(one["rss_mib"] for one in runs),
            "modules": runs[0]["modules"],
            "heavy": runs[0]["heavy"],
        }
    return {"functions": functions}


def table(result: dict[str, Any]) -> str:
    """Function by function."""
    rows = [
        (name, one["cpu_s"], one["rss_mib"], one["modules"], ", ".join(one["heavy"]) or "none")
        for name, one in result["functions"].items()
    ]
    return text_table(
        "Import of each function, fresh process", ("function", "CPU s", "RSS MiB", "modules", "model libraries"), rows
    )


def plot(result: dict[str, Any], path: Any) -> None:
    """Bars of CPU seconds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(result["functions"])
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(names) + 1.2))
    axes.barh(names, [result["functions"][name]["cpu_s"] for name in names])
    axes.set_xlabel("CPU seconds to import")
    figure.tight_layout()
    figure.savefig(path)
