"""A dual encoder as three ONNX graphs: text tower, image tower, and the shallow head that answers from their vectors.

Three instead of one, because a dual encoder is worth having where images are encoded once and asked many times: a
service keeps the image vectors and runs text tower and head alone. Each graph takes any batch, text length and image
size, and is held against torch in onnxruntime on two batches before the folder appears.

A model with interaction layers is two graphs: the image tower, and the question's, which holds text tower, layers and
head and reads the image's tokens.
"""

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from transformers import PreTrainedModel

from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
)
from dual_distill.teachers import TOLERANCE, check_parity, written_aside

from .benchmark import PairShape, random_pairs

# What a reader without this package needs to know: answers, how logits become probabilities, inputs and outputs.
EXPORT_FILE = "export.json"

_MODELS = (DualEncoderForQuestionAnswering, DualEncoderForImagesAndTextClassification)
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_LARGEST_SINGLE_FILE = 1_900_000_000  # bytes; a protobuf message ends at 2 GiB
_MOST_ROWS = 65_536
_MOST_PATCHES = 1024  # along one side


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far it is from torch.

    Attributes:
        out: the folder that was written.
        architecture: class of the model.
        files: bytes by name of each graph's file, weights included.
        largest_difference: of all outputs of the graphs to torch on two batches, absolute.
        largest_value: of those outputs, absolute.
    """

    out: str
    architecture: str
    files: dict[str, int]
    largest_difference: float
    largest_value: float

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as a dict, for JSON."""
        return asdict(self)


class TextTower(nn.Module):
    """Graph `text_tower`: `input_ids`, `attention_mask` `(B, T)` -> `text_pooler_output` `(B, C)`."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.tower = model.dual_encoder.text_model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encode texts."""
        return self.tower(input_ids, attention_mask).pooler_output


class ImageTower(nn.Module):
    """Graph `image_tower`: `pixel_values`, `pixel_mask` -> `image_pooler_output` `(B, N, C)`."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.tower = model.dual_encoder.vision_model

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
        """Encode images; N is the number that the model reads together."""
        return self.tower(pixel_values, pixel_mask).pooler_output.unflatten(0, pixel_values.shape[:2])


class Head(nn.Module):
    """Graph `head`: `text_pooler_output` `(B, C)`, `image_pooler_output` `(B, N, C)` -> `logits` `(B, labels)`."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.interaction, self.classifier = model.dual_encoder.interaction, model.classifier

    def forward(self, text_pooler_output: torch.Tensor, image_pooler_output: torch.Tensor) -> torch.Tensor:
        """Answer."""
        text = text_pooler_output[:, None].expand(-1, image_pooler_output.shape[1], -1)
        return self.classifier(self.interaction(torch.cat([text, image_pooler_output], dim=-1)).flatten(1))


class ImageTokens(ImageTower):
    """Graph `image_tower` of interaction layers: -> `image_token_embeds` `(B, N, L, C)`, `image_token_mask`."""

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> Any:
        """Encode images; a mask that is True at real tokens."""
        output, rows = self.tower(pixel_values, pixel_mask), pixel_values.shape[:2]
        return output.last_hidden_state.unflatten(0, rows), output.image_mask.unflatten(0, rows)


class Question(nn.Module):
    """Graph `question`: `input_ids`, `attention_mask` `(B, T)`, the outputs of `ImageTokens` -> `logits`."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        image_token_embeds: torch.Tensor,
        image_token_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Answer."""
        images = {"image_token_embeds": image_token_embeds, "image_token_mask": image_token_mask}
        return self.model(input_ids, attention_mask, **images).logits


