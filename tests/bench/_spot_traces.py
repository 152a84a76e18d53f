"""When spot instances were there: recorded traces in their folder, or synthetic ones from a seed."""

import gzip
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PRICE_ON_DEMAND_USD = 3.06
PRICE_RATIO = 3.1446
"""On demand against spot where a trace names no spot price."""
HOURS = 92
WINDOWS = 8
FAMILIES = {
    "aws-probe-2022-10-26": "aws 2022",
    "aws-probe-2022-11-28": "aws 2022",
    "aws-probe-2022-12-13": "aws 2022",
    "aws-probe-2023-02-15": "aws 2023",
    "gcp-probe-2025-10-03": "h100 2025",
}
"""Which recordings the protocol replays, and under what name their mean is shown."""


@dataclass(frozen=True)
class Trace:
    name: str
    family: str
    gap_s: int
    ratio: float
    """On-demand price against spot price."""
    available: tuple[bool, ...]


@dataclass(frozen=True)
class Window:
    """A piece of a trace, long enough for the longest deadline."""

    trace: str
    family: str
    gap_s: int
    ratio: float
    available: tuple[bool, ...]


def default_folder() -> Path | None:
    """The recordings, where they lie beside the project."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "spot-traces"
    return folder if folder.is_dir() else None


def read(folder: Path) -> list[Trace]:
    """Every trace of the protocol in a folder of recordings, in the order of their names."""
    traces = []
    for collection, family in FAMILIES.items():
        for file in sorted((folder / collection).glob("*.json.gz")):
            with gzip.open(file, "rt") as text:
                recorded = json.load(text)
            facts = recorded["metadata"]
            ratio = PRICE_RATIO
            if family.startswith("h100"):
                ratio = facts["on_demand_price"] / facts["spot_price"]
            available = tuple(count >= 1 for count in recorded["available"])
            name = f"{collection}/{file.name.removesuffix('.json.gz')}"
            traces.append(Trace(name, family, facts["gap_seconds"], ratio, available))
    return traces


def synthesize(seed: int, *, count: int = 8, hours: int = 400, gap_s: int = 600) -> list[Trace]:
    """Made-up traces: lives and outages are heavy-tailed (Lomax), every pool with a temper of its own."""
    traces = []
    for number in range(count):
        rng = random.Random(seed * 1000 + number)
        up = (rng.uniform(0.6, 1.4), rng.uniform(0.2, 1.0))
        down = (rng.uniform(0.6, 1.4), rng.uniform(0.1, 0.6))
        ticks = hours * 3600 // gap_s
        available: list[bool] = []
        there = rng.random() < 0.5
        while len(available) < ticks:
            shape, scale_h = up if there else down
            life_h = min(scale_h * ((1.0 - rng.random()) ** (-1.0 / shape) - 1.0), 100.0)
            available += [there] * max(1, round(life_h * 3600 / gap_s))
            there = not there
        ratio = rng.choice((2.0, PRICE_RATIO, 4.5))
        traces.append(Trace(f"synthetic/{number}", "synthetic", gap_s, ratio, tuple(available[:ticks])))
    return traces


def windows(traces: list[Trace]) -> Iterator[Window]:
    """Eight windows of every trace, evenly spread from its first tick to its last."""
    for trace in traces:
        ticks = math.ceil(HOURS * 3600 / trace.gap_s) + 2
        room = len(trace.available) - ticks
        for number in range(WINDOWS):
            start = round(number * room / (WINDOWS - 1))
            yield Window(trace.name, trace.family, trace.gap_s, trace.ratio, trace.available[start : start + ticks])
