"""Encode once: images or texts go through their tower and into a feature store, whatever interrupts the run."""

import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Literal

import torch
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dual_distill.data import (
    InputSource,
    PlannedShard,
    Prepared,
    decode_image,
    fill_shards,
    fingerprint,
    image_bytes,
    is_readable,
    resize_image,
)
from dual_distill.modeling import ContrastiveDualEncoder, DualDistillProcessor, DualEncoderConfig

from .encoding_sources import DatasetSource, FolderSource, MappingSource, TextSource, open_images
from .feature_store import DTYPES, NORMALISED, POOLED, PROJECTED, TOKENS, FeatureManifest, FeatureTable, stored_tokens
from .model_identity import (
    check_same_model,
    check_same_processor,
    image_processor_settings,
    model_identity,
    tokenizer_settings,
)

SHARD_SIZE = 1024
TOKEN_SHARD_SIZE = 128  # which is held in memory: 193 tokens of 768 numbers are 76 MB then
BATCH_SIZE = 32
_NAMED = 3


@dataclass(frozen=True)
class EncodingReport:
    """What a call of `encode_images` or `encode_texts` did.

    Attributes:
        store: its folder.
        kind: "image" or "text".
        rows: rows in the finished shards.
        bytes_per_row: size of the finished shards by rows, ids and hashes included.
        encoded: rows that this process added now.
        seconds: duration of encoding, without loading the model.
        missing_shards: planned shards that are not there; other processes make them, or were stopped.
        unreadable: id -> problem.
    """

    store: str
    kind: str
    rows: int
    bytes_per_row: int
    encoded: int
    seconds: float
    missing_shards: int
    unreadable: dict[str, str]


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
    num_workers: int | None = None,
    model_name: str | None = None,
    revision: str | None = None,
    show_progress: bool = False,
) -> EncodingReport:
    """Encode images into a store: those that it does not hold yet.

    Of a model with a retrieval head (`DualEncoderForImageTextRetrieval`) the store keeps projections of length 1, which
    `FeatureStoreSearcher` compares by cosine; of others the pooled vectors, which `FeatureStoreVQA` asks, or all
    tokens of an image where the model has interaction layers, which read them.

    Settings that are None are those of the store, where there is one already. Under `torchrun`, and `accelerate launch`
    on GPUs, which set RANK and WORLD_SIZE, each process makes its share of the shards.

    Args:
        model: a dual encoder that reads one image at a time; put into eval mode.
        processor: its processor.
        images: what `open_images` takes, or what it returned.
        store: folder; made when it is not there.
        dtype: of what is stored, "float32" (default) or "float16"; of tokens also "int8", with one scale a token.
        projected: store the image's half of the interaction's first linear map too, `2C` wide; default no.
        batch_size: images a forward pass (default 32).
        shard_size: images a file (default 1,024; 128 where tokens are stored); a killed run loses what it had of one.
        strict: an image that cannot be read ends the run; else it is listed.
        verify: read the images that the store holds already, and compare their content.
        num_workers: processes that fetch and decode; None: one a core, 16 at most, none for few images.
        model_name: what the store calls the model; None: what it was loaded from.
        revision: commit of a Hub repository.
        show_progress: a bar on stderr, with images/s and time left.

    Returns:
        An `EncodingReport`.

    Raises:
        ValueError: the store was made with another model, processor or setting; the model is of another kind; an image
            cannot be read and `strict` is set, or changed and `verify` is set; the disk cannot hold the store.

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
    source = images if isinstance(images, FolderSource | DatasetSource | MappingSource) else open_images(images)
    wanted = {"dtype": dtype, "projected": projected, "batch_size": batch_size, "shard_size": shard_size}
    table = FeatureTable(store)
    identity = model_identity(_checked_model(model), model_name, revision)
    manifest = _manifest(table, "image", model, identity, image_processor_settings(processor), wanted)

    def features(rows: torch.Tensor) -> torch.Tensor:
        found = model.get_image_features(rows.to(model.device, model.dtype))
        # No image is padded, so all tokens are real.
        return found.image_token_embeds[:, 0] if manifest.vectors == TOKENS else found.pooler_output

    prepare = partial(_prepare_image, processor)
    return _encode(table, manifest, model, source, prepare, features, strict, verify, num_workers, show_progress)


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
        ValueError: as `encode_images`; a text is empty; the model has interaction layers and answers.

    Example:
        >>> encode_texts(None, None, [], "no/such/store")
        Traceback (most recent call last):
        ValueError: There are no texts; give at least one.
    """
    source = TextSource(texts)
    max_tokens = longest_text(_checked_model(model), processor)
    wanted = {"dtype": dtype, "projected": projected, "batch_size": batch_size, "shard_size": shard_size}
    table = FeatureTable(store)
    if _stores_tokens(model):
        ahead = "in which a question reads the image, so no text can be encoded ahead"
        raise ValueError(f"The model has interaction layers, {ahead}; store images alone.")
    identity = model_identity(model, model_name, revision)
    manifest = _manifest(table, "text", model, identity, tokenizer_settings(processor, max_tokens), wanted)

    def prepare(identifier: str, value: str) -> Prepared:
        input_ids = processor.encode_text([value], max_length=max_tokens)["input_ids"][0]
        return Prepared(input_ids, fingerprint(value))

    def features(rows: torch.Tensor) -> torch.Tensor:
        return model.get_text_features(rows.to(model.device)).pooler_output

    # No worker: the tokenizer has threads of its own.
    return _encode(table, manifest, model, source, prepare, features, show_progress=show_progress)


