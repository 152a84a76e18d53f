"""Rows of tokens for one step: a pure function of the seed and the step, so a resumed training reads the same rows."""

import hashlib
from collections.abc import Iterator, Sequence
from random import Random

from .conversations import conversation
from .corpus import Message
from .recipe import Recipe
from .tokenizer import TURN_ENDS, TURN_STARTS, Tokenizer, learn

ROLES = ("system", "user", "assistant", "tool")

OTHERS_WEIGHT = 0.05
"""Loss weight of tokens that the model only reads; its own words weigh 1, roles and ends of line 0."""


def conversations(seed: int, name: str) -> Iterator[list[Message]]:
    """Yield conversations endlessly. Streams of different names are independent of each other."""
    # A string seed goes through SHA-512: the same on every platform and Python.
    rng = Random(f"{seed}/{name}")
    while True:
        yield conversation(rng)


def learn_vocabulary(recipe: Recipe) -> Tokenizer:
    stream = conversations(recipe.seed, "vocabulary")
    texts = [message.content for _ in range(recipe.vocabulary_conversations) for message in next(stream)]
    # Roles are part of every rendered message, but not of its content.
    return learn([*texts, *ROLES * (recipe.vocabulary_conversations // 10)], vocabulary=recipe.shape.vocabulary)


def render(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[float]]:
    """Return the tokens as the chat template writes them, and the loss weight of each."""
    ids: list[int] = []
    weights: list[float] = []
    end_of_line = tokenizer.encode("\n")
    for message in messages:
        head = [TURN_STARTS, *tokenizer.encode(message.role), *end_of_line]
        # The end of a turn is learned like a word, so that the model stops by itself.
        body = [*tokenizer.encode(message.content), TURN_ENDS]
        weight = 1.0 if message.role == "assistant" else OTHERS_WEIGHT
        ids += [*head, *body, *end_of_line]
        weights += [0.0] * len(head) + [weight] * len(body) + [0.0] * len(end_of_line)
    return ids, weights


def rows(recipe: Recipe, step: int, tokenizer: Tokenizer) -> list[tuple[list[int], list[float]]]:
    """Return the rows of a step. Each has one extra token, the target of the last one."""
    count, length = recipe.rows_and_tokens(step)
    stream = conversations(recipe.seed, f"step {step}")
    batch = []
    for _ in range(count):
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) <= length:
            more, their_weights = render(next(stream), tokenizer)
            ids += more
            weights += their_weights
        batch.append((ids[: length + 1], weights[: length + 1]))
    return batch


def corpus_sha256(seed: int, count: int = 1000) -> str:
    """Compute a fingerprint of the grammar, from the first conversations of a stream."""
    digest = hashlib.sha256()
    stream = conversations(seed, "fingerprint")
    for _ in range(count):
        for message in next(stream):
            digest.update(f"{message.role}\0{message.content}\0".encode())
    return digest.hexdigest()
