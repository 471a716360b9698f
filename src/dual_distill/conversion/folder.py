"""A ViLT checkpoint in, a folder of ours out: written aside, loaded again, held against the original, then moved in place."""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, ViltConfig, ViltModel

from dual_distill.modeling import DualDistillProcessor

from .checkpoint import fetch, read_weights
from .heads import BARE
from .proof import largest_difference, random_batch
from .teacher import load_folder, read_config, saved_head
from .vilt import DECODER_BIAS, VILT_HEADS, split_vilt_head

# Of the largest value, or of 1 where that is smaller; above what rounding in float32 does, below what an error would do.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ConversionReport:
    """What was written, and how far it is from the original.

    Attributes:
        source: what was converted.
        out: the folder that was written.
        architecture: class that it loads as.
        parameters: how many.
        labels: labels of its head; 0: it has none.
        output: what was compared, "logits" or "pooler_output".
        largest_difference: to the original on a random batch, absolute.
        largest_value: of the original on that batch, absolute.
    """

    source: str
    out: str
    architecture: str
    parameters: int
    labels: int
    output: str
    largest_difference: float
    largest_value: float

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as a dict, for JSON."""
        return asdict(self)


def convert_folder(source: str | Path, out: Path, revision: str | None = None, head: str | None = None) -> ConversionReport:
    """Convert a ViLT checkpoint and write model and processor, after a proof on a random batch of unequal texts and images.

    Args:
        source: a folder, or `owner/name` or `owner/name@revision` on the Hub, of one of `VILT_HEADS`.
        out: folder to write; must not exist or be empty. Nothing is left in it when the conversion fails.
        revision: branch, tag, commit or `refs/pr/N` of a Hub repository.
        head: one of `HEADS`; None: the one that the checkpoint was saved with; "bare" leaves it out.

    Raises:
        ValueError: `out` is not empty, the source cannot be converted, or the outputs differ.
    """
    source = str(source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{str(out)!r} is there already and not an empty folder; name a new one.")
    folder = fetch(source, revision)
    config = read_config(folder, source)
    if not isinstance(config, ViltConfig):
        raise ValueError(f"{source!r} holds a {config.model_type}, which needs no conversion; use it as it is.")
    model, processor = load_folder(folder, source, head)
    architecture = type(model)
    original = load_original(folder, source, head or saved_head(config) or BARE)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as aside:
        written = Path(aside, "converted")
        model.save_pretrained(written)
        processor.save_pretrained(written)
        model = architecture.from_pretrained(written, dtype=torch.float32)
        DualDistillProcessor.from_pretrained(written)
        difference = largest_difference(original, model, random_batch(model.config))
        allowed = TOLERANCE * max(1.0, difference["largest_value"])
        if not difference["largest_difference"] <= allowed:  # not a number is refused too
            raise ValueError(
                f"the {difference['output']} of {source!r} and of its conversion differ by "
                f"{difference['largest_difference']:.3g}, at most {allowed:.3g} is expected; nothing was written, and this is "
                "a defect of the checkpoint (values that are not finite) or of the conversion: please report it."
            )
        written.rename(out)
    return ConversionReport(
        source=source,
        out=str(out),
        architecture=architecture.__name__,
        parameters=model.num_parameters(),
        labels=model.config.num_labels if hasattr(model, "classifier") else 0,
        **difference,
    )


def load_original(folder: Path, source: str, head: str) -> PreTrainedModel:
    """Load transformers' own ViLT from a folder, in float32 and eval mode; it is what conversions are held against.

    Its `from_pretrained` is not used: transformers 5 draws the bias of the masked-word decoder anew when a checkpoint has it
    under the name of transformers 4.
    """
    config = read_config(folder, source)
    body, rest = split_vilt_head(read_weights(folder, source))
    if head == BARE:
        original: PreTrainedModel = ViltModel(config)
        weights = body
    else:
        [name] = [name for name, known in VILT_HEADS.items() if known == head]
        original = getattr(transformers, name)(config)
        weights = {f"vilt.{name}": weight for name, weight in body.items()} | rest
        if DECODER_BIAS in weights:
            weights["mlm_score.decoder.weight"] = body["embeddings.text_embeddings.word_embeddings.weight"]
    original.load_state_dict(weights)
    return original.float().eval()


__all__ = ["TOLERANCE", "ConversionReport", "convert_folder", "load_original"]
