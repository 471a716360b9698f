"""Recipes of DistillVLM through the command: detectors, starts from BERTs, teacher, adaptation, student.

The recipes name one another (`init_from`, `teacher`, `regions`), and are followed here: a name that is not there fails.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForVisualQuestionAnswering,
    BertConfig,
    BertForPreTraining,
    BertModel,
    BertTokenizer,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    ResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
    pipeline,
)
from worlds.scene_regions import scene_region_store, train_scene_backbone
from worlds.write import write_captions

from dual_distill.cli.recipe_parser import read_recipe
from dual_distill.data import generate_scenes
from dual_distill.modeling import FusionEncoderForCaptioning
from dual_distill.regions import RegionStore

RECIPES = Path(__file__).parents[2] / "recipes"
ROLES = ("teacher", "adapted", "hard_labels", "distilled")
NAMES = [
    *(
        f"{recipe}/{role}"
        for recipe in ("scenes_regions", "scene_captioning_regions", "vqa_v2_regions", "coco_captions")
        for role in ROLES
    ),
    "coco_captions/self_critical",
    "coco_captions/patches",
]
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
        "a",
        ".",
    ),
    *("there", "show", "cat", "dog", "cup"),
)
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "cup"}, "label2id": {"cat": 0, "dog": 1, "cup": 2}}
SCENES = {"num_scenes": {"train": 12, "validation": 4, "test": 4}}
TERMS = ("attention_loss", "hidden_loss", "soft_label_loss")


def with_noise(model):
    """Unlike fresh weights: every query of a detector would else find the same box, every word be as likely."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save_detr(folder: Path, short_side: int = 32) -> str:
    resnet = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 12, 24], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    small = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    width = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    torch.manual_seed(1)
    config = DetrConfig(backbone_config=resnet, num_queries=14, **small, **width, **LABELS)
    with_noise(DetrForObjectDetection(config)).save_pretrained(folder)
    DetrImageProcessorPil(size={"shortest_edge": short_side, "longest_edge": 2 * short_side}).save_pretrained(folder)
    return str(folder)


def save_yolos(folder: Path) -> str:
    torch.manual_seed(2)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = YolosConfig(**shape, image_size=[32, 48], patch_size=16, num_detection_tokens=12, **LABELS)
    with_noise(YolosForObjectDetection(config)).save_pretrained(folder)
    YolosImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(folder)
    return str(folder)


def save_bert(folder: Path, cls: type, hidden_size: int) -> str:
    torch.manual_seed(3)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "max_position_embeddings": 80}
    with_noise(cls(BertConfig(vocab_size=len(WORDS), hidden_size=hidden_size, **shape))).save_pretrained(folder)
    BertTokenizer({word: index for index, word in enumerate(WORDS)}).save_pretrained(folder)
    return str(folder)


def write_karpathy(folder: Path) -> None:
    images = []
    for number, split in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4):
        name = f"COCO_{number:012}.jpg"
        (folder / "val2014").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (15 * number, 90, 255 - 7 * number)).save(folder / "val2014" / name)
        colour = "red" if number % 2 else "blue"
        sentences = [
            {"raw": f"{words} {colour} shape.", "sentid": 2 * number + turn}
            for turn, words in enumerate(("there is a", "the"))
        ]
        listed = {"filepath": "val2014", "filename": name, "imgid": number, "cocoid": 500 + number}
        images.append({**listed, "split": split, "sentences": sentences})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))


