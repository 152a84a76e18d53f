"""Training from a recipe to weights. Stopping and resuming does not change the result.

Weights are drawn from their own random generator, a step's rows from the seed and the step's number, and nothing else
is random. So a checkpoint holds no random state, and PyTorch's global generator stays untouched.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from . import batches
from .model import Llama
from .recipe import Recipe
from .tokenizer import Tokenizer

FORMAT = 1


class RecipeDiffers(Exception):
    """The checkpoint has another recipe; resuming it would make weights that no recipe describes."""


@dataclass(frozen=True, slots=True)
class Progress:
    step: int
    loss: float
    """Loss of this step."""
    tokens_per_s: float


@dataclass(slots=True)
class Training:
    """The state of a training, with its recipe."""

    recipe: Recipe
    tokenizer: Tokenizer
    model: Llama
    optimizer: torch.optim.AdamW
    step: int = 0
    """Number of steps done."""

    def take_step(self) -> float:
        """Train on one batch and return its loss."""
        recipe = self.recipe
        ids, targets, weights = _tensors(batches.rows(recipe, self.step, self.tokenizer))
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            logits = self.model(ids)
        each = functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        loss = (each * weights.flatten()).sum() / weights.sum()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())


def begin(recipe: Recipe) -> Training:
    """Create a training before its first step."""
    model = Llama(recipe.shape, seed=recipe.seed)
    return Training(recipe, batches.learn_vocabulary(recipe), model, _optimizer(model, recipe))


def save(training: Training, path: Path) -> None:
    """Write a checkpoint atomically."""
    partial = path.with_name(path.name + ".partial")
    torch.save(
        {
            "format": FORMAT,
            "recipe": training.recipe.to_json(),
            "merges": training.tokenizer.merges,
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "step": training.step,
            "torch": str(torch.__version__),
        },
        partial,
    )
    partial.replace(path)


def load(path: Path) -> Training:
    """Read a checkpoint. The file cannot run code.

    Raises:
        ValueError: The checkpoint has another format.
    """
    saved: dict[str, Any] = torch.load(path, weights_only=True)
    if saved.get("format") != FORMAT:
        raise ValueError(f"Checkpoint {path} has format {saved.get('format')}, not {FORMAT}.")
    recipe = Recipe.from_json(saved["recipe"])
    model = Llama(recipe.shape, seed=recipe.seed)
    model.load_state_dict(saved["model"])
    optimizer = _optimizer(model, recipe)
    optimizer.load_state_dict(saved["optimizer"])
    tokenizer = Tokenizer([(left, right) for left, right in saved["merges"]])
    return Training(recipe, tokenizer, model, optimizer, saved["step"])


def train(
    recipe: Recipe,
    checkpoint: Path,
    *,
    checkpoint_every: int = 500,
    until: int | None = None,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Training:
    """Train to the end or to step `until`, resuming from the checkpoint if it exists. Writes a checkpoint at the end.

    Raises:
        RecipeDiffers: The checkpoint has another recipe.
    """
    torch.set_num_threads(recipe.threads)
    # Refuse operations whose result depends on timing, so that weights never differ silently.
    torch.use_deterministic_algorithms(True)
    training = load(checkpoint) if checkpoint.exists() else begin(recipe)
    if training.recipe != recipe:
        raise RecipeDiffers(f"Checkpoint {checkpoint} has recipe {training.recipe}, not {recipe}. Use another folder.")
    started = time.monotonic()
    tokens = 0
    while training.step < (recipe.steps if until is None else min(until, recipe.steps)):
        rows, length = recipe.rows_and_tokens(training.step)
        loss = training.take_step()
        tokens += rows * length
        tell(Progress(training.step, loss, tokens / (time.monotonic() - started)))
        if training.step % checkpoint_every == 0:
            save(training, checkpoint)
    save(training, checkpoint)
    return training


def weights(training: Training) -> dict[str, NDArray[np.float32]]:
    """Return the weights in float32, by the names of `Shape.tensors`."""
    return {name: weight.detach().float().numpy() for name, weight in training.model.named_parameters()}


def _optimizer(model: Llama, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    norms = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def _tensors(rows: list[tuple[list[int], list[float]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inputs, the token after each, and that token's loss weight."""
    ids = torch.tensor([ids for ids, _ in rows])
    weights = torch.tensor([weights for _, weights in rows])
    return ids[:, :-1], ids[:, 1:], weights[:, 1:]
