"""Which settings of the method teach an interaction layer best, judged on validation: one changed at a time.

    python benchmarks/method_settings.py [--seeds 0 1 2] [--steps 1000] [--runs-dir runs/quickstart]

The student is the quickstart's with one interaction layer, from random weights, taught by soft labels, the attention of
towers and layer, and the teacher's last hidden states, all weighed 1. Each row changes one thing: a weight, the
temperature, which layers or heads are compared, how the weight of attention goes over time, hard labels beside it, the
shape and height of the learning rate, the batch, or the weights it starts from. Needs the teachers that
benchmarks/quickstart_seeds.py leaves in RUNS_DIR/default-random-seedN. Settings are to be chosen by the accuracy on
validation; that on test stands beside it. A finished run is read, not made again. `--tiny` tries the script out and
records nothing.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from _record import provenance, write
from learning_curves import LAYER_TERMS, finished

from dual_distill.quickstart import PRESETS

RATE = PRESETS["default"].muon_learning_rate
# What each row changes of the training arguments.
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "temperature 2": {"temperature": 2.0},
    "temperature 4": {"temperature": 4.0},
    "soft labels weighed 3": {"soft_label_weight": 3.0},
    "attention of the towers weighed 0.3": {"attention_weight": 0.3},
    "attention of the towers weighed 3": {"attention_weight": 3.0},
    "attention of the layer weighed 3": {"interaction_attention_weight": 3.0},
    "hidden states weighed 0.3": {"interaction_hidden_weight": 0.3},
    "hidden states weighed 3": {"interaction_hidden_weight": 3.0},
    "all layers of the towers": {"layer_map": {layer: layer for layer in range(4)}},
    "relations over 8 heads": {"relation_heads": 8},
    "relations over 2 heads": {"relation_heads": 2},
    "attention warmed up over the first fifth": {"attention_share": lambda passed: min(1.0, 5 * passed)},
    "attention faded out to the end": {"attention_share": lambda passed: 1 - passed},
    "hard labels beside": {"label_weight": 1.0},
    "cosine decay": {"lr_scheduler_type": "cosine"},
    "half the rate": {"muon_learning_rate": RATE / 2},
    "twice the rate": {"muon_learning_rate": RATE * 2},
    "batches of 32": {"per_device_train_batch_size": 32},
    "the teacher's weights": {},
    "the teacher's weights, a new layer": {"interaction_from": None},
}


def main() -> None:
    """Train, evaluate, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: all")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--tiny", action="store_true", help="few scenes and two steps, to try the script out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = provenance() | {"seed": options.seeds}
    source["command"] = source["command"].replace(str(options.runs_dir), "RUNS")

    runs = []
    for seed in options.seeds:
        for setting in options.settings:
            weights = {**(LAYER_TERMS["distilled"] or {}), **SETTINGS[setting]}
            # As it is: a point of the learning curves.
            name = "distilled, one layer" + ("" if setting == "as it is" else f", {setting}")
            from_teacher = setting.startswith("the teacher's weights")
            run = {"setting": setting} | finished(options, seed, name, options.steps, 1, from_teacher, weights)
            print(f"    on validation: {100 * run['validation_accuracy']:.1f} %", flush=True)
            runs.append(run)
    if not options.tiny:
        write("method_settings", runs, source)


if __name__ == "__main__":
    main()