def longest_text(model: PreTrainedModel, processor: DualDistillProcessor) -> int:
    """Return the longest text in tokens: what the tokenizer lets through and the model's position table holds."""
    return min(processor.tokenizer.model_max_length, model.config.text_config.max_position_embeddings)


def searches(model: PreTrainedModel) -> bool:
    """Return whether a model puts images and texts in one space, to be searched by cosine, instead of answering."""
    return isinstance(model, ContrastiveDualEncoder)


def _stores_tokens(model: PreTrainedModel) -> bool:
    """Whether the model's answers take all tokens of an image."""
    return bool(model.config.interaction_layers) and not searches(model)


def stored_vectors(model: PreTrainedModel, vectors: torch.Tensor) -> torch.Tensor:
    """Return what a store keeps of a tower's vectors: of a model that searches, float32 of length 1."""
    return normalize(vectors.float(), dim=-1) if searches(model) else vectors


def _encode(
    table: FeatureTable,
    manifest: FeatureManifest,
    model: PreTrainedModel,
    source: InputSource,
    prepare: Callable[[str, Any], Prepared],
    features: Callable[[torch.Tensor], torch.Tensor],
    strict: bool = True,
    verify: bool = False,
    num_workers: int | None = 0,
    show_progress: bool = False,
) -> EncodingReport:
    """Plan what is new, and encode what this process owns and is not done."""
    start = time.perf_counter()
    rank, world_size = process_share()
    shards = table.plan(source.ids, manifest.shard_size, partial(is_readable, source, prepare))
    if verify:
        _verify(table, source, shards)
    _check_disk(table, manifest, model, sum(len(shard.ids) for shard in shards if not table.is_done(shard.number)))

    def run(batch: list[Prepared]) -> list[tuple[torch.Tensor, str]]:
        encoded = stored_vectors(model, features(torch.stack([row.values for row in batch])))
        return [(vector, row.known) for vector, row in zip(encoded, batch, strict=True)]

    mine = [shard for shard in shards if shard.number % world_size == rank and not table.is_done(shard.number)]
    bar = tqdm(
        total=sum(len(shard.ids) for shard in mine),
        unit=f" {manifest.kind}s",
        desc="encode" if world_size == 1 else f"encode {rank + 1}/{world_size}",
        disable=not show_progress or not mine,
        position=rank,
    )
    model.eval()
    encoded = 0
    with bar, torch.inference_mode():
        for shard in fill_shards(mine, source, prepare, run, manifest.batch_size, strict, num_workers, bar):
            _write(table, manifest, model, *shard)
            encoded += len(shard.results)

    done = [shard.number for shard in shards if table.is_done(shard.number)]
    num_rows = sum(map(table.num_rows, done))
    return EncodingReport(
        store=str(table.path),
        kind=manifest.kind,
        rows=num_rows,
        bytes_per_row=sum(table.shard_file(number).stat().st_size for number in done) // max(1, num_rows),
        encoded=encoded,
        seconds=time.perf_counter() - start,
        missing_shards=len(shards) - len(done),
        unreadable=table.unreadable(),
    )


