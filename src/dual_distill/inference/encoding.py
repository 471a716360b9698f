"""Encode once: images or texts go through their tower and into a feature store, whatever interrupts the run."""

import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate, islice
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dual_distill import data
from dual_distill.data import PlannedShard, Prepared
from dual_distill.modeling import ContrastiveDualEncoder, DualDistillProcessor, DualEncoderConfig

from .feature_store import (
    DTYPES,
    KEYS_VALUES,
    LISTS,
    NORMALISED,
    POOLED,
    PROJECTED,
    TOKENS,
    FeatureManifest,
    FeatureTable,
    stored_columns,
)
from .model_identity import longest_text, model_identity, processor_settings
from .sources import Inputs, distinct_texts, open_images

SHARD_SIZE = 1024
TOKEN_SHARD_SIZE = 128  # which is held in memory: 193 tokens of 768 numbers are 76 MB then
BATCH_SIZE = 32
_TOKENIZED = 256
_NAMED = 3


class StoreSettings(TypedDict, total=False):
    """Settings of a store; of one that is there already, those that are left out are its own."""

    dtype: str | None
    projected: bool | None
    keys_values: bool | None
    tokens: bool | None
    batch_size: int | None
    shard_size: int | None


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
    store: data.FilePath,
    *,
    strict: bool = False,
    verify: bool = False,
    num_workers: int | None = None,
    show_progress: bool = False,
    **settings: Unpack[StoreSettings],
) -> EncodingReport:
    """Encode images into a store: those that it does not hold yet.

    Of a model with a retrieval head (`DualEncoderForImageTextRetrieval`) the store keeps projections of length 1, which
    `FeatureStoreSearcher` compares by cosine; of others the pooled vectors, which `FeatureStoreVQA` asks, or all
    tokens of an image where the model has interaction layers, which read them.

    Settings of the store that are left out, or None, are its own where it is there already. Under `torchrun`, and
    `accelerate launch` on GPUs, which set RANK and WORLD_SIZE, each process makes its share of the shards.

    Args:
        model: a dual encoder that reads one image at a time; put into eval mode.
        processor: its processor.
        images: what `open_images` takes, or what it returned.
        store: folder; made when it is not there.
        strict: an image that cannot be read ends the run; else it is listed.
        verify: read the images that the store holds already, and compare their content.
        num_workers: processes that fetch and decode; None: one a core, 16 at most, none for few images.
        show_progress: a bar on stderr, with images/s and time left.
        **settings: of the store. `dtype` of what is stored, "float32" (default) or "float16"; also "int8": of tokens,
            with one scale a token, and of vectors to search by, with one a shard. `projected`: store the image's half
            of the interaction's first linear map too, `2C` wide; default no. `keys_values`: store the keys and values
            that interaction layers make of an image's tokens in place of these: less to compute for each question,
            twice the size for each layer; default no. `tokens`: of a model that searches and has interaction layers,
            store tokens too, for `rerank_top`; default no. `batch_size`: images a forward pass (default 32).
            `shard_size`: images a file (default 1,024; 128 where an image has many vectors); a killed run loses what it
            had of one.

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
    source = open_images(images)
    run = Encoding("image", model, processor, store, settings)
    return run.fill(source, partial(prepare_image, processor), strict, verify, num_workers, show_progress)


def encode_texts(
    model: PreTrainedModel,
    processor: DualDistillProcessor,
    texts: Iterable[str],
    store: data.FilePath,
    *,
    show_progress: bool = False,
    **settings: Unpack[StoreSettings],
) -> EncodingReport:
    """Encode texts into a store of texts, which are their own ids; a text that occurs again is encoded once.

    Args:
        model: a dual encoder.
        processor: its processor.
        texts: strings.
        store: folder; one of images is refused.
        show_progress: a bar on stderr, with texts/s and time left.
        **settings: as in `encode_images`, without `projected`, which is about images.

    Returns:
        An `EncodingReport`.

    Raises:
        ValueError: as `encode_images`; a text is empty; the model has interaction layers and answers.

    Example:
        >>> encode_texts(None, None, [], "no/such/store")
        Traceback (most recent call last):
        ValueError: There are no texts; give one or more.
    """
    source = distinct_texts(texts)
    run = Encoding("text", model, processor, store, settings)

    def prepare(identifier: str, text: str) -> Prepared:
        return next(prepared_texts(model, processor, [text]))

    # No worker: the tokenizer has threads of its own.
    return run.fill(source, prepare, strict=True, num_workers=0, show_progress=show_progress)


def encode_in_order(model: PreTrainedModel, inputs: Iterable[Tensor], number: int, batch_size: int) -> Tensor:
    """Encode a number of texts `(T,)` or images `(3, H, W)` as a store does: one row each, in order, held once."""
    vectors = torch.empty(0)
    for index, row in encode_prepared(model, enumerate(map(Prepared, inputs)), batch_size):
        if not len(vectors):
            vectors = row.new_empty(number, *row.shape)
        vectors[index] = row
    return vectors


@torch.inference_mode()
def encode_prepared(
    model: PreTrainedModel, inputs: Iterable[tuple[Any, Prepared]], batch_size: int
) -> Iterator[tuple[Any, Tensor]]:
    """Encode texts or images by their keys as a store does, in batches of one shape; yield keys and rows."""

    def run(batch: list[Prepared]) -> Tensor:
        return stored_vectors(model, tower_output(model, batch).pooler_output)

    yield from data.run_by_shape(run, inputs, batch_size)


def text_inputs(model: PreTrainedModel, processor: DualDistillProcessor, texts: Iterable[str]) -> Iterator[Tensor]:
    """Yield the word pieces of each text, `(T,)`; many texts are cut at a time."""
    rest, max_tokens = iter(texts), longest_text(model, processor)
    while some := list(islice(rest, _TOKENIZED)):
        words = processor.encode_text(some, max_length=max_tokens)
        yield from (ids[real] for ids, real in zip(words["input_ids"], words["attention_mask"].bool(), strict=True))


def prepared_texts(model: PreTrainedModel, processor: DualDistillProcessor, texts: Sequence[str]) -> Iterator[Prepared]:
    """Yield the word pieces of each text, and the fingerprint of the text."""
    for text, values in zip(texts, text_inputs(model, processor, texts), strict=True):
        yield Prepared(values, data.fingerprint(text))


@torch.inference_mode()
def text_vectors(model: PreTrainedModel, processor: Any, texts: Sequence[str], batch_size: int) -> Tensor:
    """Encode texts to ask with, in padded batches of about one length: one row each, in order. A store pads nothing."""
    # What a foreign tower pools itself may be its last token, padding or not.
    if model.config.text_pooling == "tower" and not model.config.is_own("text_config"):
        return encode_in_order(model, text_inputs(model, processor, texts), len(texts), batch_size)

    order, max_tokens = sorted(range(len(texts)), key=lambda index: len(texts[index])), longest_text(model, processor)
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        words = processor.encode_text([texts[index] for index in batch], max_length=max_tokens)
        output = model.get_text_features(**{name: tensor.to(model.device) for name, tensor in words.items()})
        found |= zip(batch, stored_vectors(model, output.pooler_output), strict=True)
    return torch.stack([found[index] for index in range(len(texts))])


def tower_output(model: PreTrainedModel, batch: Sequence[Prepared], **options: bool) -> Any:
    """Run texts or images of one shape through their tower; options are those of `get_image_features`."""
    rows = torch.stack([row.values for row in batch]).to(model.device)
    is_image = rows.is_floating_point()
    return model.get_image_features(rows.to(model.dtype), **options) if is_image else model.get_text_features(rows)


def searches(model: PreTrainedModel) -> bool:
    """Return whether a model puts images and texts in one space, to be searched by cosine, instead of answering."""
    return isinstance(model, ContrastiveDualEncoder)


def stored_vectors(model: PreTrainedModel, vectors: Tensor) -> Tensor:
    """Return what a store keeps of a tower's vectors: of a model that searches, float32 of length 1."""
    return normalize(vectors.float(), dim=-1) if searches(model) else vectors


