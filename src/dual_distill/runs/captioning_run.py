"""Runs on regions, and runs that learn to write captions, for `recipe` to put together like any other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from dual_distill.data import CaptioningCollator, CaptionMasker, IndexedDataset, RandAugment, Task
from dual_distill.modeling import DualDistillProcessor
from dual_distill.regions import RegionStore
from dual_distill.trainer import (
    CaptioningTrainer,
    DistillationTrainer,
    DistillationTrainingArguments,
    SelfCriticalTrainer,
)

from .arguments import DataArguments


@dataclass(frozen=True)
class Regions:
    """The region stores of a run.

    Attributes:
        student: of the model that is trained; None: it reads pixels.
        teacher: the teacher's features of the same boxes; None: teacher and student read the same.
        num_tags: most object tags beside a text.
        max_tag_length: most tokens of the tags.
    """

    student: RegionStore | None
    teacher: RegionStore | None
    num_tags: int
    max_tag_length: int

    @property
    def tag_tokens(self) -> int:
        """Tokens that a model must have room for beside the text."""
        return self.max_tag_length if self.student is not None and self.num_tags else 0

    def collator_options(self) -> dict[str, Any]:
        """Return the keyword arguments of a collator."""
        if self.student is None:
            return {}
        return {
            "regions": self.student,
            "teacher_regions": self.teacher,
            "num_tags": self.num_tags,
            "max_tag_length": self.max_tag_length,
        }


def open_regions(arguments: DataArguments) -> Regions:
    """Open the stores that a run names.

    Raises:
        FileNotFoundError: there is no such store.
        ValueError: a store for the teacher and none for the student.
    """
    if arguments.teacher_regions is not None and arguments.regions is None:
        raise ValueError(
            "teacher_regions is given without regions; name the student's store of the same boxes as well."
        )
    student, teacher = (
        None if path is None else RegionStore(path) for path in (arguments.regions, arguments.teacher_regions)
    )
    return Regions(student, teacher, arguments.num_tags, arguments.max_tag_length)


def region_fields(regions: Regions) -> dict[str, Any]:
    """Return the fields of a new model's configuration that follow from its store."""
    if regions.student is None:
        return {}
    return {
        "visual_inputs": "regions",
        "region_feature_size": regions.student.feature_size,
        "region_boxes_id": regions.student.boxes_id,
        "region_features_id": regions.student.features_id,
    }


def configure_regions(config: PreTrainedConfig, regions: Regions) -> None:
    """Hold a model to its store, and note in its configuration which boxes it reads from now on.

    A teacher is adapted by training it on another store: the student's boxes, in features of the teacher's own
    backbone.

    Raises:
        ValueError: the model reads pixels and a store is given, or the other way round, or features of another width.
    """
    reads_regions = getattr(config, "visual_inputs", "patches") == "regions"
    store = regions.student
    if reads_regions != (store is not None):
        has, gives = ("regions", "no region store") if reads_regions else ("pixels", f"the region store {store!r}")
        way_out = "give regions, a folder of `dual-distill regions`" if reads_regions else "leave regions out"
        raise ValueError(f"the model reads {has}, but the run gives {gives}; {way_out}, or start from another model.")
    if store is None:
        return
    if config.region_feature_size != store.feature_size:
        raise ValueError(
            f"the model reads region features {config.region_feature_size} wide, but those of {store!r} are "
            f"{store.feature_size}; give the store of the backbone that the model was trained on."
        )
    config.region_boxes_id, config.region_features_id = store.boxes_id, store.features_id


def caption_collator(
    processor: DualDistillProcessor,
    task: Task,
    max_text_length: int,
    regions: Regions,
    data_arguments: DataArguments,
    seed: int,
) -> CaptioningCollator:
    """Return what makes batches of masked captions."""
    return CaptioningCollator(
        processor,
        task,
        CaptionMasker(processor.tokenizer, seed=seed),
        max_text_length,
        image_cache_mb=data_arguments.image_cache_mb,
        augmentation=RandAugment(seed=seed) if data_arguments.augmentation == "randaugment" else None,
        **regions.collator_options(),
    )


def make_caption_trainer(
    model: PreTrainedModel,
    training_arguments: DistillationTrainingArguments,
    data_arguments: DataArguments,
    teacher: PreTrainedModel | None,
    train_rows: Any,
    shared: Mapping[str, Any],
) -> DistillationTrainer:
    """Put the trainer of a captioning model together: masked words, or the reward of what it writes.

    Args:
        model: with a captioning head.
        training_arguments: everything the trainer takes.
        data_arguments: which of the two.
        teacher: frozen; None: none.
        train_rows: one row a caption.
        shared: `data_collator`, `eval_dataset` and `processing_class` of Trainer.
    """
    if data_arguments.caption_training == "self_critical":
        shared = {name: value for name, value in shared.items() if name != "eval_dataset"}
        return SelfCriticalTrainer(model, training_arguments, train_dataset=train_rows, **shared)
    return CaptioningTrainer(
        model, training_arguments, teacher=teacher, train_dataset=IndexedDataset(train_rows), **shared
    )


__all__ = ["Regions", "caption_collator", "configure_regions", "make_caption_trainer", "open_regions", "region_fields"]
