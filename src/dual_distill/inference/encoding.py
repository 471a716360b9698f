"""Encode once: images or texts go through their tower and into a feature store, whatever interrupts the run.

Here are the two doors, which check what is given and say how one input is read; `encoding_run` does the work.
"""

import hashlib
import os
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from dual_distill.data import ImageError, decode_image
from dual_distill.modeling import ContrastiveDualEncoder, DualDistillProcessor, DualEncoderConfig

from .encoding_run import EncodingReport, EncodingRun
from .encoding_sources import DatasetSource, FolderSource, MappingSource, TextSource, image_bytes, open_images
from .feature_store_files import DTYPES, NORMALISED, POOLED, Manifest, StoreFolder
from .model_identity import (
    check_same_model,
    check_same_processor,
    image_processor_settings,
    model_identity,
    tokenizer_settings,
)

SHARD_SIZE = 1024
BATCH_SIZE = 32


def encode_images(
    model: PreTrainedModel,
    processor: DualDistillProcessor,
    images: Any,
    store: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    projected: bool | None = None,
    batch_size: int | None = None,
    shard_size: int | None = None,
    strict: bool = False,
    verify: bool = False,
    threads: int | None = None,
    model_name: str | None = None,
    revision: str | None = None,
    show_progress: bool = False,
) -> EncodingReport:
    """Encode images into a store: those that it does not hold yet.

    Of a model with a retrieval head (`DualEncoderForImageTextRetrieval`) the store keeps projections of length 1, which
    `FeatureStoreSearcher` compares by cosine; of others the pooled vectors, which `FeatureStoreVQA` asks.

    Settings that are None are those of the store, where there is one already. Under `torchrun`, and `accelerate launch`
    on GPUs, which set RANK and WORLD_SIZE, each process makes its share of the shards.

    Args:
        model: a dual encoder that reads one image at a time; put into eval mode.
        processor: its processor.
        images: what `open_images` takes, or what it returned.
        store: folder; made when it is not there.
        dtype: of the stored vectors, "float32" (default) or "float16".
        projected: store the image's half of the interaction's first linear map too, `2C` wide; default no.
        batch_size: images a forward pass (default 32).
        shard_size: images a file (default 1,024); a killed run loses what it had of one.
        strict: an image that cannot be read ends the run; else it is listed.
        verify: read the images that the store holds already, and compare their content.
        threads: that fetch and decode; None: one a core, 16 at most.
        model_name: what the store calls the model; None: what it was loaded from.
        revision: commit of a Hub repository.
        show_progress: a bar on stderr, with images/s and time left.

    Returns:
        An `EncodingReport`.

    Raises:
        ValueError: the store was made with another model, processor or setting; the model is of another kind; an image
            cannot be read and `strict` is set, or changed and `verify` is set.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from transformers import ViltImageProcessorPil
        >>> from dual_distill.data import train_tokenizer
        >>> from dual_distill.modeling import DualEncoderModel
        >>> tokenizer = train_tokenizer(["is it red?"])
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> model = DualEncoderModel(DualEncoderConfig(
        ...     text_config={"vocab_size": len(tokenizer), **tower},
        ...     vision_config={"image_size": 32, "patch_size": 16, **tower}))
        >>> processor = DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 32}), tokenizer)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = encode_images(model, processor, {"a": Image.new("RGB", (40, 30)), "b": b"no image"}, folder)
        >>> report.rows, list(report.unreadable)
        (1, ['b'])
    """
    _check_model(model)
    source = images if isinstance(images, FolderSource | DatasetSource | MappingSource) else open_images(images)

    def prepare(identifier: str, value: Any) -> tuple[torch.Tensor, str]:
        content, sha256 = image_bytes(value, identifier)
        try:
            image = decode_image(content, identifier)
            try:
                return processor.prepare_image(image), sha256
            except (ValueError, ZeroDivisionError) as error:
                raise ImageError(
                    f"row {identifier}: the picture of {image.width} x {image.height} pixels cannot be resized "
                    f"({error}); crop "
                    "it to a less extreme shape."
                ) from error
        except ImageError as error:
            raise _UnreadableContent(str(error), sha256) from error

    def content_hash(identifier: str) -> str:
        return image_bytes(source.value(identifier), identifier)[1]

    def forward(rows: list[torch.Tensor]) -> torch.Tensor:
        pixel_values = torch.stack(rows).to(model.device, model.dtype)
        return stored_vectors(model, model.get_image_features(pixel_values).pooler_output)

    wanted = {"dtype": dtype, "projected": projected, "batch_size": batch_size, "shard_size": shard_size}
    folder = StoreFolder(store)
    manifest = _manifest(
        folder, "image", model, model_identity(model, model_name, revision), image_processor_settings(processor), wanted
    )
    project = model.project_images if manifest.projected else None
    run = EncodingRun(folder, manifest, source, prepare, content_hash, forward, project, strict, threads)
    return run(model, verify, show_progress)


