"""Training: from a recipe to weights, stopped and resumed without a difference.

Where the dice are: weights are drawn from a generator of their own, a step's rows from the seed and the step's
number, and nothing else is random. So a checkpoint holds no random state, and the process's own dice stay untouched.
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
    """The checkpoint was made by another recipe; resuming it would make weights that no recipe describes."""


@dataclass(frozen=True, slots=True)
class Progress:
    step: int
    loss: float
    """Of this step."""
    tokens_per_s: float


@dataclass(slots=True)
class Training:
    """Everything that changes while training, and the recipe."""

    recipe: Recipe
    tokenizer: Tokenizer
    model: Llama
    optimizer: torch.optim.AdamW
    step: int = 0
    """How many are done."""

    def take_step(self) -> float:
        """Learn one batch; the answer is its loss."""
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
    """Before the first step."""
    model = Llama(recipe.shape, seed=recipe.seed)
    return Training(recipe, batches.learn_vocabulary(recipe), model, _optimizer(model, recipe))


def save(training: Training, path: Path) -> None:
    """Write a checkpoint whole or not at all."""
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
    """Read a checkpoint; a file can not run code.

    Raises:
        ValueError: It has another format.
    """
    saved: dict[str, Any] = torch.load(path, weights_only=True)
    if saved.get("format") != FORMAT:
        raise ValueError(f"{path} has format {saved.get('format')}, not {FORMAT}.")
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
    """Train to the end, or `until` a step, from the checkpoint if there is one; leave a checkpoint.

    Raises:
        RecipeDiffers: The checkpoint is another recipe's.
    """
    torch.set_num_threads(recipe.threads)
    # Refuse an operation whose result would depend on timing, rather than differ in silence.
    torch.use_deterministic_algorithms(True)
    training = load(checkpoint) if checkpoint.exists() else begin(recipe)
    if training.recipe != recipe:
        raise RecipeDiffers(f"{checkpoint} was made by {training.recipe}, not by {recipe}.")
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
    """By the names of `Shape.tensors`, in float32."""
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
    """Inputs, the token after each, and what it counts."""
    ids = torch.tensor([ids for ids, _ in rows])
    weights = torch.tensor([weights for _, weights in rows])
    return ids[:, :-1], ids[:, 1:], weights[:, 1:]
