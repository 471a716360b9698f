"""Milliseconds per image-text pair: fusion encoder, dual encoder, dual encoder with images encoded beforehand."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import torch
from transformers import PreTrainedModel


class PairLatency(NamedTuple):
    """Medians over alternating runs, in milliseconds per pair.

    Attributes:
        teacher: fusion encoder, one pass a pair.
        student: dual encoder, text and image encoded for each pair.
        student_stored_images: dual encoder, images encoded beforehand; text and interaction remain.
    """

    teacher: float
    student: float
    student_stored_images: float


@torch.inference_mode()
def measure_pair_latency(
    fusion_encoder: PreTrainedModel,
    dual_encoder: PreTrainedModel,
    batch: Mapping[str, torch.Tensor],
    warmup: int = 3,
    repeats: int = 15,
) -> PairLatency:
    """Time three ways of answering one batch, in turn, in one process.

    Args:
        fusion_encoder: with a task head.
        dual_encoder: with a task head.
        batch: `input_ids, attention_mask, pixel_values, pixel_mask` of B rows, on the models' device.
        warmup: untimed rounds.
        repeats: timed rounds; the median is returned.

    Returns:
        Milliseconds per pair.
    """
    fusion_encoder.eval()
    dual_encoder.eval()
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    inputs = {**text, "pixel_values": batch["pixel_values"], "pixel_mask": batch["pixel_mask"]}
    stored = dual_encoder.get_image_features(batch["pixel_values"], batch["pixel_mask"]).pooler_output
    ways: dict[str, Callable[[], object]] = {
        "teacher": lambda: fusion_encoder(**inputs),
        "student": lambda: dual_encoder(**inputs),
        "student_stored_images": lambda: dual_encoder(**text, image_embeds=stored),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(warmup + repeats):
        for name, answer in ways.items():
            _synchronize(stored.device)
            start = time.perf_counter()
            answer()
            _synchronize(stored.device)
            if round_number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    rows = len(batch["input_ids"])
    return PairLatency(**{name: 1000 * median(times) / rows for name, times in seconds.items()})


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


__all__ = ["PairLatency", "measure_pair_latency"]