def encode_texts(
    model: PreTrainedModel,
    processor: DualDistillProcessor,
    texts: Any,
    store: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    projected: bool | None = None,
    batch_size: int | None = None,
    shard_size: int | None = None,
    model_name: str | None = None,
    revision: str | None = None,
    show_progress: bool = False,
) -> EncodingReport:
    """Encode texts into a store of texts, which are their own ids; a text that occurs again is encoded once.

    Args:
        model: a dual encoder.
        processor: its processor.
        texts: strings.
        store: folder; one of images is refused.
        dtype: as in `encode_images`.
        projected: likewise; the text's half of the interaction's first linear map, bias included.
        batch_size: likewise.
        shard_size: likewise.
        model_name: likewise.
        revision: likewise.
        show_progress: likewise.

    Returns:
        An `EncodingReport`.

    Raises:
        ValueError: as `encode_images`; a text is empty.

    Example:
        >>> encode_texts(None, None, [], "no/such/store")
        Traceback (most recent call last):
        ValueError: There are no texts; give one or more.
    """
    source = TextSource(texts)
    _check_model(model)
    max_tokens = longest_text(model, processor)

    def prepare(identifier: str, value: str) -> tuple[torch.Tensor, str]:
        return processor.encode_text([value], max_length=max_tokens)["input_ids"][0], text_hash(value)

    def forward(rows: list[torch.Tensor]) -> torch.Tensor:
        return stored_vectors(model, model.get_text_features(torch.stack(rows).to(model.device)).pooler_output)

    wanted = {"dtype": dtype, "projected": projected, "batch_size": batch_size, "shard_size": shard_size}
    folder = StoreFolder(store)
    manifest = _manifest(
        folder,
        "text",
        model,
        model_identity(model, model_name, revision),
        tokenizer_settings(processor, max_tokens),
        wanted,
    )
    # One thread: the tokenizer has threads of its own and is not meant to be called from several.
    project = model.project_text if manifest.projected else None
    run = EncodingRun(folder, manifest, source, prepare, text_hash, forward, project, strict=True, threads=1)
    return run(model, show_progress=show_progress)


def longest_text(model: PreTrainedModel, processor: DualDistillProcessor) -> int:
    """Return the longest text in tokens: what the tokenizer lets through and the model's position table holds."""
    return min(processor.tokenizer.model_max_length, model.config.text_config.max_position_embeddings)


def searches(model: PreTrainedModel) -> bool:
    """Return whether a model puts images and texts in one space, where they are searched by cosine, instead of answering."""
    return isinstance(model, ContrastiveDualEncoder)


def stored_vectors(model: PreTrainedModel, vectors: torch.Tensor) -> torch.Tensor:
    """Return what a store keeps of a tower's vectors: of a model that searches, float32 of length 1."""
    return normalize(vectors.float(), dim=-1) if searches(model) else vectors


def text_hash(text: str) -> str:
    """Return the SHA-256 of a text in hexadecimal.

    Example:
        >>> text_hash("abc")[:8]
        'ba7816bf'
    """
    return hashlib.sha256(text.encode()).hexdigest()


class _UnreadableContent(ImageError):
    """The bytes are there but are no usable picture."""

    def __init__(self, message: str, sha256: str) -> None:
        super().__init__(message)
        self.sha256 = sha256


def _check_model(model: PreTrainedModel) -> None:
    if not isinstance(model.config, DualEncoderConfig):
        raise ValueError(
            f"{type(model).__name__} reads text and image together, so that neither can be encoded ahead of the "
            f"other; give a "
            "dual encoder."
        )
    if getattr(model, "num_images", 1) != 1:
        raise ValueError(
            f"The model reads {model.num_images} images together, but a store answers about one image at a time; give "
            f"a model "
            "that reads one."
        )


def _manifest(
    folder: StoreFolder,
    kind: Any,
    model: PreTrainedModel,
    identity: dict[str, Any],
    settings: dict[str, Any],
    wanted: dict[str, Any],
) -> Manifest:
    """Return the manifest of the store, after comparing it; or write the first."""
    for name in ("batch_size", "shard_size"):
        if wanted[name] is not None and wanted[name] < 1:
            raise ValueError(f"{name} is {wanted[name]}, but it counts 1 or more.")
    if wanted["dtype"] not in {None, *DTYPES}:
        raise ValueError(f"dtype is {wanted['dtype']!r}, but vectors are stored as {' or '.join(DTYPES)}.")
    if searches(model) and wanted["projected"]:
        raise ValueError(
            f"projected is set, but {type(model).__name__} compares vectors and has no interaction to store a half "
            f"of; leave "
            "projected out."
        )
    name = str(folder.path)
    found = folder.manifest()
    if found is None:
        defaults: dict[str, Any] = {
            "dtype": "float32",
            "projected": False,
            "batch_size": BATCH_SIZE,
            "shard_size": SHARD_SIZE,
        }
        values: dict[str, Any] = {
            key: default if wanted[key] is None else wanted[key] for key, default in defaults.items()
        }
        width = model.config.projection_dim if searches(model) else model.config.hidden_size
        vectors = NORMALISED if searches(model) else POOLED
        found = Manifest(kind=kind, width=width, model=identity, processor=settings, vectors=vectors, **values)
        folder.write_manifest(found)
        return found
    if found.kind != kind:
        raise ValueError(f"{name!r} is a store of {found.kind}s, not of {kind}s; give each kind its own folder.")
    check_same_model(name, found.model, identity)
    check_same_processor(name, found.processor, settings)
    for key, value in wanted.items():
        if value is not None and value != getattr(found, key):
            raise ValueError(
                f"The store {name!r} was made with {key} {getattr(found, key)}, not {value}; leave the setting out, "
                f"or encode "
                "into another folder."
            )
    return found


__all__ = [
    "BATCH_SIZE",
    "SHARD_SIZE",
    "EncodingReport",
    "encode_images",
    "encode_texts",
    "longest_text",
    "searches",
    "stored_vectors",
    "text_hash",
]
