"""A checkpoint in, a folder of ours out: written aside, loaded again, compared with the original, then moved."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ViltConfig

from dual_distill.modeling import DualDistillProcessor, FusionEncoderModel

from .bert import load_original_bert, read_bert_config, start_from_bert
from .checkpoint import fetch
from .loading import load_model, read_known_config
from .parity import check_parity, largest_difference, random_batch, refuse_full_folder, text_difference, written_aside
from .vilt import load_original_vilt

MAX_POSITIONS = 70
"""Text positions of a start over regions: 40 of a text and 30 of its tags, as recipes have them."""


@dataclass(frozen=True)
class ConversionReport:
    """What was written, and how far it is from the original.

    Attributes:
        source: what was converted.
        out: the folder that was written.
        architecture: class that it loads as.
        parameters: how many.
        labels: labels of its head; 0: it has none.
        output: what was compared: "logits", "pooler_output", or the text's "last_hidden_state".
        largest_difference: to the original on a random batch, absolute.
        largest_value: of the original on that batch, absolute.
        new: parameters that the original does not have, newly initialized, to be trained.
        left_out: weights of the original that the model does not have.
    """

    source: str
    out: str
    architecture: str
    parameters: int
    labels: int
    output: str
    largest_difference: float
    largest_value: float
    new: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def convert_folder(
    source: str | Path, out: Path, revision: str | None = None, model_class: type[PreTrainedModel] | None = None
) -> ConversionReport:
    """Convert a ViLT checkpoint and write model and processor, once their parity on a random batch is checked.

    Args:
        source: a folder, or `owner/name` or `owner/name@revision` on the Hub, of one of `VILT_CLASSES`.
        out: folder to write; must not exist or be empty. Nothing is left in it when the conversion fails.
        revision: branch, tag, commit or `refs/pr/N` of a Hub repository.
        model_class: as for `load_model`; `FusionEncoderModel` leaves a head out.

    Raises:
        ValueError: `out` is not empty, the source cannot be converted, or the outputs differ.
    """
    source = str(source)
    refuse_full_folder(out)
    folder = fetch(source, revision)
    config = read_known_config(folder, source)
    if not isinstance(config, ViltConfig):
        raise ValueError(f"{source!r} holds a {config.model_type}, which needs no conversion; use it as it is.")

    model, processor = load_model(source, revision, model_class)
    original = load_original_vilt(folder, source, config, type(model))
    batch = random_batch(model.config)
    return _write(model, processor, out, source, lambda ours: largest_difference(original, ours, batch))


def start_folder(
    source: str | Path,
    out: Path,
    region_feature_size: int,
    model_class: type[PreTrainedModel] = FusionEncoderModel,
    revision: str | None = None,
    max_positions: int = MAX_POSITIONS,
) -> ConversionReport:
    """Write the start of a fusion encoder over regions from a BERT, once its parity on texts is checked.

    Args:
        source: a folder, or `owner/name` or `owner/name@revision` on the Hub, of model type "bert".
        out: folder to write; must not exist or be empty. Nothing is left in it when the conversion fails.
        region_feature_size: width F of the features that it will read.
        model_class: without labels, such as `FusionEncoderForCaptioning`, which takes over the BERT's masked-word head.
        revision: branch, tag, commit or `refs/pr/N` of a Hub repository.
        max_positions: most text positions, those of tags among them; never more than the BERT has.

    Raises:
        ValueError: `out` is not empty, the source is not a BERT, or the outputs differ.
    """
    source = str(source)
    refuse_full_folder(out)
    folder = fetch(source, revision)
    positions = min(max_positions, read_bert_config(folder, source).max_position_embeddings)
    fields = {"region_feature_size": region_feature_size, "max_position_embeddings": positions}
    with torch.random.fork_rng():
        torch.manual_seed(0)  # what is newly initialized is the same in every conversion
        start = start_from_bert(source, model_class, revision=revision, **fields)

    original = load_original_bert(folder, source)
    report = _write(start.model, start.processor, out, source, lambda ours: text_difference(original, ours))
    return replace(report, new=start.new, left_out=start.left_out)


def _write(
    model: PreTrainedModel,
    processor: DualDistillProcessor,
    out: Path,
    source: str,
    compare: Callable[[PreTrainedModel], dict[str, Any]],
) -> ConversionReport:
    """Write a folder aside and load it again; it is moved to `out` only if it still computes what the original does."""
    with written_aside(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

        again = type(model).from_pretrained(folder, dtype=torch.float32).eval()
        DualDistillProcessor.from_pretrained(folder, trust_remote_code=False)
        difference = compare(again)
        check_parity(difference, f"the {difference['output']} of {source!r} and of its conversion", "conversion")
    labels = model.config.num_labels if hasattr(model, "classifier") else 0
    return ConversionReport(source, str(out), type(model).__name__, again.num_parameters(), labels, **difference)
