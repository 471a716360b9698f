import functools
import http.server
import importlib.util
import itertools
import json
import resource
import signal
import socket
import tarfile
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

from dual_distill.data import ImageTextLoader, ImageTextSource, ImageTextStreamCallback, load_image_text_stream

HERE = Path(__file__).parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


files = load("pair_files")
script = load("stream_in_a_process")
number = files.number


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def numbers(rows):
    return [number(row) for row in rows]


def stream(*sources, **options):
    return load_image_text_stream(list(sources), **{"repeat": False, **options})


def tars(path, **more):
    return {"path": str(path), "kind": "webdataset", **more}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Nine tars of 5 rows (numbers 0 to 44) and four of 3 (100 to 111)."""
    folder = tmp_path_factory.mktemp("pairs")
    files.write_tars(folder / "many", 9, 5)
    files.write_tars(folder / "few", 4, 3, first=100)
    return folder


EVERY = [*range(45), *range(100, 112)]


def mixed(pairs, **options):
    return load_image_text_stream(script.sources(pairs), **{"repeat": False, "shuffle_buffer": 4, **options})


def test_rows_of_img2datasets_layout(pairs):
    rows = list(stream(tars(pairs / "few" / "*.tar"), shuffle_buffer=0))
    assert numbers(rows) == list(range(100, 112))
    assert rows[4] == {
        "image": {"bytes": files.jpeg(104), "path": "000000104.jpg"},
        "caption": "a thing 104",
        "__index__": "few/00001.tar: 000000104",
        "__epoch__": 0,
    }
    found = stream(tars(pairs / "many" / "*.tar"))
    assert (found.num_rows, found.num_shards) == (45, 9)  # the rows that img2dataset's stats count


def test_every_kind_gives_the_same_rows(tmp_path, pairs):
    wanted = range(7)
    kinds = {
        "webdataset": tars(files.write_tars(tmp_path / "tars", 1, 7)),
        "folder": {"path": files.write_metadata_folder(tmp_path / "metadata", wanted), "kind": "folder"},
        "parquet": {"path": files.write_parquet(tmp_path / "parquet" / "a.parquet", wanted), "kind": "parquet"},
        "karpathy": {
            "path": files.write_karpathy(tmp_path / "karpathy", wanted),
            "kind": "karpathy",
            "images": str(tmp_path / "karpathy"),
        },
        "coco": {"path": files.write_coco(tmp_path / "coco", wanted), "kind": "coco", "images": str(tmp_path / "coco")},
    }
    for kind, source in kinds.items():
        found = stream(source, shuffle_buffer=0)
        rows = list(found)
        assert [row["caption"].strip() for row in rows] == [f"a thing {count}" for count in wanted], kind
        contents = [row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes() for row in rows]
        assert contents == [files.jpeg(count) for count in wanted], kind
        assert found.num_rows == 7
        assert len({row["__index__"] for row in rows}) == 7
        assert found.num_shards == {"webdataset": 1, "parquet": 3}.get(kind, 7)


def test_a_list_that_was_written_anew_is_read_anew(tmp_path):
    folder = tmp_path / "photos"
    source = {"path": str(files.write_metadata_folder(folder, range(3))), "kind": "folder"}
    before = stream(source, shuffle_buffer=0)
    assert len(list(before)) == before.num_rows == 3
    (folder / "images").rename(folder / "former")
    files.write_metadata_folder(folder, range(5))
    after = stream(source, shuffle_buffer=0)
    assert [row["caption"].strip() for row in after] == [f"a thing {count}" for count in range(5)]
    assert len(list(before)) == 3  # of the rows that its shards were cut of


def test_parquet_with_several_captions_a_picture(tmp_path):
    said = [[f"a thing {count}", f"one {count}"] for count in range(3)]
    path = files.write_parquet(tmp_path / "a.parquet", range(3), said=said)
    source = {"path": path, "kind": "parquet", "caption_column": "said", "name": "flickr"}
    rows = list(stream(source, shuffle_buffer=0))
    assert numbers(rows) == [0, 0, 1, 1, 2, 2]
    assert rows[3]["__index__"] == "flickr/a.parquet: row 1 of group 0, caption 2"


def test_phrases_of_img2datasets_further_columns(tmp_path):
    about = json.dumps({"key": "1", "caption": None, "phrases": ["a thing 1", "one 1", " "]}).encode()
    source = tars(
        files.write_tars(tmp_path / "vg", 1, 3, bad={1: {"txt": None, "json": about}}), caption_column="phrases"
    )
    passing = stream(source, shuffle_buffer=0, skip_bad=True)
    assert [(row["__index__"], row["caption"]) for row in passing] == [
        ("vg/00000.tar: 000000001, caption 1", "a thing 1"),
        ("vg/00000.tar: 000000001, caption 2", "one 1"),
    ]
    assert passing.skipped == {"missing caption": 2, "empty caption": 1}


def test_files_behind_an_address(tmp_path):
    files.write_tars(tmp_path / "cc", 2, 4)
    files.write_parquet(tmp_path / "all.parquet", range(5))
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert numbers(stream(tars(f"{address}/cc/00001.tar"), shuffle_buffer=0)) == [4, 5, 6, 7]
        parquet = {"path": f"{address}/all.parquet", "kind": "parquet", "name": "all"}
        assert sorted(numbers(stream(parquet))) == [0, 1, 2, 3, 4]
        with pytest.raises(
            FileNotFoundError, match=r"There is no file 'http.*/none\.tar' for a source of kind 'webdataset'"
        ):
            stream(tars(f"{address}/none.tar"))
        server.shutdown()


def test_photographs_of_coco(data_folder):
    folder = data_folder("coco_mini_ccby")
    parquet = {"path": str(folder / "images.parquet"), "kind": "parquet", "caption_column": "captions"}
    karpathy = {"path": str(folder / "annotations" / "dataset_karpathy_format.json"), "kind": "karpathy", "images": "."}
    rows = list(stream(parquet, skip_bad=True))
    assert len(rows) == 380  # all of its pictures can be decoded
    with pytest.raises(ValueError, match=r"dataset_karpathy_format\.json, image 1 .*: the image is missing"):
        stream(karpathy)  # the pictures lie in the Parquet file


def test_an_epoch_has_every_row_once_in_an_order_of_its_own(pairs):
    def order(epoch, **options):
        found = mixed(pairs, **options)
        found.set_epoch(epoch)
        rows = list(found)
        assert {row["__epoch__"] for row in rows} == {epoch}
        return numbers(rows)

    orders = [order(0), order(1), order(0, seed=1), order(0, shuffle_buffer=100)]
    assert all(sorted(one) == EVERY for one in orders)
    assert len({tuple(one) for one in orders}) == 4
    assert order(1) == orders[1]
    endless = iter(mixed(pairs, repeat=True))
    assert [number(next(endless)) for _ in range(3 * len(EVERY))] == orders[0] + orders[1] + order(2)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_rows(pairs, world_size):
    """Four shards of the smaller source go to two processes as they are, and to three row by row."""
    parts = [numbers(mixed(pairs).split(rank, world_size)) for rank in range(world_size)]
    assert sorted(itertools.chain(*parts)) == EVERY
    assert min(map(len, parts)) >= len(EVERY) // world_size - 6


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_share_the_rows_of_a_process(pairs, world_size):
    parts = [mixed(pairs).split(rank, world_size) for rank in range(world_size)]
    loaders = [ImageTextLoader(part, 4, numbers, num_workers=2) for part in parts]
    assert sorted(itertools.chain(*itertools.chain(*loaders))) == EVERY
    with pytest.raises(
        ValueError, match=r"3 workers share the shards of a process, but the source with the fewest has 2"
    ):
        ImageTextLoader(mixed(pairs).split(0, 2), 4, numbers, num_workers=3)


@pytest.mark.parametrize("options", [{}, {"shuffle_buffer": 0}, {"stopping_strategy": "all_exhausted"}])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_stream_goes_on_where_it_was(pairs, options, world_size):
    def part():
        return mixed(pairs, repeat=True, **options).split(world_size - 1, world_size)

    length = 150 // world_size
    going = part()
    rows = iter(going)
    expected, places = [], []
    for _ in range(length):
        places.append(json.dumps(going.state_dict()))
        row = next(rows)
        expected.append((row["__epoch__"], number(row)))
    for cut in range(0, length, 7):
        resumed = part()
        resumed.load_state_dict(json.loads(places[cut]))
        assert resumed.state_dict() == json.loads(places[cut])
        rest = itertools.islice(resumed, length - cut)
        assert [(row["__epoch__"], number(row)) for row in rest] == expected[cut:]


def test_rows_of_like_shape_share_a_batch(tmp_path):
    wide = {even: {"jpg": files.jpeg(even, (24, 6))} for even in range(0, 48, 2)}
    path = files.write_tars(tmp_path, 4, 12, bad=wide)

    def grouped(seed=0):
        return stream(tars(path), seed=seed, shuffle_buffer=26).split(0, 1, group=4)

    order = numbers(grouped())
    assert sorted(order) == list(range(48))
    assert sorted(numbers(grouped(seed=1))) == sorted(order) != order != numbers(grouped(seed=1))
    batches = [order[start : start + 4] for start in range(0, 48, 4)]
    assert all(len({number % 2 for number in batch}) == 1 for batch in batches)
    assert len({number % 2 for number, *_ in batches[:6]}) == 2  # batches of a buffer are drawn too

    for taken in (0, 5, 24, 47):
        first, second = grouped(), grouped()
        rows = iter(first)
        for _ in range(taken):
            next(rows)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert numbers(second) == order[taken:]
    before = stream(tars(path), shuffle_buffer=26).state_dict()
    del before["stream"]["group"]  # as a former version wrote it
    with pytest.raises(ValueError, match=r"of a stream with group 0, but here group is 4"):
        grouped().load_state_dict(before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_it_was(pairs, workers, tmp_path):
    def loader():
        return ImageTextLoader(mixed(pairs, repeat=True), 4, numbers, num_workers=workers)

    expected = list(itertools.islice(loader(), 32))  # two epochs and a bit
    for cut in (1, 17):
        first = loader()
        taken = list(itertools.islice(first, cut))
        first.save_position(tmp_path)
        second = loader()
        second.load_position(tmp_path)
        assert taken + list(itertools.islice(second, 32 - cut)) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_draws_nothing_from_the_generator_of_everyone_else(pairs, workers):
    before = torch.get_rng_state()
    assert len(list(ImageTextLoader(mixed(pairs), 4, numbers, num_workers=workers))) > 10
    assert torch.equal(torch.get_rng_state(), before)


def test_a_position_of_another_run_is_refused(pairs, tmp_path):
    first = ImageTextLoader(mixed(pairs), 4, numbers)
    with pytest.raises(FileNotFoundError, match=r"has no image_text_stream_0\.json, the position in its stream"):
        first.load_position(tmp_path)
    next(iter(first))
    first.save_position(tmp_path)
    with pytest.raises(ValueError, match=r"is of a stream with num_workers 0, but here num_workers is 1"):
        ImageTextLoader(mixed(pairs), 4, numbers, num_workers=1).load_position(tmp_path)
    (tmp_path / "image_text_stream_1.json").write_text((tmp_path / "image_text_stream_0.json").read_text())
    with pytest.raises(
        ValueError,
        match=r"is of a stream with rank 0, but here rank is 1; continue with the same data and the same numbers",
    ):
        ImageTextLoader(mixed(pairs).split(1, 2), 4, numbers).load_position(tmp_path)
    place = mixed(pairs).state_dict()
    with pytest.raises(
        ValueError, match=r"is of a stream with seed 0, but here seed is 1; continue with the same data"
    ):
        mixed(pairs, seed=1).load_state_dict(place)


def test_a_position_of_other_sources_is_refused(tmp_path):
    for folder in ("a/few", "b/few", "c/less"):
        files.write_tars(tmp_path / folder, 2, 3)
    files.write_tars(tmp_path / "a" / "many", 2, 5, first=100)

    def both(few=1, many=1, **more):
        return [tars(tmp_path / "a/few/*.tar", weight=few), tars(tmp_path / "a/many/*.tar", weight=many, **more)]

    position = json.loads(json.dumps(stream(*both()).state_dict()))
    stream(*both(2, 2)).load_state_dict(position)
    for others in (both(few=9), both()[::-1], both(caption_column="long"), both(name="more")):
        found = r"of a stream with sources \['few x 0\.5 \[\w{12}\]', 'many x 0\.5 .*, but here sources is \["
        with pytest.raises(ValueError, match=found):
            stream(*others).load_state_dict(position)
    del position["stream"]["sources"]  # as a former version wrote it
    stream(*both(few=9)).load_state_dict(position)

    # Elsewhere, with another file of the same name, in a folder of another name, by which the order is drawn.
    original, copied = stream(tars(tmp_path / "a/few/*.tar")), stream(tars(tmp_path / "b/few/*.tar"))
    copied.load_state_dict(original.state_dict())
    assert copied.content == original.content
    for tar in (tmp_path / "b/few").glob("*.tar"):
        tar.write_bytes(tar.read_bytes() + bytes(512))
    mended = stream(tars(tmp_path / "b/few/*.tar"))
    mended.load_state_dict(original.state_dict())
    assert mended.content != original.content
    with pytest.raises(ValueError, match=r"with sources \['few x 1 .*, but here sources is \['less x 1 "):
        stream(tars(tmp_path / "c/less/*.tar")).load_state_dict(original.state_dict())


def test_sources_are_mixed_by_weight(tmp_path):
    files.write_tars(tmp_path / "a", 1, 300)
    files.write_tars(tmp_path / "b", 1, 300, first=1000)
    sources = tars(tmp_path / "a" / "*.tar", weight=3), tars(tmp_path / "b" / "*.tar")
    order = numbers(stream(*sources, seed=2))
    assert sorted(order) == [*range(300), *range(1000, 1300)]
    until = stream(*sources, stopping_strategy="first_exhausted", seed=2, shuffle_buffer=0)
    of_a, of_b = (sum(low <= one < low + 300 for one in numbers(until)) for low in (0, 1000))
    assert of_a == 300
    assert of_b == pytest.approx(100, abs=30)  # three standard deviations
    again = Counter(numbers(stream(*sources, stopping_strategy="all_exhausted", seed=2, shuffle_buffer=0)))
    assert set(again) == set(order)
    assert sum(again[one] for one in range(300)) / again.total() == pytest.approx(0.75, abs=0.04)


def test_bad_rows_are_errors_that_name_shard_and_key(tmp_path, caplog):
    bad = {
        2: {"txt": b"  \n"},
        3: {"txt": None, "json": None},
        4: {"jpg": None},
        5: {"txt": b"\xff\xfe"},
        6: {"txt": None},
        8: {"jpg": files.jpeg(8)[:40]},
        9: {"txt": b"a word " * 1000},
    }
    source = tars(files.write_tars(tmp_path / "cc3m", 2, 6, bad=bad))
    rows = iter(stream(source, shuffle_buffer=0))
    assert [number(next(rows)), number(next(rows))] == [0, 1]
    with pytest.raises(
        ValueError,
        match=r"^cc3m/00000\.tar: 000000002: the caption is empty \(' \\n'\); mend it, or .* skip_bad=True, which c",
    ):
        next(rows)
    passing = stream(source, shuffle_buffer=0, skip_bad=True)
    taken = list(passing)
    assert [row["__index__"][-2:] for row in taken] == ["00", "01", "06", "07", "09", "10", "11"]
    assert taken[2]["caption"] == "a thing 6"  # from the .json, where there is no .txt
    assert len(taken[4]["caption"].split()) == 2000  # long captions are cut by the collator
    assert passing.skipped == {
        "empty caption": 1,
        "missing caption": 1,
        "missing image": 1,
        "malformed caption": 1,
        "unusable image": 1,
    }
    loader = ImageTextLoader(stream(source, shuffle_buffer=3, skip_bad=True), 2, lambda rows: rows, num_workers=2)
    assert sum(len(batch) for batch in loader) == 7
    assert loader.skipped == passing.skipped  # the workers count too
    ImageTextStreamCallback().on_train_end(None, None, None, train_dataloader=loader)
    assert caplog.messages[-1].startswith(
        "process 0 passed over: 1 empty caption, 1 malformed caption, 1 missing caption, "
    )


@pytest.mark.parametrize("cut", ["within a file", "between two files", "by a wrong header"])
def test_a_broken_shard_ends_itself_alone(tmp_path, cut):
    source = tars(files.write_tars(tmp_path / "sbu", 3, 4))
    broken = tmp_path / "sbu" / "00001.tar"
    content = broken.read_bytes()
    with tarfile.open(broken) as archive:
        start = archive.getmember("000000006.jpg").offset
    damaged = {"within a file": content[: start + 600], "between two files": content[:start]}
    broken.write_bytes(damaged.get(cut, content[:start] + b"\1" * 512 + content[start + 512 :]))
    with pytest.raises(
        ValueError, match=r"^sbu/00001\.tar: 00000000[56]: the archive is cut or damaged after \d samples \("
    ):
        list(stream(source, shuffle_buffer=0))
    passing = stream(source, shuffle_buffer=0, skip_bad=True)
    taken = numbers(passing)
    assert taken in ([*range(5), *range(8, 12)], [*range(6), *range(8, 12)])
    assert passing.skipped == {"broken shard": 1}


def test_a_member_larger_than_any_image_ends_its_shard(tmp_path):
    """Three megabytes of a compressed tar file may hold six gigabytes of zeros."""
    folder = tmp_path / "cc"
    files.write_tars(folder, 1, 2)
    with tarfile.open(folder / "00001.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("bomb.jpg")
        member.size = 300_000_000
        with Path("/dev/zero").open("rb") as zeros:
            archive.addfile(member, zeros)
    source = tars(folder / "*.tar*")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"00001\.tar\.gz: the archive .*'bomb\.jpg' has 300,000,000 bytes"):
        list(stream(source, shuffle_buffer=0))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    passing = stream(source, skip_bad=True)
    assert sorted(numbers(passing)) == [0, 1]
    assert passing.skipped == {"broken shard": 1}


def test_captions_that_are_too_long_or_nested(tmp_path):
    nested = b'{"caption": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    bad = {1: {"txt": b"x" * 1_000_001}, 2: {"txt": None, "json": nested}}
    passing = stream(tars(files.write_tars(tmp_path / "cc", 1, 4, bad=bad)), skip_bad=True)
    assert sorted(numbers(passing)) == [0, 3]
    assert passing.skipped == {"malformed caption": 2}


def test_broken_files_of_other_kinds(tmp_path):
    twice = tmp_path / "twice"
    files.write_tars(twice, 1, 3)
    with tarfile.open(twice / "00000.tar", "w") as archive:
        for key in ("1", "2", "1"):
            files.add(archive, f"{key}.jpg", files.jpeg(1))
            files.add(archive, f"{key}.txt", b"a thing 1")
    parquet = Path(files.write_parquet(tmp_path / "parquet" / "0.parquet", range(6)))
    (tmp_path / "parquet" / "1.parquet").write_bytes(parquet.read_bytes()[:-20])
    (tmp_path / "parquet" / "2.parquet").write_bytes(b"\0" * 300 + parquet.read_bytes()[300:])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "0.tar").write_bytes(b"")
    metadata = tmp_path / "metadata"
    files.write_metadata_folder(metadata, range(3))
    with (metadata / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "images/9.jpg", "caption": "a thing 9"}\n{"file_name": 3}\nnothing\n')
    sources = [
        tars(twice / "*.tar"),
        {"path": str(tmp_path / "parquet" / "*.parquet"), "kind": "parquet"},
        tars(tmp_path / "empty" / "*.tar"),
        {"path": str(metadata), "kind": "folder"},
    ]
    passing = stream(*sources, skip_bad=True)
    assert sorted(numbers(passing))[:5] == [0, 0, 1, 1, 1]
    assert passing.skipped["duplicate key"] == 1
    assert passing.skipped["broken shard"] == 3
    assert passing.skipped["unusable image"] == 1  # its file is missing
    assert (passing.skipped["malformed entry"], passing.skipped["malformed line"]) == (1, 1)
    with pytest.raises(
        ValueError, match=r"^parquet/1\.parquet: group 0: the row group is damaged after 0 rows \(.*\); mend it"
    ):
        list(stream(sources[1], shuffle_buffer=0))
    nothing = load_image_text_stream(sources[2], skip_bad=True)
    with pytest.raises(
        ValueError, match=r"No row of epoch 0 could be used by this reader; passed over were \{'broken shard': 1\}"
    ):
        next(iter(nothing))


def test_each_error_by_its_message(tmp_path, pairs):
    with pytest.raises(ValueError, match=r"There are no sources; give at least one"):
        load_image_text_stream([])
    with pytest.raises(
        ValueError, match=r"A source is \{'path': 'x'\} \(.*'kind'\), but expected is an object of path, kind, weight"
    ):
        load_image_text_stream([{"path": "x"}])
    with pytest.raises(
        ValueError, match=r"has the kind 'tar'.* Known are: coco, folder, karpathy, parquet, webdataset"
    ):
        ImageTextSource("x", "tar")
    with pytest.raises(ValueError, match=r"has the weight 0, but it must be above 0"):
        ImageTextSource("x", "folder", weight=0)
    with pytest.raises(ValueError, match=r"of kind 'coco' needs images=, the folder of its images"):
        ImageTextSource("x", "coco")
    with pytest.raises(ValueError, match=r"of kind 'folder' takes no images="):
        ImageTextSource("x", "folder", images="y")
    with pytest.raises(ValueError, match=r"Two sources are named 'few', by which rows are told apart"):
        load_image_text_stream([tars(pairs / "few" / "*.tar"), tars(pairs / "few" / "00000.tar")])
    with pytest.raises(
        ValueError, match=r"stopping_strategy is 'never', but expected is all_exhausted_without_replacement"
    ):
        stream(tars(pairs / "few" / "*.tar"), stopping_strategy="never")
    with pytest.raises(ValueError, match=r"shuffle_buffer is -1 rows"):
        stream(tars(pairs / "few" / "*.tar"), shuffle_buffer=-1)
    with pytest.raises(FileNotFoundError, match=r"There is no folder '.*none' of images with texts"):
        stream({"path": str(tmp_path / "none"), "kind": "folder"})
    path = files.write_parquet(tmp_path / "a.parquet", range(2))
    with pytest.raises(
        ValueError, match=r"has no column 'text', but image, caption; name image_column and caption_column"
    ):
        stream({"path": path, "kind": "parquet", "caption_column": "text"})
    karpathy = files.write_karpathy(tmp_path / "karpathy", range(2))
    with pytest.raises(ValueError, match=r"has no rows of the split 'test', but of train; choose one"):
        stream({"path": karpathy, "kind": "karpathy", "split": "test", "images": str(tmp_path / "karpathy")})


def train(scripts, pairs, output, last_step, kill_at, workers, world_size):
    """Run the script, a process a rank."""
    output.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    ranks = [{**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
    words, environments = (pairs, output, last_step, kill_at, workers), ranks if world_size > 1 else [{}]
    ended = scripts(HERE / "stream_in_a_process.py", *words, environments=environments)
    codes = [one.returncode for one in ended]
    if kill_at:
        assert -signal.SIGKILL in codes, ended[0].stderr[-3000:]
    else:
        assert codes == [0] * world_size, ended[0].stderr[-3000:]


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_trainer_sees_every_row_once_an_epoch(scripts, pairs, tmp_path, world_size):
    """Killed at step 8, resumed from the checkpoint of step 6, until each worker is well in its third epoch."""
    workers, last_step = 2, 18 // world_size
    kill_at = 8 if world_size == 1 else 5
    saved = kill_at - kill_at % 3
    output = tmp_path / "run"
    train(scripts, pairs, output, last_step, kill_at, workers, world_size)
    assert (output / f"checkpoint-{saved}" / "image_text_stream_0.json").is_file()
    before = {rank: (output / f"rows_{rank}.txt").read_text().splitlines() for rank in range(world_size)}
    train(scripts, pairs, output, last_step, 0, workers, world_size)
    seen = Counter()
    for rank in range(world_size):
        lines = (output / f"rows_{rank}.txt").read_text().splitlines()
        kept = [line for line in before[rank] if int(line.split()[0]) < saved] + lines[len(before[rank]) :]
        assert len(kept) == last_step * 2 * 4
        assert len(lines) > len(kept)  # steps 7 and 8 were trained twice
        found = [tuple(map(int, line.split()[1:])) for line in kept]
        part = load_image_text_stream(script.sources(pairs), seed=4, shuffle_buffer=5).split(rank, world_size)
        uninterrupted = ImageTextLoader(
            part, 4, lambda rows: [(row["__epoch__"], number(row)) for row in rows], workers
        )
        assert found == list(itertools.chain(*itertools.islice(uninterrupted, last_step * 2)))
        seen.update(found)
    assert max(seen.values()) == 1
    for epoch in (0, 1):
        assert sorted(row for in_epoch, row in seen if in_epoch == epoch) == EVERY