def export_onnx(model: PreTrainedModel, processor: DualDistillProcessor, out: str | Path) -> ExportReport:
    """Write the ONNX graphs, the processor and `export.json` to a folder, after a comparison with torch.

    Args:
        model: a dual encoder with an answer or class head; put into eval mode.
        processor: its processor, saved beside the graphs.
        out: folder to write; must not exist or be empty. Nothing is left in it when the export fails.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: the model is of another kind, is not float32, `out` is not empty, or the outputs differ.
    """
    out = Path(out)
    _check(model)
    model = model.cpu().eval()
    with written_aside(out) as folder:
        _write_graphs(model, folder)
        difference = compare_with_torch(model, folder)
        check_parity(difference, f"the graphs in onnxruntime and {type(model).__name__} in torch", "export")

        processor.save_pretrained(folder)
        about = _describe(model, processor) | {"checked": {**difference, "tolerance": TOLERANCE}}
        Path(folder, EXPORT_FILE).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        sizes = {
            name: sum(part.stat().st_size for part in folder.glob(f"{file}*"))
            for name, file in graph_files(model).items()
        }
    return ExportReport(out=str(out), architecture=type(model).__name__, files=sizes, **difference)


def graph_files(model: PreTrainedModel) -> dict[str, str]:
    """Return the file of each graph by name, in the order in which they run."""
    names = ("image_tower", "question") if model.config.interaction_layers else ("text_tower", "image_tower", "head")
    return {name: f"{name}.onnx" for name in names}


def _check(model: PreTrainedModel) -> None:
    if not isinstance(model, _MODELS):
        raise ValueError(
            f"{type(model).__name__} cannot be exported as text tower, image tower and head; give one of "
            f"{', '.join(kind.__name__ for kind in _MODELS)}."
        )
    if model.dtype != torch.float32:
        raise ValueError(f"the model is {model.dtype}; load it with dtype=torch.float32, as which graphs are compared.")
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ImportError(
            f"{', '.join(missing)} is not installed, which export needs; pip install 'dual-distill[onnx]'."
        )


def _describe(model: PreTrainedModel, processor: DualDistillProcessor) -> dict[str, Any]:
    """What `export.json` holds: how to feed the graphs and how to read what they give."""
    config = model.config
    return {
        "format": "onnx",
        "architecture": type(model).__name__,
        "graphs": graph_files(model),
        "answers": [config.id2label[index] for index in range(config.num_labels)],
        "probabilities": "sigmoid" if config.problem_type == "multi_label_classification" else "softmax",
        "num_images": model.num_images,
        "max_text_tokens": min(config.text_config.max_position_embeddings, processor.tokenizer.model_max_length),
        "patch_size": config.vision_config.patch_size,
        "hidden_size": config.hidden_size,
        "versions": {name: version(name) for name in ("dual-distill", "torch", *_NEEDED)},
    }


def _write_graphs(model: PreTrainedModel, folder: Path) -> None:
    config = model.config
    rows = Dim("batch", min=1, max=_MOST_ROWS)
    text = {0: rows, 1: Dim("tokens", min=1, max=config.text_config.max_position_embeddings)}
    height, width = (
        config.vision_config.patch_size * Dim(name, min=1, max=_MOST_PATCHES)
        for name in ("patch_rows", "patch_columns")
    )

    # Any example will do, of unequal texts and images; sizes that differ keep the axes apart.
    example = _batch(model, num_rows=3, grid=(3, 4)) | {
        "text_pooler_output": torch.zeros(3, config.hidden_size),
        "image_pooler_output": torch.zeros(3, model.num_images, config.hidden_size),
        "image_token_embeds": torch.zeros(3, model.num_images, 13, config.hidden_size),
        "image_token_mask": torch.ones(3, model.num_images, 13, dtype=torch.bool),
    }
    pixels = {"pixel_values": {0: rows, 3: height, 4: width}, "pixel_mask": {0: rows, 2: height, 3: width}}
    texts, embeds = dict.fromkeys(("input_ids", "attention_mask"), text), ("text_pooler_output", "image_pooler_output")
    graphs: list[tuple[nn.Module, dict[str, Any], list[str]]] = [
        (TextTower(model), texts, ["text_pooler_output"]),
        (ImageTower(model), pixels, ["image_pooler_output"]),
        (Head(model), {key: {0: rows} for key in embeds}, ["logits"]),
    ]
    if config.interaction_layers:
        names, length = ["image_token_embeds", "image_token_mask"], Dim("image_tokens", min=1, max=_MOST_PATCHES**2)
        tokens = {key: {0: rows, 2: length} for key in names}
        graphs = [(ImageTokens(model), pixels, names), (Question(model), texts | tokens, ["logits"])]

    for file, (graph, shapes, outputs) in zip(graph_files(model).values(), graphs, strict=True):
        _write_graph(graph.eval(), {key: example[key] for key in shapes}, shapes, outputs, folder / file)


