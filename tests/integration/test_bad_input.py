"""Bad input as a user meets it: through the command, exit code 2, one sentence, nothing written; or it simply works.

What each reader refuses is tested beside it (tests/data, tests/teachers). Here every kind is tried once on the way in.
"""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE_OF = {"vqa": "vqa_v2", "nlvr2": "nlvr2", "snli_ve": "snli_ve", "custom": "custom"}
OPTIONS = {"vqa": ("--data_options", '{"validation_rows": 20}')}
QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"


def edit_json(file: Path, change: Callable[[dict], None]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def edit_first_line(file: Path, **fields: object) -> None:
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps({**json.loads(first), **fields}), *rest]) + "\n")


def png_that_declares(width: int, height: int) -> bytes:
    """A PNG whose header promises any number of pixels, and which holds none."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def first_picture(folder: Path) -> Path:
    return folder / "train2014" / "COCO_train2014_000000001000.jpg"


def narrow(folder: Path) -> None:
    Image.new("RGB", (1, 2_000)).save(first_picture(folder), "PNG")


def narrow_later(folder: Path) -> None:
    """Beyond the rows that are looked at before the first step."""
    Image.new("RGB", (1, 2_000)).save(folder / "train2014" / "COCO_train2014_000000001020.jpg", "PNG")


def vast(folder: Path) -> None:
    first_picture(folder).write_bytes(png_that_declares(30_000, 30_000))


def write_shop(folder: Path, *lines: str, split: str = "train", start: str = "", end: str = "\n") -> Path:
    """A custom CSV: the lines given, or the colour of ten pictures."""
    for colour in ("red", "blue"):
        for number in range(5):
            Image.new("RGB", (40, 32), colour).save(folder / f"{colour}{number}.png")
    rows = lines or [f"{colour}{number}.png,what is it?,{colour}" for number in range(5) for colour in ("red", "blue")]
    rows = ["image,question,answer", *rows]
    (folder / f"{split}.csv").write_bytes((start + end.join(rows) + end).encode())
    return folder


@pytest.fixture
def train(
    write_official: dict, vilts: dict, tiny_training: list[str], dual_distill: Callable, tmp_path: Path
) -> Callable[..., tuple[object, Path]]:
    """Spoils a copy of a data set and runs `train` on it; returns what was printed, and the output folder."""

    def run(task: str, spoil: Callable[[Path], object], *words: object) -> tuple[object, Path]:
        folder = tmp_path / task
        if not folder.exists():
            folder.mkdir()
            write_official.get(task, lambda path: path)(folder)
            spoil(folder)
        recipe, out = RECIPES / f"{RECIPE_OF[task]}.yaml", tmp_path / "out"
        shared = ["--data", folder, *OPTIONS.get(task, ()), "--init_from", vilts["mlm"], "--output_dir", out]
        return dual_distill("train", recipe, "--role", "teacher", *shared, *tiny_training, *words), out

    return run


def assert_refused(printed: object, sentence: str, out: Path | None = None, verb: str = "train") -> None:
    assert printed.code == 2, printed.err
    assert printed.out == ""
    assert "Traceback" not in printed.err
    last = printed.err.strip().splitlines()[-1]
    assert last.startswith(f"dual-distill {verb}: "), last
    assert sentence in last, last
    if out is not None:
        # The lock dies with its process, its empty file stays.
        assert not [file for file in out.rglob("*") if file.is_file() and file.name != ".lock"]


REFUSED = {
    "missing image": (
        "vqa",
        lambda folder: first_picture(folder).unlink(),
        f"{QUESTIONS}, question 1 (question_id 10000): the image is missing",
    ),
    "missing image, nlvr2": (
        "nlvr2",
        lambda folder: (folder / "images" / "dev" / "dev-0-0-img1.png").unlink(),
        "dev.json, line 1: the image is missing",
    ),
    "empty question": (
        "vqa",
        lambda folder: edit_json(folder / QUESTIONS, lambda d: d["questions"][2].update(question=" ")),
        f"{QUESTIONS}, question 3 (question_id 10010): question is empty (' ')",
    ),
    "image of 1 x 2,000 px": ("vqa", narrow, "the image of 1 x 2000 pixels cannot be resized"),
    "image of 30,000 x 30,000 px": ("vqa", vast, "its header declares"),
    "unknown label, nlvr2": (
        "nlvr2",
        lambda folder: edit_first_line(folder / "train.json", label="Maybe"),
        "train.json, line 1: label is 'Maybe', but expected is True, False",
    ),
    "unknown label, snli_ve": (
        "snli_ve",
        lambda folder: edit_first_line(folder / "snli_ve_train.jsonl", gold_label="perhaps"),
        "snli_ve_train.jsonl, line 1: gold_label is 'perhaps'",
    ),
    "duplicate id": (
        "vqa",
        lambda folder: edit_json(folder / QUESTIONS, lambda d: d["questions"].append(d["questions"][0])),
        f"{QUESTIONS}, question 83 (question_id 10000): question_id 10000 occurs twice",
    ),
    "duplicate id, nlvr2": (
        "nlvr2",
        lambda folder: edit_first_line(folder / "dev.json", identifier="dev-0-1-0"),
        "dev.json, line 2: identifier dev-0-1-0 occurs twice",
    ),
    "annotation without question": (
        "vqa",
        lambda folder: edit_json(folder / QUESTIONS, lambda d: d["questions"].pop()),
        f"{ANNOTATIONS}, annotation 82 (question_id 10401)",
    ),
    "question without annotation": (
        "vqa",
        lambda folder: edit_json(folder / ANNOTATIONS, lambda d: d["annotations"].pop()),
        f"{QUESTIONS}, question 82 (question_id 10401)",
    ),
    "an empty split": (
        "snli_ve",
        lambda folder: (folder / "snli_ve_dev.jsonl").write_text(""),
        "The split 'validation' of 'snli_ve' has no rows",
    ),
    "a line cut short": (
        "nlvr2",
        lambda folder: (folder / "train.json").write_text('{"sentence": "both'),
        "train.json, line 1: the line is not JSON",
    ),
    "a file that is missing": ("nlvr2", lambda folder: (folder / "dev.json").unlink(), "holds no dev.json"),
    "no answers as frequent as asked": (
        "custom",
        lambda folder: write_shop(folder, *(f"red{n}.png,what is it?,red {n}" for n in range(5))),
        "No answer in column 'answer' occurs 2 times or more",
    ),
    "a column that is not there": (
        "custom",
        lambda folder: write_shop(folder).joinpath("train.csv").write_text("image,text,answer\nred.png,what?,red\n"),
        "there is no column 'question'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_run_is_refused_in_one_sentence_and_writes_nothing(kind: str, train: Callable) -> None:
    task, spoil, sentence = REFUSED[kind]
    words = ("--min_answer_count", "2") if task == "custom" else ()
    for dry in ((), ("--dry-run",)):
        printed, out = train(task, spoil, *words, *dry)
        assert_refused(printed, sentence, out)


def test_a_run_without_rows_to_be_evaluated_on_is_refused(train: Callable) -> None:
    printed, out = train("vqa", lambda folder: None, "--data_options", '{"validation_rows": 0}')
    assert_refused(
        printed,
        "the split 'validation' is missing (there are train); a run needs rows to train on and to evaluate",
        out,
    )


def test_a_bad_picture_met_by_a_loading_process_is_one_sentence_too(train: Callable) -> None:
    """Torch hands on a worker's error with its traceback in the message."""
    printed, out = train("vqa", narrow_later, "--dataloader_num_workers", "1", "--max_steps", "21")
    assert_refused(printed, "the image of 1 x 2000 pixels cannot be resized", out)
    assert "Caught" not in printed.err
    assert len(printed.err.strip().splitlines()[-1]) < 500