@pytest.fixture(scope="module")
def photos(write_official: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VQA v2 and COCO's captions in their official files, below one folder."""
    root = tmp_path_factory.mktemp("photos")
    write_official["vqa"](root / "vqa")
    write_karpathy(root / "coco")
    return root


@pytest.fixture(scope="module")
def stores(photos: Path, dual_distill: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Region stores by the names that the recipes have for them, of photographs and of scenes."""
    root = tmp_path_factory.mktemp("stores")
    light, heavy = save_yolos(root / "yolos"), save_detr(root / "detr")
    found = {}
    for name, detector, boxes in (("light", light, None), ("heavy", heavy, None), ("adapted", heavy, "light")):
        words = ["regions", detector, "--images", photos, "--output-dir", root / name, "--threads", "1", "--json"]
        printed = dual_distill(*words, *([] if boxes is None else ["--boxes", root / boxes]))
        assert printed.code == 0, printed.err
        assert (json.loads(printed.out)["images"], json.loads(printed.out)["unreadable"]) == (69, {})
        found[name] = str(root / name)
    scenes = generate_scenes(SCENES["num_scenes"])
    small, wide = (train_scene_backbone(scenes["train"], width=width, steps=2) for width in (4, 6))
    boxes = scene_region_store(scenes, small, root / "scenes_light", jitter_px=2, miss_rate=0.05, shuffled=True)
    scene_region_store(scenes, wide, root / "scenes_own")
    scene_region_store(scenes, wide, root / "scenes_adapted", boxes=boxes)
    write_captions(root / "captions", SCENES["num_scenes"])
    of_scenes = {name: str(root / f"scenes_{name}") for name in ("own", "light", "adapted")}
    return {"photos": found, "scenes": of_scenes, "captions": str(root / "captions")}


@pytest.fixture(scope="module")
def starts(stores: dict, dual_distill: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `convert` makes of a BERT with a masked-word head and of a narrower one without."""
    root = tmp_path_factory.mktemp("starts")
    found = {}
    for name, cls, width, store in (("bert", BertForPreTraining, 24, "heavy"), ("minilm", BertModel, 16, "light")):
        source = save_bert(root / "source" / name, cls, width)
        words = ["convert", source, "--output-dir", root / name, "--regions", stores["photos"][store]]
        words += ["--head", "captioning", "--json"]
        printed = dual_distill(*words)
        assert printed.code == 0, printed.err
        assert any(part.startswith("mlm_score.") for part in json.loads(printed.out)["new"]) == (name == "minilm")
        found[name] = str(root / name)
    return found


@pytest.fixture(scope="module")
def words_of(
    photos: Path,
    stores: dict,
    starts: dict,
    vilts: dict,
    tiny_training: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable:
    """The words after `dual-distill train` for a recipe, whose names of stores and runs are followed."""
    root = tmp_path_factory.mktemp("runs")

    def start(name: str, trained: Callable) -> str:
        name = name.removeprefix("runs/")
        folder, _, last = name.rpartition("/")
        if folder == "dandelin":
            return vilts["mlm"]
        return starts[last] if folder == "starts" else trained(name)[0]

    def words(name: str, trained: Callable) -> list[str]:
        recipe, role = name.split("/")
        fields = read_recipe(RECIPES / f"{recipe}.yaml", role)
        assert fields["output_dir"] == f"runs/{name}"
        found = [str(RECIPES / f"{recipe}.yaml"), "--role", role, "--output_dir", str(root / name), *tiny_training]
        for field in ("init_from", "teacher"):
            if field in fields:
                found += [f"--{field}", start(fields[field], trained)]
        of_scenes = name.startswith("scene")
        for field in ("regions", "teacher_regions"):
            if field in fields:
                found += [f"--{field}", stores["scenes" if of_scenes else "photos"][Path(fields[field]).name]]
        if name.startswith("scenes"):
            return [*found, "--data_options", json.dumps(SCENES)]
        if of_scenes:
            return [*found, "--data", stores["captions"]]
        if fields["task"] == "vqa":
            return [*found, "--data", str(photos / "vqa"), "--data_options", json.dumps({"validation_rows": 20})]
        return [*found, "--data", str(photos / "coco")]

    return words


@pytest.fixture(scope="module")
def trained(words_of: Callable, dual_distill: Callable) -> Callable[[str], tuple[str, dict]]:
    """The folder and the printed results of a recipe, which is run once."""
    done: dict[str, tuple[str, dict]] = {}

    def run(name: str) -> tuple[str, dict]:
        if name not in done:
            printed = dual_distill("train", *words_of(name, run), "--json", "--debug")
            assert printed.code == 0, printed.err
            results = json.loads(printed.out)
            done[name] = results["output_dir"], results
        return done[name]

    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_and_its_model_loads(name: str, trained: Callable, stores: dict) -> None:
    folder, results = trained(name)
    assert results["steps"] == 2
    assert all(value == value for value in results.values())  # no NaN
    is_distilled = name.endswith("distilled")
    assert all((f"eval_{term}" in results) == is_distilled for term in TERMS)
    assert not is_distilled or all(results[f"eval_{term}"] > 0 for term in TERMS)
    is_writing = "caption" in name
    if name.endswith("self_critical"):
        assert "eval_loss" not in results
    else:
        metric = "eval_soft_accuracy" if name.startswith("vqa") else "eval_accuracy"
        assert results["eval_loss"] > 0
        assert is_writing or 0 <= results[metric] <= 1
    auto = FusionEncoderForCaptioning if is_writing else AutoModelForVisualQuestionAnswering
    model, loading = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    saved = load_file(Path(folder, "model.safetensors"))
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in saved.items())
    if name == "coco_captions/patches":
        assert model.config.visual_inputs == "patches"
        return
    own, photos = ("own", "scenes") if name.startswith("scene") else ("heavy", "photos")
    boxes = RegionStore(stores[photos][own if name.endswith("teacher") else "light"])
    features = RegionStore(stores[photos]["adapted" if name.endswith(("teacher", "adapted")) else "light"])
    assert (model.config.region_boxes_id, model.config.region_features_id) == (boxes.boxes_id, features.features_id)
    recorded = json.loads(Path(folder, "run.json").read_text())["settings"]["regions"]
    assert recorded == f"boxes: {boxes.boxes_id}; features: {features.features_id}"
    assert model.config.region_feature_size == features.feature_size


def test_questions_over_regions_are_evaluated_and_asked(
    trained: Callable, photos: Path, stores: dict, dual_distill: Callable, tmp_path: Path
) -> None:
    """By hand: eight of ten people agree, so an answer scores 1 or, unless teal, 0; `predict` answers as `evaluate`."""
    folder, _ = trained("vqa_v2_regions/distilled")
    words = ["evaluate", folder, "--task", "vqa", "--data", photos / "vqa", "--data-options", '{"validation_rows": 20}']
    words += ["--split", "validation", "--device", "cpu", "--json", "--submission", tmp_path / "answers.json"]
    printed = dual_distill(*words, "--regions", stores["photos"]["light"])
    assert printed.code == 0, printed.err
    report = json.loads(printed.out)
    answers = {row["question_id"]: row["answer"] for row in json.loads((tmp_path / "answers.json").read_text())}
    people = json.loads((photos / "vqa" / "v2_mscoco_val2014_annotations.json").read_text())["annotations"]
    right = [answers[entry["question_id"]] == entry["multiple_choice_answer"] for entry in people]
    assert report["vqa_score"] == report["accuracy"] == pytest.approx(sum(right) / 20)
    pictures = sorted((photos / "vqa" / "val2014").glob("*.jpg"))[:2]
    asked = [
        "predict",
        folder,
        *(word for file in pictures for word in ("--image", file)),
        "is it red?",
        "--device",
        "cpu",
    ]
    printed = dual_distill(*asked, "--regions", stores["photos"]["light"], "--json")
    assert printed.code == 0, printed.err
    found = [one["answers"][0]["answer"] for one in json.loads(printed.out)["predictions"]]
    assert found == [answers[10 * int(file.stem[-12:]) + 1] for file in pictures]
    answer = pipeline("dual-visual-question-answering", model=folder, regions=RegionStore(stores["photos"]["light"]))
    assert answer(str(pictures[0]), "is it red?", top_k=1)[0]["answer"] == found[0]
    for more, message in (
        ([], "reads regions (boxes: detector"),
        (["--regions", stores["photos"]["heavy"]], "was trained on boxes of detector"),
        (
            ["--regions", stores["photos"]["light"], "--num-beams", "2"],
            "answers questions and writes nothing; leave it out",
        ),
    ):
        printed = dual_distill(*asked, *more)
        assert (printed.code, message in printed.err) == (2, True), printed.err
    stranger = tmp_path / "stranger.png"
    Image.new("RGB", (40, 32), "green").save(stranger)
    printed = dual_distill("predict", folder, "--image", stranger, "is it?", "--regions", stores["photos"]["light"])
    assert (printed.code, "make the regions of all images of the data" in printed.err) == (2, True), printed.err


@pytest.mark.parametrize("name", ["coco_captions/distilled", "coco_captions/patches"])
def test_captions_are_written_scored_and_sent_in(
    name: str, trained: Callable, photos: Path, stores: dict, dual_distill: Callable, tmp_path: Path
) -> None:
    folder, _ = trained(name)
    regions = [] if name.endswith("patches") else ["--regions", stores["photos"]["light"]]
    words = [
        "evaluate",
        folder,
        "--task",
        "coco_captioning",
        "--data",
        photos / "coco",
        *regions,
        "--json",
        "--device",
        "cpu",
    ]
    pictures = sorted((photos / "coco" / "val2014").glob("*.jpg"))[-4:]
    for beams in ("1", "5"):
        files = ["--submission", tmp_path / "captions.json", "--predictions", tmp_path / "rows.jsonl"]
        printed = dual_distill(*words, "--num-beams", beams, *files)
        assert printed.code == 0, printed.err
        report = json.loads(printed.out)
        assert (report["images"], report["captions"]) == (4, 8)
        assert report["cider"] >= 0
        assert 0 <= report["bleu_4"] <= 1
        sent = json.loads((tmp_path / "captions.json").read_text())
        assert [row["image_id"] for row in sent] == [512, 513, 514, 515]
        lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        assert [{"image_id": row["image_id"], "caption": row["prediction"]} for row in lines] == sent
        assert [len(row["references"]) for row in lines] == [2, 2, 2, 2]
        asked = [
            "predict",
            folder,
            *(word for file in pictures for word in ("--image", file)),
            *regions,
            "--device",
            "cpu",
        ]
        printed = dual_distill(*asked, "--num-beams", beams, "--json")
        assert printed.code == 0, printed.err
        assert [one["caption"] for one in json.loads(printed.out)["predictions"]] == [row["caption"] for row in sent]
    shown = dual_distill(*asked, "--num-beams", "5").out.splitlines()
    assert shown == [f"{file}: {row['caption']}" for file, row in zip(pictures, sent, strict=True)]
    printed = dual_distill(*asked, "what is it?")
    assert (printed.code, "writes captions and answers nothing; leave 'what is it?' out" in printed.err) == (2, True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"teacher": "vqa_v2_regions/teacher"},
            "adapt the teacher: train it on its own features at the student's boxes",
        ),
        ({"teacher_regions": "heavy"}, "region i must be one box on both sides; make the teacher's features at"),
        ({"regions": "heavy"}, "the model reads region features 16 wide, but those of"),
    ],
)
def test_a_pair_whose_boxes_do_not_correspond_is_refused(
    changed: dict,
    message: str,
    words_of: Callable,
    trained: Callable,
    stores: dict,
    dual_distill: Callable,
    tmp_path: Path,
) -> None:
    words = [*words_of("vqa_v2_regions/distilled", trained), "--output_dir", tmp_path / "never"]
    for field, value in changed.items():
        words += [f"--{field}", trained(value)[0] if field == "teacher" else stores["photos"][value]]
    printed = dual_distill("train", *words, "--dry-run")
    assert (printed.code, message in printed.err) == (2, True), printed.err
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("name", ["vqa_v2_regions/distilled", "coco_captions/distilled"])
def test_dry_runs_say_what_the_run_does(
    name: str, words_of: Callable, trained: Callable, dual_distill: Callable
) -> None:
    printed = dual_distill("train", *words_of(name, trained), "--dry-run", "--json")
    assert printed.code == 0, printed.err
    plan = json.loads(printed.out)
    assert (plan["steps"], plan["rows_per_step"]) == (2, 4)
    assert plan["student"] == plan["teacher"]
    assert plan["teacher_parameters"] > plan["student_parameters"]
    assert plan["memory_bytes"]["activations"] > 0


