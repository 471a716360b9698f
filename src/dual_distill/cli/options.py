"""What the subcommands share: how one of them runs, options written once, hints, and the printing of a result.

A module of a command has `add_arguments(parser)`, `run(options)`, which returns a dict or a report, and
`table(result)`, which lays it out for reading; its docstring is its help. `train`, whose options are the fields of
three dataclasses, has `parse(words)` in place of the first.
"""

import argparse
import difflib
import json
import os
import re
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from dual_distill.credentials import without_credentials

TOP_K = 5
# Shared options: what stands for the value, and the help.
_VALUES = {
    "model": ("MODEL", "checkpoint folder or Hub repository (also owner/name@revision), ours or a ViLT"),
    "folder": ("FOLDER", "checkpoint folder, as `dual-distill train` writes it"),
    "store": ("STORE", "folder of the store that the model made"),
    "--revision": ("NAME", "branch, tag, commit or refs/pr/N of a Hub repository"),
    "--top-k": ("N", f"answers a question (default: {TOP_K})"),
    "--batch-size": ("N", "rows a forward pass (default: %(default)s)"),
    "--device": ("NAME", "cpu, cuda, cuda:1 ... (default: auto, cuda where there is one, else cpu)"),
    "--license": ("NAME", "licence of the weights as the Hub calls it, such as apache-2.0"),
}
_FLAGS = {
    "--with-code": "with the model's code, for those without this package",
    "--json": "print one JSON line on stdout, everything else on stderr",
    "--debug": "show the traceback of an error",  # read by `main`
}
_TYPES = {"N": int, "X": float, "PATH": Path, "FOLDER": Path}
# Field of a recipe or option of a subcommand -> what people call it elsewhere.
_MEANT = {
    "learning_rate": "lr rate peak_lr base_lr",
    "per_device_train_batch_size": "batch_size bs batch train_batch_size",
    "per_device_eval_batch_size": "eval_batch_size val_batch_size",
    "num_train_epochs": "epochs num_epochs n_epochs max_epochs",
    "max_steps": "steps num_steps iterations max_iters total_steps",
    "weight_decay": "wd decay",
    "warmup_steps": "warmup num_warmup_steps warmup_ratio",
    "gradient_accumulation_steps": "grad_accum grad_acc accumulation_steps accumulate",
    "dataloader_num_workers": "workers num_workers threads",
    "lr_scheduler_type": "scheduler lr_scheduler schedule",
    "max_grad_norm": "clip clip_grad grad_clip gradient_clip",
    "optim": "optimizer opt",
    "seed": "random_seed random_state",
    "use_cpu": "device gpu gpus cpu no_cuda cuda",
    "bf16": "amp half mixed_precision precision dtype",
    "resume_from_checkpoint": "resume continue ckpt",
    "report_to": "wandb tensorboard logger",
    "output_dir": "o out output out_dir outdir save_dir",
    "data": "dataset data_dir data_path dataset_name train_file",
    "init_from": "model student checkpoint pretrained model_name_or_path",
    "teacher": "teacher_model teacher_name teacher_path",
    "temperature": "temp tau t",
    "soft_label_weight": "alpha kd_weight distill_weight soft_weight",
    "label_weight": "hard_weight ce_weight",
    "max_train_rows": "max_train_samples limit",
    "max_rows": "max_samples limit",
    "batch_size": "bs batch",
    "device": "gpu cuda",
    "top_k": "k topk n",
    "num_beams": "beams",
}
_ALIKE, _NEARLY_EQUAL = 0.7, 0.85


def run_command(name: str, words: Sequence[str]) -> None:
    """Run a subcommand with stdout sent to stderr, and print its result: as one JSON line, or laid out."""
    module = import_module(f"{__package__}.{name}")
    # From here on an interruption is an exception again (`dual_distill/__init__.py`), so that a run can end in order.
    if callable(handler := signal.getsignal(signal.SIGINT)) and handler is not signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    options = getattr(module, "parse", partial(_parse, name, module))(words)
    with redirect_stdout(sys.stderr):
        if "device" in options:
            options.device = choose_device(options.device or "auto")
        result = module.run(options)

    if options.json:
        shown = json.dumps(result if isinstance(result, dict) else asdict(result), ensure_ascii=False)
    else:
        shown = module.table(result)
    print(without_credentials(shown))


