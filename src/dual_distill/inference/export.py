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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from dual_distill.sealed import written
from dual_distill.teachers import TOLERANCE, check_parity, random_batch

# What a reader without this package needs to know: answers, how logits become probabilities, inputs and outputs.
EXPORT_FILE = "export.json"

_MODELS = (DualEncoderForQuestionAnswering, DualEncoderForImagesAndTextClassification)
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
# Graphs in the order in which they run: what each takes and gives, under the names of the model's own arguments.
_TEXT, _PIXELS = ("input_ids", "attention_mask"), ("pixel_values", "pixel_mask")
_TOKENS = ("image_token_embeds", "image_token_mask")
_Graphs = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
_GRAPHS: _Graphs = {
    "text_tower": (_TEXT, ("text_pooler_output",)),
    "image_tower": (_PIXELS, ("image_pooler_output",)),
    "head": (("text_pooler_output", "image_pooler_output"), ("logits",)),
}
_GRAPHS_OF_LAYERS: _Graphs = {"image_tower": (_PIXELS, _TOKENS), "question": (_TEXT + _TOKENS, ("logits",))}
PRECISIONS = ("float32", "float16", "int8")
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
        precision: of the weights.
    """

    out: str
    architecture: str
    files: dict[str, int]
    largest_difference: float
    largest_value: float
    precision: str = "float32"


class Graph(nn.Module):
    """A part of a model, for the exporter: tensors of the names of `inputs` -> those of `outputs`."""

    def __init__(self, model: PreTrainedModel, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Encode one side, or answer."""
        given = dict(zip(self.inputs, tensors, strict=True))
        if "logits" in self.outputs:
            return self.model(**given).logits
        found = (self.model.get_text_features if "input_ids" in given else self.model.get_image_features)(**given)
        return tuple(found[name if name in found else "pooler_output"] for name in self.outputs)


def export_onnx(
    model: PreTrainedModel, processor: DualDistillProcessor, out: str | Path, precision: str = "float32"
) -> ExportReport:
    """Write the ONNX graphs, the processor and `export.json` to a folder, after a comparison with torch.

    Inputs and outputs stay float32 whatever the precision, which rounds weights after the comparison: what that costs
    in answers is for your data to say (`benchmarks/precisions.py` measures it).

    Args:
        model: a dual encoder with an answer or class head; put into eval mode.
        processor: its processor, saved beside the graphs.
        out: folder to write; must not exist or be empty. Nothing is left in it when the export fails.
        precision: "float32"; "float16", which halves the files; "int8", which quarters the matrices and rounds what
            they read as they run.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: the model is of another kind, is not float32, `out` is not empty, or the outputs differ.
    """
    out = Path(out)
    if not isinstance(model, _MODELS):
        known = ", ".join(kind.__name__ for kind in _MODELS)
        raise ValueError(f"{type(model).__name__} cannot be exported as towers and a head; give {known}.")
    if not (model.config.is_own("text_config") and model.config.is_own("vision_config")):
        raise ValueError("a tower is none of this package's own, which alone are exported; distil into those.")
    if model.dtype != torch.float32:
        raise ValueError(f"the model is {model.dtype}; load it with dtype=torch.float32, as which graphs are compared.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; give {', '.join(PRECISIONS)}.")
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        lacks = f"{', '.join(missing)} is not installed, which export needs"
        raise ImportError(f"{lacks}; pip install 'dual-distill[onnx]'.")

    model = model.cpu().eval()
    with written(out, is_new=True) as folder:
        _write_graphs(model, folder)
        difference = compare_with_torch(model, folder)
        check_parity(difference, f"the graphs in onnxruntime and {type(model).__name__} in torch", "export")
        if precision != "float32":
            for name in graphs_of(model):
                _round_weights(folder / f"{name}.onnx", precision)
            difference = compare_with_torch(model, folder)

        processor.save_pretrained(folder)
        # How to feed the graphs and how to read what they give.
        config, positions = model.config, model.config.max_position_embeddings
        about = {
            "format": "onnx",
            "architecture": type(model).__name__,
            "graphs": {name: f"{name}.onnx" for name in graphs_of(model)},
            "answers": [config.id2label[index] for index in range(config.num_labels)],
            "probabilities": "sigmoid" if config.problem_type == "multi_label_classification" else "softmax",
            "num_images": model.num_images,
            "max_text_tokens": min(positions, processor.tokenizer.model_max_length),
            "patch_size": config.patch_size,
            "hidden_size": config.hidden_size,
            "versions": {name: version(name) for name in ("dual-distill", "torch", *_NEEDED)},
            "precision": precision,
            "checked": difference | ({"tolerance": TOLERANCE} if precision == "float32" else {}),
        }
        Path(folder, EXPORT_FILE).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        # Of a large graph, the weights lie in a file beside it.
        parts = {name: folder.glob(f"{name}.onnx*") for name in graphs_of(model)}
        sizes = {name: sum(part.stat().st_size for part in files) for name, files in parts.items()}
    return ExportReport(out=str(out), architecture=type(model).__name__, files=sizes, **difference, precision=precision)