@pytest.mark.parametrize(
    "name", ["coco_captions/distilled", pytest.param("coco_captions/self_critical", marks=pytest.mark.slow)]
)
def test_half_precision_and_processes_that_load(
    name: str, words_of: Callable, trained: Callable, dual_distill: Callable, tmp_path: Path
) -> None:
    """As the recipes have it; a store is opened again in each process."""
    words = [
        *words_of(name, trained),
        "--output_dir",
        tmp_path / "out",
        "--bf16",
        "true",
        "--dataloader_num_workers",
        "1",
    ]
    printed = dual_distill("train", *words, "--dataloader_persistent_workers", "true", "--json", "--debug")
    assert printed.code == 0, printed.err
    assert all(weight.isfinite().all() for weight in load_file(tmp_path / "out" / "model.safetensors").values())


def test_photographs_from_detector_to_scores(dual_distill: Callable, tmp_path: Path) -> None:
    """Format and plumbing, not quality: a random detector of a real class, a tiny model, real pictures and captions."""
    root = Path(os.environ.get("DUAL_DISTILL_DATA") or Path(__file__).parents[3] / "shared" / "data") / "coco_mini_ccby"
    if not (root / "images.parquet").is_file():
        pytest.skip(f"needs the photographs in {root} (set DUAL_DISTILL_DATA to the folder that holds coco_mini_ccby)")
    listed = {"train": [], "test": []}
    for entry in json.loads((root / "annotations" / "dataset_karpathy_format.json").read_text())["images"]:
        listed[entry["split"]].append(entry)
    held_out = [{**entry, "split": "val"} for entry in listed["train"][16:20]]
    kept = [*listed["train"][:16], *held_out, *listed["test"][:6]]
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "dataset_coco.json").write_text(json.dumps({"images": kept, "dataset": "coco"}))
    names = {entry["filename"]: entry["filepath"] for entry in kept}
    for row in pq.read_table(root / "images.parquet", columns=["image", "file_name"]).to_pylist():
        if row["file_name"] in names:
            (tmp_path / "coco" / names[row["file_name"]]).mkdir(exist_ok=True)
            (tmp_path / "coco" / names[row["file_name"]] / row["file_name"]).write_bytes(row["image"])
    store = ["--regions", tmp_path / "store"]
    printed = dual_distill(
        *(
            "regions",
            save_detr(tmp_path / "detr", short_side=128),
            "--images",
            tmp_path / "coco",
            "--output-dir",
            tmp_path / "store",
        ),
        *("--json", "--threads", "1"),
    )
    assert printed.code == 0, printed.err
    assert json.loads(printed.out)["images"] == 26
    data = ["--task", "coco_captioning", "--data", tmp_path / "coco", *store]
    shape = ["--hidden_size", "32", "--num_hidden_layers", "2", "--num_attention_heads", "4", "--norm_first", "false"]
    steps = [
        "--max_steps",
        "40",
        "--per_device_train_batch_size",
        "16",
        "--learning_rate",
        "0.003",
        "--use_cpu",
        "true",
    ]
    quiet = [
        "--save_strategy",
        "no",
        "--report_to",
        "none",
        "--disable_tqdm",
        "true",
        "--num_tags",
        "5",
        "--max_tag_length",
        "8",
    ]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{}")
    printed = dual_distill(
        *(
            "train",
            recipe,
            "--architecture",
            "fusion_encoder",
            *data,
            *shape,
            *steps,
            *quiet,
            "--output_dir",
            tmp_path / "run",
            "--json",
        )
    )
    assert printed.code == 0, printed.err
    pieces = json.loads((tmp_path / "run" / "config.json").read_text())["vocab_size"]
    assert json.loads(printed.out)["eval_loss"] < math.log(pieces)  # of words drawn evenly
    for beams in ("1", "5"):
        words = [
            "evaluate",
            tmp_path / "run",
            *data,
            "--num-beams",
            beams,
            "--num-tags",
            "5",
            "--device",
            "cpu",
            "--json",
        ]
        printed = dual_distill(*words)
        assert printed.code == 0, printed.err
        report = json.loads(printed.out)
        assert (report["images"], report["captions"]) == (
            6,
            sum(len(entry["sentences"]) for entry in listed["test"][:6]),
        )
        assert report["cider"] >= 0
        assert 0 < report["mean_words"] <= 20


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("/distilled")])
def test_a_resumed_run_is_the_whole_one(
    name: str, words_of: Callable, trained: Callable, check_resume: Callable
) -> None:
    check_resume(words_of(name, trained))