def _parse(name: str, module: Any, words: Sequence[str]) -> argparse.Namespace:
    """Read the words of a subcommand, whose docstring opens the help with its first paragraph and closes it."""
    summary, _, details = str(module.__doc__).partition("\n\n")
    layout: Any = {"epilog": details.rstrip(), "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = _Parser(prog=f"dual-distill {name}", description=summary, **layout)
    module.add_arguments(parser)
    add_options(parser, "--json", "--debug")

    # Intermixed, so that questions may stand before, between and after the options.
    dashed = [re.sub(r"^--[^=]+", lambda found: found[0].replace("_", "-"), word) for word in words]
    command = without_credentials(" ".join(["dual-distill", name, *words]))
    return parser.parse_intermixed_args(dashed, argparse.Namespace(command=command))


class _Parser(argparse.ArgumentParser):
    """A parser whose refusal of an unknown option names the one that was meant."""

    def error(self, message: str) -> NoReturn:
        for word in message.split() if "unrecognized arguments" in message else ():
            known = [option.removeprefix("--").replace("-", "_") for option in self._option_string_actions]
            if word.startswith("--") and (meant := find_name(word.removeprefix("--").partition("=")[0], known)):
                message = f"{message}; did you mean --{meant.replace('_', '-')}?"
        super().error(message)


def find_name(name: str, known: Collection[str], sensitive: Collection[str] = ()) -> str | None:
    """Return the name that a wrong one most likely stands for; None: none comes near.

    Args:
        name: as it was written, with dashes or underscores.
        known: the names that there are.
        sensitive: those that change what is built: they are named for what is nearly equal and begins alike.

    Example:
        >>> find_name("lr", ["learning_rate", "layer_map"]), find_name("batch-size", ["patch_size"], ["patch_size"])
        ('learning_rate', None)
    """
    # What people are used to first: the nearest spelling of it may be something else altogether.
    name = name.replace("-", "_")
    for meant, words in _MEANT.items():
        if meant in known and name in words.split():
            return meant
    for nearest in difflib.get_close_matches(name, known, n=3, cutoff=_ALIKE):
        ratio = difflib.SequenceMatcher(None, name, nearest).ratio()
        if nearest not in sensitive or (ratio >= _NEARLY_EQUAL and name[0] == nearest[0]):
            return nearest
    return None


def add_options(parser: Any, *names: str) -> None:
    """Add shared options."""
    for name in names:
        if name in _FLAGS:
            parser.add_argument(name, action="store_true", help=_FLAGS[name])
        else:
            option(parser, name, *_VALUES[name])


def option(parser: Any, name: str, value: str, text: str, **more: Any) -> None:
    """Add an option, whose type follows from what stands for its value: N, X or PATH, else words."""
    parser.add_argument(name, metavar=value, type=_TYPES.get(value), help=text, **more)


def refuse_options(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Refuse those of the options that are given; they mean nothing here, and the message ends with `why`.

    Example:
        >>> refuse_options(argparse.Namespace(top_k=0, json=False), ["top_k", "json"], "is about answers")
        Traceback (most recent call last):
        ValueError: --top-k is about answers; leave it out.
    """
    # By identity: a 0 was given.
    given = [name for name in names if not any(getattr(options, name) is unset for unset in (None, False))]
    if given:
        spelled = ["MODEL" if name == "model" else f"--{name.replace('_', '-')}" for name in given]
        raise ValueError(f"{', '.join(spelled)} {why}; leave it out.")


def choose_device(name: str) -> str:
    """Return the device that is asked for; auto: the GPU of this process, if there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    import torch  # here, so that a parser can be built without it

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and not count:
        return "cpu"
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        print(f"on {name}, {torch.cuda.get_device_name(name)}; --device cpu for the CPU", file=sys.stderr)

    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"--device is {name!r}; give auto, cpu, cuda or cuda:N.")
    if kind == "cuda" and int(index or 0) >= count:
        there = f"{count or 'no'} CUDA device{'s' * (count > 1)}"
        raise ValueError(f"--device is {name!r}, but torch sees {there} here; give --device cpu, or leave it out.")
    return name


def aligned(lines: Mapping[str, Any]) -> str:
    """Lay names and values out in two columns.

    Example:
        >>> print(aligned({"written": "out", "labels": 3}))
        written  out
        labels   3
    """
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def answer_blocks(answered: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> str:
    """Lay answers out: a block for each question, a line for each answer with its probability.

    Example:
        >>> print(answer_blocks([("is it red?", [{"answer": "yes", "score": 0.75}])]))
        is it red?
          yes   75.0 %
    """
    width = max((len(answer["answer"]) for _, answers in answered for answer in answers), default=0)
    return "\n\n".join(
        "\n".join([title, *(f"  {row['answer']:<{width}}  {100 * row['score']:5.1f} %" for row in answers)])
        for title, answers in answered
    )
