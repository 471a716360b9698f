"""`dual-distill train RECIPE.yaml [--role NAME] [--field value ...]`: one run, by the fields of three dataclasses."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dual_distill.runs import RunPlan, make_run, plan_run, train
from dual_distill.sealed import write_file

from .options import aligned
from .recipe_parser import list_recipes, make_flag_parser, make_parser, parse_recipe


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read flags and recipe; without a recipe nothing starts."""
    options, words = make_flag_parser().parse_known_args(words)
    parser = make_parser(shows_all=options.help_all)
    if options.help_all or {"-h", "--help"} & {*words}:
        parser.print_help()
        raise SystemExit(0)
    if not words or words[0].startswith("-"):
        parser.print_usage(sys.stderr)
        print(f"Give a recipe; there are:\n{list_recipes()}", file=sys.stderr)
        raise SystemExit(2)

    if options.dry_run and not torch.cuda.is_available():
        words = [*words, "--use_cpu", "true"]  # a recipe for a GPU is planned where there is none
    options.arguments = parse_recipe(words, options.role)
    return options


def run(options: argparse.Namespace) -> dict[str, Any] | RunPlan:
    """Train as the recipe and the command line say, or plan it."""
    model, data, training = options.arguments
    if options.dry_run:
        return plan_run(model, data, training)

    if training.device.type == "cuda":
        print(f"on {training.device}, {torch.cuda.get_device_name(training.device)}; --use_cpu true for the CPU")
    trainer = make_run(model, data, training, overwrite=options.overwrite)
    trainer.describe_run(command="dual-distill train")
    metrics = train(trainer, options.resume, options.overwrite)
    # Self-critical training has a reward, and no loss of validation rows.
    if trainer.eval_dataset is not None:
        metrics |= trainer.evaluate()
    if trainer.args.push_to_hub:
        trainer.push_to_hub()  # once more, with what was measured

    results = {"output_dir": training.output_dir, "task": data.task, "seed": training.seed}
    results |= {"steps": trainer.state.global_step}
    results |= {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    write_file(Path(training.output_dir, "results.json"), json.dumps(results, indent=2) + "\n")
    return results


def table(result: dict[str, Any] | RunPlan) -> str:
    """Lay results or a plan out for reading."""
    if isinstance(result, RunPlan):
        return str(result)
    return aligned({name: f"{value:.4f}" if isinstance(value, float) else value for name, value in result.items()})
