"""What data costs beside its floor: batches of mixed photographs, one photograph, a checkpoint, the VQA score, readers.

    python benchmarks/data_work.py [padding photograph checkpoint vqa_score readers tar]

Each part is written by itself (`results/data_work_PART.json`). Both sides of a comparison run in turn in one process,
and ratios are medians of the rounds' own ratios, with their quartiles. Real data are those of the tests
(`DUAL_DISTILL_DATA`); `readers` writes files of VQA v2's and Karpathy's layout, and reads each in a process of its own;
`tar` needs `pip install webdataset`.
"""

import argparse
import gzip
import io
import itertools
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from _record import provenance, write
from PIL import Image
from transformers import ViltImageProcessorPil
from transformers.utils import logging

from dual_distill import sealed
from dual_distill.data import (
    ImageTextStream,
    ShapeGroupedSampler,
    decode_image,
    fingerprint,
    grouped_order,
    shape_key,
    train_tokenizer,
)
from dual_distill.evaluation import answers, vqa_score
from dual_distill.modeling import DualDistillProcessor, FusionEncoderConfig, FusionEncoderForQuestionAnswering
from dual_distill.teachers import load_model

DATA = Path(os.environ.get("DUAL_DISTILL_DATA") or Path(__file__).parents[2] / "shared" / "data")
QUESTIONS = 100_000
READ = {
    "vqa_v2": (
        "from dual_distill.data.datasets.vqa_v2 import load_vqa; load_vqa({0!r}, images={0!r})",
        ["v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"],
    ),
    "karpathy": (
        "from dual_distill.data.datasets.captions import load_captions;"
        "load_captions(captions={0!r} + '/dataset_coco.json', images={0!r})",
        ["dataset_coco.json"],
    ),
}


