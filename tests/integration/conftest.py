"""What whole runs need: tiny data in the official formats, tiny random ViLTs of transformers' own classes, and the
command.

Everything is drawn once a session: pictures of a plain shape of 40 x 32 pixels (some upright), questions whose answers
are in the picture, and files named and laid out as the data sets have them.
"""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from transformers import BertTokenizer, PreTrainedModel, ViltConfig, ViltImageProcessorPil, ViltProcessor

from dual_distill.cli import main
from dual_distill.cli.recipe_parser import read_recipe

COLOURS = ("red", "blue")
WORDS = (
    *(
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "what",
        "color",
        "is",
        "the",
        "shape",
        "?",
        "it",
        "red",
        "blue",
        "teal",
    ),
    *("both", "images", "show", "a", ".", "there", "are", "two", "shapes"),
)
VILT = {
    "vocab_size": 64,
    "modality_type_vocab_size": 2,
    "max_position_embeddings": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 16,
}
# The same answers as the data, in another order and with one more, as a checkpoint from elsewhere has them.
VILT_ANSWERS = ("no", "dog", "yes", "blue", "red")


class Printed(NamedTuple):
    """What a command left: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


def draw(file: Path, colour: str, upright: bool = False) -> None:
    image = Image.new("RGB", (32, 40) if upright else (40, 32), "white")
    ImageDraw.Draw(image).ellipse((4, 4, 28, 28), fill=colour)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def png(colour: str, size: tuple[int, int] = (40, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_lines(file: Path, entries: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def write_vqa_part(folder: Path, part: str, number: int, colours: list[str], annotated: bool = True) -> None:
    """Two questions to each picture: its colour, and whether it is red; eight of ten people say what is there."""
    questions, annotations = [], []
    for place, colour in enumerate(colours):
        image_id = 1000 * number + place
        draw(folder / part / f"COCO_{part}_{image_id:012}.jpg", colour, upright=place % 4 == 0)
        answers = (
            ("what color is the shape?", colour, "other"),
            ("is it red?", "yes" if colour == "red" else "no", "yes/no"),
        )
        for turn, (question, answer, kind) in enumerate(answers):
            question_id = 10 * image_id + turn
            questions.append({"image_id": image_id, "question": question, "question_id": question_id})
            people = [answer] * 8 + ["Teal"] * 2
            annotations.append(
                {
                    "question_id": question_id,
                    "image_id": image_id,
                    "question_type": " ".join(question.split()[:2]),
                    "answer_type": kind,
                    "multiple_choice_answer": answer,
                    "answers": [{"answer": word, "answer_id": i + 1} for i, word in enumerate(people)],
                }
            )
    shared = {"info": {}, "data_type": "mscoco", "data_subtype": part}
    folder.joinpath(f"v2_OpenEnded_mscoco_{part}_questions.json").write_text(
        json.dumps({**shared, "questions": questions})
    )
    if annotated:
        folder.joinpath(f"v2_mscoco_{part}_annotations.json").write_text(
            json.dumps({**shared, "annotations": annotations})
        )


def write_vqa(folder: Path) -> Path:
    """VQA v2: 41 training pictures (one of them teal, which is too rare for a class), 10 of val, 2 of test."""
    folder.mkdir(parents=True, exist_ok=True)
    write_vqa_part(folder, "train2014", 1, [*COLOURS * 20, "teal"])
    write_vqa_part(folder, "val2014", 2, [*COLOURS * 5])
    write_vqa_part(folder, "test2015", 3, [*COLOURS], annotated=False)
    return folder


def write_nlvr2(folder: Path) -> Path:
    """NLVR2: each sentence is judged for two pairs; train's pictures in numbered directories."""
    for name, sets in (("train", 6), ("dev", 3), ("test1", 3)):
        entries = []
        for number in range(sets):
            for pair in range(2):
                colours = (COLOURS[number % 2], COLOURS[(number + pair) % 2])
                for side, colour in enumerate(colours):
                    place = folder / "images" / name / ("7" if name == "train" else "")
                    draw(place / f"{name}-{number}-{pair}-img{side}.png", colour, upright=side == 1)
                entries.append(
                    {
                        "sentence": f"both images show a {COLOURS[number % 2]} shape.",
                        "label": str(pair == 0),
                        "identifier": f"{name}-{number}-{pair}-0",
                        **({"directory": 7} if name == "train" else {}),
                    }
                )
        write_lines(folder / f"{name}.json", entries)
    return folder


