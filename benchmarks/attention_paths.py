"""Every model under every attention kernel and number format: is it right, and what is gained?

    python benchmarks/attention_paths.py [--batch-size 16] [--rounds 7]

Random weights in ViLT-B/32's shape (384 x 512 pixels, texts of 40 tokens of which 12 are real, 3,129 answers), or
36 regions of 2,048 numbers. Of each model and way: the largest difference of its logits from eager attention in float32
over their standard deviation, and the time of a forward pass and of a training step over eager attention's in float32,
all ways of a model in turn in one process. Flash attention runs where there is a GPU and the kernel is installed; a way
that is not there is recorded with the sentence that says why. `--tiny` tries the script out and writes nothing.
"""

import argparse
import copy
from typing import Any

import torch
from _record import provenance, write
from torch import nn

from dual_distill.inference import alternate
from dual_distill.modeling import (
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForCaptioning,
    FusionEncoderForQuestionAnswering,
)
from dual_distill.teachers import random_batch

REFERENCE = ("eager", "float32")
WAYS = (
    REFERENCE,
    ("sdpa", "float32"),
    ("flex_attention", "float32"),
    ("sdpa", "bfloat16"),
    ("flash_attention_2", "bfloat16"),
)
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 200}
GRID, TOKENS, REAL_TOKENS, REGIONS = (12, 16), 40, 12, 36


def main() -> None:
    """Compare, time, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="models of no use, to try the script out")
    options = parser.parse_args()
    source = provenance() | {"seed": 0}
    device = "cuda" if torch.cuda.is_available() else "cpu"

    rows = []
    for name, model in models(TINY if options.tiny else {}).items():
        rows += compare(name, model.to(device), device, options)
    if not options.tiny:
        write("attention_paths" + ("" if device == "cpu" else "_gpu"), rows, source)


def models(fields: dict[str, Any]) -> dict[str, nn.Module]:
    """One of each kind, random weights."""
    torch.manual_seed(0)
    answers = {"num_labels": 3129, "attn_implementation": "eager", **fields}
    regions = {"visual_inputs": "regions", "max_regions": REGIONS}
    fusion = FusionEncoderForQuestionAnswering(FusionEncoderConfig(**answers))
    special = {"bos_token_id": 101, "eos_token_id": 102, "mask_token_id": 103, "pad_token_id": 0}
    return {
        "fusion encoder": fusion,
        "dual encoder": DualEncoderForQuestionAnswering.from_fusion_encoder(fusion),
        "dual encoder, one interaction layer": DualEncoderForQuestionAnswering.from_fusion_encoder(
            fusion, interaction_layers=1
        ),
        "region model": FusionEncoderForQuestionAnswering(FusionEncoderConfig(**answers, **regions)),
        "captioning": FusionEncoderForCaptioning(FusionEncoderConfig(**answers, **special)),
    }


def compare(name: str, model: Any, device: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All ways of one model: differences first, then times in turn."""
    batch = random_batch(model.config, options.batch_size, TOKENS, GRID, 0)
    batch["attention_mask"][:] = torch.arange(TOKENS) < REAL_TOKENS
    if getattr(model.config, "visual_inputs", "patches") == "regions":
        corners = torch.rand(options.batch_size, REGIONS, 4) / 2
        boxes = torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:], corners[..., 2:]], -1)
        features = torch.randn(options.batch_size, REGIONS, model.config.region_feature_size)
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
        batch |= {"region_features": features, "region_boxes": boxes}
    batch = {key: value.to(device) for key, value in batch.items()}
    rows, ready = [], {}
    for kernel, dtype in WAYS:
        row: dict[str, Any] = {"model": name, "attention": kernel, "dtype": dtype}
        rows.append(row)
        try:
            one = copy.deepcopy(model).to(getattr(torch, dtype)).eval()
            one.set_attn_implementation(kernel)
            given = {key: value.to(one.dtype) if value.is_floating_point() else value for key, value in batch.items()}
            with torch.no_grad():
                logits = one(**given).logits.float()
        except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
            row["not_run"] = str(error).splitlines()[0]
            continue
        if (kernel, dtype) == REFERENCE:
            reference = logits
        row["largest_difference"] = float((logits - reference).abs().max() / reference.std())
        ready[kernel, dtype] = (one, given)

    forward = {way: lambda one=one, given=given: run(one, given) for way, (one, given) in ready.items()}
    # Torch has no backward pass of flex attention on a CPU.
    step = {
        way: lambda one=one, given=given: train(one, given)
        for way, (one, given) in ready.items()
        if device != "cpu" or "flex" not in way[0]
    }
    for what, ways in (("forward", forward), ("step", step)):
        timings = alternate(ways, device, 2, 2 if options.tiny else options.rounds)
        for row in rows:
            if timing := timings.get((row["attention"], row["dtype"])):
                row[f"{what}_ms"] = timing.median_ms
                row[f"{what}_ratio"] = timing.median_ms / timings[REFERENCE].median_ms
    for row in rows:
        print(row, flush=True)
    return rows


@torch.no_grad()
def run(model: Any, batch: dict[str, torch.Tensor]) -> None:
    """Compute logits."""
    model(**batch)


def train(model: Any, batch: dict[str, torch.Tensor]) -> None:
    """Compute logits and all gradients."""
    model.zero_grad()
    model(**batch).logits.float().square().mean().backward()


if __name__ == "__main__":
    main()
