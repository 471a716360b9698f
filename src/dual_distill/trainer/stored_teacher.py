"""What a teacher of any family says, kept on disk over its own tokens: any student learns from it, without the teacher.

A row is known by its text and its image. Attention is kept over the teacher's real tokens in float16, each query's
largest score at 0, with the characters and boxes that the tokens cover, so that it is carried to a student's tokens
when it is read.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dual_distill import data
from dual_distill.modeling import DualEncoderConfig, FusionEncoderConfig
from dual_distill.teachers import AlignedTeacher, ForeignTeacher, TeacherView, fetch, load_teacher

from .compatibility import reads_otherwise
from .teacher_cache import ROW_KEYS, CacheTable, Row, RowCache, row_names, row_of, view_of

_OURS = (FusionEncoderConfig.model_type, DualEncoderConfig.model_type, "vilt")


class TeacherCollator:
    """A collator whose batches hold what a teacher of any family reads, under `teacher_NAME`, and the student's spans.

    Of image-text pairs also lists `student_images` and `student_texts`: a teacher is asked about others than the rows'.

    Args:
        collator: of the student.
        teacher: one with a store needs its rows' keys; one that is not there reads nothing.

    Raises:
        ValueError: the collator is none of the package's or has several images a row, or the teacher reads regions.
    """

    def __init__(self, collator: data.ImageTextCollator, teacher: AlignedTeacher):
        if not isinstance(collator, data.ImageTextCollator) or collator.regions:
            way_out = "give one, or a teacher that reads the student's tokens"
            raise ValueError(
                f"a teacher with tokens of its own reads rows through a collator of dual_distill, as pixels; {way_out}."
            )
        if len(columns := collator.task.image_columns) != 1:
            has = f"task {collator.task.name!r} has {len(columns)} ({', '.join(columns)})"
            way_out = "take another task, or a teacher that reads the student's tokens"
            raise ValueError(f"{teacher.name} reads one image a row, but {has}; {way_out}.")
        self.is_stored = isinstance(teacher, StoredTeacher)
        reader = teacher.teacher if isinstance(teacher, StoredTeacher) else teacher
        self.inputs = None
        if isinstance(reader, ForeignTeacher):
            if not hasattr(reader.processor, "image_processor"):
                reads = f"{reader.name} reads regions of a detector"
                raise ValueError(f"{reads}, but rows hold images; take another teacher.")
            self.inputs = reader.inputs
        collator.gives_spans = True
        self.collator, self.task, self.augmentation = collator, collator.task, collator.augmentation

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate for both."""
        return self.collator(rows) | self.of_teacher(rows)

    def of_teacher(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate for the teacher alone."""
        rows = self.collator.read_rows(rows, self.task.text_column)
        batch: dict[str, Tensor] = {}
        pairs: dict[str, Any] = {}
        if self.inputs is not None:
            texts = [row[self.task.text_column] for row in rows]
            images = [self.collator.decoded(row, 0) for row in rows]
            batch |= self.inputs(images, texts)
            if isinstance(self.collator, data.PreTrainingCollator):
                pairs = {"student_images": images, "student_texts": texts}
        if self.is_stored:
            batch[ROW_KEYS] = self.keys(rows)
        return {f"teacher_{name}": tensor for name, tensor in batch.items()} | pairs

    def keys(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """Keys `(B, 16)` of rows that were read: of text and image, which is another in each epoch if augmented."""
        text, image = self.task.text_column, self.task.image_columns[0]
        shown = [self.collator.decoded(r, 0) if self.collator.is_augmented(r) else r[image] for r in rows]
        keys = [data.fingerprint(row[text], data.image_content(each)) for row, each in zip(rows, shown, strict=True)]
        return torch.tensor([list(bytes.fromhex(key)[:16]) for key in keys], dtype=torch.uint8)


class StoredTeacher(AlignedTeacher):
    """A teacher whose views are on disk, and are made where they are not, if the teacher is there.

    Args:
        folder: of the store.
        teacher: asked for rows that are missing; None: it is not there, and all must be stored.
        settings: `view_settings` of that teacher; None: those of the store.

    Raises:
        FileNotFoundError: there is no store, and no teacher.
        ValueError: the store was begun with other settings.
    """

    def __init__(self, folder: Any, teacher: ForeignTeacher | None = None, settings: Mapping[str, Any] | None = None):
        super().__init__()
        self.store, self.teacher = RowCache(folder, settings), teacher
        about = self.store.settings
        if about.get("kind") != "views":
            raise ValueError(f"{str(folder)!r} is a cache of one student's run; give it as teacher_cache_dir.")
        self.name, self.num_layers, self.layers = about["name"], about["num_layers"], about["layers"]
        self.multi_label = about.get("multi_label", False)

    def view(self, batch: Mapping[str, Tensor], layers: Sequence[int]) -> TeacherView:
        """Read the views of a batch that has row keys."""
        about, wanted = self.store.settings, [layer % self.num_layers for layer in layers]
        if missing := [layer for layer in wanted if layer not in self.layers]:
            has = f"the attention of layers {self.layers}, and the run compares {missing}"
            raise ValueError(f"the store of {self.name} holds {has}; write those with dual-distill teach --layers.")

        names, lacking = row_names(batch[ROW_KEYS]), self.lacking(batch[ROW_KEYS], "a batch")
        if lacking and self.teacher is not None:
            # The whole batch, since some models have the patches of all images in one row.
            read = {name: tensor for name, tensor in batch.items() if name != ROW_KEYS}
            for row, kept in zip(lacking, view_rows(self.teacher, about, read, lacking), strict=True):
                self.store.keep(names[row], kept)

        rows = [self.store.row(name) for name in names]
        self.store.write_full()
        chosen = [self.layers.index(layer) for layer in wanted]
        found = view_of(rows, chosen, batch[ROW_KEYS].device, top_k=about.get("top_k"))
        return self._answered(found)

    def lacking(self, keys: Tensor, where: str) -> list[int]:
        """Return which rows are not stored yet; they are refused where no teacher can be asked about them."""
        found = [row for row, name in enumerate(row_names(keys)) if name not in self.store]
        if found and self.teacher is None:
            lacks = f"lacks {len(found)} of the {len(keys)} rows of {where}"
            way_out = "write these texts and images with dual-distill teach, and set augmentation to none, of which it"
            raise ValueError(f"the store of {self.name} {lacks}; {way_out} knows nothing.")
        return found

    def _answered(self, view: TeacherView) -> TeacherView:
        """A view with the logits of the student's answers, in their order."""
        if self.answers is None:
            return replace(view, logits=None)
        stored = {answer: index for index, answer in enumerate(self.store.settings["answers"] or ())}
        if missing := [answer for answer in self.answers if answer not in stored]:
            lacks = f"{len(missing)} of the student's {len(self.answers)} answers, such as {missing[0]!r}"
            raise ValueError(f"the store of {self.name} lacks {lacks}; set soft_label_weight to 0, or write it anew.")
        assert view.logits is not None
        return replace(view, logits=view.logits[:, [stored[answer] for answer in self.answers]])


def is_store(name: str | Path) -> bool:
    """Return whether a name is that of a store rather than of a checkpoint."""
    return Path(name, CacheTable.manifest_name).is_file()


def reads_student_tokens(name: str | Path, revision: str | None = None) -> bool:
    """Return whether a name is that of a teacher of ours or a ViLT, rather than of a store or another family."""
    if is_store(name):
        return False
    config = Path(fetch(str(name), revision, weights=False), "config.json")
    # What has no configuration is refused by whoever loads it.
    return not config.is_file() or json.loads(config.read_bytes()).get("model_type") in _OURS


def open_teacher(
    name: str | Path,
    student_config: Any,
    processor: Any,
    revision: str | None = None,
    model_class: Any = None,
    may_align: bool = True,
    **options: Any,
) -> tuple[Any, Any]:
    """Load a teacher by its name: a store, one that reads the student's tokens, or one that does not.

    Args:
        name: of a checkpoint, or folder of a store.
        student_config: None: it is not known yet, and reads the teacher's tokens if the teacher is ours.
        processor: of the student; None: it has none yet.
        revision: of a Hub repository.
        model_class: of ours, as for `load_teacher`.
        may_align: whether a teacher of ours may have other tokens than the student.
        **options: of ours, as for `load_teacher`.

    Returns:
        The teacher, and a processor for a student without one; None: it needs one of its own.
    """
    if is_store(name):
        return StoredTeacher(name), None
    if not reads_student_tokens(name, revision):
        return ForeignTeacher(*load_teacher(name, revision), str(name)), None

    model, own = load_teacher(name, revision, model_class, **options)
    if student_config is None or not may_align:
        return model, own
    # The same number of word pieces need not be the same ones.
    others = processor is not None and processor.tokenizer.get_vocab() != own.tokenizer.get_vocab()
    if others or reads_otherwise(student_config, model.config):
        return ForeignTeacher(model, own, str(name)), None
    return model, own


def view_settings(
    teacher: ForeignTeacher,
    layers: Sequence[int],
    answers: Sequence[str] | None,
    relation_heads: int | None = None,
    top_k: int | None = None,
) -> dict[str, Any]:
    """What a store of a teacher's views depends on: what it reads, what is asked, and how many scores are kept.

    Raises:
        ValueError: the teacher has no such layer, or top_k is below 1.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}, but must be at least 1; leave it out to keep all scores.")
    count = teacher.num_layers
    if wrong := [layer for layer in layers if not -count <= layer < count]:
        raise ValueError(f"{teacher.name} has {count} layers, and none with number {wrong[0]}.")
    return {
        "kind": "views",
        "name": teacher.name,
        "teacher": data.fingerprint(teacher.model),
        "processor": _reads_by(teacher.processor),
        "asked": dict(getattr(teacher.inputs, "keywords", {})),
        "num_layers": count,
        "layers": sorted({layer % count for layer in layers}),
        "answers": None if answers is None else list(answers),
        "multi_label": teacher.multi_label,
        "relation_heads": relation_heads,
        "top_k": top_k,
    }


def _reads_by(processor: Any) -> dict[str, Any]:
    """What texts and images go through before a teacher reads them, as JSON holds it; long parts by their digests."""
    own = {name: value for name, value in json.loads(processor.to_json_string()).items() if value is not None}
    parts = {name: part for name, part in vars(processor).items() if hasattr(part, "backend_tokenizer")}
    # A text that stands alone is cut at the tokenizer's longest.
    digests = {
        name: data.fingerprint([data.tokenizer_content(part), part.model_max_length]) for name, part in parts.items()
    }
    return {**own, **digests, "chat_template": data.fingerprint(getattr(processor, "chat_template", None))}


@torch.no_grad()
def view_rows(
    teacher: ForeignTeacher, about: Mapping[str, Any], batch: Mapping[str, Tensor], rows: Iterable[int]
) -> Iterator[Row]:
    """Ask a teacher about a batch, and yield what a store with the settings `about` keeps of some of its rows."""
    teacher.answers = about["answers"]
    view = teacher.view(batch, about["layers"])
    for row in rows:
        yield row_of(view, row, about["relation_heads"], about.get("top_k"))


@torch.no_grad()
def write_views(
    teacher: StoredTeacher,
    rows: Any,
    task: data.Task,
    batch_size: int = 8,
    num_workers: int = 0,
    share: tuple[int, int] = (0, 1),
) -> int:
    """Ask a teacher about rows that its store lacks, and write what it says.

    Args:
        teacher: with the teacher itself.
        rows: with the task's columns.
        task: says which columns are text and image.
        batch_size: rows a forward pass.
        num_workers: processes that read images.
        share: number of this process and of all, which share the rows.

    Returns:
        How many rows were written.
    """
    assert teacher.teacher is not None
    collator = TeacherCollator(data.DistillationCollator(None, task, ()), teacher)
    device = next(teacher.teacher.model.parameters()).device
    before = len(teacher.store)

    def name_of(index: int) -> str:
        return row_names(collator.keys(collator.collator.read_rows([rows[index]], task.text_column)))[0]

    # Rows that are there are known without decoding their images; of the others their numbers are held.
    found = {name_of(index): index for index in range(share[0], len(rows), share[1])}
    wanted = [index for name, index in found.items() if name not in teacher.store]
    for batch in DataLoader(rows, batch_size, sampler=wanted, num_workers=num_workers, collate_fn=collator.of_teacher):
        teacher.view({name.removeprefix("teacher_"): it.to(device) for name, it in batch.items()}, ())
    teacher.store.flush()
    return len(teacher.store) - before