def _check_disk(table: FeatureTable, manifest: FeatureManifest, model: PreTrainedModel, num_rows: int) -> None:
    """Refuse a disk that cannot hold the rows to come, by the numbers of one row of the model's own image size."""
    rows, columns = model.config.vision_config.patch_grid
    numbers = {TOKENS: 1 + rows * columns}.get(manifest.vectors, 3 if manifest.projected else 1) * manifest.width
    needed, free = num_rows * numbers * DTYPES[manifest.dtype].itemsize, shutil.disk_usage(table.path).free
    if needed > free:
        least = f"at least {needed / 1e9:,.1f} GB ({needed // num_rows:,} bytes each)"
        disk = f"the disk of {str(table.path)!r} has {free / 1e9:,.1f} GB free"
        raise ValueError(f"{num_rows:,} {manifest.kind}s take {least}, but {disk}; make room, or take a smaller dtype.")


def _verify(table: FeatureTable, source: InputSource, shards: list[PlannedShard]) -> None:
    """Refuse images whose content is not that of their id in the store."""
    given = set(source.ids)
    changed = []
    for shard in shards:
        if table.is_done(shard.number):
            for identifier, sha256 in zip(*table.rows(shard.number).to_pydict().values(), strict=True):
                if identifier in given and image_bytes(source.value(identifier), identifier)[1] != sha256:
                    changed.append(identifier)
    if changed:
        held, named = f"that the store {str(table.path)!r} holds", ", ".join(map(repr, changed[:_NAMED]))
        unlike = f"{len(changed)} images are not those {held} under the same ids, such as {named}"
        raise ValueError(f"{unlike}; give changed images new names, or encode into another folder.")


def _write(
    table: FeatureTable,
    manifest: FeatureManifest,
    model: PreTrainedModel,
    number: int,
    results: dict[str, tuple[torch.Tensor, str]],
    unreadable: dict[str, str],
) -> None:
    """Write one shard; a GPU is waited for here alone."""
    width, ids, rows = manifest.width, list(results), list(results.values())
    # A vector a row, or the tokens of all rows one behind the other.
    lengths = [len(tokens) for tokens, _ in rows] if manifest.vectors == TOKENS else None
    join = torch.stack if lengths is None else torch.cat
    encoded = join([vectors for vectors, _ in rows]) if rows else torch.zeros(0, width)

    if lengths is not None:
        features = stored_tokens(encoded, manifest.dtype)
    else:
        features = {manifest.vectors: encoded}
        if manifest.projected:
            project = model.project_images if manifest.kind == "image" else model.project_text
            features[PROJECTED] = project(encoded) if rows else torch.zeros(0, 2 * width)
        features = {name: tensor.to(DTYPES[manifest.dtype]) for name, tensor in features.items()}

    stored = {name: tensor.cpu() for name, tensor in features.items()}
    for name, tensor in stored.items():
        if not tensor.isfinite().all():
            row = int((~tensor.isfinite().all(-1)).nonzero()[0])
            first = ids[row if lengths is None else bisect_right(list(accumulate(lengths)), row)]
            beyond = f"NaN or a value beyond {manifest.dtype}"
            raise ValueError(f"The {name} vector of {first!r} holds {beyond}; is the model trained and whole?")
    table.write_features(number, ids, [sha256 for _, sha256 in rows], stored, unreadable, lengths)