def compared(calls: dict[str, Callable[[], Any]], floor: str, rounds: int = 9) -> dict[str, Any]:
    """Milliseconds of calls that run in turn, and of each its ratio to `floor`: median and quartiles."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for counts in [False] + [True] * rounds:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name] += [1e3 * (time.perf_counter() - start)] if counts else []

    found = {}
    for name, each in times.items():
        low, middle, high = np.percentile(np.array(each) / np.array(times[floor]), [25, 50, 75]).tolist()
        found[name] = {"ms": round(float(np.median(each)), 3), "ratio": round(middle, 3)}
        found[name]["quartiles"] = [round(low, 3), round(high, 3)]
        print(f"{name:<40} {found[name]['ms']:10.3f} ms  {middle:6.3f} x {floor}  [{low:.3f}, {high:.3f}]", flush=True)
    return found


def padding() -> dict[str, Any]:
    """Patches that batches of COCO's 5,000 validation photographs are computed over, by their real ones."""
    with gzip.open(DATA / "coco_captions_text" / "captions_val2017.json.gz") as file:
        listed = json.load(file)
    sizes = {image["id"]: (image["width"], image["height"]) for image in listed["images"]}
    rows = [(sizes[one["image_id"]], one["caption"]) for one in listed["annotations"]]
    keys = [shape_key([Image.new("1", size)], caption) for size, caption in rows]
    scales = [min(384 / min(size), 639 / max(size)) for size, _ in rows]
    shapes = [[int(side * scale + 0.5) // 32 for side in size] for (size, _), scale in zip(rows, scales, strict=True)]

    def computed_over_real(order: list[int], size: int) -> float:
        batches = [np.array([shapes[row] for row in order[at : at + size]]) for at in range(0, len(order), size)]
        computed = sum(len(batch) * batch.max(0).prod() for batch in batches)
        return round(float(computed / sum(batch.prod(1).sum() for batch in batches)), 4)

    def streamed(order: list[int], size: int) -> list[int]:
        blocks = (order[at : at + 1_000 - 1_000 % size] for at in range(0, len(order), 1_000 - 1_000 % size))
        return [
            block[row] for block in blocks for row in ShapeGroupedSampler([keys[row] for row in block], size, seed=0)
        ]

    found = {}
    for size in (4, 16, 64):
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
        orders = {
            "random": drawn,
            "a stream, grouped within 1,000": streamed(drawn, size),
            "training, grouped": list(ShapeGroupedSampler(keys, size, seed=0)),
            "as they stand": list(range(len(rows))),
            "evaluation, grouped": grouped_order(keys, len(rows)),
        }
        found[size] = {name: computed_over_real(order, size) for name, order in orders.items()}
        print(size, found[size], flush=True)
    batch = processor().pad_images([[torch.zeros(3, 384, 512)]])
    share = batch["pixel_mask"].nbytes / batch["pixel_values"].nbytes
    return {"computed_over_real": found, "mask_bytes_over_pixels": round(share, 4)}


def processor(**options: Any) -> DualDistillProcessor:
    """ViLT's image processor and any tokenizer."""
    return DualDistillProcessor(ViltImageProcessorPil(), train_tokenizer(["what is it?"]), **options)


def photograph() -> dict[str, Any]:
    """One photograph of 640 x 480, from bytes to pixels; one of 3,840 x 2,880 made of it, whole and shrunk."""
    column = pq.read_table(DATA / "coco_mini_ccby" / "images.parquet").column("image").to_pylist()
    small = next(one for one in column if Image.open(io.BytesIO(one)).size == (640, 480))
    large = io.BytesIO()
    Image.open(io.BytesIO(small)).resize((3840, 2880), Image.Resampling.BICUBIC).save(large, "JPEG", quality=92)
    ours = {margin: processor(jpeg_margin=margin) for margin in (None, 1, 2)}

    def prepared(content: bytes, margin: float | None = None) -> torch.Tensor:
        image = decode_image(content, 0, jpeg_size=ours[margin].jpeg_size)
        return ours[margin].prepare_image(image)

    def of_transformers() -> torch.Tensor:
        return ours[None].image_processor(decode_image(small, 0), return_tensors="pt")["pixel_values"][0]

    def decoded_and_resized() -> torch.Tensor:
        image = Image.open(io.BytesIO(small))
        image.load()
        array = np.array(image.resize((512, 384), Image.Resampling.BICUBIC))
        return torch.from_numpy(array).permute(2, 0, 1).float().contiguous().mul_(2 / 255).sub_(1)

    calls = {
        "floor: decode, resize, normalise": decoded_and_resized,
        "ours": lambda: prepared(small),
        "transformers' processor": of_transformers,
    }
    found = {"640 x 480": compared(calls, "floor: decode, resize, normalise", 25)}
    found["bit_equal"] = bool(torch.equal(prepared(small), of_transformers()))
    sides = {f"jpeg_margin={margin}": lambda margin=margin: prepared(large.getvalue(), margin) for margin in ours}
    found["3840 x 2880"] = compared(sides, "jpeg_margin=None", 7)
    whole = prepared(large.getvalue())
    for margin in (1, 2):
        levels = (prepared(large.getvalue(), margin) - whole).abs() * 127.5
        found[f"levels_of_255_by_margin_{margin}"] = {
            "largest": round(levels.max().item(), 2),
            "mean": round(levels.mean().item(), 3),
        }
    print(found, flush=True)
    return found


def checkpoint() -> dict[str, Any]:
    """A sealed ViLT-B/32 with answers: `load_model` against `from_pretrained` of the weights alone."""
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = str(Path(folder, "home"))
        path = Path(folder, "model")
        torch.manual_seed(0)
        FusionEncoderForQuestionAnswering(FusionEncoderConfig(num_labels=3129)).save_pretrained(path)
        processor().save_pretrained(path)
        plain = FusionEncoderForQuestionAnswering.from_pretrained.__func__.__wrapped__
        unsealed = {"from_pretrained, nothing verified": lambda: plain(FusionEncoderForQuestionAnswering, path)}
        sealed.seal(path)
        model = load_model(path).model
        calls = unsealed | {
            "from_pretrained": lambda: FusionEncoderForQuestionAnswering.from_pretrained(path),
            "load_model, with its processor": lambda: load_model(path),
            "the model's digest": lambda: fingerprint(model),
        }
        found = compared(calls, next(iter(unsealed)))
        return {"megabytes": round((path / "model.safetensors").stat().st_size / 1e6, 1), **found}


def vqa_scores() -> dict[str, Any]:
    """20,000 questions with ten people's answers: again, for the first time, and normalising every answer anew."""
    rng = random.Random(0)
    words = [f"{number} {thing}" for number in ("the", "two", "a") for thing in ("dogs", "p.m.", "hot-dog", "cats")]
    usual = rng.choices(words, k=20_000)
    people = [[one if rng.random() < 0.7 else rng.choice(words) for _ in range(10)] for one in usual]

    def score(forget: bool = False) -> list[float]:
        if forget:
            answers._people.cache_clear()
        return [vqa_score(*row) for row in zip(usual, people, strict=True)]

    return compared({"for the first time": lambda: score(forget=True), "again": score}, "for the first time")


def readers() -> dict[str, Any]:
    """Peak memory of readers, over what is there once they are imported, by that of `json.loads` of the same files."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        for name, (code, files) in READ.items():
            imported, called = code.format(folder).split(";", 1)
            loaded = f"kept = [json.loads(open({folder!r} + '/' + file, 'rb').read()) for file in {files!r}]"
            peaks = {"ours": peak(imported, called), "json.loads": peak(imported, loaded)}
            found[name] = {**peaks, "ratio": round(peaks["ours"] / peaks["json.loads"], 3)}
            print(name, found[name], flush=True)
    return {"questions": QUESTIONS, "peak_mb_over_imports": found}


def peak(imported: str, called: str) -> float:
    """Megabytes that a call takes at most, beyond those of a small data set and the imports."""
    warm = "from datasets import Dataset; Dataset.from_dict({'a': [1]}).select([0])"
    # Of this program: the figure of `resource` begins with that of the process that started it.
    rest = "int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1e3"
    code = f"import json; {imported}; {warm}; before = {rest}; {called}; print({rest} - before)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return round(float(done.stdout.split()[-1]), 1)


def write_files(folder: Path) -> None:
    """Files of VQA v2's and Karpathy's layout, with empty files for images."""
    rng = random.Random(0)
    words = [f"word{number}" for number in range(2_000)]
    names = [f"COCO_train2014_{number:012}.jpg" for number in range(QUESTIONS // 5)]
    questions, annotations, images = [], [], []
    for number in range(QUESTIONS):
        ids = {"image_id": number // 5, "question_id": number}
        questions.append(ids | {"question": " ".join(rng.choices(words, k=7)) + "?"})
        said = [{"answer": rng.choice(words), "answer_confidence": "yes", "answer_id": person} for person in range(10)]
        kinds = {"question_type": "what is", "answer_type": "other", "multiple_choice_answer": rng.choice(words)}
        annotations.append(ids | kinds | {"answers": said})
    for number, name in enumerate(names):
        texts = [rng.choices(words, k=10) for _ in range(5)]
        raw = [{"tokens": one, "raw": " ".join(one) + ".", "imgid": number} for one in texts]
        sentences = [one | {"sentid": number * 5 + place} for place, one in enumerate(raw)]
        split = "train" if number % 10 else "test"
        images.append({"filename": name, "imgid": number, "split": split, "sentences": sentences, "cocoid": number})
        (folder / name).touch()
    documents = {
        "v2_OpenEnded_mscoco_train2014_questions.json": {"data_subtype": "train2014", "questions": questions},
        "v2_mscoco_train2014_annotations.json": {"annotations": annotations},
        "dataset_coco.json": {"images": images},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))


def tar() -> dict[str, Any]:
    """4,000 samples of a tar shard, undecoded: our stream, webdataset and tarfile alone, in order and shuffled."""
    import webdataset  # not one of ours: its peer

    encoded = io.BytesIO()
    Image.effect_noise((256, 256), 60).convert("RGB").save(encoded, "JPEG")
    parts = {"jpg": encoded.getvalue(), "txt": b"a photo of a dog on the grass", "json": b'{"url": "http://x"}'}
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "0.tar"))
        with tarfile.open(file, "w") as archive:
            for number, (extension, content) in itertools.product(range(4_000), parts.items()):
                member = tarfile.TarInfo(f"{number:09}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

        def members() -> None:
            with Path(file).open("rb") as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
                for member in archive:
                    archive.extractfile(member).read()

        def ours(buffer: int) -> None:
            source = {"path": file, "kind": "webdataset"}
            assert sum(1 for _ in ImageTextStream(source, repeat=False, shuffle_buffer=buffer)) == 4_000

        def theirs(buffer: int) -> None:
            rows = webdataset.WebDataset("file:" + file, shardshuffle=False)
            rows = rows.shuffle(buffer, initial=buffer) if buffer else rows
            assert sum(1 for _ in rows.to_tuple("jpg", "txt")) == 4_000

        in_order = {"webdataset": lambda: theirs(0), "ours": lambda: ours(0), "tarfile alone": members}
        shuffled = {"webdataset": lambda: theirs(1000), "ours": lambda: ours(1000)}
        return {
            "in order": compared(in_order, "webdataset", 11),
            "shuffled by 1,000": compared(shuffled, "webdataset", 11),
        }


PARTS = {
    "padding": padding,
    "photograph": photograph,
    "checkpoint": checkpoint,
    "vqa_score": vqa_scores,
    "readers": readers,
    "tar": tar,
}


def main() -> None:
    """Measure the parts that are asked for, and record each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", default=[*PARTS], help="which (default: all)")
    for name in parser.parse_args().parts:
        source = provenance()
        write(f"data_work_{name}", PARTS[name](), source)


if __name__ == "__main__":
    main()
