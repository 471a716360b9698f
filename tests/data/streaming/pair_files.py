"""Image-text pairs in the layouts of the world: what the tests of the streams read."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def jpeg(number, size=(12, 10)):
    """A JPEG of one colour, another for each number."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, 37 * number % 256, 91 * number % 256)).save(buffer, "JPEG")
    return buffer.getvalue()


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_tars(folder, shards, rows, first=0, bad=None):
    """`shards` tar files of `rows` pairs as img2dataset writes them; caption "a thing NUMBER", key NUMBER.

    `bad` maps a number to what stands there instead: `{"jpg": ..., "txt": ...}`, None for a file that is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = first
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for _ in range(rows):
                key = f"{number:09d}"
                caption = f"a thing {number}"
                about = {"url": f"https://example.org/{key}.jpg", "key": key, "status": "success", "caption": caption}
                parts = {"jpg": jpeg(number), "txt": caption.encode(), "json": json.dumps(about).encode()}
                parts |= (bad or {}).get(number, {})
                for extension, content in parts.items():
                    if content is not None:
                        add(archive, f"{key}.{extension}", content)
                number += 1
        (folder / f"{shard:05d}_stats.json").write_text(
            json.dumps({"count": rows + 3, "successes": rows, "status_dict": {}})
        )
    return str(folder / "*.tar")


def write_metadata_folder(folder, numbers):
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in numbers:
        (folder / "images" / f"{number}.jpg").write_bytes(jpeg(number))
        lines.append(json.dumps({"file_name": f"images/{number}.jpg", "caption": f"a thing {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return str(folder)


def write_parquet(file, numbers, rows_a_group=3, **columns):
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "image": [{"bytes": jpeg(number), "path": f"{number}.jpg"} for number in numbers],
            "caption": [f"a thing {number}" for number in numbers],
            **columns,
        }
    )
    pq.write_table(table, file, row_group_size=rows_a_group)
    return str(file)


def write_karpathy(folder, numbers):
    folder.mkdir(parents=True)
    images = []
    for number in numbers:
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
        sentences = [{"raw": f"a thing {number}", "sentid": number}]
        images.append({"filename": f"{number}.jpg", "imgid": number, "split": "train", "sentences": sentences})
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    return str(folder / "dataset_flickr30k.json")


def write_coco(folder, numbers):
    folder.mkdir(parents=True)
    for number in numbers:
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in numbers]
    annotations = [{"id": 10 * number, "image_id": number, "caption": f"a thing {number}"} for number in numbers]
    (folder / "captions_train2017.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return str(folder / "captions_train2017.json")


def number(row):
    """The number of a row, from its caption."""
    return int(row["caption"].split()[-1])
