"""Why a stored pair takes what it takes: each operation of `logits_of_projections` at batch 1 and 16, by torch's profiler.

    python benchmarks/stored_pair_profile.py

Random weights in ViLT-B/32's width with 3,129 answers, float32; towers of one layer, for they take no part. Beside it stand
the sizes of the three maps' weights, which batch 1 reads once for each pair.
"""

import torch
from _record import provenance, write
from torch.profiler import ProfilerActivity, profile

from dual_distill.modeling import DualEncoderConfig, DualEncoderForQuestionAnswering

CALLS = 200


@torch.inference_mode()
def main() -> None:
    """Measure, print and record."""
    source = provenance() | {"seed": 0}
    torch.manual_seed(0)
    tower = {"num_hidden_layers": 1}
    model = DualEncoderForQuestionAnswering(DualEncoderConfig(text_config=tower, vision_config=tower, num_labels=3129)).eval()
    rows = []
    for batch_size in (1, 16):
        texts, images = torch.randn(batch_size, 1536), torch.randn(batch_size, 1, 1536)
        for _ in range(20):
            model.logits_of_projections(texts, images)
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            for _ in range(CALLS):
                model.logits_of_projections(texts, images)
        found = {event.key: event.self_cpu_time_total / 1e3 / CALLS for event in recorded.key_averages()}
        total = sum(found.values())
        shares = {name: round(value / total, 3) for name, value in sorted(found.items(), key=lambda one: -one[1])[:5]}
        rows.append({"batch_size": batch_size, "ms_a_call": round(total, 3), "share_of_it": shares})
        print(rows[-1])
    layers = (model.dual_encoder.interaction[3], model.classifier[0], model.classifier[3])
    weights = [layer.weight.numel() * 4 / 1e6 for layer in layers]
    write("stored_pair_profile", {"weights_mb": [round(size, 2) for size in weights], "batches": rows}, source)


if __name__ == "__main__":
    main()