def process_share() -> tuple[int, int]:
    """Rank and number of processes, as `accelerate launch` and `torchrun` say them."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ValueError(f"RANK is {rank} and WORLD_SIZE {world_size}, but ranks run from 0 to WORLD_SIZE - 1.")
    return rank, world_size


def prepare_image(processor: DualDistillProcessor, identifier: str, value: Any) -> Prepared:
    """Decode and resize an image, and note the fingerprint of its content."""
    content, sha256 = data.image_bytes(value, identifier)
    image = data.decode_image(content, identifier, jpeg_size=processor.jpeg_size)
    return Prepared(data.resize_image(processor.prepare_image, image, identifier), sha256)


class Encoding:
    """A model on its way through images or texts into a store that is new, or made by the same model and settings."""

    def __init__(
        self, kind: str, model: PreTrainedModel, processor: Any, store: data.FilePath, settings: StoreSettings
    ) -> None:
        if not isinstance(model.config, DualEncoderConfig):
            raise ValueError(f"{type(model).__name__} reads text and image together; give a dual encoder.")
        if getattr(model, "num_images", 1) != 1:
            raise ValueError(f"The model reads {model.num_images} images together; give a model that reads one.")
        self.table, self.model = FeatureTable(store), model.eval()

        # What is stored follows from the model.
        vectors, width = POOLED, model.config.hidden_size
        if searches(model):
            vectors, width = NORMALISED, model.config.projection_dim
        elif model.config.interaction_layers:
            before = self.table.read_manifest() or {}
            wanted_states = settings.get("keys_values")
            stays = wanted_states is None and before.get("vectors") == KEYS_VALUES
            vectors = KEYS_VALUES if wanted_states or stays else TOKENS
        # Said before a folder is made.
        self._check(kind, vectors, settings)

        # What was left open has a default, in a store that is begun now.
        given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        given.pop("keys_values", None)
        has_lists = vectors in LISTS or settings.get("tokens")
        wanted: dict[str, Any] = {"dtype": "float32", "projected": False, "batch_size": BATCH_SIZE}
        wanted |= {"shard_size": TOKEN_SHARD_SIZE if has_lists else SHARD_SIZE} | given
        wanted |= {"kind": kind, "width": width, "vectors": vectors}
        made_with = model_identity(model), processor_settings(kind, model, processor)

        # Of a store that is there already, everything must fit.
        found = self.table.begin(asdict(FeatureManifest(**wanted, model=made_with[0], processor=made_with[1])))
        self.manifest = FeatureManifest(**found)
        self.table.check_made_with(self.manifest, kind, *made_with)
        given["vectors"] = vectors
        self.table.check_settings({name: found[name] for name in given}, given)

    def _check(self, kind: str, vectors: str, settings: StoreSettings) -> None:
        """Refuse settings that mean nothing for what is stored."""
        if kind == "text" and vectors in LISTS:
            ahead = "in which a question reads the image, so no text can be encoded ahead"
            raise ValueError(f"The model has interaction layers, {ahead}; store images alone.")
        if settings.get("projected") and (kind == "text" or vectors != POOLED):
            what = f"is about pooled vectors of images, but {vectors} {'texts' if kind == 'text' else 'vectors'}"
            raise ValueError(f"projected is set, which {what} are stored; leave it out.")
        if settings.get("keys_values") and vectors != KEYS_VALUES:
            raise ValueError("keys_values is set, but the model has no interaction layers that read them.")
        searched_by_layers = vectors == NORMALISED and kind == "image" and self.model.config.interaction_layers
        if settings.get("tokens") and not searched_by_layers:
            needed = "images of a model that searches and has interaction layers"
            raise ValueError(f"tokens is set, which is about {needed}; leave it out.")
        if settings.get("dtype") == "int8" and vectors == POOLED:
            what = "an image's tokens and for vectors to search by, but vectors to ask are stored"
            raise ValueError(f"dtype is 'int8', which is for {what}; take float16.")

    def fill(
        self,
        source: Inputs,
        prepare: Callable[[str, Any], Prepared],
        strict: bool = False,
        verify: bool = False,
        num_workers: int | None = None,
        show_progress: bool = False,
    ) -> EncodingReport:
        """Plan what is new, and encode what this process owns and is not done."""
        start = time.perf_counter()
        table, kind = self.table, self.manifest.kind
        rank, world_size = process_share()
        shards = table.plan(source.ids, self.manifest.shard_size, partial(data.is_readable, source, prepare))
        if verify:
            self._verify(source, shards)
        to_do = [shard for shard in shards if not table.is_done(shard.number)]
        self._check_disk(sum(len(shard.ids) for shard in to_do))

        # Shared out by number, so that processes need not speak to each other.
        mine = [shard for shard in to_do if shard.number % world_size == rank]
        total, quiet = sum(len(shard.ids) for shard in mine), not show_progress or not mine
        share = "encode" if world_size == 1 else f"encode {rank + 1}/{world_size}"
        bar = tqdm(total=total, unit=f" {kind}s", desc=share, disable=quiet, position=rank)
        encoded, batch_size = 0, self.manifest.batch_size
        with bar, torch.inference_mode():
            for shard in data.fill_shards(mine, source, prepare, self._run, batch_size, strict, num_workers, bar):
                self._write(*shard)
                encoded += len(shard.results)

        # Others may have finished theirs meanwhile.
        done = [shard.number for shard in shards if table.is_done(shard.number)]
        num_rows, size = sum(map(table.num_rows, done)), sum(table.shard_file(one).stat().st_size for one in done)
        seconds, missing = time.perf_counter() - start, len(shards) - len(done)
        made = (str(table.path), kind, num_rows, size // max(1, num_rows), encoded, seconds, missing)
        return EncodingReport(*made, table.unreadable())

    def _verify(self, source: Inputs, shards: list[PlannedShard]) -> None:
        """Refuse images whose content is not that of their id in the store."""
        # Only what is given can be compared: a store may hold more.
        given, changed = set(source.ids), []
        for shard in shards:
            if self.table.is_done(shard.number):
                for identifier, sha256 in zip(*self.table.rows(shard.number).to_pydict().values(), strict=True):
                    if identifier in given and data.image_bytes(source.value(identifier), identifier)[1] != sha256:
                        changed.append(identifier)
        if changed:
            held, named = f"that the store {str(self.table.path)!r} holds", ", ".join(map(repr, changed[:_NAMED]))
            unlike = f"{len(changed)} images are not those {held} under the same ids, such as {named}"
            raise ValueError(f"{unlike}; give changed images new names, or encode into another folder.")

    def _check_disk(self, num_rows: int) -> None:
        """Refuse a disk that cannot hold the rows to come, by the numbers of one row of the model's own image size."""
        # Of tokens, an image of another shape has about as many; whatever else is stored is small beside them.
        manifest, (rows, columns) = self.manifest, self.model.config.patch_grid
        tokens, layers = 1 + rows * columns, self.model.config.interaction_layers
        of_lists = {TOKENS: tokens, KEYS_VALUES: 1 + 2 * layers * tokens}
        numbers = manifest.width * (3 if manifest.projected else 1)
        if manifest.lists is not None:
            numbers = self.model.config.hidden_size * of_lists[manifest.lists]
        needed, free = num_rows * numbers * DTYPES[manifest.dtype].itemsize, shutil.disk_usage(self.table.path).free
        if needed > free:
            least = f"at least {needed / 1e9:,.1f} GB ({needed // num_rows:,} bytes each)"
            disk = f"the disk of {str(self.table.path)!r} has {free / 1e9:,.1f} GB free"
            way_out = "make room, or take a smaller dtype"
            raise ValueError(f"{num_rows:,} {manifest.kind}s take {least}, but {disk}; {way_out}.")

    def _run(self, batch: list[Prepared]) -> list[tuple[dict[str, Tensor], str]]:
        """What is stored of each input of a batch, by column, and its fingerprint."""
        model, kept = self.model, self.manifest.vectors
        found = tower_output(model, batch, **({"output_token_states": True} if kept == KEYS_VALUES else {}))

        # No image is padded, so all tokens are real.
        encoded = {}
        if self.manifest.lists == TOKENS:
            encoded[TOKENS] = found.image_token_embeds[:, 0]
        elif kept == KEYS_VALUES:
            states = found.image_token_states[:, 0].permute(0, 4, 1, 2, 3, 5).flatten(4).flatten(1, 3)
            encoded[KEYS_VALUES] = torch.cat([found.pooler_output[:, None], states], dim=1)
        if kept not in LISTS:
            encoded[kept] = stored_vectors(model, found.pooler_output)
        if self.manifest.projected:
            encoded[PROJECTED] = model.project_images(found.pooler_output)
        return [({name: each[row] for name, each in encoded.items()}, one.known) for row, one in enumerate(batch)]

    def _write(
        self, number: int, results: dict[str, tuple[dict[str, Tensor], str]], unreadable: dict[str, str]
    ) -> None:
        """Write one shard; a GPU is waited for here alone."""
        manifest, ids, rows = self.manifest, list(results), list(results.values())
        # A vector a row, or the tokens of all rows one behind the other.
        lengths = None if manifest.lists is None else [len(row[manifest.lists]) for row, _ in rows]

        # A shard whose inputs could all not be read has no columns.
        stored: dict[str, Tensor] = {}
        for name in rows[0][0] if rows else ():
            join = torch.cat if name == manifest.lists else torch.stack
            stored |= stored_columns(name, join([row[name] for row, _ in rows]).cpu(), manifest.dtype_of(name))
        for name, tensor in stored.items():
            if not tensor.isfinite().all():
                row = int((~tensor.isfinite().all(-1)).nonzero()[0])
                first = ids[row if len(tensor) == len(ids) else bisect_right(list(accumulate(lengths or [])), row)]
                beyond = f"NaN or a value beyond {manifest.dtype}"
                raise ValueError(f"The {name} vector of {first!r} holds {beyond}; is the model trained and whole?")
        self.table.write_features(number, ids, [sha256 for _, sha256 in rows], stored, unreadable, lengths)
