"""`char-lm`: a character-level language model in plain NumPy, trained by SGD on the job's dataset.

A job without a dataset trains on a few built-in sentences, so that a machine can be tried before there is data.

It reads `context` characters, embeds them, and predicts the next one through one hidden layer (Bengio et al., 2003).
Weights are drawn from the seed, the rows of a step from the seed and the step's number, and nothing else is random: an
interrupted training ends with the same bits as an uninterrupted one, on one kind of processor.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from goblin_agent.tasks.contract import Place, refuse

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    # The number of threads that share a sum decides how it is rounded: fix it, for repeatable bits.
    os.environ.setdefault(_name, "1")

try:
    import numpy as np
except ImportError:
    refuse("char-lm needs NumPy, which this image does not have. Add it: pip install numpy")

Weights = dict[str, "np.ndarray[Any, np.dtype[np.float32]]"]
FORMAT = 1
STATE = "state.npz"
FACTS = "facts.json"
SAMPLE = (
    b"A goblin keeps count of every coin. It lends none that it does not have, and it writes down what it lends before "
    b"the coin leaves its hand. When the road is closed it waits at the last stone that it has marked, and when the "
    b"road is open again it goes on from there, and never walks the same stretch twice.\n"
)
DATASET_BYTES_MAX = 256 * 1024 * 1024
MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights besides the dataset."""

    seed: int
    steps: int
    context: int
    width: int
    hidden: int
    rows: int
    rate: float


class Model:
    """The weights and their momentum."""

    def __init__(self, recipe: Recipe, alphabet: bytes) -> None:
        rng, count = np.random.default_rng(recipe.seed), len(alphabet)
        inputs = recipe.context * recipe.width
        shapes = {
            "embed": (count, recipe.width), "hidden": (inputs, recipe.hidden), "hidden_bias": (recipe.hidden,),
            "out": (recipe.hidden, count), "out_bias": (count,),
        }  # fmt: skip
        self.weights: Weights = {}
        for name, shape in shapes.items():
            scale = 0.0 if len(shape) == 1 else 0.1 if name == "embed" else shape[0] ** -0.5
            self.weights[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
        self.momentum: Weights = {name: np.zeros_like(weight) for name, weight in self.weights.items()}

    def learn(self, rows: Any, targets: Any, rate: float) -> float:
        """Train one step on rows (B, context) and the characters after them (B).

        Returns the mean loss before the step, in nats.
        """
        weights, size = self.weights, len(rows)
        embedded = weights["embed"][rows].reshape(size, -1)
        hidden = np.tanh(embedded @ weights["hidden"] + weights["hidden_bias"])
        logits = hidden @ weights["out"] + weights["out_bias"]
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits)
        sums = chances.sum(axis=1, keepdims=True)
        loss = float((np.log(sums[:, 0]) - logits[np.arange(size), targets]).mean())
        chances /= sums
        chances[np.arange(size), targets] -= 1.0
        chances /= size
        back = (chances @ weights["out"].T) * (1.0 - hidden * hidden)
        embed = np.zeros_like(weights["embed"])
        np.add.at(embed, rows.reshape(-1), (back @ weights["hidden"].T).reshape(-1, weights["embed"].shape[1]))
        gradients = {
            "embed": embed, "hidden": embedded.T @ back, "hidden_bias": back.sum(axis=0),
            "out": hidden.T @ chances, "out_bias": chances.sum(axis=0),
        }  # fmt: skip
        for name, gradient in gradients.items():
            self.momentum[name] = np.float32(MOMENTUM) * self.momentum[name] - np.float32(rate) * gradient
            weights[name] += self.momentum[name]
        return loss


def rows_of(recipe: Recipe, text: Any, step: int) -> tuple[Any, Any]:
    """Draw the rows of a step and the characters after them. The same step always gives the same rows."""
    starts = np.random.default_rng([recipe.seed, step]).integers(0, len(text) - recipe.context, recipe.rows)
    rows = text[starts[:, None] + np.arange(recipe.context)[None, :]]
    return rows, text[starts + recipe.context]


def write(folder: Path, model: Model, facts: dict[str, Any]) -> None:
    """Write a checkpoint's files."""
    arrays: dict[str, Any] = {f"weights.{name}": value for name, value in model.weights.items()}
    arrays |= {f"momentum.{name}": value for name, value in model.momentum.items()}
    np.savez(folder / STATE, **arrays)
    (folder / FACTS).write_text(json.dumps(facts, sort_keys=True))


def load(folder: Path, model: Model, expected: dict[str, Any]) -> int:
    """Load a checkpoint into the model. Returns its step."""
    facts = json.loads((folder / FACTS).read_text())
    for name, value in expected.items():
        if facts.get(name) != value:
            refuse(f"the checkpoint was made with {name} {facts.get(name)!r}, not {value!r}")
    with np.load(folder / STATE, allow_pickle=False) as arrays:
        for name in model.weights:
            model.weights[name] = arrays[f"weights.{name}"]
            model.momentum[name] = arrays[f"momentum.{name}"]
    return int(facts["step"])


def _read(place: Place) -> bytes:
    files = sorted(place.inputs.iterdir())
    if not files:
        return SAMPLE
    if files[0].stat().st_size > DATASET_BYTES_MAX:
        refuse(f"the dataset has more than {DATASET_BYTES_MAX} bytes")
    return files[0].read_bytes()


def main() -> int:
    """Train to the last step or until SIGTERM. Returns exit code 0."""
    place = Place()
    recipe = Recipe(
        seed=place.whole("seed", 1), steps=place.whole("steps", 1000, least=1),
        context=place.whole("context", 8, least=1, most=256), width=place.whole("width", 16, least=1, most=1024),
        hidden=place.whole("hidden", 64, least=1, most=8192), rows=place.whole("rows", 32, least=1, most=65_536),
        rate=place.number("rate", 0.05, most=10.0),
    )  # fmt: skip
    pace = place.number("pace", 0.0)
    every = place.whole("save_every", 0)
    data = _read(place)
    if len(data) <= recipe.context:
        refuse(f"the dataset has {len(data)} bytes; one row needs {recipe.context + 1}")
    alphabet = bytes(sorted(set(data)))
    codes = np.zeros(256, dtype=np.int64)
    codes[list(alphabet)] = np.arange(len(alphabet))
    text = codes[np.frombuffer(data, dtype=np.uint8)]
    model = Model(recipe, alphabet)
    facts = {"format": FORMAT, "recipe": asdict(recipe), "alphabet": alphabet.hex()}
    step = load(place.resume, model, facts) if place.resume else 0
    sys.stderr.write(f"char-lm: {len(data)} bytes, {len(alphabet)} characters, step {step} of {recipe.steps}\n")
    loss, saved = 0.0, step

    def save() -> None:
        nonlocal saved
        place.save(step, lambda folder: write(folder, model, {**facts, "step": step, "loss": loss}), loss=loss)
        saved = step

    place.say(step, recipe.steps)
    while step < recipe.steps and not place.stopping:
        started = time.monotonic()
        loss = model.learn(*rows_of(recipe, text, step), recipe.rate)
        step += 1
        place.say(step, recipe.steps, loss=loss)
        if (every and step % every == 0) or place.due():
            save()
        if pace:
            time.sleep(max(0.0, 1.0 / pace - (time.monotonic() - started)))
    if step > saved:
        save()
    place.say(step, recipe.steps, last=True)
    sys.stderr.write(f"char-lm: ends at step {step} with loss {loss:.4f}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
