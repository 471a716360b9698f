"""Any object detector of transformers: its boxes with tags, and the feature map that its backbone made.

What is unusual: images are never padded. Detectors of one family disagree on whether their boxes are fractions of the
image or of the padded canvas; where nothing is padded, the two are the same.
"""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from dual_distill.data import fingerprint, resize_image

# DetrConvEncoder, RTDetrConvEncoder, DFineConvEncoder ...: a list of (map, mask), coarsest last.
_BACKBONE_CLASS = "ConvEncoder"
_SHOWN = 12


class Detected(NamedTuple):
    """What a detector says of one image, the most certain first.

    Attributes:
        boxes_px: `(Q, 4)` float32 on the CPU: x0, y0, x1, y1 in pixels of the image; may stick out of it.
        scores: `(Q,)` float32, in [0, 1].
        tags: Q names of classes.
    """

    boxes_px: torch.Tensor
    scores: torch.Tensor
    tags: list[str]


class DetectorOutput(NamedTuple):
    """What a detector says of a batch.

    Attributes:
        feature_maps: `(B, F, h, w)` of its backbone, on its device.
        stride: pixels of the *resized* image a cell of the map.
        detected: one entry an image.
    """

    feature_maps: torch.Tensor
    stride: float
    detected: list[Detected]


class Detector:
    """An object detector with its image processor and its name.

    Args:
        model: any `AutoModelForObjectDetection` with a convolutional backbone (DETR, Conditional and Deformable DETR,
            RT-DETR, D-FINE, Table Transformer and the like) or a plain vision transformer (YOLOS); put into eval mode.
        image_processor: its own, with `post_process_object_detection`.
        name: folder or Hub repository, for people.
        revision: commit of a Hub repository.

    Raises:
        ValueError: the model has no backbone that is known here, or the processor finds no objects.

    Example:
        >>> Detector(nn.Linear(1, 1), None)
        Traceback (most recent call last):
        ValueError: Linear is no object detector with a backbone known here...
    """

    def __init__(self, model: Any, image_processor: Any, name: str | None = None, revision: str | None = None) -> None:
        # The module whose output holds the feature map.
        modules = [module for module in model.modules() if type(module).__name__.endswith(_BACKBONE_CLASS)]
        backbone = modules[0] if modules else getattr(model, "vit", None)
        if not isinstance(backbone, nn.Module):
            found = f"{type(model).__name__} is no object detector with a backbone known here"
            raise ValueError(f"{found}; give one of the DETR family (a module ...{_BACKBONE_CLASS}) or a YOLOS.")
        if not hasattr(image_processor, "post_process_object_detection"):
            found = f"{type(image_processor).__name__} has no post_process_object_detection, which makes boxes"
            raise ValueError(f"{found}; give the image processor of the detector.")

        self.model, self.image_processor, self._backbone = model.eval(), image_processor, backbone
        name = name or getattr(model, "name_or_path", "") or type(model).__name__
        self.described = f"{name} @ {revision[:_SHOWN]}" if revision else name
        self.prepare = partial(_prepare, image_processor, name)  # of an RGB image and what errors call it

    def identity(self) -> dict[str, Any]:
        """Return what its outputs follow from: class, digest of the weights, dtype and settings of the processor."""
        settings = json.loads(self.image_processor.to_json_string())
        kept = {key: value for key, value in settings.items() if value is not None and not key.startswith("_")}
        return {
            "class": type(self.model).__name__,
            "weights_sha256": fingerprint(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "processor": kept,
        }

    @torch.inference_mode()
    def __call__(self, pixel_values: torch.Tensor, sizes: list[tuple[int, int]]) -> DetectorOutput:
        """Run a batch of images of one prepared shape.

        Args:
            pixel_values: `(B, 3, h, w)` of `prepare`.
            sizes: width and height of each image before that.
        """
        caught: list[Any] = []
        with self._backbone.register_forward_hook(lambda module, given, found: caught.append(found)):
            outputs = self.model(pixel_values=pixel_values.to(self.model.device, self.model.dtype))
        feature_maps, stride = self._feature_maps(caught[-1], pixel_values.shape[-2:])

        # Every query is kept here; which boxes are regions is chosen later.
        targets = torch.tensor([(height, width) for width, height in sizes], device=self.model.device)
        found = self.image_processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=targets)
        return DetectorOutput(feature_maps, stride, [self._sorted(entry) for entry in found])

    def _sorted(self, entry: dict[str, torch.Tensor]) -> Detected:
        # Stable, so that equal scores come in one order everywhere.
        scores, order = entry["scores"].float().cpu().sort(descending=True, stable=True)
        labels = entry["labels"].cpu()[order].tolist()
        names = self.model.config.id2label
        return Detected(entry["boxes"].float().cpu()[order], scores, [str(names.get(label, label)) for label in labels])

    def _feature_maps(self, found: Any, size: torch.Size) -> tuple[torch.Tensor, float]:
        """The coarsest map and its stride in pixels."""
        if isinstance(found, list | tuple):
            maps: torch.Tensor = found[-1][0]
            return maps, _stride(size, maps.shape[-2:])

        # A plain vision transformer: its patches, laid out as a map; CLS stands first, tokens of detections behind.
        patch = self.model.config.patch_size
        patch = patch if isinstance(patch, int) else patch[0]
        rows, columns = size[0] // patch, size[1] // patch
        patches: torch.Tensor = found.last_hidden_state[:, 1 : 1 + rows * columns]
        return patches.transpose(1, 2).unflatten(2, (rows, columns)), float(patch)


