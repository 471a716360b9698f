"""Files that evaluation servers take: EvalAI's VQA challenge, GQA, NLVR's and NLVR2's script, COCO's captions."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dual_distill.sealed import write_file


def write_submission(
    path: str | os.PathLike[str],
    question_ids: Sequence[int | str],
    answers: Sequence[str],
    keys: tuple[str, str] = ("question_id", "answer"),
) -> None:
    """Write `[{"question_id": ..., "answer": ...}, ...]`, in the order given, or NLVR's CSV; an old file is replaced.

    Everything is checked first: a refused submission leaves no file behind.

    Args:
        path: where to write; the challenge asks for `.json`. Folders are made.
        question_ids: ids of the questions file, each once.
        answers: one answer a question; the server normalises them.
        keys: what the server calls the two; GQA's ("questionId", "prediction"), whose ids are strings; NLVR's
            ("identifier", "prediction") are lines of two fields without a header.

    Raises:
        ValueError: the lengths differ, nothing was given, an id is no integer (for GQA and NLVR: no string) or occurs
            twice, or an answer is no string.

    References:
        visualqa.org/evaluation.html, results format; github.com/lil-lab/nlvr, nlvr2/eval/metrics.py.

    Example:
        >>> write_submission("results.json", [7, 7], ["yes", "no"])
        Traceback (most recent call last):
        ValueError: Question 7 occurs in rows 0 and 1, but the results format has one answer for each question.
    """
    kind, kinds = (int, "integers") if keys[0] == "question_id" else (str, "strings")
    for row, (question_id, answer) in enumerate(zip(question_ids, answers, strict=False)):
        if isinstance(question_id, bool) or not isinstance(question_id, kind):
            wrong = f"in row {row} is {question_id!r} of type {type(question_id).__name__}"
            raise ValueError(f"The question id {wrong}, but the server knows {kinds}; take the questions file's.")
        if not isinstance(answer, str):
            raise ValueError(f"The answer to question {question_id} is {answer!r}, but an answer is a string.")
    _write_results(path, question_ids, answers, keys)


def write_captions(path: str | os.PathLike[str], image_ids: Sequence[int | str], captions: Sequence[str]) -> None:
    """Write captions in COCO's results format, `[{"image_id": ..., "caption": ...}, ...]`; an old file is replaced.

    Args:
        path: where to write; folders are made.
        image_ids: each once; numbers for COCO.
        captions: one an image.

    Raises:
        ValueError: the lengths differ, nothing was given, or an image occurs twice.

    References:
        cocodataset.org/#format-results, image captioning.

    Example:
        >>> write_captions("results.json", [7, 7], ["a dog", "a cat"])
        Traceback (most recent call last):
        ValueError: Image 7 occurs in rows 0 and 1, but the results format has one caption for each image.
    """
    _write_results(path, image_ids, captions, ("image_id", "caption"))


def _write_results(path: Any, ids: Sequence[int | str], texts: Sequence[str], keys: tuple[str, str]) -> None:
    what, text_name = keys[0].lower().removesuffix("id").removesuffix("_"), keys[1]
    if len(ids) != len(texts) or not len(texts):
        raise ValueError(f"There are {len(ids)} {what} ids and {len(texts)} {text_name}s; give one {text_name} each.")

    for identifier, count in Counter(ids).items():
        if count > 1:
            first, second, *_ = (row for row, other in enumerate(ids) if other == identifier)
            twice = f"{what.capitalize()} {identifier} occurs in rows {first} and {second}"
            raise ValueError(f"{twice}, but the results format has one {text_name} for each {what}.")

    pairs = list(zip(ids, texts, strict=True))
    content = json.dumps([dict(zip(keys, pair, strict=True)) for pair in pairs], ensure_ascii=False) + "\n"
    if keys[0] == "identifier":
        content = "".join(f"{identifier},{text}\n" for identifier, text in pairs)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)
