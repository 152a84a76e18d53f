"""Training itself, at a hundredth of the size; needs PyTorch, which the runtime does not have."""

# ruff: noqa: E402 - nothing here imports without PyTorch.

import hashlib
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is the trainer's dependency, not the runtime's")

import llama_cpp

from goblin_tiny import __main__ as command
from goblin_tiny import train
from goblin_tiny.gguf_export import export
from goblin_tiny.model import Llama


@pytest.fixture(autouse=True)
def torch_as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def digest(training, path):
    export(path, training.recipe, training.tokenizer, train.weights(training))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_recipe_gives_the_same_file_twice(small, tmp_path):
    first = train.train(small, tmp_path / "1.pt")
    second = train.train(small, tmp_path / "2.pt")
    assert digest(first, tmp_path / "1.gguf") == digest(second, tmp_path / "2.gguf")
    other = train.train(replace(small, seed=small.seed + 1), tmp_path / "3.pt")
    assert digest(other, tmp_path / "3.gguf") != digest(first, tmp_path / "1.gguf")


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_resumed_training_ends_as_an_uninterrupted_one(small, tmp_path, bfloat16):
    recipe = replace(small, bfloat16=bfloat16)
    whole = train.train(recipe, tmp_path / "whole.pt")
    pieces = tmp_path / "pieces.pt"
    for until in (1, 3, 4, None):
        torch.manual_seed(until or 99)  # The process's own dice must not matter.
        resumed = train.train(recipe, pieces, until=until)
        assert resumed.step == (until or recipe.steps)
    assert digest(whole, tmp_path / "whole.gguf") == digest(resumed, tmp_path / "pieces.gguf")


def test_the_checkpoint_of_a_process_that_died_is_enough(small, tmp_path):
    class Killed(Exception):
        pass

    def die_at_five(progress):
        if progress.step == 5:
            raise Killed

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Killed):
        train.train(small, path, checkpoint_every=2, tell=die_at_five)
    assert train.load(path).step == 4
    told = []
    resumed = train.train(small, path, tell=lambda progress: told.append(progress.step))
    assert told == [5, 6, 7, 8, 9, 10]
    whole = train.train(small, tmp_path / "whole.pt")
    assert digest(resumed, tmp_path / "a.gguf") == digest(whole, tmp_path / "b.gguf")


def test_training_leaves_the_processs_dice_alone(small, tmp_path):
    before = torch.get_rng_state()
    train.train(small, tmp_path / "checkpoint.pt", until=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_of_another_recipe_is_not_gone_on_with(small, tmp_path):
    path = tmp_path / "checkpoint.pt"
    train.train(small, path, until=1)
    with pytest.raises(train.RecipeDiffers):
        train.train(replace(small, steps=11), path)


def test_a_checkpoint_can_not_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("a checkpoint ran code",))

    path = tmp_path / "checkpoint.pt"
    torch.save({"format": train.FORMAT, "recipe": Evil()}, path)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        train.load(path)


def test_the_loss_falls(small, tmp_path):
    losses = []
    recipe = replace(small, steps=60, learning_rate=1e-2)
    train.train(recipe, tmp_path / "checkpoint.pt", tell=lambda progress: losses.append(progress.loss))
    assert losses[0] == pytest.approx(np.log(recipe.shape.vocabulary), rel=0.05)
    assert np.mean(losses[-5:]) < losses[0] - 1.5


def test_the_model_has_the_tensors_that_the_shape_says(small):
    model = Llama(small.shape, seed=1)
    assert {name: tuple(weight.shape) for name, weight in model.named_parameters()} == dict(small.shape.tensors())


def test_llama_cpp_computes_the_same_logits(small, tokenizer, tmp_path):
    model = Llama(small.shape, seed=1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # So that attention and rotation matter.
    path = tmp_path / "model.gguf"
    weights = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    export(path, small, tokenizer, weights, kind="f32")
    tokens = tokenizer.encode("Hello, what is 12 + 34? The quick brown fox.")
    llama = llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, logits_all=True, verbose=False)
    try:
        llama.eval(tokens)
        found = np.array(llama.scores[: len(tokens)])
    finally:
        llama.close()
    with torch.no_grad():
        wanted = model(torch.tensor([tokens]))[0].numpy()
    np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())


def test_the_command_trains_and_exports(tmp_path, monkeypatch, capsys, small):
    monkeypatch.setattr(command, "Recipe", lambda **given: replace(small, **given))
    assert (
        command.main(["train", "--seed", "4", "--steps", "2", "--threads", "1", "--float32", "--out", str(tmp_path)])
        == 0
    )
    out = tmp_path / "m.gguf"
    assert command.main(["export", "--checkpoint", str(tmp_path / "checkpoint.pt"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "step 2 of 2" in said
    assert hashlib.sha256(out.read_bytes()).hexdigest() in said
