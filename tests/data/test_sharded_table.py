"""The table under all stores: whole shards, whoever writes them and whenever one is killed; damage is always named."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from dual_distill.data import ShardedTable, tensor_column

IDS = [f"row {number}" for number in range(20)]


def write_shard(table: ShardedTable, number: int, ids: list[str]) -> None:
    vectors = torch.tensor([[float(name.split()[1]), number] for name in ids])
    problems = {name: "broken" for name in ids if name == "row 7"}
    good = [name for name in ids if name not in problems]
    table.write(number, pa.table({"id": good}), pa.table({"vector": tensor_column(vectors[: len(good)])}), problems)


def fill(path: Path, ids: list[str] = IDS) -> ShardedTable:
    table = ShardedTable(path)
    table.begin({"made by": "hand"})
    for shard in table.plan(ids, 3):
        if not table.is_done(shard.number):
            write_shard(table, shard.number, shard.ids)
    return table


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_was_written_comes_back(tmp_path):
    fill(tmp_path / "table")
    table = ShardedTable(tmp_path / "table")
    assert table.open() == {"made by": "hand"}
    assert table.starts == [0, 3, 6, 8, 11, 14, 17, 19]
    assert table.unreadable() == {"row 7": "broken"}
    assert [table.find(name) for name in ("row 0", "row 7", "row 8", "row 19", "row 20")] == [0, None, 7, 18, None]
    assert table.locate(7) == (2, 1)
    assert table.tensor(6, "vector", 1).tolist() == [[19.0, 6.0]]
    assert table.tensor(6, "vector", 1, 1).shape == (0, 2)
    assert ShardedTable(tmp_path / "none").planned_shards() == []


def test_rows_are_mapped_not_read(tmp_path):
    table = fill(tmp_path / "table")
    before = len(list(Path("/proc/self/fd").iterdir()))
    columns = [table.vectors(number)["vector"] for number in range(7)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before  # no file stays open, however many shards there are
    assert all(column.chunks[0].flatten().buffers()[1].address for column in columns)


def test_a_table_that_was_begun_with_other_settings(tmp_path):
    table = fill(tmp_path / "table")
    given = {"made by": "hand", "sizes": (1, 2)}
    table.check_settings({"made by": "hand", "sizes": [1, 2]}, given)
    with pytest.raises(ValueError, match=r"begun with other settings \(made by: 'foot' there, 'hand' now; sizes.a: 1"):
        table.check_settings({"made by": "foot", "sizes": {"a": 1}}, {"made by": "hand", "sizes": {"a": 2}})
    assert table.begin({"made by": "somebody else"}) == {"made by": "hand"}


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"format": 2, "sha256": "0", "made by": "hand"}', '{"format": 1}', "\0"]
)
def test_a_manifest_that_is_none(content, tmp_path):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"manifest.json' (is not the manifest|is damaged|has format 1, but .* reads 2)"
    ):
        ShardedTable(tmp_path).open()


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(ValueError, match=r"is no sharded table and is not empty \(thesis.txt\)"):
            ShardedTable(path).begin({})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def read_all(path: Path) -> None:
    table = ShardedTable(path)
    table.open()
    table.unreadable()
    for number in range(len(table.starts) - 1):
        table.rows(number)
        table.vectors(number)


@pytest.mark.parametrize("name", ["manifest.json", "plan-00000.arrow", "shard-00002.arrow"])
def test_each_flipped_bit_and_each_truncation_is_named(name, tmp_path):
    file = fill(tmp_path / "table").path / name
    content = file.read_bytes()
    draw = random.Random(0)
    damaged = [content[: draw.randrange(len(content))] for _ in range(10)]
    for _ in range(40):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        damaged.append(bytes(flipped))
    for bad in damaged:
        if name == "manifest.json" and bad.strip() == content.strip():
            continue  # the line's end is not part of what it says
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=name):
            read_all(file.parent)
    file.write_bytes(content)
    read_all(file.parent)


def test_a_shard_is_written_by_the_next_free_number_on_request(tmp_path):
    tables = [ShardedTable(tmp_path) for _ in range(2)]
    tables[0].begin({})
    numbers = [table.write(None, pa.table({"id": [name]}), pa.table({})) for name in "abc" for table in tables]
    assert numbers == [0, 1, 2, 3, 4, 5]
    assert [tables[0].rows(number)["id"].to_pylist() for number in numbers] == [[name] for name in "aabbcc"]


def in_a_process(path: Path, seed: int) -> None:
    """Fills the table in an order of its own, at its own speed."""
    draw = random.Random(seed)
    table = ShardedTable(path)
    table.begin({"made by": "hand"})
    shards = table.plan(IDS, 3)
    for shard in draw.sample(shards, len(shards)):
        write_shard(table, shard.number, shard.ids)
        time.sleep(draw.random() / 200)


def test_many_processes_fill_one_table_and_none_dies(tmp_path):
    fork = multiprocessing.get_context("fork")
    for attempt in range(3):
        processes = [fork.Process(target=in_a_process, args=(tmp_path / str(attempt), seed)) for seed in range(15)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 15
        assert contents(tmp_path / str(attempt)) == contents(fill(tmp_path / "whole").path)


def in_a_process_again_and_again(path: Path, seed: int) -> None:
    while True:
        in_a_process(path, seed)


def test_killed_processes_leave_nothing_that_the_next_run_does_not_mend(tmp_path):
    fork = multiprocessing.get_context("fork")
    for attempt in range(5):
        processes = [
            fork.Process(target=in_a_process_again_and_again, args=(tmp_path / "table", seed)) for seed in range(4)
        ]
        for process in processes:
            process.start()
        time.sleep(0.05 * (attempt + 1))
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    table = fill(tmp_path / "table")
    for shard in table.planned_shards():
        write_shard(table, shard.number, shard.ids)
    assert contents(table.path) == contents(fill(tmp_path / "whole").path)


def test_ids_that_could_not_be_read_are_planned_again_once_they_can_be(tmp_path):
    table = fill(tmp_path / "table")
    asked: list[str] = []
    assert len(table.plan(IDS, 3, lambda name: bool(asked.append(name)))) == 7
    assert asked == ["row 7"]
    again = table.plan(["row 30", *IDS], 3, lambda name: True)[7:]
    assert [shard.ids for shard in again] == [["row 30", "row 7"]]
    assert table.plan(IDS, 3, lambda name: True)[7:] == again  # it waits
    table.write(7, pa.table({"id": again[0].ids}), pa.table({}))
    assert table.unreadable() == {}
    assert json.loads((tmp_path / "table" / "manifest.json").read_text())["made by"] == "hand"


def test_a_row_may_have_a_list_of_vectors(tmp_path):
    vectors = torch.arange(12, dtype=torch.int8).view(6, 2)
    table = ShardedTable(tmp_path / "lists")
    table.begin({})
    for shard in table.plan(["a", "b", "c"], 3):
        table.write(shard.number, pa.table({"id": shard.ids}), pa.table({"v": tensor_column(vectors, [1, 0, 5])}))
    assert torch.equal(table.tensor(0, "v"), vectors)
    assert torch.equal(table.tensor(0, "v", 0, 1), vectors[:1])
    assert table.tensor(0, "v", 1, 2).shape == (0, 2)
    assert torch.equal(table.tensor(0, "v", 2, 3), vectors[1:])
