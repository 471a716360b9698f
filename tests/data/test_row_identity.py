"""The same rows are known again wherever they lie and however they are read; others are told from them."""

import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from dual_distill.data import TASKS, IndexedDataset, identify_data, identify_rows


def rows(count: int = 3000, **columns: list[Any]) -> Dataset:
    made = {
        "question": [f"what is {index}?" for index in range(count)],
        "answer": [index % 7 for index in range(count)],
    }
    return Dataset.from_dict({**made, **columns})


def test_the_same_rows_read_otherwise_are_the_same(tmp_path: Path) -> None:
    made = rows()
    known = identify_rows(made)
    assert known is not None
    assert known.startswith("3,000 rows [")
    made.to_parquet(tmp_path / "rows.parquet")
    for other in (
        Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache")),
        made.select(range(3000)),
        made.select(list(range(2999, -1, -1))).select(list(range(2999, -1, -1))),
        made.with_transform(lambda batch: {"drawn": torch.rand(len(batch["question"])).tolist()}),
        made.with_format("torch", columns=["answer"]),
        made.select_columns(["answer", "question"]),
        datasets.concatenate_datasets([made.select(range(1000)), made.select(range(1000, 3000))]),
        IndexedDataset(made),
    ):
        assert identify_rows(other) == known


def test_other_rows_are_others() -> None:
    made = rows()
    plain = {column: list(made[column]) for column in made.column_names}
    others = [
        rows(3001),
        rows(answer=[(index + (index > 1500)) % 7 for index in range(3000)]),
        rows(question=plain["question"][::-1]),
        made.rename_column("answer", "label"),
        made.add_column("answers", [["a"]] * 3000),
        made.add_column("answers", [["a", "b"]] * 3000),
    ]
    found = {identify_rows(other) for other in [made, *others]}
    assert len(found) == 7


def test_images_are_known_by_name_and_size_or_by_their_bytes_and_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        PILImage.new("RGB", (8, 8), colour).save(tmp_path / "here" / f"{name}.png")
    shutil.copytree(tmp_path / "here", tmp_path / "there")

    def of_files(folder: str, **told: Any) -> Dataset:
        files = [str(tmp_path / folder / f"{name}.png") for name in "ab"]
        features = Features({"image": Image(**told), "file": Value("string"), "boxes": List(Value("float32"))})
        return Dataset.from_dict({"image": files, "file": files, "boxes": [[0.5], [1.0]]}, features=features)

    known = identify_rows(of_files("here"))
    assert known == identify_rows(of_files("there", decode=False))
    (tmp_path / "there" / "a.png").write_bytes(b"no image, and of another size")
    assert identify_rows(of_files("there")) not in (None, known)
    (tmp_path / "there" / "a.png").unlink()
    assert identify_rows(of_files("there")) not in (None, known)

    red, blue = ((tmp_path / "here" / f"{name}.png").read_bytes() for name in "ab")
    held = [
        Dataset.from_dict({"image": [{"bytes": content, "path": path}]}, features=Features({"image": Image()}))
        for content, path in ((red, None), (red, "a.png"), (blue, None), (b"no image", None))
    ]
    assert identify_rows(held[0]) == identify_rows(held[1])
    assert len(set(map(identify_rows, held))) == 3
    assert identify_rows(Dataset.from_dict({"image": [red]})) != identify_rows(Dataset.from_dict({"image": [blue]}))


@pytest.mark.parametrize(("other", "known"), [([1, 2], "2 rows"), (None, None), (iter([1]), None)])
def test_of_rows_that_may_be_drawn_only_the_number_is_known(other: Any, known: str | None) -> None:
    assert identify_rows(other) == known
    assert identify_rows(rows(0)) == "0 rows [a683096011db]"


def test_data_are_known_by_the_images_and_texts_of_train_however_their_labels_are_spelled() -> None:
    made, task = rows(30, image=[bytes([index]) for index in range(30)]), TASKS["easy_vqa"]
    known = identify_data({"train": made}, task)
    assert known == identify_data({"train": made.remove_columns("answer"), "test": made.select([0])}, task)
    others = [made.select(range(29)), made.select(range(29, -1, -1)), rows(30, image=[b"other"] * 30)]
    assert len({identify_data({"train": other}, task) for other in [made, *others]}) == 4
    assert identify_data({"test": made}, task) is None
