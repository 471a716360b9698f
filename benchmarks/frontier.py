"""Accuracy against milliseconds a question and bytes an image: from the paper's interaction to the fusion encoder.

    python benchmarks/frontier.py students [--seeds 0 1 2] [--runs-dir runs/quickstart]
    python benchmarks/frontier.py speed

"students" trains students of a quickstart's teachers (four layers a tower) with 0 (the paper's interaction of pooled
vectors), 1, 2 and 4 interaction layers, as many as half and all of a tower, for equal steps from random weights: on
hard labels, on soft labels, and distilled (attention of the towers and of the last interaction layer, hidden states).
It needs the teachers that benchmarks/quickstart_seeds.py leaves in RUNS_DIR/default-random-seedN; a finished student is
read, not trained again. "speed" times a question about a stored image at ViLT-B/32's shape (random weights, twelve
layers, 384 x 512 pixels, a text of 12 tokens, 3,129 answers), for the same shares of a tower's depth and for the fusion
encoder, and counts the bytes that are stored of an image. `--tiny` tries the script out and records nothing.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from _record import provenance, write
from learning_curves import LAYER_TERMS, finished

from dual_distill.inference import PairShape, measure_answering, prepack_linear_layers
from dual_distill.modeling import (
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForQuestionAnswering,
)

# Interaction layers by the share of a tower's depth that they are, for towers of four layers and of twelve.
DEPTHS = {"none": (0, 0), "one": (1, 1), "two": (2, 2), "half": (2, 6), "all": (4, 12)}
PIXELS = (384, 512)
TINY = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 200}


def main() -> None:
    """Train or time, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("students", "speed"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds; each runs every way once")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--tiny", action="store_true", help="few scenes and two steps, or models of no use")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = provenance() | {"seed": options.seeds}
    source["command"] = source["command"].replace(str(options.runs_dir), "RUNS")
    results = students(options) if options.part == "students" else speed(options)
    if not options.tiny:
        write(f"frontier_{options.part}", results, source)


def students(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train each student once; what needs no layer or one is a point of the learning curves too."""
    runs = []
    for seed in options.seeds:
        for layers in sorted({shallow for shallow, _ in DEPTHS.values()}):
            for terms in ("hard labels", "soft labels", "distilled"):
                weights = LAYER_TERMS[terms]
                name = f"{terms}, {layers} layers"
                if layers == 0:
                    called = "soft labels, attention" if terms == "distilled" else terms
                    name, weights = f"{called}, random", {} if terms == "distilled" else weights
                if layers == 1:
                    name = f"{terms}, one layer"
                found = finished(options, seed, name, options.steps, layers, False, weights)
                runs.append({"layers": layers, "terms": terms, **found})
    return runs


def speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds a question about a stored image, in turn in one process; bytes of an image by number format."""
    torch.manual_seed(0)
    depth = 12
    config = FusionEncoderConfig(num_labels=3129, num_hidden_layers=depth, **(TINY if options.tiny else {}))
    fusion = FusionEncoderForQuestionAnswering(config).eval()
    models: dict[str, Any] = {"fusion_encoder": fusion}
    for layers in sorted({deep for _, deep in DEPTHS.values()}):
        models[f"{layers} layers"] = DualEncoderForQuestionAnswering.from_fusion_encoder(
            fusion, interaction_layers=layers
        ).eval()
    for model in models.values():
        prepack_linear_layers(model)

    shape = PairShape(1, 12, 12, PIXELS)
    kept = {"fusion_encoder", "image_stored", "keys_values_stored"}
    rows = [row for row in measure_answering(models, shape, 3, options.repeats) if row["way"] in kept]
    tokens = 1 + PIXELS[0] * PIXELS[1] // config.patch_size**2
    for row in rows:
        layers = 0 if row["model"] == "fusion_encoder" else int(row["model"].split()[0])
        each = 1 if not layers else tokens if row["way"] == "image_stored" else 1 + 2 * layers * tokens
        numbers = each * config.hidden_size
        row["layers"] = layers
        if row["model"] != "fusion_encoder":
            # As stores hold them: int8 has a scale of four bytes a row, and is of tokens alone.
            row["bytes_an_image"] = {"float32": 4 * numbers, "float16": 2 * numbers, "int8": numbers + 4 * each}
        print({name: row[name] for name in ("model", "way", "latency_ms", "times_faster")}, flush=True)
    return rows


if __name__ == "__main__":
    main()
