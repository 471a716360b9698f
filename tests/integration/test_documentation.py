"""Every code block of README.md and docs/*.md runs here, or stands in a table with the reason why not.

The blocks of a page run in order, in one folder and one namespace, as a reader would type them. In that folder lie tiny
checkpoints and data under the very names that the pages use (`world`), the names that a page takes for granted are in
its namespace (`GIVEN`), and what makes a block large is replaced (`REPLACED`, `ADDED`); all else is what the page says.
"""

import argparse
import csv
import io
import json
import re
import shlex
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image
from worlds.tiny_teachers import save_teacher
from worlds.tiny_towers import write_towers

from dual_distill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    DualEncoderForImageTextRetrieval,
    DualEncoderForQuestionAnswering,
    load_teacher,
)
from dual_distill.cli import COMMANDS
from dual_distill.cli.options import run_command as cli_command
from dual_distill.cli.recipe_parser import check_names, make_flag_parser, parse_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HELD_OUT = ["--data_options", '{"validation_images": 4}']  # easy-VQA: of a dozen images

# Text of a block -> what stands there instead, so that it is a matter of a second and needs no Hub.
REPLACED = {
    'num_scenes={"train": 1000, "validation": 50}': 'num_scenes={"train": 20, "validation": 2}',
    "max_steps=100, per_device_train_batch_size=64": 'max_steps=2, per_device_train_batch_size=8, report_to="none"',
    "batch_size=64, collator=collator, num_workers=4": "batch_size=2, collator=collator, num_workers=0",
    "    ...": "    break",  # the stream of pre-training has no end
    "trainer.push_to_hub()  # takes the same arguments": "",  # tests/hub/test_trainer_push.py
}
# A word of a command -> what is added to it.
ADDED = {
    "path/to/easy_vqa": HELD_OUT,
    "recipe.yaml": HELD_OUT,
    "towers.yaml": HELD_OUT,
    "encode": ["--num-workers", "0"],
}
# Another teacher than the run in the recipe's own folder had.
ADDED["dandelin/vilt-b32-finetuned-vqa@refs/pr/N"] = ["--output_dir", "runs/revision"]
# How a command begins -> why it is only read, by the parser of its subcommand, and where it is run.
PARSED = {
    "dual-distill demo": "serves until it is ended: tests/demo/test_browser.py",
    "dual-distill regions": "needs detectors: test_region_recipes.py",
    "dual-distill convert": "needs a BERT and a region store: test_region_recipes.py",
    "dual-distill train recipes/vqa_v2_regions.yaml": "test_region_recipes.py",
    "dual-distill evaluate runs/vqa_v2_regions/distilled": "test_region_recipes.py",
    "dual-distill predict runs/vqa_v2_regions/distilled": "test_region_recipes.py",
    "dual-distill train recipes/pretrain_scenes.yaml": "test_pair_recipes.py",
    "dual-distill train recipes/scenes.yaml": "test_pair_recipes.py",
    "dual-distill evaluate runs/retrieval_scenes/distilled": "test_pair_recipes.py",
    "dual-distill push runs/student me/my-student --private": "needs a Hub: tests/hub/test_push.py",
    "dual-distill push runs/student me/my-student --with-code": "needs a Hub: tests/hub/test_push.py",
    "accelerate launch": "starts processes: tests/inference/test_encoding.py",
    "torchrun": "starts processes: tests/inference/test_encoding.py",
}
# First line of a block, or how a command begins -> why it is neither run nor read.
NOT_RUN = {
    "pip install": "installs the package: .ci/release-check",
    "make": "the whole of it: its targets are compared with the Makefile's",
    "python benchmarks/worlds/write.py": "thousands of scenes: tests/worlds/test_write.py",
    "sed -i": "of files that are downloaded",
    "img2dataset": "downloads images",
    "from peft import": "needs peft: tests/hub/test_peft.py",
    "scores  =": "a formula",
    "loss = attention_weight": "a formula",
    "[CLS] text [SEP]": "what a model reads",
    "before the first step, of": "what a run printed: tests/trainer/test_preflight.py",
    "src/dual_distill/": "a tree: its folders are compared with the package's",
}


class Block(NamedTuple):
    """A fenced block: what its fence says of it, its text, and the line of the page where it starts."""

    language: str
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2].rstrip("\n"), text.count("\n", 0, match.start()) + 1) for match in found]


def commands_of(text: str) -> list[list[str]]:
    lines = (shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines())
    return [words for words in lines if words]


def beginning(text: str, table: dict[str, str]) -> str | None:
    return next((start for start in table if text.startswith(start)), None)


