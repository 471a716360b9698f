"""What `vision_cache_mb` saves: a student with a frozen SigLIP tower, its images run at every step or once.

    python benchmarks/vision_cache.py [--images 32] [--epochs 4] [--batch-size 16]

SigLIP-B/16's shape at 224 pixels in front of MiniLM's (6 layers of 384), one interaction layer, random weights, one
question an image. Both are trained by the same trainer in one process, without and with the cache; seconds are of each
epoch, so the first with the cache fills it. `--tiny` tries the script out and records nothing.
"""

import argparse
import tempfile
import time

import torch
from _record import provenance, write
from transformers import TrainerCallback

from dual_distill import DistillationTrainer, DistillationTrainingArguments
from dual_distill.modeling import DualEncoderConfig, DualEncoderForQuestionAnswering

TEXT = {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
TEXT |= {"intermediate_size": 1536, "vocab_size": 30522}
IMAGE = {"model_type": "siglip_vision_model", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
IMAGE |= {"intermediate_size": 3072, "image_size": 224, "patch_size": 16}
TINY = {"hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 48}


class Stopwatch(TrainerCallback):
    """Notes when each epoch began and ended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, *args: object, **kwargs: object) -> None:
        """Start."""
        self.began = time.perf_counter()

    def on_epoch_end(self, *args: object, **kwargs: object) -> None:
        """Stop."""
        self.seconds.append(round(time.perf_counter() - self.began, 2))


def main() -> None:
    """Train both, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    text, image = dict(TEXT), dict(IMAGE)
    if options.tiny:
        options.images, options.epochs, options.batch_size = 4, 2, 2
        text, image = TEXT | TINY, IMAGE | TINY | {"image_size": 32}
    source = provenance() | {"seed": 0}

    torch.manual_seed(0)
    drawn = torch.randn(options.images, 3, image["image_size"], image["image_size"])
    words = torch.randint(1000, text["vocab_size"], (options.images, 16))
    rows = [{"pixel_values": drawn[at], "input_ids": words[at], "labels": at % 2} for at in range(options.images)]
    result: dict[str, object] = {"images": options.images, "batch_size": options.batch_size}
    weights = []
    for name, limit_mb in (("run at every step", 0.0), ("run once", 4000.0)):
        torch.manual_seed(0)
        config = DualEncoderConfig(
            text_config=dict(text), vision_config=dict(image), interaction_layers=1, num_labels=2
        )
        student, watch = DualEncoderForQuestionAnswering(config), Stopwatch()
        arguments = DistillationTrainingArguments(
            tempfile.mkdtemp(), num_train_epochs=options.epochs, per_device_train_batch_size=options.batch_size, seed=0,
            freeze_vision_tower=True, vision_cache_mb=limit_mb, save_strategy="no", report_to="none",
            use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        DistillationTrainer(student, arguments, train_dataset=rows, callbacks=[watch]).train()
        result[f"seconds an epoch, {name}"] = watch.seconds
        result[f"seconds, {name}"] = round(sum(watch.seconds), 1)
        weights.append([weight.detach().cpu() for weight in student.parameters() if weight.requires_grad])
        print(name, watch.seconds, flush=True)

    apart = max((one - other).abs().max().item() for one, other in zip(*weights, strict=True))
    result["largest difference of a trained weight"] = apart
    kept = [result[f"seconds an epoch, {name}"][-1] for name in ("run at every step", "run once")]  # type: ignore[index]
    result["last epochs, run at every step over run once"] = round(kept[0] / kept[1], 1)
    print(result)
    if not options.tiny:
        write("vision_cache", result, source)


if __name__ == "__main__":
    main()
