"""A model's answers and captions for every row of a split, and the answers held against it and against baselines."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from datasets import ClassLabel, Dataset
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dual_distill import data, evaluation
from dual_distill.data import CaptioningCollator, DistillationCollator, Task
from dual_distill.evaluation import FEWEST_ANSWERS, GroupedAccuracy, VQAEdition, VQAScore


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation found; shares are in [0, 1].

    Attributes:
        rows: rows evaluated.
        accuracy: share answered right.
        accuracy_by_group: the same for each value of the task's group column.
        consistency: share of sentences all of whose images were judged right; None where the task has none.
        text_only: accuracy (VQA score, where there is one) of the better question-only baseline; None without training
            rows.
        text_only_method: which baseline that was.
        majority: the same of the most frequent training answer; None without training rows.
        vqa_score: the official VQA score, where four people or more answered each question; None elsewhere. `accuracy`
            is then against the most common of their answers.
        vqa_score_by_group: the same for each value of the task's group column.
        vqa_score_edition: year of the official script that scores so.
    """

    rows: int
    accuracy: float
    accuracy_by_group: dict[str, float] = field(default_factory=dict)
    consistency: float | None = None
    text_only: float | None = None
    text_only_method: str | None = None
    majority: float | None = None
    vqa_score: float | None = None
    vqa_score_by_group: dict[str, float] = field(default_factory=dict)
    vqa_score_edition: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict that JSON takes."""
        return asdict(self)


def predict_answers(
    model: PreTrainedModel,
    dataset: Dataset,
    collator: DistillationCollator,
    batch_size: int = 64,
    title: str = "evaluate",
) -> list[str]:
    """Answer every row of a dataset, in order; arguments are those of `rank_answers`."""
    return [best[0]["answer"] for best in rank_answers(model, dataset, collator, batch_size, title, top_k=1)]


@torch.inference_mode()
def rank_answers(
    model: PreTrainedModel,
    dataset: Dataset,
    collator: DistillationCollator,
    batch_size: int = 64,
    title: str = "evaluate",
    top_k: int = 5,
) -> list[list[dict[str, Any]]]:
    """Give the most probable answers to every row of a dataset, in order, with their probabilities.

    Args:
        model: with a task head; put into eval mode.
        dataset: rows with the task's columns.
        collator: makes batches and knows the names of the answers.
        batch_size: rows a batch.
        title: of the progress bar.
        top_k: answers a row, or all where there are fewer.

    Returns:
        For each row `{"answer": ..., "score": ...}`, most probable first. Scores are sigmoids where several answers may
        be right, else a softmax.
    """
    several_may_be_right = model.config.problem_type == "multi_label_classification"
    ranked: list[list[dict[str, Any]]] = []
    order = data.grouped_order(data.shape_keys(collator, dataset), len(dataset))
    for batch in _batches(model, dataset, collator, batch_size, title, order):
        batch.pop("labels", None)
        logits = model(**batch).logits.float()
        scores = logits.sigmoid() if several_may_be_right else logits.softmax(-1)
        best = logits.topk(min(top_k, logits.shape[1])).indices
        for indices, row in zip(best.tolist(), scores.tolist(), strict=True):
            ranked.append([{"answer": collator.label_names[index], "score": row[index]} for index in indices])
    return data.in_order(order, ranked)


def prediction_records(
    ranked: Sequence[Sequence[dict[str, Any]]], dataset: Dataset, task: Task, edition: VQAEdition = "2021"
) -> Iterator[dict[str, Any]]:
    """Yield one record a row: its columns but the images as they are, what was predicted, and whether that is right.

    Args:
        ranked: what `rank_answers` returned.
        dataset: the rows, with or without labels.
        task: names the columns.
        edition: of the official VQA score, see `vqa_score`.

    Example:
        >>> from dual_distill.data import get_task
        >>> rows = Dataset.from_dict({"question": ["is it red?"], "answer": ["no"], "question_id": [7]})
        >>> next(prediction_records([[{"answer": "yes", "score": 0.9}]], rows, get_task("easy_vqa")))["right"]
        False
    """
    others = dataset.select_columns([name for name in dataset.column_names if name not in task.image_columns])
    people_column = task.given_answers_column or task.answers_column
    kind = others.features.get(task.label_column)
    for row, (best, given) in enumerate(zip(ranked, others, strict=True)):
        record = {"row": row, **given, "prediction": best[0]["answer"], "top_k": list(best)}
        if (label := given.get(task.label_column)) is not None:
            label = kind.int2str(label) if isinstance(kind, ClassLabel) else label
            record |= {"label": label, "right": best[0]["answer"] == label}
        if people_column and len(people := given.get(people_column) or ()) >= FEWEST_ANSWERS:
            record["vqa_score"] = evaluation.vqa_score(best[0]["answer"], people, edition)
        yield record


def _batches(
    model: Any, rows: Any, collator: Any, batch_size: int, title: str, order: list[int]
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches on the device of the model, which is put into eval mode."""
    model.eval()
    loader = DataLoader(rows, batch_size, sampler=order, collate_fn=collator)
    for batch in tqdm(loader, desc=title, unit="batch"):
        yield {name: tensor.to(model.device) for name, tensor in batch.items()}