def write_tars(folder: Path, count: int) -> None:
    """Tar shards as img2dataset writes them, two images each."""
    folder.mkdir(parents=True)
    for shard in range(count):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as file:
            for number in range(2):
                image = io.BytesIO()
                Image.new("RGB", (40, 32), (60 * shard, 90 * number, 9)).save(image, "JPEG")
                for suffix, content in (("jpg", image.getvalue()), ("txt", f"the shape is {shard} {number}".encode())):
                    entry = tarfile.TarInfo(f"{shard:05}{number:04}.{suffix}")
                    entry.size = len(content)
                    file.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope="module")
def world(
    files: Callable, vilts: dict, picture: Callable, dual_distill: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder in which the names that the pages use exist, for something tiny."""
    root = tmp_path_factory.mktemp("world")
    for name, target in {
        "recipes": ROOT / "recipes",
        "path/to/easy_vqa": files("easy_vqa"),
        "dandelin/vilt-b32-mlm": vilts["mlm"],
        "dandelin/vilt-b32-finetuned-vqa@refs/pr/N": vilts["vqa"],
        "me/teacher": "../runs/teacher",
        "me/my-student": "../runs/student",
        "me/my-student@v1": "../runs/student",
        "runs/vqa_v2/distilled": "../student",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)

    save_teacher("smolvlm", root / "HuggingFaceTB/SmolVLM-256M-Instruct")
    teacher, processor = load_teacher(vilts["vqa"])
    pooled, interacting = (
        DualEncoderForImageTextRetrieval.from_fusion_encoder(teacher, interaction_layers=layers) for layers in (0, 1)
    )
    write_towers(root)
    named = {"runs/teacher": teacher, "runs/retrieval_scenes/distilled": pooled, "runs/retrieval": interacting}
    for name, model in named.items():
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)

    recipe = root / "fields.yaml"
    recipe.write_text("{}")
    few = ["--max_steps", "1", "--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true"]
    student = [
        "--architecture",
        "dual_encoder",
        "--init_from",
        root / "runs/teacher",
        "--teacher",
        root / "runs/teacher",
    ]
    data = ["--task", "easy_vqa", "--data", files("easy_vqa"), *HELD_OUT]
    printed = dual_distill("train", recipe, *student, *data, *few, "--output_dir", root / "runs/student")
    assert printed.code == 0, printed.err

    small = ["--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "4"]
    small += ["--intermediate_size", "16", "--image_height", "36", "--image_width", "36", "--patch_size", "12"]
    data = ["--task", "scenes", "--data_options", json.dumps({"num_scenes": {"train": 20, "validation": 2}})]
    words = ["--architecture", "fusion_encoder", *data, *small, "--resize", "fixed", *few]
    printed = dual_distill("train", recipe, *words, "--output_dir", root / "quickstart-default-seed0" / "teacher")
    assert printed.code == 0, printed.err

    shown = ("photo.png", "photo.jpg", "quickstart-default-seed0/example.png")
    for name in (*shown, "photos/2024/cat.jpg", "photos/2023/dog.jpg"):
        picture(root / name, "red" if "cat" in name else "blue")
    with (root / "shop.csv").open("w", newline="") as file:
        rows = [
            [f"photos/{name}", "what color is it?", answer]
            for name, answer in (("2024/cat.jpg", "red"), ("2023/dog.jpg", "blue"))
        ] * 10
        csv.writer(file).writerows([["photo", "question", "answer"], *rows])

    [recipe] = [block.text for block in blocks_of(ROOT / "docs" / "data.md") if block.language == "yaml"]
    (root / "recipe.yaml").write_text(recipe)
    [recipe] = [block.text for block in blocks_of(ROOT / "docs" / "towers.md") if block.language == "yaml"]
    (root / "towers.yaml").write_text(recipe)
    write_tars(root / "pairs" / "cc3m", 2)
    picture(root / "pairs" / "coco" / "val2014" / "1.jpg", "red")
    listed = {"filepath": "val2014", "filename": "1.jpg", "imgid": 1, "cocoid": 1, "split": "train"}
    listed["sentences"] = [{"raw": "a red shape.", "sentid": 1}]
    (root / "pairs" / "coco" / "dataset_coco.json").write_text(json.dumps({"images": [listed], "dataset": "coco"}))
    genome = {"id": 1, "regions": [{"phrase": "a red shape"}]}
    (root / "region_descriptions.json").write_text(json.dumps([genome]))
    (root / "image_data.json").write_text(json.dumps([{"image_id": 1, "url": "https://example.org/1.jpg"}]))
    return root


def given() -> dict[str, Any]:
    """The names that pages take for granted; called in the folder of `world`."""
    teacher, processor = load_teacher("runs/teacher")
    image, questions = Image.open("photo.png"), ["what color is it?", "is it red?"]
    batch = processor(text=questions, images=[image, image])
    rows = [{**{name: batch[name][row] for name in batch}, "labels": torch.tensor(row)} for row in range(2)]
    answer = teacher.config.id2label[0]
    dataset = Dataset.from_list([{"image": image, "question": asked, "answer": answer} for asked in questions])
    args = DistillationTrainingArguments("out", max_steps=1, report_to="none", use_cpu=True)
    student = DualEncoderForQuestionAnswering.from_fusion_encoder(teacher, interaction_layers=1)
    trainer = DistillationTrainer(
        DualEncoderForQuestionAnswering.from_pretrained("runs/student"),
        args,
        teacher=teacher,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=processor,
    )
    return {
        **{"teacher": teacher, "processor": processor, "student": student, "image": image, "questions": questions},
        **{"rows": rows, "args": args, "trainer": trainer, "rank": 0, "world_size": 1, "dataset": dataset},
    }


class Parsed(BaseException):
    """Raised in place of what follows the parsing of a command; no Exception, so that nothing takes it for one."""


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a command by the parser of its subcommand, and do nothing."""
    command, *words = words
    if command == "train":
        flags, words = make_flag_parser().parse_known_args(words)
        parse_recipe([*words, "--use_cpu", "true", "--bf16", "false"], flags.role)
        return

    def stopping(method: Callable) -> Callable:
        def parse_and_stop(*args: Any, **kwargs: Any) -> None:
            method(*args, **kwargs)
            raise Parsed

        return parse_and_stop

    with monkeypatch.context() as patched:
        for name in ("parse_args", "parse_intermixed_args"):
            patched.setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))
        with pytest.raises(Parsed):
            cli_command(command, words)