def process_share() -> tuple[int, int]:
    """Rank and number of processes, as `accelerate launch` and `torchrun` say them."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ValueError(f"RANK is {rank} and WORLD_SIZE {world_size}, but ranks run from 0 to WORLD_SIZE - 1.")
    return rank, world_size


def _prepare_image(processor: DualDistillProcessor, identifier: str, value: Any) -> Prepared:
    content, sha256 = image_bytes(value, identifier)
    return Prepared(resize_image(processor.prepare_image, decode_image(content, identifier), identifier), sha256)


def _checked_model(model: PreTrainedModel) -> PreTrainedModel:
    if not isinstance(model.config, DualEncoderConfig):
        raise ValueError(f"{type(model).__name__} reads text and image together; give a dual encoder.")
    if getattr(model, "num_images", 1) != 1:
        raise ValueError(f"The model reads {model.num_images} images together; give a model that reads one.")
    return model


def _manifest(
    table: FeatureTable,
    kind: Literal["image", "text"],
    model: PreTrainedModel,
    identity: dict[str, Any],
    settings: dict[str, Any],
    wanted: dict[str, Any],
) -> FeatureManifest:
    """Return the manifest of the store, after comparing it; or write the first."""
    for name in ("batch_size", "shard_size"):
        if wanted[name] is not None and wanted[name] < 1:
            raise ValueError(f"{name} is {wanted[name]}, but must be at least 1.")
    if wanted["dtype"] not in {None, *DTYPES}:
        raise ValueError(f"dtype is {wanted['dtype']!r}, but vectors are stored as {' or '.join(DTYPES)}.")
    if searches(model) and wanted["projected"]:
        compares = f"{type(model).__name__} compares vectors and has no interaction to store a half of"
        raise ValueError(f"projected is set, but {compares}; leave projected out.")
    has_tokens = kind == "image" and _stores_tokens(model)
    if has_tokens and wanted["projected"]:
        raise ValueError("projected is set, but interaction layers read an image's tokens; leave projected out.")
    if wanted["dtype"] == "int8" and not has_tokens:
        raise ValueError("dtype is 'int8', which is for an image's tokens, but here vectors are stored; take float16.")

    width, vectors = model.config.hidden_size, POOLED
    if searches(model):
        width, vectors = model.config.projection_dim, NORMALISED
    elif has_tokens:
        vectors = TOKENS
    given = {key: value for key, value in wanted.items() if value is not None}
    defaults = {"dtype": "float32", "projected": False, "batch_size": BATCH_SIZE, "shard_size": SHARD_SIZE}
    if has_tokens:
        defaults["shard_size"] = TOKEN_SHARD_SIZE
    first = FeatureManifest(
        kind=kind, width=width, model=identity, processor=settings, vectors=vectors, **{**defaults, **given}
    )
    found = FeatureManifest(**table.begin(asdict(first)))

    # Of a store that is there already, everything must fit.
    name = str(table.path)
    if found.kind != kind:
        raise ValueError(f"{name!r} is a store of {found.kind}s, not of {kind}s; give each kind its own folder.")
    check_same_model(name, found.model, identity)
    check_same_processor(name, found.processor, settings)
    if found.vectors != vectors:
        raise ValueError(f"The store {name!r} holds {found.vectors}, not {vectors}; encode into another folder.")
    for key, value in given.items():
        if value != getattr(found, key):
            made = f"was made with {key} {getattr(found, key)}, not {value}"
            raise ValueError(f"The store {name!r} {made}; leave the setting out, or encode into another folder.")
    return found