def report_answers(
    answers: list[str],
    dataset: Dataset,
    task: Task,
    train: Dataset | None = None,
    seed: int = 0,
    edition: VQAEdition = "2021",
) -> EvaluationReport:
    """Hold answers against a split.

    Args:
        answers: one answer a row, in order.
        dataset: the rows.
        task: names the columns.
        train: rows that question-only and majority baselines learn from; None leaves them out.
        seed: of the question-only baseline.
        edition: of the official VQA score, see `vqa_score`.

    Raises:
        ValueError: the task has no labels, or there is no such edition.
    """
    if task.label_column is None:
        raise ValueError(f"task {task.name!r} has image-text rows without labels; choose one with answers.")

    def column(rows: Dataset, name: str | None) -> list[Any] | None:
        return None if name is None else list(rows[name])

    labels, groups = label_texts(dataset, task.label_column), column(dataset, task.group_column)
    found = GroupedAccuracy().compute(predictions=answers, references=labels, groups=groups)
    if sentences := column(dataset, task.consistency_column):
        found |= evaluation.Consistency().compute(predictions=answers, references=labels, sentence_ids=sentences)

    # The official score needs four people or more.
    people = column(dataset, task.answers_column and (task.given_answers_column or task.answers_column))
    is_official = people and min(map(len, people)) >= FEWEST_ANSWERS
    if is_official:
        score = VQAScore(edition=edition).compute(predictions=answers, references=people, answer_types=groups)
        found |= score | {"vqa_score_edition": edition}
        found["vqa_score_by_group"] = score.get("vqa_score_by_answer_type", {})
    known = {one.name for one in fields(EvaluationReport)}
    report = EvaluationReport(rows=len(labels), **{name: it for name, it in found.items() if name in known})
    if train is None:
        return report

    def main_score(answers: Sequence[str]) -> float:
        if is_official:
            return float(VQAScore(edition=edition).compute(predictions=answers, references=people)["vqa_score"])
        return float(GroupedAccuracy().compute(predictions=answers, references=labels)["accuracy"])

    # All rows of one sentence on one side of the held-out part, or memory would look like skill.
    train_labels, train_groups = label_texts(train, task.label_column), column(train, task.consistency_column)
    texts = [list(rows[task.text_column]) for rows in (train, dataset)]
    baseline = evaluation.question_only_baseline(texts[0], train_labels, texts[1], labels, seed, train_groups)
    text_only = main_score(baseline.predictions)
    majority = main_score([evaluation.majority_answer(train_labels)] * len(labels))
    return replace(report, text_only=text_only, text_only_method=baseline.method, majority=majority)


