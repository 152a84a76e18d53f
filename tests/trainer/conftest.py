"""The trainer on the path, and a recipe that is cooked in a second."""

# ruff: noqa: E402 - the path comes first.

import sys
from pathlib import Path

import pytest

TRAINER = Path(__file__).parents[2] / "containers" / "trainer"
if str(TRAINER) not in sys.path:
    # The trainer is no part of what is installed, so its tests bring it along.
    sys.path.insert(0, str(TRAINER))

from goblin_tiny import batches
from goblin_tiny.recipe import Recipe, Shape
from goblin_tiny.tokenizer import Tokenizer

SMALL = Recipe(
    seed=3,
    steps=10,
    threads=1,
    shape=Shape(vocabulary=300, width=64, layers=2, heads=4, kv_heads=2, feed_forward=96, context=128),
    rows=4,
    row_tokens=32,
    bfloat16=False,
    vocabulary_conversations=100,
)


@pytest.fixture(scope="session")
def small() -> Recipe:
    """A recipe that trains in a second."""
    return SMALL


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The small recipe's own."""
    return batches.learn_vocabulary(SMALL)