def test_bad_rows_are_passed_over_and_listed_when_told_to(train: Callable) -> None:
    def spoil(folder: Path) -> None:
        first_picture(folder).unlink()
        edit_json(folder / QUESTIONS, lambda document: document["questions"][2].update(question=""))

    printed, out = train("vqa", spoil, "--skip_bad", "true", "--json")
    assert printed.code == 0, printed.err
    assert "skipped 2: missing image" in printed.err  # both questions about it
    assert "skipped 1: empty question" in printed.err
    assert (out / "model.safetensors").is_file()


def test_what_looks_odd_and_works(train: Callable) -> None:
    """A BOM, ten thousand words, grey with alpha, a palette, answers that are no class."""

    def spoil(folder: Path) -> None:
        def ask(document: dict) -> None:
            document["questions"][0]["question"] = "what color is the shape? " * 2_500

        edit_json(folder / QUESTIONS, ask)
        for name in (QUESTIONS, ANNOTATIONS):
            (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
        Image.new("LA", (40, 32), (200, 90)).save(first_picture(folder), "PNG")
        Image.new("P", (40, 32)).save(folder / "train2014" / "COCO_train2014_000000001001.jpg", "GIF")

    printed, _ = train("vqa", spoil, "--dry-run", "--json")
    assert printed.code == 0, printed.err
    plan = json.loads(printed.out)
    assert (plan["num_labels"], plan["label_coverage"]) == (
        4,
        pytest.approx(0.8),
    )  # Teal, said by two of ten, is no class
    whole_epoch = ("--max_steps", "-1", "--num_train_epochs", "1")
    printed, out = train("vqa", spoil, *whole_epoch, "--json")
    assert printed.code == 0, printed.err
    assert json.loads(printed.out)["steps"] == 21
    assert (out / "model.safetensors").is_file()


def test_bom_and_crlf_in_lines(train: Callable) -> None:
    def spoil(folder: Path) -> None:
        for file in folder.glob("*.json"):
            file.write_bytes(b"\xef\xbb\xbf" + file.read_text().replace("\n", "\r\n").encode())

    assert train("nlvr2", spoil, "--dry-run")[0].code == 0
    printed, _ = train("custom", lambda folder: write_shop(folder, start="\N{BOM}", end="\r\n"), "--dry-run", "--json")
    assert printed.code == 0, printed.err
    assert json.loads(printed.out)["num_labels"] == 2


@pytest.fixture(scope="module")
def shop_model(
    vilts: dict, tiny_training: list, dual_distill: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A teacher for the answers red and blue."""
    folder = tmp_path_factory.mktemp("shop")
    words = ["--data", write_shop(folder), "--init_from", vilts["mlm"], "--output_dir", folder / "model"]
    printed = dual_distill("train", RECIPES / "custom.yaml", "--role", "teacher", *words, *tiny_training)
    assert printed.code == 0, printed.err
    return folder / "model"


def test_answers_outside_the_vocabulary_count_as_wrong_and_are_counted(
    shop_model: Path, dual_distill: Callable, tmp_path: Path
) -> None:
    write_shop(tmp_path)
    write_shop(tmp_path, *["red0.png,what is it?,crimson"] * 3, "red0.png,what is it?,red", split="test")
    words = (
        "evaluate",
        shop_model,
        "--task",
        "custom",
        "--data",
        tmp_path,
        "--device",
        "cpu",
        "--no-baselines",
        "--json",
    )
    printed = dual_distill(*words)
    assert printed.code == 0, printed.err
    assert json.loads(printed.out)["accuracy"] in (0, 0.25)
    assert "taken 3: answer outside the 2 classes (test; it counts as wrong)" in printed.err


def test_data_for_another_model_is_refused(
    shop_model: Path, train: Callable, dual_distill: Callable, files: Callable, tmp_path: Path
) -> None:
    none_known = [f"red{number}.png,what is it?,cat" for number in range(5)]
    words = ("--init_from", shop_model, "--new_head", "false")
    printed, out = train("custom", lambda folder: write_shop(folder, *none_known), *words)
    assert_refused(printed, "none of the labels in column 'answer' is among the 2 that the head gives", out)
    printed = dual_distill(
        "evaluate", shop_model, "--task", "snli_ve", "--data", files("snli_ve"), "--output-dir", tmp_path / "r"
    )
    assert_refused(
        printed,
        "was saved as FusionEncoderForQuestionAnswering, not as FusionEncoderForImagesAndTextClassification",
        verb="evaluate",
    )
    assert not (tmp_path / "r").exists()


def test_odd_requests_to_a_model(shop_model: Path, dual_distill: Callable, tmp_path: Path) -> None:
    image = shop_model.parent / "red0.png"
    narrow_file, vast_file, grey = tmp_path / "narrow.png", tmp_path / "vast.png", tmp_path / "grey.png"
    Image.new("RGB", (1, 2_000)).save(narrow_file)
    vast_file.write_bytes(png_that_declares(30_000, 30_000))
    Image.new("LA", (40, 32), (200, 90)).save(grey)

    def ask(file: Path, question: str) -> object:
        return dual_distill("predict", shop_model, "--image", file, question, "--device", "cpu")

    for file, question, sentence in (
        (tmp_path / "nowhere.png", "what is it?", "nowhere.png'): the file cannot be read (No such file or directory)"),
        (image, "", "Question 0 of a request is ''"),
        (narrow_file, "what is it?", "the image of 1 x 2000 pixels cannot be resized"),
        (vast_file, "what is it?", "its header declares"),
    ):
        assert_refused(ask(file, question), sentence, verb="predict")
    for file, question in ((image, "what " * 10_000), (grey, "what is it?")):
        printed = ask(file, question)
        assert printed.code == 0, printed.err


def pickle_only(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return "has no model.safetensors but pytorch_model.bin, and pickles are never read"


def cut_short(folder: Path) -> str:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1_000])
    return "model.safetensors of"


def without_a_layer(folder: Path) -> str:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".layer.1." not in name}
    assert len(kept) < len(weights)
    save_file({**kept, "left.over": kept[next(iter(kept))].clone()}, folder / "model.safetensors")
    return 'Missing key(s) in state_dict: "fusion_encoder.encoder.layer.1.'


@pytest.mark.parametrize("spoil", [pickle_only, cut_short, without_a_layer])
def test_a_checkpoint_that_cannot_be_read_is_refused_everywhere(
    spoil: Callable[[Path], str], vilts: dict, train: Callable, dual_distill: Callable, files: Callable, tmp_path: Path
) -> None:
    folder = shutil.copytree(vilts["vqa"], tmp_path / "vilt")
    sentence = spoil(folder)
    for field in ("--init_from", "--teacher"):
        printed, out = train("custom", write_shop, field, folder)
        assert_refused(printed, sentence, out)
    image = next(files("vqa").glob("val2014/*.jpg"))
    for words in (
        ("convert", folder, "--output-dir", tmp_path / "converted"),
        ("predict", folder, "--image", image, "is it red?"),
        (
            "evaluate",
            folder,
            "--task",
            "vqa",
            "--data",
            files("vqa"),
            "--data-options",
            OPTIONS["vqa"][1],
            "--split",
            "validation",
        ),
    ):
        assert_refused(dual_distill(*words), sentence, verb=words[0])
    assert not (tmp_path / "converted").exists()


def test_teachers_and_students_that_do_not_fit(
    vilts: dict, save_vilt: Callable, train: Callable, tmp_path: Path
) -> None:
    """A ViLT whose answers are others than its teacher's, or fewer; found out by the dry run, without weights."""
    others = save_vilt(tmp_path / "others", "ViltForQuestionAnswering", labels=("no", "cat", "yes", "blue", "red"))
    fewer = save_vilt(tmp_path / "fewer", "ViltForQuestionAnswering", labels=("no", "yes"))
    for folder in (others, fewer):
        Path(folder, "model.safetensors").rename(tmp_path / f"{Path(folder).name}.safetensors")
    words = ("--architecture", "dual_encoder", "--init_from", vilts["vqa"], "--new_head", "false", "--dry-run")
    for teacher, sentence in (
        (
            others,
            "the teacher has answer 1 = 'cat', the student answer 1 = 'dog'; train the teacher on the student's "
            "answers",
        ),
        (fewer, "the teacher has 2 answers, the student 5; train the teacher on the student's answers"),
    ):
        printed, out = train("vqa", lambda folder: None, *words, "--teacher", teacher)
        assert_refused(printed, sentence, out)
    printed, out = train("vqa", lambda folder: None, *words, "--teacher", vilts["nlvr2"])
    assert_refused(
        printed, "was saved as ViltForImagesAndTextClassification, not as FusionEncoderForQuestionAnswering", out
    )


def test_words_of_a_recipe_are_checked(dual_distill: Callable, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    for line, sentence in (
        ("architecture: dual", "architecture is 'dual'; give one of fusion_encoder, dual_encoder."),
        ("augmentation: rand", "augmentation is 'rand'; give one of none, randaugment."),
        (
            "head: captions",
            "there is no head 'captions'; choose one of question_answering, images_and_text_classification, image_text",
        ),
    ):
        recipe.write_text(f"{line}\n")
        assert_refused(dual_distill("train", recipe, "--output_dir", tmp_path / "out"), sentence, tmp_path / "out")


def test_answers_are_spelled_as_those_of_the_checkpoint_that_is_started_from(shop_model: Path, train: Callable) -> None:
    """All would be no class of the head, and those of some rows alone would be left out without a word."""
    capital = [f"red{number}.png,what is it?,{('Red', 'BLUE')[number % 2]}" for number in range(5)]
    words = ("--init_from", shop_model, "--new_head", "false", "--dry-run", "--json")
    printed, _ = train("custom", lambda folder: write_shop(folder, *capital), *words)
    assert printed.code == 0, printed.err
    assert json.loads(printed.out)["label_coverage"] == 1


def test_a_field_of_the_run_is_no_option_of_the_reader(
    train: Callable, dual_distill: Callable, shop_model: Path, tmp_path: Path
) -> None:
    for option, value in {"label_column": "text", "min_answer_count": 2}.items():
        given = ("--data_options", json.dumps({option: value}))
        sentence = f"data_options name {option}, which is no option of the reader; give it beside them, or leave it out"
        printed, out = train("custom", write_shop, *given)
        assert_refused(printed, sentence, out)
    # Answers are the checkpoint's where it is evaluated.
    shop = ("--task", "custom", "--data", write_shop(tmp_path))
    printed = dual_distill("evaluate", shop_model, *shop, "--data-options", given[1])
    assert_refused(printed, f"{sentence} where there is no such option", verb="evaluate")
    printed, out = train("custom", write_shop, "--data_options", '{"validation_shar": 0.2}')
    assert_refused(printed, "has no option 'validation_shar'; did you mean 'validation_share'", out)


def test_label_names_among_the_readers_options_are_the_classes(train: Callable) -> None:
    """They were taken and changed nothing."""
    options = ("--data_options", '{"label_names": ["blue", "red", "green"]}')
    printed, _ = train("custom", write_shop, *options, "--dry-run", "--json")
    assert printed.code == 0, printed.err
    assert json.loads(printed.out)["num_labels"] == 3