def label_texts(dataset: Dataset, column: str) -> list[str]:
    """The labels of all rows as words, those of a `ClassLabel` by their names; other numbers name no answer."""
    kind, labels = dataset.features[column], list(dataset[column])
    if isinstance(kind, ClassLabel):
        return [str(kind.int2str(label)) for label in labels]
    if numbers := [label for label in labels if not isinstance(label, str)]:
        way_out = "cast it to a ClassLabel with the names, or store them in place of numbers"
        raise ValueError(f"column {column!r} holds {numbers[0]!r}, which no answer is compared with; {way_out}.")
    return labels


def rows_by_image(dataset: Dataset, task: Task) -> dict[int | str, list[int]]:
    """Return the rows of each image, in their order.

    Args:
        dataset: one row a caption.
        task: names the columns.

    Raises:
        ValueError: the task does not say which rows show the same image.

    Example:
        >>> from dual_distill.data import get_task
        >>> rows = Dataset.from_dict({"caption": ["a dog", "a cat", "the dog"], "image_id": [7, 9, 7]})
        >>> rows_by_image(rows, get_task("coco_captioning"))
        {7: [0, 2], 9: [1]}
    """
    if task.image_id_column is None:
        raise ValueError(f"task {task.name!r} has no image_id_column, which tells an image's captions; set it.")
    found: dict[int | str, list[int]] = {}
    for row, image_id in enumerate(dataset[task.image_id_column]):
        found.setdefault(image_id, []).append(row)
    return found


def captions_by_image(dataset: Dataset, task: Task) -> dict[int | str, list[str]]:
    """Return the captions of each image, in the order of the rows; what `rows_by_image` takes and raises."""
    captions = list(dataset[task.text_column])
    return {image_id: [captions[row] for row in rows] for image_id, rows in rows_by_image(dataset, task).items()}


@torch.inference_mode()
def describe_images(
    model: PreTrainedModel, dataset: Dataset, collator: CaptioningCollator, batch_size: int = 64, **generation: Any
) -> dict[int | str, str]:
    """Write a caption for each image of a dataset.

    Args:
        model: `FusionEncoderForCaptioning`; put into eval mode.
        dataset: one row a caption, or one an image.
        collator: makes batches; its masking is left out.
        batch_size: images a batch.
        **generation: of `generate`: `num_beams=5`, `max_new_tokens=20`, and so on; none: the model's own.

    Returns:
        Image id -> caption, in the order of the images.
    """
    by_image = rows_by_image(dataset, collator.task)
    first_rows = dataset.select([rows[0] for rows in by_image.values()])
    return dict(zip(by_image, _written(model, first_rows, collator, batch_size, **generation), strict=True))


@torch.inference_mode()
def captions_of_images(
    model: PreTrainedModel, processor: Any, images: Sequence[Image.Image], batch_size: int = 64, **options: Any
) -> list[str]:
    """Write a caption for each image; options are those of `generate`, and of the collator, under `reading`."""
    task = data.get_task("coco_captioning")
    collator = CaptioningCollator(processor, task, image_cache_mb=0, **options.pop("reading", {}))
    return _written(model, [{task.image_columns[0]: image} for image in images], collator, batch_size, **options)


def _written(model: Any, rows: Any, collator: CaptioningCollator, batch_size: int, **generation: Any) -> list[str]:
    """What a model writes about the image of each row, in their order."""
    captions: list[str] = []
    order = data.grouped_order(data.shape_keys(collator, rows), len(rows))
    for batch in _batches(model, rows, collator.without_captions(), batch_size, "describe", order):
        captions += caption_texts(collator.processor.tokenizer, model.generate(**batch, **generation))
    return data.in_order(order, captions)


def caption_texts(tokenizer: Any, written: torch.Tensor) -> list[str]:
    """Return what `generate` wrote, up to its end, as text: `(B, L)` ids from [CLS] on -> B strings."""
    texts = []
    for ids in written.tolist():
        words = ids[1:]  # behind [CLS], which some tokenizers use as [SEP] too
        end = words.index(tokenizer.sep_token_id) if tokenizer.sep_token_id in words else len(words)
        texts.append(tokenizer.decode(words[:end], skip_special_tokens=True).strip())
    return texts
