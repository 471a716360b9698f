"""What recording a teacher's attention costs: the same pass with queries and keys of layers noted, and without.

    python benchmarks/recording.py

A SmolVLM of random weights, float32, 6 layers of width 576, two images of 64 tokens and questions. Both sides run in
turn in one process; memory is the highest sum of what torch allocated and had not freed yet within one pass.
"""

from contextlib import nullcontext

import torch
import transformers
from _record import provenance, write
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from dual_distill.inference import alternate
from dual_distill.modeling import record_attention
from dual_distill.teachers import family_of
from worlds import tiny_teachers

TEXT = {"hidden_size": 576, "num_hidden_layers": 6, "num_attention_heads": 9, "num_key_value_heads": 3}
VISION = {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 1536}


@torch.inference_mode()
def main() -> None:
    """Measure, print and record."""
    source = provenance() | {"seed": 0}
    torch.manual_seed(0)
    _, processor = tiny_teachers.tiny_teacher("smolvlm")
    processor.image_processor.size = {"longest_edge": 128}
    processor.image_processor.max_image_size = {"longest_edge": 128}
    processor.image_seq_len = 64
    text = {
        "model_type": "llama",
        **TEXT,
        "intermediate_size": 1536,
        "vocab_size": 320,
        "max_position_embeddings": 1024,
    }
    shape = {"text_config": text, "vision_config": {**VISION, "image_size": 128, "patch_size": 8}, "scale_factor": 2}
    config = transformers.SmolVLMConfig(**shape, image_token_id=processor.image_token_id)
    model = transformers.SmolVLMForConditionalGeneration(config).eval()
    family = family_of(model.config)

    images, questions = [Image.effect_noise((128, 128), 90).convert("RGB")] * 2, ["what is on the red sofa ?"] * 2
    batch = family.inputs(model.config, processor, images, questions)
    read = {name: tensor for name, tensor in batch.items() if not name.startswith(("text_", "image_"))}
    layers = [name for [name] in family.layers(model)]

    results = []
    for recorded in (layers[-1:], layers):

        def run(recorded: list[str]) -> None:
            with record_attention(model, recorded) if recorded else nullcontext():
                model(**read, use_cache=False)

        calls = {"plain": lambda: run([]), "recorded": lambda recorded=recorded: run(recorded)}
        timings = alternate(calls, warmup=3, repeats=15)
        peaks = {name: peak_bytes(call) for name, call in calls.items()}
        milliseconds = {name: timing.median_ms for name, timing in timings.items()}
        results.append(
            {
                "layers": len(recorded),
                "sequence": batch["input_ids"].shape[1],
                **{f"{name}_ms": round(value, 3) for name, value in milliseconds.items()},
                "time_ratio": round(milliseconds["recorded"] / milliseconds["plain"], 4),
                **{f"{name}_peak_mb": round(value / 2**20, 3) for name, value in peaks.items()},
                "memory_ratio": round(peaks["recorded"] / peaks["plain"], 4),
            }
        )
        print(results[-1], flush=True)
    write("recording", {"passes": results}, source)


def peak_bytes(call) -> int:
    """Highest sum of bytes that torch allocated on the CPU and had not freed, over one call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    held, highest = 0, 0
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest


if __name__ == "__main__":
    main()
