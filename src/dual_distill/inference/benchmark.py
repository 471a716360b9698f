"""How fast a checkpoint answers, beside the least arithmetic that its answers need.

Everything that is compared runs in turn in one process, so that what else the machine does falls on all sides alike;
only ratios of such medians mean something. Beside each stand its multiply-adds: a ratio far from theirs asks for a
reason.
"""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from dual_distill.modeling import DualEncoderConfig
from dual_distill.teachers import random_batch

from .queries import check_at_least_1

# "stored" sides are encoded before the clock starts, "projected" ones also went through their half of the interaction's
# first linear map (`encode --projected`). Of interaction layers, an image is stored as its tokens, or as the keys and
# values that the layers make of them.
WAYS = ("fusion_encoder", "dual_encoder", "image_stored", "keys_values_stored", "both_stored", "both_projected")
# Of interaction layers: the first image of the batch is asked about by all texts.
_SHARED_WAYS = {"one_image_stored": "image_stored", "one_image_keys_values_stored": "keys_values_stored"}

_MIN_ROUND_MS = 50.0  # what a way of answering is called in a row for, at least

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Wall-clock time of one call, over many.

    Attributes:
        median_ms: milliseconds.
        low_ms: lower quartile.
        high_ms: upper quartile.
        runs: timed rounds.
        calls: calls in a round.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    calls: int = 1


@dataclass(frozen=True)
class PairShape:
    """What a batch of pairs looks like.

    Attributes:
        batch_size: pairs B.
        text_tokens: T, padding included.
        real_tokens: those of them that are no padding.
        image_size: height and width in pixels, multiples of the patch.
    """

    batch_size: int
    text_tokens: int
    real_tokens: int
    image_size: tuple[int, int]


