"""`python -m goblin_tiny train | export | evaluate`."""

import argparse
import hashlib
import sys
from pathlib import Path

from . import batches, gguf_export
from .recipe import Recipe


def main(arguments: list[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except KeyboardInterrupt:
        _say("Stopped. Run the same command again to resume from the last checkpoint.")
        return 130
    except ImportError as error:
        _say(f"{error}. Install the trainer's dependencies: pip install ./containers/trainer[train,evaluate]")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="goblin_tiny", description="Train, export and evaluate goblin-tiny.")
    usual = Recipe()
    commands = parser.add_subparsers(required=True)

    train = commands.add_parser("train", help="Train from a seed, or resume from a checkpoint.")
    train.add_argument("--seed", type=int, default=usual.seed)
    train.add_argument("--steps", type=int, default=usual.steps)
    train.add_argument("--threads", type=int, default=usual.threads, help="CPU threads; they change the weights.")
    train.add_argument("--float32", action="store_true", help="Do not use bfloat16, for processors without it.")
    train.add_argument("--checkpoint-every", type=int, default=500, metavar="STEPS")
    train.add_argument("--until", type=int, metavar="STEP", help="Stop at this step; rerun to resume.")
    train.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="Folder of the checkpoint.")
    train.set_defaults(run=_train)

    export = commands.add_parser("export", help="Write a checkpoint as GGUF.")
    export.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    export.add_argument("--kind", choices=gguf_export.KINDS, default="q8_0")
    export.add_argument("--out", type=Path, required=True, metavar="FILE")
    export.set_defaults(run=_export)

    evaluate = commands.add_parser("evaluate", help="Run the exam on a GGUF file and print a table.")
    evaluate.add_argument("--model", type=Path, required=True, metavar="FILE")
    evaluate.add_argument("--seed", type=int, default=1, help="Seed that selects the questions.")
    evaluate.add_argument("--per-skill", type=int, default=40)
    evaluate.add_argument("--show-wrong", action="store_true", help="Print each wrong answer.")
    evaluate.add_argument("--out", type=Path, metavar="FILE", help="Also write the table to this file.")
    evaluate.set_defaults(run=_evaluate)
    return parser


def _train(arguments: argparse.Namespace) -> None:
    from . import train

    recipe = Recipe(
        seed=arguments.seed,
        steps=arguments.steps,
        threads=arguments.threads,
        bfloat16=not arguments.float32,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    _say(
        f"{recipe.shape.parameters:,} parameters, {recipe.tokens:,} tokens, corpus {batches.corpus_sha256(recipe.seed)}"
    )

    def tell(progress: train.Progress) -> None:
        if progress.step % 20 == 0 or progress.step == recipe.steps:
            _say(
                f"step {progress.step} of {recipe.steps}, loss {progress.loss:.4f},"
                f" {progress.tokens_per_s:.0f} tokens/s"
            )

    checkpoint = arguments.out / "checkpoint.pt"
    train.train(recipe, checkpoint, checkpoint_every=arguments.checkpoint_every, until=arguments.until, tell=tell)
    _say(f"{checkpoint}")


def _export(arguments: argparse.Namespace) -> None:
    from . import train

    training = train.load(arguments.checkpoint)
    if training.step < training.recipe.steps:
        _say(f"The training is not finished: the checkpoint is at step {training.step} of {training.recipe.steps}.")
    gguf_export.export(arguments.out, training.recipe, training.tokenizer, train.weights(training), kind=arguments.kind)
    data = arguments.out.read_bytes()
    _say(f"{arguments.out}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from . import evaluate

    def tell(answer: evaluate.Answer) -> None:
        if arguments.show_wrong and not answer.is_right:
            _say(f"{answer.question.skill}: {answer.question.messages[-1]['content']!r} -> {answer.text!r}")

    answers = evaluate.sit(arguments.model, seed=arguments.seed, per_skill=arguments.per_skill, tell=tell)
    table = evaluate.markdown(evaluate.scores(answers))
    _say(table)
    if arguments.out:
        arguments.out.write_text(table + "\n", encoding="utf-8")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
