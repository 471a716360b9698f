"""Writing captions beside transformers' BLIP of like size, and what self-critical training reads.

    OMP_NUM_THREADS=1 python benchmarks/captioning.py [--batch-size 4] [--rounds 7]

Random weights in ViLT-B/32's shape, float32, images of 384 px in patches of 32, captions of 20 words that never end
early. BLIP has the same image, patches, width, heads and vocabulary, 12 layers that read the image and 12 that write.
Greedy and with 5 beams, with torch's linear layers and, as `predict` has them, prepacked, on both sides. Then a
caption's probability with its gradient, beside a training step on masked words of the same images and captions; and the
tokens that pass through the encoder for it, beside those of `generate` and of a text with its image for each word. What
is compared runs in turn in one process, processor seconds; of the rounds' ratios stand the quartiles and the median.
`--tiny` tries the script out and writes nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _record import keep_freed_memory, provenance, write
from transformers import BlipConfig, BlipForConditionalGeneration

from dual_distill.inference import prepack_linear_layers
from dual_distill.modeling import FusionEncoderConfig, FusionEncoderForCaptioning
from dual_distill.trainer.captioning_trainer import caption_log_probs

WORDS = 20
IDS = {"bos_token_id": 101, "eos_token_id": 102, "mask_token_id": 103, "pad_token_id": 0}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="models of no use, to try the script out")
    options = parser.parse_args()
    if not options.tiny:
        keep_freed_memory()
    source = provenance() | {"seed": 0}

    torch.manual_seed(0)
    ours, blip = models(TINY if options.tiny else {})
    images = torch.randn(options.batch_size, 3, 384, 384)
    lasting = {"max_new_tokens": WORDS, "min_new_tokens": WORDS, "do_sample": False}
    writing: dict[str, Callable[[], Any]] = {
        f"{name}_{beams}": lambda model=model, beams=beams: model.generate(
            pixel_values=images, num_beams=beams, **lasting
        )
        for beams in (1, 5)
        for name, model in (("ours", ours), ("blip", blip))
    }
    written, context = writing["ours_1"](), {"pixel_values": images}
    learning: dict[str, Callable[[], Any]] = {
        "log_probs": lambda: caption_log_probs(ours, written, context, ours.config).sum().backward(),
        "masked_words": lambda: ours(input_ids=written, labels=written, **context).loss.backward(),
    }
    beside_blip = {"greedy": ("ours_1", "blip_1"), "beams_5": ("ours_5", "blip_5")}

    results: dict[str, Any] = {
        "batch_size": options.batch_size,
        "words": WORDS,
        "parameters": {"ours": ours.num_parameters(), "blip": blip.num_parameters()},
        "tokens": {"generate": tokens(ours, writing["ours_1"]), "log_probs": tokens(ours, learning["log_probs"])},
    }
    image_tokens = results["tokens"]["generate"] // options.batch_size - 2 * WORDS
    results["tokens"]["a_text_a_word"] = options.batch_size * WORDS * (image_tokens + WORDS + 1)
    results["learning"] = compared(learning, {"log_probs": ("log_probs", "masked_words")}, options.rounds)
    results["writing"] = compared(writing, beside_blip, options.rounds)
    if prepack_linear_layers(ours) and prepack_linear_layers(blip):
        results["writing_prepacked"] = compared(writing, beside_blip, options.rounds)

    for name, value in results.items():
        print(f"{name}: {value}")
    if not options.tiny:
        write("captioning", results, source)


def models(fields: dict[str, int]) -> tuple[Any, Any]:
    """Build ours and BLIP, of one width, depth, grid of patches and vocabulary."""
    config = FusionEncoderConfig(image_size=384, **IDS, **fields)
    ours = FusionEncoderForCaptioning(config).eval()
    shape = {
        name: getattr(config, name)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    text = {**shape, "vocab_size": config.vocab_size, "encoder_hidden_size": config.hidden_size}
    special = {"bos_token_id": 101, "eos_token_id": 102, "sep_token_id": 102, "pad_token_id": 0}
    blip_config = BlipConfig(
        text_config={**text, **special}, vision_config={**shape, "image_size": 384, "patch_size": config.patch_size}
    )
    return ours, BlipForConditionalGeneration(blip_config).eval()


def compared(calls: dict[str, Callable[[], Any]], pairs: dict[str, tuple[str, str]], rounds: int) -> dict[str, Any]:
    """Median processor seconds of each call, in turn in every round but the first, and quartiles of rounds' ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if number:
                seconds[name].append(time.process_time() - start)

    ratios = {}
    for name, (one, other) in pairs.items():
        each = [mine / its for mine, its in zip(seconds[one], seconds[other], strict=True)]
        ratios[name] = [round(value, 3) for value in statistics.quantiles(each, n=4, method="inclusive")]
    return {"median_s": {name: round(statistics.median(taken), 4) for name, taken in seconds.items()}, "ratios": ratios}


def tokens(model: Any, call: Callable[[], Any]) -> int:
    """Tokens that pass through the encoder in one call."""
    read: list[int] = []
    hook = model.fusion_encoder.encoder.register_forward_pre_hook(
        lambda module, inputs: read.append(inputs[0].shape[0] * inputs[0].shape[1])
    )
    call()
    hook.remove()
    return sum(read)


if __name__ == "__main__":
    main()
