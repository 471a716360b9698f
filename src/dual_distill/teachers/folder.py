"""A ViLT checkpoint in, a folder of ours out: written aside, loaded again, held against the original, then moved in
place.

A BERT becomes the start of a model over regions in the same way; there the words alone are held against the original.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import BertConfig, BertModel, PreTrainedModel, ViltConfig, ViltModel

from dual_distill.modeling import DualDistillProcessor, FusionEncoderModel

from .bert import start_from_bert
from .checkpoint import fetch, read_weights
from .heads import BARE
from .loading import load_folder, read_config, saved_head
from .parity import largest_difference, random_batch
from .vilt import DECODER_BIAS, VILT_HEADS, split_vilt_head

# Of the largest value, or of 1 where that is smaller; above what rounding in float32 does, below what an error would
# do.
TOLERANCE = 1e-4
MAX_POSITIONS = 70
"""Places for words of a start over regions: 40 of a text and 30 of its tags, as recipes have them."""
_PROOF_WORDS = 16


@dataclass(frozen=True)
class ConversionReport:
    """What was written, and how far it is from the original.

    Attributes:
        source: what was converted.
        out: the folder that was written.
        architecture: class that it loads as.
        parameters: how many.
        labels: labels of its head; 0: it has none.
        output: what was compared: "logits", "pooler_output", or "last_hidden_state" of words alone.
        largest_difference: to the original on a random batch, absolute.
        largest_value: of the original on that batch, absolute.
        fresh: parameters that the original does not have, drawn anew, to be trained.
        left_out: weights of the original that have no place.
    """

    source: str
    out: str
    architecture: str
    parameters: int
    labels: int
    output: str
    largest_difference: float
    largest_value: float
    fresh: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as a dict, for JSON."""
        return asdict(self)


def convert_folder(
    source: str | Path, out: Path, revision: str | None = None, head: str | None = None
) -> ConversionReport:
    """Convert a ViLT checkpoint and write model and processor, after a proof on a random batch of unequal texts and
    images.

    Args:
        source: a folder, or `owner/name` or `owner/name@revision` on the Hub, of one of `VILT_HEADS`.
        out: folder to write; must not exist or be empty. Nothing is left in it when the conversion fails.
        revision: branch, tag, commit or `refs/pr/N` of a Hub repository.
        head: one of `HEADS`; None: the one that the checkpoint was saved with; "bare" leaves it out.

    Raises:
        ValueError: `out` is not empty, the source cannot be converted, or the outputs differ.
    """
    source = str(source)
    _refuse_what_is_there(out)
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
        _refuse_another_model(difference, source)
        written.rename(out)
    return ConversionReport(
        source=source,
        out=str(out),
        architecture=architecture.__name__,
        parameters=model.num_parameters(),
        labels=model.config.num_labels if hasattr(model, "classifier") else 0,
        **difference,
    )


def start_folder(
    source: str | Path,
    out: Path,
    region_feature_size: int,
    head: str = BARE,
    revision: str | None = None,
    max_positions: int = MAX_POSITIONS,
) -> ConversionReport:
    """Write the start of a fusion encoder over regions from a BERT-like checkpoint, after a proof on random words.

    Args:
        source: a folder, or `owner/name` or `owner/name@revision` on the Hub, of model type "bert".
        out: folder to write; must not exist or be empty. Nothing is left in it when the conversion fails.
        region_feature_size: width F of the features that it will read.
        head: "bare", or one of `HEADS` without labels, such as "captioning", which takes the BERT's masked-word head
            over.
        revision: branch, tag, commit or `refs/pr/N` of a Hub repository.
        max_positions: most places for words, those of tags among them; never more than the BERT has.

    Raises:
        ValueError: `out` is not empty, the source is no BERT, or the outputs differ.
    """
    source = str(source)
    _refuse_what_is_there(out)
    folder = fetch(source, revision)
    config = folder / "config.json"
    found = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    positions = min(max_positions, found.get("max_position_embeddings", max_positions))
    with torch.random.fork_rng():
        torch.manual_seed(0)  # what is drawn anew is the same in every conversion
        start = start_from_bert(
            source, head, revision=revision, region_feature_size=region_feature_size, max_position_embeddings=positions
        )
    original = load_original_bert(folder, source)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as aside:
        written = Path(aside, "converted")
        start.model.save_pretrained(written)
        start.processor.save_pretrained(written)
        model = type(start.model).from_pretrained(written, dtype=torch.float32).eval()
        DualDistillProcessor.from_pretrained(written)
        difference = words_difference(original, model)
        _refuse_another_model(difference, source)
        written.rename(out)
    return ConversionReport(
        source=source,
        out=str(out),
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        labels=0,
        **difference,
        fresh=start.fresh,
        left_out=start.left_out,
    )


def load_original_bert(folder: Path, source: str) -> BertModel:
    """Load the body of a BERT with transformers' own class, in float32 and eval mode; what starts are held against.

    Its `from_pretrained` is not used: it would print a table of the head's weights, which have no place in the body.

    Args:
        folder: of a BERT, with all its layers.
        source: what the user called it.
    """
    original = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
    found = {name.removeprefix("bert."): weight for name, weight in read_weights(folder, source).items()}
    for old, new in (("gamma", "weight"), ("beta", "bias")):  # names of old checkpoints
        found |= {
            name.removesuffix(old) + new: weight for name, weight in found.items() if name.endswith(f"LayerNorm.{old}")
        }
    original.load_state_dict({name: found[name] for name in original.state_dict()})
    return original.float().eval()


@torch.no_grad()
def words_difference(original: BertModel, model: PreTrainedModel) -> dict[str, Any]:
    """Return how far the last states of random words, without regions, are from those of the BERT that they came from.

    Args:
        original: in eval mode.
        model: a fusion encoder over regions, with a head or without, in eval mode.

    Returns:
        `output`, `largest_difference` and `largest_value`, as in `ConversionReport`.
    """
    body: Any = getattr(model, FusionEncoderModel.base_model_prefix, model)
    length = min(_PROOF_WORDS, model.config.max_position_embeddings)
    words = torch.randint(model.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    segments = (torch.arange(length) >= length // 2).long().expand(2, -1) % model.config.type_vocab_size
    expected = original(input_ids=words, token_type_ids=segments).last_hidden_state
    found, _ = body.encoder(body.embeddings.text_embeddings(words, segments), None)
    return {
        "output": "last_hidden_state",
        "largest_difference": (found - expected).abs().max().item(),
        "largest_value": expected.abs().max().item(),
    }


def _refuse_what_is_there(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{str(out)!r} is there already and not an empty folder; name a new one.")


def _refuse_another_model(difference: dict[str, Any], source: str) -> None:
    allowed = TOLERANCE * max(1.0, difference["largest_value"])
    if not difference["largest_difference"] <= allowed:  # not a number is refused too
        raise ValueError(
            f"the {difference['output']} of {source!r} and of its conversion differ by "
            f"{difference['largest_difference']:.3g}, at most {allowed:.3g} is expected; nothing was written, and "
            f"this is "
            "a defect of the checkpoint (values that are not finite) or of the conversion: please report it."
        )


def load_original(folder: Path, source: str, head: str) -> PreTrainedModel:
    """Load transformers' own ViLT from a folder, in float32 and eval mode; it is what conversions are held against.

    Its `from_pretrained` is not used: transformers 5 draws the bias of the masked-word decoder anew when a checkpoint
    has it under the name of transformers 4.
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


__all__ = [
    "MAX_POSITIONS",
    "TOLERANCE",
    "ConversionReport",
    "convert_folder",
    "load_original",
    "start_folder",
    "words_difference",
]
