"""What `dual-distill evaluate` does with models that read regions, and with models that write captions."""

import argparse
import json
from typing import Any

from transformers import PreTrainedConfig

from dual_distill.data import TASKS, CaptioningCollator, Task, load_task
from dual_distill.evaluation import CaptionReport, report_captions, write_captions
from dual_distill.modeling import FusionEncoderForCaptioning
from dual_distill.regions import RegionStore
from dual_distill.teachers import load_model
from dual_distill.trainer import captions_by_image, describe_images

CAPTIONING = "captioning"
NUM_BEAMS = 1
MAX_NEW_TOKENS = 20
NUM_TAGS = 20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of regions and of captioning to the parser of `evaluate`."""
    regions = parser.add_argument_group("models that read regions")
    regions.add_argument("--regions", metavar="STORE", help="region store of the images (`dual-distill regions`)")
    regions.add_argument(
        "--num-tags",
        type=int,
        metavar="N",
        help=f"most object tags a text (default: {NUM_TAGS}, 0 where none were learnt)",
    )
    captions = parser.add_argument_group("models that write captions")
    captions.add_argument(
        "--num-beams", type=int, metavar="N", help=f"beams; 5 in the papers (default: {NUM_BEAMS}, greedy)"
    )
    captions.add_argument(
        "--max-new-tokens", type=int, metavar="N", help=f"longest caption (default: {MAX_NEW_TOKENS})"
    )


def captioning_task(options: argparse.Namespace) -> Task | None:
    """Return the task when captions are written for it.

    Raises:
        ValueError: options of captioning are given for another task.
    """
    task = TASKS.get(options.task)
    if task is not None and task.head == CAPTIONING:
        return task
    refuse_writing(options, f"task {options.task!r} writes nothing")
    return None


def refuse_writing(options: argparse.Namespace, why: str) -> None:
    """Refuse options of captioning where nothing is written.

    Raises:
        ValueError: one is given; the message begins with `why`.
    """
    given = {"--num-beams": options.num_beams, "--max-new-tokens": options.max_new_tokens}
    if unfit := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{why}, so there is no {', '.join(unfit)}; leave it out.")


def writing_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `generate` is told."""
    return {"num_beams": options.num_beams or NUM_BEAMS, "max_new_tokens": options.max_new_tokens or MAX_NEW_TOKENS}


def region_options(options: argparse.Namespace, config: PreTrainedConfig) -> dict[str, Any]:
    """Return the keyword arguments of a collator for a model that reads regions; none for one that reads pixels.

    Raises:
        ValueError: such a model without a store, a store of other boxes or features than it reads, or one for another
        model.
    """
    reads_regions = getattr(config, "visual_inputs", "patches") == "regions"
    if not reads_regions and options.regions is not None:
        raise ValueError(f"{options.model!r} reads pixels, but --regions is given; leave it out.")
    if not reads_regions:
        return {}
    if options.regions is None:
        raise ValueError(
            f"{options.model!r} reads regions (boxes: {config.region_boxes_id}; features: "
            f"{config.region_features_id}); give "
            "--regions STORE."
        )
    store = RegionStore(options.regions)
    for what, trained, given in (
        ("boxes", config.region_boxes_id, store.boxes_id),
        ("features", config.region_features_id, store.features_id),
    ):
        if trained not in (None, given):
            raise ValueError(
                f"{options.model!r} was trained on {what} of {trained}, but the store {options.regions!r} holds "
                f"{what} of "
                f"{given}; give a store made the same way."
            )
    # Tags have the places behind the longest text; a model without such places has learnt none.
    room = config.max_position_embeddings - config.max_caption_tokens
    num_tags = (NUM_TAGS if room > 0 else 0) if options.num_tags is None else options.num_tags
    return {"regions": store, "num_tags": num_tags, "max_tag_length": max(room, 0)}


def text_tokens(config: PreTrainedConfig, of_regions: dict[str, Any]) -> int:
    """Return the longest text in tokens, beside which tags have their places."""
    positions: int = getattr(config, "text_config", config).max_position_embeddings
    return positions - of_regions["max_tag_length"] if of_regions.get("num_tags") else positions


def evaluate_captions(options: argparse.Namespace, task: Task) -> CaptionReport:
    """Load data and model, describe every image of the split, and score what was written.

    Raises:
        ValueError: an option does not fit, or data or model cannot be read.
    """
    reader_options = json.loads(options.data_options) if options.data_options else {}
    if options.skip_bad:
        reader_options["skip_bad"] = True
    data = load_task(task.name, options.data, **reader_options)
    if options.split not in data:
        raise ValueError(f"task {task.name!r} has no split {options.split!r}; it has {', '.join(data)}.")
    rows = data[options.split]
    if options.max_rows is not None:
        rows = rows.select(range(min(options.max_rows, len(rows))))
    model, processor = load_model(options.model, options.revision, FusionEncoderForCaptioning)
    of_regions = region_options(options, model.config)
    longest = min(text_tokens(model.config, of_regions), model.config.max_caption_tokens)
    collator = CaptioningCollator(processor, task, max_text_length=longest, image_cache_mb=0, **of_regions)
    captions = describe_images(model.to(options.device), rows, collator, options.batch_size, **writing_options(options))
    if options.submission:
        write_captions(options.submission, list(captions), list(captions.values()))
    return report_captions(captions, captions_by_image(rows, task))


def caption_table(report: CaptionReport, title: str) -> str:
    """Lay a report out for reading."""
    lines = {
        f"CIDEr, {report.images:,} images, {report.captions:,} captions": f"{report.cider:8.4f}",
        "BLEU-4": f"{100 * report.bleu_4:8.2f} %",
        "words a caption": f"{report.mean_words:8.2f}",
    }
    width = max(map(len, lines))
    return "\n".join([title, *(f"{name:<{width}}  {value}" for name, value in lines.items())])


__all__ = [
    "add_options",
    "caption_table",
    "captioning_task",
    "evaluate_captions",
    "refuse_writing",
    "region_options",
    "text_tokens",
    "writing_options",
]