def graphs_of(model: PreTrainedModel) -> _Graphs:
    """Return the graphs of a model by name, with their inputs and outputs; each has a file NAME.onnx."""
    return _GRAPHS_OF_LAYERS if model.config.interaction_layers else _GRAPHS


def _write_graphs(model: PreTrainedModel, folder: Path) -> None:
    config = model.config
    rows, length = Dim("batch", min=1, max=_MOST_ROWS), Dim("image_tokens", min=1, max=_MOST_PATCHES**2)
    words = Dim("tokens", min=1, max=config.max_position_embeddings)
    sides = [Dim(name, min=1, max=_MOST_PATCHES) for name in ("patch_rows", "patch_columns")]
    height, width = (config.patch_size * side for side in sides)
    axes = {"pixel_values": {3: height, 4: width}, "pixel_mask": {2: height, 3: width}}
    axes |= {name: {1: words} for name in _TEXT} | {name: {2: length} for name in _TOKENS}

    # Any example will do, of unequal texts and images; sizes that differ keep the axes apart.
    example = random_batch(config, 3, 10, grid=(3, 4)) | {
        "text_pooler_output": torch.zeros(3, config.hidden_size),
        "image_pooler_output": torch.zeros(3, model.num_images, config.hidden_size),
        "image_token_embeds": torch.zeros(3, model.num_images, 13, config.hidden_size),
        "image_token_mask": torch.ones(3, model.num_images, 13, dtype=torch.bool),
    }
    for name, (inputs, outputs) in graphs_of(model).items():
        graph, tensors = Graph(model, inputs, outputs).eval(), tuple(example[one] for one in inputs)
        dynamic = {"tensors": tuple({0: rows, **axes.get(one, {})} for one in inputs)}
        # Inputs and outputs keep the model's names, by which one graph feeds the next.
        named: dict[str, Any] = {"input_names": inputs, "output_names": outputs}
        with _quiet_exporter(), torch.no_grad():
            # Not `transformers.exporters`: it calls itself experimental, patches torch, and names outputs its own way.
            program = torch.onnx.export(graph, tensors, dynamo=True, verbose=False, dynamic_shapes=dynamic, **named)
        if program is None:
            raise ValueError(f"torch returned no graph for {name}; check that torch and onnxscript fit each other.")
        weights = program.model.graph.initializers.values()
        size = sum(weight.const_value.nbytes for weight in weights if weight.const_value is not None)
        program.save(folder / f"{name}.onnx", external_data=size > _LARGEST_SINGLE_FILE)


def _round_weights(file: Path, precision: str) -> None:
    """Write a graph anew with smaller weights."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model, rounded = onnx.load(file), file.with_suffix(".rounded")
    # Shapes that the exporter noted: of matrices too, which the quantizer turns and then finds at odds with them.
    del model.graph.value_info[:]
    if precision == "int8":
        # Matrices alone: the convolution of the patches is small, and slow in int8.
        quantize_dynamic(model, rounded, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)
    else:
        model = convert_float_to_float16(model, keep_io_types=True)
        # A scalar that several nodes read is cast once for each, under one name.
        nodes: dict[tuple[str, ...], Any] = {}
        for node in model.graph.node:
            nodes.setdefault(tuple(node.output), node)
        del model.graph.node[:]
        model.graph.node.extend(nodes.values())
        onnx.save(model, rounded)
    for before in file.parent.glob(f"{file.name}*"):
        before.unlink()
    rounded.rename(file)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter warns of: its own internals, axes that share a name, and missing torchvision."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        registration.setLevel(logging.ERROR)
        try:
            yield
        finally:
            registration.setLevel(level)


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

    files, on_cpu = [str(folder / f"{name}.onnx") for name in graphs_of(model)], ["CPUExecutionProvider"]
    sessions = [onnxruntime.InferenceSession(file, providers=on_cpu) for file in files]
    differences, values = [], []
    for batch in (random_batch(model.config, 3, 10), random_batch(model.config, 1, 8, grid=(2, 5), seed=1)):
        wanted = {**model.get_image_features(batch["pixel_values"], batch["pixel_mask"]), **model(**batch)}
        arrays = {name: tensor.numpy() for name, tensor in batch.items()}

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
