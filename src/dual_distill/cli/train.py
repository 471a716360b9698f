"""`dual-distill train RECIPE.yaml [--role NAME] [--field value ...]`: one run, by the fields of three dataclasses."""

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

import torch

from dual_distill.runs import make_run, plan_run, train

from .options import aligned
from .recipe_parser import make_flag_parser, make_parser, parse_recipe


def run(words: Sequence[str]) -> None:
    """Train as the recipe and the command line say, or plan it."""
    flags, words = make_flag_parser().parse_known_args(words)
    if flags.help_all:
        make_parser(shows_all=True).print_help()
        return
    if flags.dry_run and not torch.cuda.is_available():
        words = [*words, "--use_cpu", "true"]  # a recipe for a GPU is planned where there is none
    arguments = parse_recipe(words, flags.role)

    if flags.dry_run:
        with redirect_stdout(sys.stderr):
            plan = plan_run(*arguments)
        print(json.dumps(asdict(plan)) if flags.json else plan)
        return

    with redirect_stdout(sys.stderr):
        trainer = make_run(*arguments)
        trainer.describe_run(command="dual-distill train")
        metrics = train(trainer)
        # Self-critical training has a reward, and no loss of validation rows.
        if trainer.eval_dataset is not None:
            metrics |= trainer.evaluate()
        if trainer.args.push_to_hub:
            trainer.push_to_hub()  # once more, with what was measured

    results = {
        "output_dir": arguments[2].output_dir,
        "task": arguments[1].task,
        "seed": arguments[2].seed,
        "steps": trainer.state.global_step,
        **{name: value for name, value in metrics.items() if isinstance(value, int | float)},
    }
    Path(arguments[2].output_dir, "results.json").write_text(json.dumps(results, indent=2) + "\n")

    rounded = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in results.items()}
    print(json.dumps(results) if flags.json else aligned(rounded))
