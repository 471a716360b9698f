"""VQA v2 from its official files: questions, ten people's answers to each, COCO images (Goyal et al., CVPR 2017).

Answers are normalised as the official evaluation does it, since a class that differs from another by an article only
would never be scored apart from it. Training takes train and val together but for a held-out part, as the recipes do.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Unpack

from datasets import DatasetDict, Features, Image, List, Value

from dual_distill.data.reading import ImageFolder, Reading, RecordReader, hold_out, official_folder
from dual_distill.data.records import (
    FilePath,
    InvalidRecordError,
    Record,
    Records,
    UniqueIds,
    document_records,
    read_json,
)
from dual_distill.vqa_answers import normalise_answer, strip_answer

# What the folder of VQA v2 holds; val2014 if it is to be trained on, images such as COCO_train2014_000000123456.jpg in
# it or in train2014/ and val2014/.
LAYOUT = "v2_OpenEnded_mscoco_train2014_questions.json, v2_mscoco_train2014_annotations.json, those of val2014, images."

_TEXTS = dict.fromkeys(("question", "answer", "question_type", "answer_type"), Value("string"))
_LISTS = dict.fromkeys(("answers", "answers_as_given"), List(Value("string")))
_IDS = dict.fromkeys(("question_id", "image_id"), Value("int64"))
_FEATURES = Features({"image": Image(decode=False), **_TEXTS, **_LISTS, **_IDS})

Files = FilePath | Sequence[FilePath]


def load_vqa(
    path: FilePath | None = None,
    questions: Files | None = None,
    annotations: Files | None = None,
    images: FilePath | None = None,
    test_questions: FilePath | None = None,
    validation_rows: int = 1_000,
    **reading: Unpack[Reading],
) -> DatasetDict:
    """VQA v2 as train, validation and, where its questions are given, test.

    Args:
        path: folder with the files of `LAYOUT`; None where the next three are given.
        questions: file of questions, or several (train2014 and val2014), whose rows follow one another; None: those of
            `path`.
        annotations: the file of answers of each; None: those of `path`.
        images: folder of all images, in it or in its sub-folders train2014, val2014, test2015; None: `path`.
        test_questions: file of questions without answers, such as v2_OpenEnded_mscoco_test2015_questions.json.
        validation_rows: the last rows become validation instead of train, >= 0. They are rows, not images: the official
            files list the questions of an image together, so that one image at most stands on both sides.
        **reading: `skip_bad` and `report`, see `Reading`.

    Returns:
        Columns image (undecoded), question, answer (the most common, normalised), answers (all ten, normalised),
        answers_as_given (the ten without normalisation: the official score asks for them where all agree),
        question_type, answer_type, question_id, image_id. In test, answer is None and the lists are empty.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a record is bad (a missing image, an empty question, a question without annotation or the other way
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
    reader = RecordReader("vqa", _FEATURES, **reading)
    if questions is None or annotations is None:
        folder = official_folder(path, LAYOUT)
        has_val = (folder / "v2_OpenEnded_mscoco_val2014_questions.json").exists()
        parts = ["train2014", "val2014"] if has_val else ["train2014"]
        questions = questions or [folder / f"v2_OpenEnded_mscoco_{part}_questions.json" for part in parts]
        annotations = annotations or [folder / f"v2_mscoco_{part}_annotations.json" for part in parts]
    image_folder = ImageFolder(images or official_folder(path, LAYOUT))
    asked, answered = _as_list(questions), _as_list(annotations)
    if len(asked) != len(answered):
        raise ValueError(f"There are {len(asked)} files of questions, {len(answered)} of annotations; give as many.")

    ids = UniqueIds("question_id")
    rows = (_read_part(*part, image_folder, ids, reader) for part in zip(asked, answered, strict=True))
    labelled = reader.table("train", chain.from_iterable(rows))
    indices, wanted = range(labelled.num_rows), f"validation_rows is {validation_rows:,}"
    reader.splits["train"], validation = hold_out(labelled, indices, indices[::-1], wanted, validation_rows)
    if validation_rows:
        reader.splits["validation"] = validation

    if test_questions is not None:
        records, question_row, _ = _read_questions(test_questions, image_folder, UniqueIds("question_id"))
        unanswered: dict[str, Any] = dict.fromkeys(_TEXTS) | {"answers": [], "answers_as_given": []}
        reader.read("test", records, lambda question: unanswered | question_row(question))
    return reader.finish()


def _as_list(files: Files) -> list[FilePath]:
    return list(files) if isinstance(files, Sequence) and not isinstance(files, str) else [files]


def _read_questions(
    file: FilePath, images: ImageFolder, ids: UniqueIds
) -> tuple[Records, Callable[[Record], Any], set[int]]:
    """The questions of a file with their places, what makes the columns that a question alone gives, and their ids."""
    document = read_json(file, "questions")
    part = document.get("data_subtype")
    if not isinstance(part, str):
        found = f"(train2014, ...), of which image names are made, but {', '.join(document)}"
        raise ValueError(f"{str(file)!r} has no data_subtype {found}; is it an official file of questions?")
    part = part.replace("test-dev2015", "test2015")  # test-dev asks about a part of test's images

    def make_row(question: Record) -> dict[str, Any]:
        image_id = question.value("image_id", int)
        name, text = f"COCO_{part}_{image_id:012}.jpg", question.text("question")
        image = images.find(name, f"{part}/{name}")
        question_id = ids.add(question.value("question_id", int))
        return {"image": image, "question": text, "question_id": question_id, "image_id": image_id}

    listed = document.pop("questions")
    numbers = (question.get("question_id") for question in listed if isinstance(question, dict))
    known = {number for number in numbers if isinstance(number, int)}
    return document_records(file, listed, "question", "question_id"), make_row, known


def _read_part(
    question_file: FilePath, file: FilePath, images: ImageFolder, ids: UniqueIds, reader: RecordReader
) -> Any:
    """The rows of a file of questions and the file of their annotations."""
    asked, question_row, question_ids = _read_questions(question_file, images, ids)
    listed = read_json(file, "annotations")["annotations"]
    annotations = reader.by_id(document_records(file, listed, "annotation", "question_id"), "question_id")

    # Answers to no question are bad records of their own, told after the questions.
    unasked: list[tuple[str, Any]] = []
    for number in sorted(annotations.keys() - question_ids):
        problem = InvalidRecordError("annotation without question", f"{question_file!s} has no question {number}")
        unasked.append((annotations[number][0], problem))

    def make_row(question: Record) -> dict[str, Any]:
        row = question_row(question)
        if row["question_id"] not in annotations:
            raise InvalidRecordError("question without annotation", f"{file!s} has no answers to the question")

        _, annotation = annotations.pop(row["question_id"])
        if annotation.get("image_id", row["image_id"]) != row["image_id"]:
            message = f"its image_id is {row['image_id']}, that of its annotation {annotation['image_id']}"
            raise InvalidRecordError("two images", message)
        return row | _answer_columns(annotation)

    return reader.rows(chain(asked, unasked), make_row)


def _answer_columns(annotation: Record) -> dict[str, Any]:
    """What people said of a question, normalised and as it was."""
    given = []
    for answer in annotation.value("answers", list):
        if not isinstance(answer, dict):
            message = f"an answer of its annotation is {answer!r}, but expected is an object {{...}}"
            raise InvalidRecordError("malformed record", message)
        given.append(strip_answer(Record(answer).value("answer", str)))
    if not given:
        raise InvalidRecordError("no answers", "its annotation holds no answer")

    answers = {"answers": [normalise_answer(answer) for answer in given], "answers_as_given": given}
    kinds = {name: annotation.value(name, str) for name in ("question_type", "answer_type")}
    return {"answer": normalise_answer(annotation.value("multiple_choice_answer", str))} | answers | kinds
