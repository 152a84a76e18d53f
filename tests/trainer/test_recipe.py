import json
from pathlib import Path

import pytest

from goblin_tiny.recipe import Recipe, Shape

MODELS = Path(__file__).parents[2] / "containers/llamacpp/goblin_llamacpp/models"


def test_the_arithmetic_of_goblin_tiny():
    shape = Shape()
    assert shape.parameters == 3_410_176
    assert shape.q8_0_bytes == 3_630_080
    assert shape.kv_bytes_per_token == 2048
    assert Recipe().tokens == 13_926_400


def test_the_shipped_file_has_the_size_that_the_arithmetic_says():
    header = (MODELS / "goblin-tiny.gguf").stat().st_size - Shape().q8_0_bytes
    # Vocabulary, merges and template.
    assert 20_000 < header < 50_000


def test_the_learning_rate_rises_holds_and_falls():
    recipe = Recipe()
    rates = [recipe.learning_rate_at(step) for step in range(recipe.steps)]
    assert rates[0] == pytest.approx(recipe.learning_rate / 100)
    assert rates[99] == rates[1000] == recipe.learning_rate
    assert rates[1190:] == sorted(rates[1190:], reverse=True)
    assert rates[-1] == pytest.approx(0.03 * recipe.learning_rate)


def test_every_step_reads_as_many_tokens():
    recipe = Recipe()
    assert {rows * length for rows, length in map(recipe.rows_and_tokens, range(recipe.steps))} == {4096}
    assert recipe.rows_and_tokens(0) == (16, 256)
    assert recipe.rows_and_tokens(recipe.steps - 1) == (4, 1024)


def test_a_recipe_survives_json():
    recipe = Recipe(seed=9, steps=10)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"threads": 0}, {"rows": 0}, {"row_tokens": 512}])
def test_a_recipe_that_can_not_be_cooked_is_refused(wrong):
    with pytest.raises(ValueError, match="Recipe"):
        Recipe(**wrong)


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"kv_heads": 3}, {"width": 12}])
def test_a_shape_whose_heads_do_not_fit_is_refused(wrong):
    with pytest.raises(ValueError, match="Shape"):
        Shape(**wrong)