def run_command(
    words: list[str], monkeypatch: pytest.MonkeyPatch, dual_distill: Callable, tiny_training: list[str]
) -> None:
    line = shlex.join(words).replace("'", "")
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"make has no target {words[1]}"
        return
    if beginning(line, NOT_RUN):
        return
    if start := beginning(line, PARSED):
        marker = "dual-distill" if start.startswith("dual-distill") else "dual_distill"
        parse(words[words.index(marker) + 1 :], monkeypatch)
        return

    program, command, *rest = words
    assert program == "dual-distill", f"{line!r} is neither run nor in a table with its reason"
    assert command in COMMANDS
    added = [word for key, extra in ADDED.items() if key in words for word in extra]
    printed = dual_distill(command, *rest, *(tiny_training if command == "train" else []), *added)
    assert printed.code == 0, f"{line}: {printed.err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_or_are_listed(
    page: Path, world: Path, monkeypatch: pytest.MonkeyPatch, dual_distill: Callable, tiny_training: list[str]
) -> None:
    monkeypatch.chdir(world)
    blocks = blocks_of(page)
    names = given() if any(block.language == "python" for block in blocks) else {}
    for language, text, line in blocks:
        where = f"{page.name}, line {line}"
        if beginning(text, NOT_RUN) and language != "bash":
            continue
        if language == "python":
            for former, new in REPLACED.items():
                text = text.replace(former, new)
            exec(compile(text, where, "exec"), names)
        elif language == "bash":
            for words in commands_of(text):
                run_command(words, monkeypatch, dual_distill, tiny_training)
        elif language == "yaml":
            check_names(yaml.safe_load(text))
        else:
            pytest.fail(f"{where}: a block of {language or 'no language'} is neither run nor in NOT_RUN")


def test_every_block_is_fenced_and_every_entry_of_a_table_is_of_use() -> None:
    everything = "\n".join(block.text for page in PAGES for block in blocks_of(page))
    commands = {
        shlex.join(words).replace("'", "")
        for page in PAGES
        for block in blocks_of(page)
        if block.language == "bash"
        for words in commands_of(block.text)
    }
    for start in {**NOT_RUN, **PARSED}:
        assert start in everything or any(line.startswith(start) for line in commands), start
    for former in (*REPLACED, *ADDED):
        assert former in everything, former
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        assert "```" not in prose, page.name
        assert not re.search(r"^ {4,}\S", prose, re.MULTILINE), f"{page.name} has a block by indentation; fence it"


def test_the_tree_in_the_readme_is_the_package() -> None:
    [tree] = [block.text for block in blocks_of(ROOT / "README.md") if block.text.startswith("src/dual_distill/")]
    package = ROOT / "src" / "dual_distill"
    assert set(re.findall(r"^[├└]── (\w+)/", tree, re.MULTILINE)) == {
        file.parent.name for file in package.glob("*/__init__.py")
    }
    for name in re.findall(r"(\w+)/(?=  |$| \()", tree.partition("benchmarks/")[2]):
        assert (ROOT / name).is_dir(), name
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
