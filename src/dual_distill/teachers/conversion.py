"""A checkpoint in, a folder of ours out: written aside, loaded again, compared with the original, then moved.

Parity is that of outputs: the same random batch through both, and nothing is written without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import BertModel, PreTrainedModel, ViltConfig

from dual_distill.modeling import DualDistillProcessor, FusionEncoderModel
from dual_distill.sealed import written

from .bert import load_original_bert, read_bert_config, start_from_bert
from .checkpoint import fetch
from .loading import load_model, read_known_config
from .vilt import load_original_vilt

MAX_POSITIONS = 70
"""Text positions of a start over regions: 40 of a text and 30 of its tags, as recipes have them."""
# Of the largest value, or of 1 where that is smaller: above rounding in float32, below what an error would do.
TOLERANCE = 1e-4
_PARITY_TOKENS = 16


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
    with written(out, is_new=True) as aside:
        folder = fetch(source, revision)
        config = read_known_config(folder, source)
        if not isinstance(config, ViltConfig):
            raise ValueError(f"{source!r} holds a {config.model_type}, which needs no conversion; use it as it is.")

        loaded = load_model(source, revision, model_class)
        original, new = load_original_vilt(folder, source, config, loaded.model)
        report = _write(aside, out, source, *loaded, original, random_batch(loaded.model.config))
    return replace(report, new=new)


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
    with written(out, is_new=True) as aside:
        folder = fetch(source, revision)
        positions = min(max_positions, read_bert_config(folder, source).max_position_embeddings)
        fields = {"region_feature_size": region_feature_size, "max_position_embeddings": positions}
        # What is newly initialized is the same in every conversion.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, processor, new, left_out = start_from_bert(source, model_class, revision=revision, **fields)

        draw, length = torch.Generator().manual_seed(0), min(_PARITY_TOKENS, positions)
        segments = (torch.arange(length) >= length // 2).long().expand(2, -1) % model.config.type_vocab_size
        batch = {"input_ids": torch.randint(model.config.vocab_size, (2, length), generator=draw)}
        batch |= {"token_type_ids": segments}
        report = _write(aside, out, source, model, processor, load_original_bert(folder, source), batch)
    return replace(report, new=new, left_out=left_out)


def _write(
    folder: Path, out: Path, source: str, model: PreTrainedModel, processor: Any, original: Any, batch: dict[str, Any]
) -> ConversionReport:
    """Write a folder and load it again; refuse it unless it still computes what the original does."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    again = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    DualDistillProcessor.from_pretrained(folder, trust_remote_code=False)

    difference = largest_difference(original, again, batch)
    check_parity(difference, f"the {difference['output']} of {source!r} and of its conversion", "conversion")
    labels = model.config.num_labels if hasattr(model, "classifier") else 0
    return ConversionReport(source, str(out), type(model).__name__, model.num_parameters(), labels, **difference)


def random_batch(
    config: Any, num_rows: int = 3, num_tokens: int = 12, grid: tuple[int, int] | None = None, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Draw rows of unequal texts and images, padded with noise, so that a mask that leaks shows.

    Args:
        config: of the fusion or dual encoder that is to read them.
        num_rows: B rows; the first is the largest, each further one is shorter and smaller.
        num_tokens: longest text in tokens, at most the model's.
        grid: rows and columns of patches of the largest image; None: the model's own position table.
        seed: of the draw; the same seed gives the same batch, and no other random number is touched.

    Returns:
        `input_ids`, `attention_mask` `(B, T)`, `pixel_values` `(B, N, 3, H, W)` and `pixel_mask` `(B, N, H, W)`.

    Example:
        >>> from dual_distill.modeling import FusionEncoderConfig
        >>> batch = random_batch(FusionEncoderConfig(image_size=8, patch_size=4, num_images=2), num_rows=2)
        >>> batch["pixel_values"].shape, batch["attention_mask"].sum(1)
        (torch.Size([2, 2, 3, 8, 8]), tensor([12,  6]))
    """
    draw = torch.Generator().manual_seed(seed)
    num_tokens = min(num_tokens, config.max_position_embeddings)
    rows, columns = grid or config.patch_grid
    size, channels = (num_rows, config.num_images), getattr(config, "vision_config", config).num_channels
    height, width = rows * config.patch_size, columns * config.patch_size
    batch = {
        "input_ids": torch.randint(config.vocab_size, (num_rows, num_tokens), generator=draw),
        "attention_mask": torch.zeros(num_rows, num_tokens, dtype=torch.long),
        "pixel_values": torch.randn(*size, channels, height, width, generator=draw),
        "pixel_mask": torch.zeros(*size, height, width, dtype=torch.bool),
    }

    for row in range(num_rows):
        batch["attention_mask"][row, : max(1, num_tokens // (row + 1))] = 1
        for image in range(config.num_images):
            # Images of one row differ too: the row's index shortens the height, both shorten the width.
            real_rows, real_columns = max(1, rows - row), max(1, columns - (row + image) // 2)
            batch["pixel_mask"][row, image, : real_rows * config.patch_size, : real_columns * config.patch_size] = 1
    return batch


@torch.inference_mode()
def largest_difference(
    original: PreTrainedModel, converted: PreTrainedModel, batch: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Run one batch through a model of transformers and through what was made of it.

    Args:
        original: ViLT, bare or with a head; or a bare BERT, of which the text side is compared.
        converted: the fusion encoder made of it; the head is compared when both have one, else the pooled vectors.
        batch: as `random_batch` draws it, on the models' device; of a BERT `input_ids` and `token_type_ids`.

    Returns:
        `output` ("logits", "pooler_output" or "last_hidden_state"), `largest_difference` between the two in absolute
        terms, and `largest_value` of the original, its scale.
    """
    ours: Any = converted.eval()
    if isinstance(original, BertModel):
        output, body = "last_hidden_state", getattr(ours, FusionEncoderModel.base_model_prefix, ours)
        found, _ = body.encoder(body.embeddings.text_embeddings(batch["input_ids"], batch["token_type_ids"]), None)
    else:
        outputs = ours(**batch)
        output = "logits" if outputs.get("logits") is not None else "pooler_output"
        found = outputs.logits if output == "logits" else outputs.pooler_output[:, 0]
        # transformers' ViLT has an axis of images in one of its classes only.
        if type(original).__name__ != "ViltForImagesAndTextClassification":
            batch = {**batch, **{name: batch[name][:, 0] for name in ("pixel_values", "pixel_mask")}}

    expected = original.eval()(**batch)[output].float()
    difference = (found.float() - expected).abs().max().item()
    return {"output": output, "largest_difference": difference, "largest_value": expected.abs().max().item()}


def check_parity(difference: Mapping[str, Any], compared: str, step: str) -> None:
    """Refuse to write what does not compute what the original computes; a value that is not a number is refused too."""
    allowed = TOLERANCE * max(1.0, difference["largest_value"])
    if not difference["largest_difference"] <= allowed:
        found = f"differ by {difference['largest_difference']:.3g}, at most {allowed:.3g} is expected"
        defect = f"this is a defect of the checkpoint (values that are not finite) or of the {step}: please report it"
        raise ValueError(f"{compared} {found}; nothing was written, and {defect}.")
