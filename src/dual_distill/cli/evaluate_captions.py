"""What `dual-distill evaluate` and `predict` do with models that read regions, and with models that write captions."""

import argparse
from typing import Any

from transformers import PreTrainedConfig

from dual_distill.data import CaptioningCollator, Task
from dual_distill.evaluation import CaptionReport, report_captions, write_captions
from dual_distill.regions import RegionStore
from dual_distill.runs import HEADS
from dual_distill.teachers import load_model
from dual_distill.trainer import captions_by_image, describe_images

from .options import aligned

OPTIONS = ("num_beams", "max_new_tokens")
NUM_BEAMS, MAX_NEW_TOKENS, NUM_TAGS = 1, 20, 20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of regions and of captioning."""
    group = parser.add_argument_group("models that read regions, and models that write captions")
    tags, beams = f"(default: {NUM_TAGS}, 0 where none were learnt)", f"(default: {NUM_BEAMS}, greedy)"
    group.add_argument("--regions", metavar="STORE", help="region store of the images (`dual-distill regions`)")
    group.add_argument("--num-tags", type=int, metavar="N", help=f"most object tags a text {tags}")
    group.add_argument("--num-beams", type=int, metavar="N", help=f"beams; 5 in the papers {beams}")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help=f"longest caption (default: {MAX_NEW_TOKENS})")


def writing_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `generate` is told."""
    return {"num_beams": options.num_beams or NUM_BEAMS, "max_new_tokens": options.max_new_tokens or MAX_NEW_TOKENS}


def region_options(options: argparse.Namespace, config: PreTrainedConfig) -> dict[str, Any]:
    """Return the keyword arguments of a collator for a model that reads regions; none for one that reads pixels.

    Raises:
        ValueError: such a model without a store, a store of other boxes or features than it reads, or one for another
            model.
    """
    if getattr(config, "visual_inputs", "patches") != "regions":
        if options.regions is not None:
            raise ValueError(f"{options.model!r} reads pixels, but --regions is given; leave it out.")
        return {}
    if options.regions is None:
        made = f"boxes: {config.region_boxes_id}; features: {config.region_features_id}"
        raise ValueError(f"{options.model!r} reads regions ({made}); give --regions STORE.")

    store = RegionStore(options.regions)
    for what in ("boxes", "features"):
        trained, given = getattr(config, f"region_{what}_id"), getattr(store, f"{what}_id")
        if trained not in (None, given):
            held = f"the store {options.regions!r} holds {what} of {given}; give a store made the same way"
            raise ValueError(f"{options.model!r} was trained on {what} of {trained}, but {held}.")

    # Tags have the positions behind the longest text; a model without such positions has learnt none.
    room = max(config.max_position_embeddings - config.max_caption_tokens, 0)
    num_tags = (NUM_TAGS if room else 0) if options.num_tags is None else options.num_tags
    return {"regions": store, "num_tags": num_tags, "max_tag_length": room}


def text_tokens(config: PreTrainedConfig, regions: dict[str, Any]) -> int:
    """Return the longest text in tokens, beside which tags have their positions."""
    positions: int = getattr(config, "text_config", config).max_position_embeddings
    return positions - regions["max_tag_length"] if regions.get("num_tags") else positions


def evaluate_captions(options: argparse.Namespace, task: Task, data: Any, rows: Any) -> tuple[CaptionReport, str]:
    """Describe every image of the rows, and score what was written."""
    model, processor = load_model(options.model, options.revision, HEADS[task.head].classes)
    config: Any = model.config
    regions = region_options(options, config)
    longest = min(text_tokens(config, regions), config.max_caption_tokens)
    collator = CaptioningCollator(processor, task, max_text_length=longest, image_cache_mb=0, **regions)
    captions = describe_images(model.to(options.device), rows, collator, options.batch_size, **writing_options(options))

    if options.submission:
        write_captions(options.submission, list(captions), list(captions.values()))
    report = report_captions(captions, captions_by_image(rows, task))
    lines = {
        f"CIDEr, {report.images:,} images, {report.captions:,} captions": f"{report.cider:8.4f}",
        "BLEU-4": f"{100 * report.bleu_4:8.2f} %",
        "words a caption": f"{report.mean_words:8.2f}",
    }
    return report, "\n" + aligned(lines)
