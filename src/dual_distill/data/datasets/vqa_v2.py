"""VQA v2 from its official files: questions, ten people's answers to each, COCO images (Goyal et al., CVPR 2017).

Answers are normalised as the official evaluation does it, since a class that differs from another by an article only
would never be scored apart from it. Training takes train and val together but for a held-out part, as the recipes do.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, List, Value

from dual_distill.data.reading import ReadingReport, make_rows, rows_to_dataset
from dual_distill.data.records import (
    FilePath,
    InvalidRecordError,
    Records,
    UniqueIds,
    document_records,
    read_json_document,
    record_text,
    record_value,
)
from dual_distill.vqa_answers import normalise_answer, strip_answer

from .image_folder import ImageFolder

LAYOUT = (
    "v2_OpenEnded_mscoco_train2014_questions.json, v2_mscoco_train2014_annotations.json, the same two of val2014 (if "
    "val "
    "is to be trained on), and the images, such as COCO_train2014_000000123456.jpg, in it or in train2014/ and "
    "val2014/."
)
"""What the folder of VQA v2 holds."""

_FEATURES = Features(
    {
        "image": Image(decode=False),
        "question": Value("string"),
        "answer": Value("string"),
        "answers": List(Value("string")),
        "answers_as_given": List(Value("string")),
        "question_type": Value("string"),
        "answer_type": Value("string"),
        "question_id": Value("int64"),
        "image_id": Value("int64"),
    }
)

_normalise = lru_cache(maxsize=100_000)(normalise_answer)  # millions of answers, most of which were there before

Files = FilePath | Sequence[FilePath]


def load_vqa(
    path: FilePath | None = None,
    questions: Files | None = None,
    annotations: Files | None = None,
    images: Files | None = None,
    test_questions: FilePath | None = None,
    test_images: FilePath | None = None,
    validation_rows: int = 1_000,
    skip_bad: bool = False,
    report: ReadingReport | None = None,
) -> DatasetDict:
    """VQA v2 as train, validation and, where its questions are given, test.

    Args:
        path: folder with the files of `LAYOUT`; None where the next three are given.
        questions: file of questions, or several (train2014 and val2014); their rows follow one another.
        annotations: the file of answers of each.
        images: folder of all images, or one folder for each file of questions. A file is looked for in the folder and
            in its sub-folder train2014, val2014 or test2015.
        test_questions: file of questions without answers, such as v2_OpenEnded_mscoco_test2015_questions.json.
        test_images: their folder; None: `images`, where that is one folder.
        validation_rows: the last rows become validation instead of train, >= 0. They are rows, not images: the official
            files list the questions of an image together, so that one image at most stands on both sides.
        skip_bad: pass over bad entries and list them, instead of an error at the first.
        report: takes what was read and skipped; it is printed on stderr either way.

    Returns:
        Columns image (undecoded), question, answer (the most common, normalised), answers (all ten, normalised),
        answers_as_given (the ten without normalisation: the official score asks for them where all agree),
        question_type, answer_type, question_id, image_id. In test, answer is None and the lists are empty.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: an entry is bad (a missing image, an empty question, a question without annotation or the other way
            round, an id twice, a field of another type), the arguments do not fit one another, or `validation_rows`
            leaves no row to train on.

    Note:
        An answer that is nothing but an article, such as the letter "a", is empty after the official normalisation. It
        stays a class of its own, as in the official score.

    References:
        Goyal et al., CVPR 2017, arXiv 1612.00837; visualqa.org

    Example:
        >>> load_vqa("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder'; it should hold v2_OpenEnded_mscoco_train2014_...
    """
    report = ReadingReport() if report is None else report
    report.source = "vqa"
    if path is not None:
        if not (questions is None and annotations is None and images is None):
            raise ValueError(f"path is {str(path)!r}, but questions, annotations or images are given too; give either.")
        questions, annotations, images = _official_files(Path(path))
    if questions is None or annotations is None or images is None:
        raise ValueError(f"VQA v2 needs questions=, annotations= and images=, or path=, a folder that holds {LAYOUT}")
    if validation_rows < 0:
        raise ValueError(f"validation_rows is {validation_rows}, but a number of rows is 0 or more.")
    question_files, annotation_files, folders = _as_list(questions), _as_list(annotations), _as_list(images)
    if len(annotation_files) != len(question_files) or len(folders) not in (1, len(question_files)):
        raise ValueError(
            f"There are {len(question_files)} files of questions, {len(annotation_files)} of annotations and "
            f"{len(folders)} "
            "image folders; give one of annotations for each of questions, and one folder for all or one for each."
        )
    if test_questions is not None and test_images is None and len(folders) > 1:
        raise ValueError(f"images names {len(folders)} folders, so test_questions needs test_images=, its own folder.")
    image_folders = [ImageFolder(folder) for folder in folders] * (len(question_files) // len(folders))
    ids = UniqueIds("question_id")
    labelled = rows_to_dataset(
        chain.from_iterable(
            _read_pair(*files, ids, report, skip_bad)
            for files in zip(question_files, annotation_files, image_folders, strict=True)
        ),
        _FEATURES,
        "train",
        report,
    )
    splits = _hold_out(labelled, validation_rows, report)
    if test_questions is not None:
        folder = ImageFolder(test_images if test_images is not None else folders[0])
        rows = _read_questions(test_questions, folder, UniqueIds("question_id"), report, skip_bad)
        splits["test"] = rows_to_dataset(rows, _FEATURES, "test", report)
    report.show()
    return DatasetDict(splits)


def _official_files(folder: Path) -> tuple[list[Path], list[Path], Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}; it should hold {LAYOUT}")
    parts = ["train2014"]
    if (folder / "v2_OpenEnded_mscoco_val2014_questions.json").exists():
        parts.append("val2014")
    questions = [folder / f"v2_OpenEnded_mscoco_{part}_questions.json" for part in parts]
    return questions, [folder / f"v2_mscoco_{part}_annotations.json" for part in parts], folder


def _as_list(files: Files) -> list[FilePath]:
    return list(files) if isinstance(files, Sequence) and not isinstance(files, str) else [files]


def _hold_out(labelled: Dataset, rows: int, report: ReadingReport) -> dict[str, Dataset]:
    total = labelled.num_rows
    if rows >= total:
        raise ValueError(
            f"validation_rows is {rows:,}, but there are {total:,} rows with answers, and one must be left to train "
            f"on; "
            "give a smaller number."
        )
    splits = {"train": labelled.select(range(total - rows))}
    if rows:
        splits["validation"] = labelled.select(range(total - rows, total))
    for split, dataset in splits.items():
        report.rows[split] = dataset.num_rows
    return splits


def _read_pair(
    question_file: FilePath,
    annotation_file: FilePath,
    images: ImageFolder,
    ids: UniqueIds,
    report: ReadingReport,
    skip_bad: bool,
) -> Iterable[dict[str, Any]]:
    document = read_json_document(question_file, "questions")
    prefix = _image_prefix(document, question_file)
    answers = read_json_document(annotation_file, "annotations")["annotations"]
    by_question: dict[int, tuple[str, Any]] = {}
    unusable: list[tuple[str, Any]] = []
    for place, annotation in document_records(annotation_file, answers, "annotation", "question_id"):
        if isinstance(annotation, InvalidRecordError):
            unusable.append((place, annotation))
            continue
        question_id = annotation.get("question_id")
        if not isinstance(question_id, int):
            unusable.append(
                (
                    place,
                    InvalidRecordError("malformed entry", f"question_id is {question_id!r}, but expected is a number"),
                )
            )
        elif question_id in by_question:
            unusable.append(
                (place, InvalidRecordError("duplicate question_id", f"question_id {question_id} is annotated twice"))
            )
        else:
            by_question[question_id] = place, annotation

    def make_row(question: Any) -> dict[str, Any]:
        row = _question_row(question, images, prefix, ids)
        if row["question_id"] not in by_question:
            raise InvalidRecordError(
                "question without annotation", f"{annotation_file!s} has no answers to the question"
            )
        _, annotation = by_question[row["question_id"]]
        if annotation.get("image_id", row["image_id"]) != row["image_id"]:
            raise InvalidRecordError(
                "two images", f"its image_id is {row['image_id']}, that of its annotation {annotation['image_id']}"
            )
        return row | _answer_columns(annotation)

    def all_entries() -> Records:
        yield from unusable
        asked: set[Any] = set()
        for place, question in document_records(question_file, document["questions"], "question", "question_id"):
            if not isinstance(question, InvalidRecordError) and isinstance(question.get("question_id"), int):
                asked.add(question["question_id"])
            yield place, question
        for question_id, (place, _) in by_question.items():
            if question_id not in asked:
                yield (
                    place,
                    InvalidRecordError(
                        "annotation without question", f"{question_file!s} has no question {question_id!r}"
                    ),
                )

    return make_rows(all_entries(), make_row, report, skip_bad)


def _read_questions(
    file: FilePath, images: ImageFolder, ids: UniqueIds, report: ReadingReport, skip_bad: bool
) -> Iterable[dict[str, Any]]:
    document = read_json_document(file, "questions")
    prefix = _image_prefix(document, file)
    unanswered: dict[str, Any] = {
        "answer": None,
        "answers": [],
        "answers_as_given": [],
        "question_type": None,
        "answer_type": None,
    }
    entries = document_records(file, document["questions"], "question", "question_id")
    return make_rows(entries, lambda entry: _question_row(entry, images, prefix, ids) | unanswered, report, skip_bad)


def _image_prefix(document: dict[str, Any], file: FilePath) -> str:
    part = document.get("data_subtype")
    if not isinstance(part, str):
        raise ValueError(
            f"{str(file)!r} has no data_subtype, the word (train2014, val2014, test2015) from which image names are "
            f"made: "
            f"found {', '.join(document)}; is it an official file of questions?"
        )
    return "test2015" if part == "test-dev2015" else part  # test-dev asks about a part of test's images


def _question_row(question: Any, images: ImageFolder, prefix: str, ids: UniqueIds) -> dict[str, Any]:
    image_id: int = record_value(question, "image_id", int)
    name = f"COCO_{prefix}_{image_id:012}.jpg"
    return {
        "question": record_text(question, "question"),
        "image": images.find(name, f"{prefix}/{name}"),
        "question_id": ids.add(record_value(question, "question_id", int)),
        "image_id": image_id,
    }


def _answer_columns(annotation: Any) -> dict[str, Any]:
    given = []
    for answer in record_value(annotation, "answers", list):
        if not isinstance(answer, dict):
            raise InvalidRecordError(
                "malformed entry", f"an answer of its annotation is {answer!r}, but expected is an object {{...}}"
            )
        given.append(strip_answer(record_value(answer, "answer", str)))
    if not given:
        raise InvalidRecordError("no answers", "its annotation holds no answer")
    return {
        "answer": _normalise(record_value(annotation, "multiple_choice_answer", str)),
        "answers": [_normalise(answer) for answer in given],
        "answers_as_given": given,
        "question_type": record_value(annotation, "question_type", str),
        "answer_type": record_value(annotation, "answer_type", str),
    }