def _write_graph(
    graph: nn.Module, inputs: Mapping[str, torch.Tensor], shapes: dict[str, Any], outputs: list[str], file: Path
) -> None:
    # Not `transformers.exporters`: it calls itself experimental, patches torch, and names outputs its own way.
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    # The exporter warns of its own internals, of axes that share a name, and that torchvision (no part of this) is
    # missing.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        registration.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                graph,
                tuple(inputs.values()),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(inputs),
                output_names=outputs,
                verbose=False,
            )
        finally:
            registration.setLevel(level)

    if program is None:
        raise ValueError(f"torch returned no graph for {file.name}; check that torch and onnxscript fit each other.")
    size = sum(weight.nbytes for weight in graph.parameters())
    program.save(file, external_data=size > _LARGEST_SINGLE_FILE)


@torch.inference_mode()
def compare_with_torch(model: PreTrainedModel, folder: Path) -> dict[str, float]:
    """Run two batches of unequal texts and images through the graphs in onnxruntime and through torch.

    Args:
        model: what was exported, in eval mode on the CPU.
        folder: holds the graphs.

    Returns:
        `largest_difference` and `largest_value` over all outputs.
    """
    import onnxruntime

    sessions = [
        onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
        for file in graph_files(model).values()
    ]
    differences, values = [], []
    for batch in (_batch(model, num_rows=3, grid=None), _batch(model, num_rows=1, grid=(2, 5))):
        arrays = {name: tensor.numpy() for name, tensor in batch.items()}
        images = model.get_image_features(batch["pixel_values"], batch["pixel_mask"])
        wanted = {
            "text_pooler_output": model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output,
            "image_pooler_output": images.pooler_output,
            "image_token_embeds": images.image_token_embeds,
            "image_token_mask": images.image_token_mask,
            "logits": model(**batch).logits,
        }

        # What one graph gives, the next ones take.
        for session in sessions:
            names = [output.name for output in session.get_outputs()]
            found = session.run(None, {put.name: arrays[put.name] for put in session.get_inputs()})
            arrays |= zip(names, found, strict=True)
            for name in names:
                value = wanted[name].float()
                differences.append((torch.from_numpy(arrays[name]).float() - value).abs().max())
                values.append(value.abs().max())
    # torch's maximum keeps a NaN, Python's may lose it.
    return {
        "largest_difference": torch.stack(differences).max().item(),
        "largest_value": torch.stack(values).max().item(),
    }


def _batch(model: PreTrainedModel, num_rows: int, grid: tuple[int, int] | None) -> dict[str, torch.Tensor]:
    """Rows of unequal texts and images, padded with noise, so that a mask that leaks shows."""
    vision = model.config.vision_config
    tokens = min(7 + num_rows, model.config.text_config.max_position_embeddings)
    height, width = (side * vision.patch_size for side in grid or vision.patch_grid)
    batch = random_pairs(model.config, PairShape(num_rows, tokens, tokens, (height, width)), seed=num_rows)

    # Each further row is shorter, and its images lower.
    for row in range(1, num_rows):
        batch["attention_mask"][row, max(1, tokens // (row + 1)) :] = 0
        batch["pixel_mask"][row, :, max(vision.patch_size, height - row * vision.patch_size) :] = 0
    return batch