def write_snli_ve(folder: Path) -> Path:
    """SNLI-VE: three sentences to each picture, and one pair without a majority."""
    for split, images in (("train", 6), ("dev", 3), ("test", 3)):
        entries = []
        for number in range(images):
            image_id, colour = f"{split}{number}", COLOURS[number % 2]
            draw(folder / "flickr30k-images" / f"{image_id}.jpg", colour)
            for label, sentence in (
                ("entailment", f"the shape is {colour}."),
                ("contradiction", "the shape is teal."),
                ("neutral", "there are two shapes."),
            ):
                pair = f"{image_id}.jpg#{len(entries)}"
                entries.append({"Flickr30K_ID": image_id, "gold_label": label, "sentence2": sentence, "pairID": pair})
        entries.append({**entries[0], "gold_label": "-", "pairID": "-"})
        write_lines(folder / f"snli_ve_{split}.jsonl", entries)
    return folder


def write_easy_vqa(folder: Path) -> Path:
    """easy-VQA: two Parquet files."""
    folder.mkdir(parents=True)
    rows = [(split, number) for split, count in (("train", 12), ("test", 4)) for number in range(count)]
    images = {
        "image": [png(COLOURS[number % 2]) for _, number in rows],
        "image_id": [number for _, number in rows],
        "split": [split for split, _ in rows],
    }
    questions = {
        "question": ["what color is the shape?" for _ in rows],
        "answer": [COLOURS[number % 2] for _, number in rows],
        "question_id": list(range(len(rows))),
    }
    pq.write_table(pa.table(images), folder / "images.parquet")
    pq.write_table(
        pa.table({**questions, "image_id": images["image_id"], "split": images["split"]}), folder / "questions.parquet"
    )
    return folder


def write_nlvr(folder: Path) -> Path:
    """NLVR v1: a Parquet file a split, six permutations an example."""
    folder.mkdir(parents=True)
    for split, examples in (("train", 4), ("dev", 1), ("test", 1)):
        rows = [(number, place) for number in range(examples) for place in range(6)]
        table = {
            "image": [png(COLOURS[number % 2], (80, 20)) for number, _ in rows],
            "sentence": [f"there is a {COLOURS[number // 2 % 2]} shape." for number, _ in rows],
            "label": [number % 2 == 0 for number, _ in rows],
            "identifier": [f"{number}-0" for number, _ in rows],
            "permutation": [place for _, place in rows],
            "directory": [number for number, _ in rows],
        }
        pq.write_table(pa.table(table), folder / f"{split}-0.parquet")
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a data set in its official format, by the name of its task."""
    root = tmp_path_factory.mktemp("official")
    writers = {
        "vqa": write_vqa,
        "nlvr2": write_nlvr2,
        "snli_ve": write_snli_ve,
        "easy_vqa": write_easy_vqa,
        "nlvr": write_nlvr,
    }
    return lambda task: root / task if (root / task).is_dir() else writers[task](root / task)


@pytest.fixture(scope="session")
def save_vilt() -> Callable[..., str]:
    """Saves a tiny ViLT of a class of transformers and its own processor, as they lie on the Hub."""

    def save(folder: Path, name: str, **fields: object) -> str:
        torch.manual_seed(0)
        if labels := fields.pop("labels", None):
            fields |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        model: PreTrainedModel = getattr(transformers, name)(ViltConfig(**{**VILT, **fields}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(folder)
        image_processor = ViltImageProcessorPil(
            size={"shortest_edge": 32}, size_divisor=16, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        ViltProcessor(image_processor, BertTokenizer({word: i for i, word in enumerate(WORDS)})).save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture(scope="session")
def vilts(save_vilt: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of the three ViLTs that the recipes name: mlm, vqa and nlvr2."""
    root = tmp_path_factory.mktemp("vilts")
    return {
        "mlm": save_vilt(root / "mlm", "ViltForMaskedLM"),
        "vqa": save_vilt(root / "vqa", "ViltForQuestionAnswering", labels=VILT_ANSWERS),
        "nlvr2": save_vilt(
            root / "nlvr2",
            "ViltForImagesAndTextClassification",
            labels=("False", "True"),
            num_images=2,
            modality_type_vocab_size=3,
        ),
    }


