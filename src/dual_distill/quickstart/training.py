"""The trained stages of a quickstart, side by side, each in a process of one thread.

At these widths a second thread gains little of a step's time, and beside other work it loses far more.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

from dual_distill.data import DistillationCollator, get_task
from dual_distill.modeling import DualDistillProcessor
from dual_distill.runs import DataArguments, ModelArguments, make_run, train
from dual_distill.sealed import read_json, write_json
from dual_distill.teachers import load_model
from dual_distill.trainer import DistillationTrainingArguments, EvaluationReport, predict_answers, report_answers

from .report import STAGES

SOURCE = "dual-distill quickstart"
_DATA = DataArguments(task="scenes")
_LAYER_TERMS = ("interaction_attention_weight", "interaction_hidden_weight", "label_weight")
# What the teacher is asked first: about one thing each. It learns to see before it learns to count, relate and compare.
_FIRST_TYPES = ("exist", "colour", "shape")
_DONE = "stage.json"


def say(what: str) -> None:
    """Print a line of progress."""
    print(f"== {what}", file=sys.stderr, flush=True)


@contextmanager
def start_processes(output_dir: Path) -> Iterator[ProcessPoolExecutor | None]:
    """Start as many processes as torch has threads, at most as stages are unfinished; None where nothing gains by it.

    What goes wrong in this process, an interruption too, ends them at once.
    """
    unfinished = [stage for stage in STAGES if not (output_dir / stage / _DONE).is_file()]
    # A single stage gets one too: with other threads it would end in other bits.
    num_processes = min(torch.get_num_threads(), len(unfinished), len(STAGES) - 1)
    if torch.get_num_threads() == 1 or not unfinished:
        yield None
        return

    others = active_children()
    with ProcessPoolExecutor(num_processes, get_context("spawn"), _begin_process) as pool:
        for _ in range(num_processes):
            pool.submit(int)  # what they import is there when they are needed
        try:
            yield pool
        except BaseException:
            for process in set(active_children()).difference(others):
                process.kill()
            raise


def train_all(
    pool: ProcessPoolExecutor | None, output_dir: Path, models: dict[str, ModelArguments], *given: Any
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]], dict[str, EvaluationReport]]:
    """Train every stage that is not finished, and have all answer the test split, side by side.

    Returns:
        Of each stage what its `stage.json` says, its answers and its evaluation; the teacher's holds the baselines.
    """
    submit = _now if pool is None else pool.submit
    jobs = {"teacher": submit(_train, output_dir / "teacher", models["teacher"], *given)}
    # Who needs no teacher begins beside it; the last of the table has the longest steps.
    waiting = [stage for stage in reversed(STAGES) if stage not in jobs]
    waiting.sort(key=lambda stage: bool(models[stage].teacher or models[stage].init_from))
    for stage in waiting:
        if models[stage].teacher or models[stage].init_from:
            jobs["teacher"].result()
        jobs[stage] = submit(_train, output_dir / stage, models[stage], *given)

    _, *data_and_processor = given
    stages, evaluated = {}, {}
    for stage in STAGES:
        stages[stage] = jobs[stage].result()
        evaluated[stage] = submit(_evaluate, output_dir / stage, *data_and_processor)
    results = {stage: job.result() for stage, job in evaluated.items()}
    answers = {stage: result[0] for stage, result in results.items()}
    return stages, answers, {stage: result[1] for stage, result in results.items()}


def _now(work: Callable[..., Any], *given: Any) -> Future[Any]:
    """Do it in this process, as a pool would in another."""
    done: Future[Any] = Future()
    done.set_result(work(*given))
    return done


def _begin_process() -> None:
    """One thread; ends with the process that started it, however that ends."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


class _Progress(TrainerCallback):
    """A line at each log, which names the stage: several write into one terminal."""

    def __init__(self, stage: str):
        self.stage = stage

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **given: Any) -> None:
        """Print step and loss."""
        if logs and "loss" in logs:
            line = f"   {self.stage}: step {state.global_step:,} of {state.max_steps:,}, loss {logs['loss']:.3f}"
            print(line, file=sys.stderr, flush=True)


def _train(
    folder: Path, model: ModelArguments, settings: dict[str, Any], data: DatasetDict, processor: DualDistillProcessor
) -> dict[str, Any]:
    """Train one model, unless an earlier start has finished it."""
    done = folder / _DONE
    if done.is_file():
        say(f"{folder.name}: finished earlier, kept")
        return {**read_json(done), "earlier": True}

    role = "teacher" if folder.name == "teacher" else "student"
    steps = settings[f"{role}_steps"]
    say(f"{STAGES[folder.name]}, {steps:,} steps")
    arguments = DistillationTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings[f"{role}_batch_size"],
        per_device_eval_batch_size=512,
        learning_rate=settings[f"{role}_learning_rate"],
        muon_learning_rate=settings["muon_learning_rate"],
        seed=settings["seed"],
        **{name: settings[name] for name in _LAYER_TERMS if folder.name == "distilled"},
        logging_steps=max(steps // 10, 1),
        # The teacher's rows lie in their order already.
        train_sampling_strategy="sequential" if role == "teacher" else "random",
        save_strategy="no",
        preflight=False,  # the report says more
        disable_tqdm=True,
    )
    rows = _in_teaching_order(data, settings) if role == "teacher" else data
    trainer = make_run(model, _DATA, arguments, data=rows, processor=processor)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Progress(folder.name))
    trainer.describe_run(command=SOURCE)
    metrics = train(trainer)

    # Written last: a folder without it is trained again.
    stage = {"seconds": metrics["train_runtime"], "steps": steps}
    write_json(done, stage)
    return {**stage, "earlier": False}


def _in_teaching_order(data: DatasetDict, settings: dict[str, Any]) -> DatasetDict:
    """The training rows of all of the teacher's steps, in the order in which it sees them.

    First questions of `_FIRST_TYPES` alone, then all; within each part every row once before any row twice.
    """
    steps = settings["teacher_steps"]
    rng = np.random.default_rng([settings["seed"], steps])
    types = np.array(data["train"]["question_type"])
    first = np.flatnonzero(np.isin(types, _FIRST_TYPES))
    first_steps = round(settings["teacher_first_share"] * steps)

    parts = []
    for rows, num_steps in ((first, first_steps), (np.arange(len(types)), steps - first_steps)):
        wanted = num_steps * settings["teacher_batch_size"]
        epochs = -(-wanted // len(rows))
        parts.append(np.concatenate([rng.permutation(rows) for _ in range(epochs)])[:wanted])
    return DatasetDict({**data, "train": data["train"].select(np.concatenate(parts))})


def _evaluate(folder: Path, data: DatasetDict, processor: DualDistillProcessor) -> tuple[list[str], EvaluationReport]:
    """Answer the test split."""
    task = get_task("scenes")
    collator = DistillationCollator(processor, task, task.label_names or ())
    answers = predict_answers(load_model(folder).model, data["test"], collator, 512, folder.name)
    # The baselines are the same for all, so they are computed once.
    train = data["train"] if folder.name == "teacher" else None
    return answers, report_answers(answers, data["test"], task, train)
