"""A store's folder and its reading: synthetic vectors whose every value is known from its index."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from dual_distill.inference import FeatureStore
from dual_distill.inference.feature_store import FeatureManifest, FeatureTable

WIDTH = 4


def vectors(ids: list[str], width: int = WIDTH) -> torch.Tensor:
    """The vector of "7" is 7, 7.5, 8, ..., so that float16 holds it as it is."""
    return torch.tensor([[int(identifier) + column / 2 for column in range(width)] for identifier in ids]).reshape(
        -1, width
    )


def make_store(
    path: Path, plans: list[list[str]], unreadable: tuple[str, ...] = (), dtype: str = "float32"
) -> FeatureTable:
    """Shards of 3 ids; `unreadable` ones are left out where they come first."""
    folder = FeatureTable(path)
    folder.begin(asdict(FeatureManifest("image", dtype, WIDTH, True, 3, 2, {"name": "m"}, {})))
    left_out = set(unreadable)
    for planned in plans:
        for shard in folder.plan(planned, 3, is_readable=lambda identifier: True):
            if folder.is_done(shard.number):
                continue
            problems = {name: f"row {name}: broken" for name in shard.ids if name in left_out}
            left_out -= set(problems)
            ids = [name for name in shard.ids if name not in problems]
            features = {"pooled": vectors(ids), "projected": -vectors(ids, 2 * WIDTH)}
            features = {name: tensor.to(getattr(torch, dtype)) for name, tensor in features.items()}
            folder.write_features(shard.number, ids, [f"hash of {name}" for name in ids], features, problems)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Shards of 0 1 2, 3 4 5, 6; then 7 8; 4 could not be read."""
    return FeatureStore(make_store(tmp_path / "store", [list("0123456"), list("78")], ("4",)).path)


def test_rows_in_the_order_of_the_plans(store: FeatureStore) -> None:
    ids = list("01235678")
    assert len(store) == 8
    assert store.ids() == ids
    assert torch.equal(torch.cat([piece for _, piece in store.pieces()]), vectors(ids))
    assert torch.equal(torch.cat([piece for _, piece in store.pieces("projected")]), -vectors(ids, 2 * WIDTH))


def test_pieces_say_where_they_start_and_are_no_longer_than_asked(store: FeatureStore) -> None:
    pieces = list(store.pieces(rows=2))
    assert [(start, len(piece)) for start, piece in pieces] == [(0, 2), (2, 1), (3, 2), (5, 1), (6, 2)]
    for start, piece in pieces:
        assert torch.equal(piece, vectors(store.ids(range(start, start + len(piece)))))


def test_two_write_one_parquet_file_at_once(store: FeatureStore, tmp_path: Path) -> None:
    both_write = threading.Barrier(2)

    class Meeting(FeatureStore):
        def pieces(self, *args, **kwargs):
            both_write.wait(timeout=10)
            yield from super().pieces(*args, **kwargs)

    with ThreadPoolExecutor(2) as pool:
        written = [pool.submit(Meeting(store.path).to_parquet, tmp_path / "vectors.parquet") for _ in range(2)]
        for one in written:
            one.result()
    assert pq.read_table(tmp_path / "vectors.parquet")["id"].to_pylist() == store.ids()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["store", "vectors.parquet"]


def test_any_rows_in_any_order(store: FeatureStore) -> None:
    indices = store.indices(["8", "0", "5", "0"])
    assert indices == [7, 0, 4, 0]
    assert torch.equal(store.read(indices), vectors(["8", "0", "5", "0"]))
    assert torch.equal(store.read(indices, "projected"), -vectors(["8", "0", "5", "0"], 2 * WIDTH))
    assert store.ids(indices) == ["8", "0", "5", "0"]
    assert torch.equal(store["6"], vectors(["6"])[0])
    assert [identifier in store for identifier in ("4", "6", "9")] == [False, True, False]
    assert store.read([]).shape == (0, WIDTH)


def test_unreadable_ones_are_listed_until_a_later_plan_has_them(tmp_path: Path, store: FeatureStore) -> None:
    assert store.unreadable() == {"4": "row 4: broken"}
    repaired = FeatureStore(make_store(tmp_path / "repaired", [list("0123456"), list("74")], ("4", "5")).path)
    assert repaired.unreadable() == {"5": "row 5: broken"}
    assert repaired.ids() == list("0123674")
    assert torch.equal(repaired["4"], vectors(["4"])[0])


def test_an_id_may_hold_what_other_programs_take_for_the_end_of_a_line(tmp_path: Path) -> None:
    broken = "a\u2028b"
    store = FeatureStore(make_store(tmp_path / "lines", [[broken, "7"]], (broken,)).path)
    assert store.unreadable() == {broken: f"row {broken}: broken"}


def test_half_precision_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = FeatureStore(make_store(tmp_path / "half", [list("0123")], dtype="float16").path)
    assert store["3"].dtype == torch.float16
    assert torch.equal(store["3"].float(), vectors(["3"])[0])
    assert repr(store).endswith("4 images, 4 x float16)")


def test_what_is_not_there_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"lacks 2 of the images asked for: row 4: broken; 'x'\. Its ids are like '0', '1'"
    ):
        store.indices(["1", "4", "x"])
    with pytest.raises(IndexError, match=r"Index 8 was asked for, but the feature store .* has indices 0 to 7"):
        store.read([8])
    with pytest.raises(ValueError, match="holds pooled and projected vectors, not 'tokens'"):
        next(store.pieces("tokens"))
    with pytest.raises(FileNotFoundError, match="There is no feature store"):
        FeatureStore(tmp_path / "nowhere")


def test_an_unfinished_store_is_refused(store: FeatureStore) -> None:
    (Path(store.path) / "shard-00001.arrow").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 4 shards \(the first is number 1\)"):
        FeatureStore(store.path)


def test_damaged_files_are_named(store: FeatureStore) -> None:
    file = Path(store.path) / "shard-00001.arrow"
    content = bytearray(file.read_bytes())
    for name, length in (("rows", 40), ("vectors", len(content) - 200)):
        file.write_bytes(content[:length] + bytes([content[length] ^ 1]) + content[length + 1 :])
        opened = FeatureStore(store.path)
        assert torch.equal(opened.read([0]), vectors(["0"]))
        with pytest.raises(ValueError, match=r"shard-00001\.arrow' is missing or damaged .* which makes it anew"):
            opened.ids() if name == "rows" else list(opened.pieces())
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"shard-00001\.arrow' is missing or damaged"):
        FeatureStore(store.path)


def test_a_store_of_the_format_before_is_refused(store: FeatureStore) -> None:
    manifest = {**json.loads((Path(store.path) / "store.json").read_text()), "format": 1}
    (Path(store.path) / "store.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match="has format 1, but this version reads 2; repeat `dual-distill encode` into another folder"
    ):
        FeatureStore(store.path)


@pytest.mark.parametrize(
    "content, message",
    [("[]", "not the manifest"), ("{", "not the manifest"), (json.dumps({"format": 9}), "has format 9")],
)
def test_a_manifest_of_another_kind(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        FeatureStore(tmp_path)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"no feature store and is not empty \(thesis.txt\)"):
        make_store(tmp_path, [["1"]])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