@pytest.fixture(scope="session")
def dual_distill() -> Callable[..., Printed]:
    """The command in this process: `dual_distill("train", ...)`."""

    def call(*words: object) -> Printed:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([str(word) for word in words])
            except SystemExit as stop:  # argparse's own refusals
                code = int(stop.code or 0)
        return Printed(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="session")
def tiny_training() -> list[str]:
    """What makes a recipe a matter of a second on a CPU."""
    return [
        *("--max_steps", "2", "--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "8"),
        *("--gradient_accumulation_steps", "1", "--dataloader_num_workers", "0"),
        *("--dataloader_persistent_workers", "false", "--bf16", "false", "--use_cpu", "true", "--disable_tqdm", "true"),
    ]


@pytest.fixture
def check_resume(dual_distill: Callable[..., Printed], tmp_path: Path) -> Callable[[list[str]], None]:
    """Runs a recipe for five steps, and again from its third, which lies inside an epoch: the weights are equal.

    Dropout, augmentation, and whether workers load and persist (two at most) are the recipe's own.
    """

    def check(words: list[str]) -> None:
        fields = read_recipe(Path(words[0]), words[words.index("--role") + 1])
        shared = [
            "--max_steps",
            5,
            "--per_device_train_batch_size",
            2,
            "--eval_strategy",
            "no",
            "--save_strategy",
            "steps",
        ]
        shared += ["--save_steps", 3, "--save_total_limit", 5, "--load_best_model_at_end", "false"]
        shared += ["--dataloader_num_workers", min(2, fields.get("dataloader_num_workers", 0))]
        shared += ["--dataloader_persistent_workers", fields.get("dataloader_persistent_workers", False)]
        whole, resumed = tmp_path / "whole", tmp_path / "resumed"
        printed = dual_distill("train", *words, *shared, "--output_dir", whole, "--debug")
        assert printed.code == 0, printed.err
        assert json.loads((whole / "checkpoint-3" / "trainer_state.json").read_text())["epoch"] % 1 != 0
        shutil.copytree(whole / "checkpoint-3", resumed / "checkpoint-3")
        printed = dual_distill("train", *words, *shared, "--output_dir", resumed, "--debug")
        assert printed.code == 0, printed.err
        third, one, other = (
            load_file(folder / "model.safetensors") for folder in (whole / "checkpoint-3", whole, resumed)
        )
        assert any(not torch.equal(third[name], weight) for name, weight in one.items())
        assert [name for name, weight in one.items() if not torch.equal(other[name], weight)] == []

    return check


@pytest.fixture(scope="session")
def write_official() -> dict[str, Callable[[Path], Path]]:
    """Writers of the official formats, for tests that spoil what they wrote."""
    return {"vqa": write_vqa, "nlvr2": write_nlvr2, "snli_ve": write_snli_ve}


@pytest.fixture(scope="session")
def picture() -> Callable[..., None]:
    """Draws a shape into a file: `picture(file, colour)`."""
    return draw
