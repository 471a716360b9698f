"""The file that EvalAI's VQA challenge takes: one answer a question, as a JSON list."""

import json
import os
from collections.abc import Sequence
from pathlib import Path


def write_submission(path: str | os.PathLike[str], question_ids: Sequence[int], answers: Sequence[str]) -> None:
    """Write `[{"question_id": ..., "answer": ...}, ...]`, in the order given; folders are made, an old file is
    replaced.

    Everything is checked first: a refused submission leaves no file behind.

    Args:
        path: where to write; the challenge asks for `.json`.
        question_ids: ids of the questions file, each once.
        answers: one answer a question; the server normalises them.

    Raises:
        ValueError: the lengths differ, nothing was given, an id is no integer or occurs twice, or an answer is no
        string.

    References:
        visualqa.org/evaluation.html, results format.

    Example:
        >>> write_submission("results.json", [7, 7], ["yes", "no"])
        Traceback (most recent call last):
        ValueError: Question 7 is answered twice, in rows 0 and 1, but a submission has one answer a question.
    """
    if len(question_ids) != len(answers):
        raise ValueError(
            f"There are {len(question_ids)} question ids and {len(answers)} answers, but each question has one answer."
        )
    if not len(answers):
        raise ValueError("There are no answers, but a submission has one for each question.")
    first_rows: dict[int, int] = {}
    for row, (question_id, answer) in enumerate(zip(question_ids, answers, strict=True)):
        if isinstance(question_id, bool) or not isinstance(question_id, int):
            raise ValueError(
                f"The question id in row {row} is {question_id!r} of type {type(question_id).__name__}, but the "
                f"server knows "
                "integers; take the ids as the questions file has them."
            )
        if not isinstance(answer, str):
            raise ValueError(f"The answer to question {question_id} is {answer!r}, but an answer is a string.")
        if question_id in first_rows:
            raise ValueError(
                f"Question {question_id} is answered twice, in rows {first_rows[question_id]} and {row}, but a "
                f"submission has "
                "one answer a question."
            )
        first_rows[question_id] = row
    rows = [
        {"question_id": question_id, "answer": answer}
        for question_id, answer in zip(question_ids, answers, strict=True)
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows) + "\n", encoding="utf-8")


__all__ = ["write_submission"]