def alternate(
    ways: Mapping[Name, Callable[[], object]],
    device: torch.device | str = "cpu",
    warmup: int = 3,
    repeats: int = 15,
    min_round_ms: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, Timing]:
    """Time calls in turn, in one process; each round begins with another of them.

    A call of a millisecond after one of a second finds caches and clock as that one left them, which no user meets who
    asks many times: `min_round_ms` repeats it in a row.

    Args:
        ways: what to call, by name.
        device: waited for before and after each call when it is a GPU.
        warmup: rounds that do not count.
        repeats: rounds that do, at least 2.
        min_round_ms: a way is called as often in a row as filled this time in the warm-up; the time of one call is
            their mean. 0, or no warm-up: once.
        clock: seconds; `time.process_time` where a machine has other work, which then is not in them.

    Raises:
        ValueError: fewer than 2 repeats, which have no spread.

    Example:
        >>> timings = alternate({"short": lambda: sum(range(10)), "long": lambda: sum(range(100_000))}, repeats=5)
        >>> timings["short"].median_ms < timings["long"].median_ms, timings["long"].runs
        (True, 5)
    """
    if repeats < 2:
        raise ValueError(f"repeats is {repeats}; give 2 or more, or there is no spread.")
    if warmup < 0:
        raise ValueError(f"warmup is {warmup}; give 0 or more.")
    device = torch.device(device)
    names = list(ways)
    milliseconds: dict[Name, list[float]] = {name: [] for name in names}
    calls = dict.fromkeys(names, 1)

    for number in range(warmup + repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            _synchronize(device)
            start = clock()
            for _ in range(calls[name]):
                ways[name]()
            _synchronize(device)
            elapsed = 1000 * (clock() - start) / calls[name]
            if number >= warmup:
                milliseconds[name].append(elapsed)
            else:
                calls[name] = max(1, math.ceil(min_round_ms / max(elapsed, 1e-6)))

    timings = {}
    for name, values in milliseconds.items():
        low, _, high = quantiles(values, n=4, method="inclusive")
        timings[name] = Timing(median(values), low, high, len(values), calls[name])
    return timings


def multiply_adds(config: PreTrainedConfig, way: str, shape: PairShape) -> int:
    """Multiply-adds of one pair, padding included: matrix products alone, no norms, softmaxes or position tables.

    A layer of width C and MLP width F over L tokens takes `4 C^2 L + 2 C F L + 2 C L^2`.

    Args:
        config: of a fusion encoder for the way "fusion_encoder", of a dual encoder for the others.
        way: one of `WAYS`, or one of them with one image for all texts, as `measure_answering` names it.
        shape: of the batch; a row has `config.num_images` images.

    Example:
        >>> from dual_distill.modeling import FusionEncoderConfig
        >>> shape = PairShape(batch_size=1, text_tokens=40, real_tokens=12, image_size=(384, 512))
        >>> round(multiply_adds(FusionEncoderConfig(num_labels=3129), "fusion_encoder", shape) / 1e9, 1)
        21.2
    """
    if way != "fusion_encoder" and not (config.is_own("text_config") and config.is_own("vision_config")):
        raise ValueError("multiply-adds are counted of this package's own towers, and a tower is of another kind.")

    # Patch embedding of one image, and the head over the fused vectors of all images.
    images, width = config.num_images, config.hidden_size
    vision = getattr(config, "vision_config", config)
    patches = (shape.image_size[0] // vision.patch_size) * (shape.image_size[1] // vision.patch_size)
    embedding = patches * vision.num_channels * vision.patch_size**2 * width
    head_width = max(2, images) * width
    head = images * width * head_width + head_width * config.num_labels
    if way == "fusion_encoder":
        encoder = config.num_hidden_layers * _layer(config, shape.text_tokens + 1 + patches)
        return images * (embedding + encoder + width**2) + head

    # The interaction: two linear maps, 2C to 2C (half of it a text and half an image, unless stored) and 2C to C.
    text_tower, vision_tower = config.text_config, config.vision_config
    texts = images if config.interaction_layers else 1
    # Of one image for all texts a text bears its share.
    sharing = shape.batch_size if way in _SHARED_WAYS else 1
    way = _SHARED_WAYS.get(way, way)
    first_map = 0 if way == "both_projected" else (texts + images / sharing) * width * 2 * width
    total = first_map + images * 2 * width * width + head
    if way not in ("both_stored", "both_projected"):
        total += text_tower.num_hidden_layers * _layer(text_tower, shape.text_tokens) + width**2
    if way == "dual_encoder":
        encoder = vision_tower.num_hidden_layers * _layer(vision_tower, 1 + patches)
        total += images * (embedding + encoder + width**2)

    if config.interaction_layers:
        # Each image has its own texts in there, and their pooled token; stored tokens are pooled here too.
        each = _layer(text_tower, shape.text_tokens, 1 + patches)
        each += 0 if way == "keys_values_stored" else 2 * width**2 * (1 + patches) / sharing
        pooler = width**2 / sharing if way == "image_stored" else 0
        total += images * (config.interaction_layers * each + width**2 + pooler)
    return round(total)


def _layer(config: PreTrainedConfig, tokens: int, other_keys: int = 0) -> int:
    width, inner = config.hidden_size, config.intermediate_size
    return 4 * width**2 * tokens + 2 * width * inner * tokens + 2 * width * tokens * (tokens + other_keys)


def random_pairs(config: PreTrainedConfig, shape: PairShape, seed: int = 0) -> dict[str, torch.Tensor]:
    """Draw a batch: texts with `real_tokens` real tokens, images without padding.

    Raises:
        ValueError: the shape does not fit the model.
    """
    patch, longest = config.patch_size, config.max_position_embeddings
    check_at_least_1("batch_size", shape.batch_size)
    if not 1 <= shape.real_tokens <= shape.text_tokens <= longest:
        asked, most = f"{shape.real_tokens} real of {shape.text_tokens} text tokens", longest
        raise ValueError(f"{asked} were asked for; the model takes 1 to {most}, and real ones are at most all.")
    if any(side < patch or side % patch for side in shape.image_size):
        height, width = shape.image_size
        raise ValueError(f"images of {height} x {width} pixels do not divide into patches of {patch}.")

    height, width = shape.image_size
    batch = random_batch(config, shape.batch_size, shape.text_tokens, (height // patch, width // patch), seed)
    batch["attention_mask"][:] = torch.arange(shape.text_tokens) < shape.real_tokens
    batch["pixel_mask"].fill_(1)
    return batch


@torch.inference_mode()
def measure_answering(
    models: Mapping[str, PreTrainedModel], shape: PairShape, warmup: int = 3, repeats: int = 15, seed: int = 0
) -> list[dict[str, Any]]:
    """Time every way in which models answer about one batch of pairs, in turn.

    Args:
        models: by name, on one device; the first is what the others are compared with. A dual encoder is timed with
            nothing stored, with images stored, with both sides stored, and with both sides stored after their half of
            the interaction; one with interaction layers with nothing, an image's tokens, and their keys and values, of
            an image for each text and of one for all ("one_image_stored", "one_image_keys_values_stored").
        shape: of the batch.
        warmup: rounds that do not count.
        repeats: rounds that do.
        seed: of the batch.

    Returns:
        For each model and way: `model`, `way`, batch and tokens, `latency_ms` a pair with its quartiles,
        `multiply_adds`, and `times_faster` than the first way, measured and by multiply-adds.

    Raises:
        ValueError: the shape does not fit a model.
    """
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    counts: dict[tuple[str, str], int] = {}
    device = torch.device("cpu")
    for name, model in models.items():
        device = model.device
        batch = {key: tensor.to(device) for key, tensor in random_pairs(model.config, shape, seed).items()}
        batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
        for way, call in answering_ways(model.eval(), batch).items():
            calls[name, way] = call
            counts[name, way] = multiply_adds(model.config, way, shape)

    timings = alternate(calls, device, warmup, repeats, _MIN_ROUND_MS)
    first = next(iter(calls))
    return [
        {
            "model": name,
            "way": way,
            "batch_size": shape.batch_size,
            "text_tokens": shape.text_tokens,
            "real_tokens": shape.real_tokens,
            "latency_ms": _rounded(timing.median_ms / shape.batch_size),
            "latency_quartiles_ms": [_rounded(ms / shape.batch_size) for ms in (timing.low_ms, timing.high_ms)],
            "runs": timing.runs,
            "calls_a_run": timing.calls,
            "multiply_adds": counts[name, way],
            "times_faster": _rounded(timings[first].median_ms / timing.median_ms),
            "times_fewer_multiply_adds": _rounded(counts[first] / counts[name, way]),
        }
        for (name, way), timing in timings.items()
    ]


def answering_ways(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> dict[str, Callable[[], object]]:
    """Return each way in which a model of this package answers about a batch as a call, stored sides encoded."""
    if not isinstance(model.config, DualEncoderConfig):
        return {"fusion_encoder": partial(model, **batch)}

    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    pixels = batch["pixel_values"], batch["pixel_mask"]
    if model.config.interaction_layers:  # which read the image's tokens: neither side can be stored as one vector
        images = model.get_image_features(*pixels, output_token_states=True)
        mask = {"image_token_mask": images.image_token_mask}
        states = {"image_pooler_output": images.pooler_output, "image_token_states": images.image_token_states}
        stored = {"image_stored": {"image_token_embeds": images.image_token_embeds}, "keys_values_stored": states}
        stored = {way: mask | sides for way, sides in stored.items()}
        for shared, way in _SHARED_WAYS.items():
            stored[shared] = {name: tensor[:1] for name, tensor in stored[way].items()}
        ways = {way: partial(model, **text, **sides) for way, sides in stored.items()}
        return {"dual_encoder": partial(model, **batch), **ways}

    image_pooler_output = model.get_image_features(*pixels).pooler_output
    text_pooler_output = model.get_text_features(**text).pooler_output
    projections = model.project_text(text_pooler_output), model.project_images(image_pooler_output)
    return {
        "dual_encoder": partial(model, **batch),
        "image_stored": partial(model, **text, image_pooler_output=image_pooler_output),
        "both_stored": partial(model, text_pooler_output=text_pooler_output, image_pooler_output=image_pooler_output),
        "both_projected": partial(model.logits_of_projections, *projections),
    }


def _rounded(value: float) -> float:
    """Four figures that count: a latency of 0.0123 ms loses nothing."""
    return float(f"{value:.4g}")


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