def _prepare(image_processor: Any, name: str, image: Image.Image, identifier: str) -> torch.Tensor:
    """An RGB image, resized and normalised to `(3, h, w)` on the CPU, without the model that reads it."""
    prepared = resize_image(partial(image_processor, return_tensors="pt"), image, identifier)
    # Without padding, boxes as fractions of the image and of the padded canvas are the same.
    mask = prepared.get("pixel_mask")
    if mask is not None and not mask.bool().all():
        found = f"The image processor of {name!r} pads a single image to {tuple(mask.shape[-2:])}"
        raise ValueError(f"{found}, where detectors disagree on boxes; unset pad_size in preprocessor_config.json.")
    pixels: torch.Tensor = prepared["pixel_values"][0]
    return pixels


def _stride(size: torch.Size, cells: torch.Size) -> float:
    """Pixels a cell: strided convolutions round the size up, so that a map covers a little more than its image."""
    stride = 2 ** math.ceil(math.log2(max(size) / max(cells)))
    if all(math.ceil(pixels / stride) == number for pixels, number in zip(size, cells, strict=True)):
        return float(stride)
    return max(size) / max(cells)  # patches of another side, such as 14, which divide the image


def load_detector(folder: Path, name: str, revision: str | None = None) -> Detector:
    """Load an object detector from a folder, from safetensors alone.

    Args:
        folder: holds config.json, preprocessor_config.json and the weights.
        name: what the user called it.
        revision: commit of a Hub repository.

    Returns:
        The detector, in float32 on the CPU.

    Raises:
        ValueError: the folder holds no object detector, weights are missing, or a library that it needs is.
    """
    try:
        model, report = AutoModelForObjectDetection.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    except (ImportError, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        way_out = "give safetensors weights with a backbone of transformers (facebook/detr-resnet-50, revision no_timm)"
        raise ValueError(f"{name!r} cannot be loaded as an object detector ({reason}); {way_out}.") from error

    # transformers would draw them at random, and say so in a warning.
    if missing := sorted(report["missing_keys"]):
        found = f"lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}"
        raise ValueError(f"{name!r} {found}; fetch it again.")
    return Detector(model, image_processor, name, revision)
