"""`dual-distill train RECIPE.yaml [--field value ...]`: one run, described by the fields of three dataclasses."""

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch

from dual_distill.runs import make_run, plan_run, record_run, train

from .recipe_parser import FLAGS, parse_recipe, show_all_fields


def run(words: Sequence[str]) -> None:
    """Train as the recipe and the command line say, or plan it."""
    flags = {word.replace("_", "-") for word in words} & FLAGS.keys()
    words = [word for word in words if word.replace("_", "-") not in flags]
    as_json, is_dry = "--json" in flags, "--dry-run" in flags
    if "--help-all" in flags:
        show_all_fields()
        return
    if is_dry and not torch.cuda.is_available():
        words += ["--use_cpu", "true"]  # a recipe for a GPU is planned where there is none
    arguments = parse_recipe(words)
    if is_dry:
        with redirect_stdout(sys.stderr):
            plan = plan_run(*arguments)
        print(json.dumps(plan.to_dict()) if as_json else plan)
        return
    with redirect_stdout(sys.stderr):
        prepared = make_run(*arguments)
        metrics = train(prepared)
        if (
            prepared.trainer.eval_dataset is not None
        ):  # self-critical training has a reward, and no loss of validation rows
            metrics |= prepared.trainer.evaluate()
    results = {
        "output_dir": arguments[2].output_dir,
        "task": arguments[1].task,
        "seed": arguments[2].seed,
        "steps": prepared.trainer.state.global_step,
        **{name: value for name, value in metrics.items() if isinstance(value, int | float)},
    }
    Path(arguments[2].output_dir, "results.json").write_text(json.dumps(results, indent=2) + "\n")
    record_run(prepared, *arguments[:2], metrics, "dual-distill train")
    if as_json:
        print(json.dumps(results))
        return
    width = max(map(len, results))
    for name, value in results.items():
        print(f"{name:<{width}}  {value:.4f}" if isinstance(value, float) else f"{name:<{width}}  {value}")
