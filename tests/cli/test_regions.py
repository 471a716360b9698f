"""`dual-distill regions`: a detector's regions, a teacher's features of the same boxes, published ones, photographs."""

import base64
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessorPil, ResNetConfig

from dual_distill.cli import main
from dual_distill.regions import RegionStore


def save_detector(folder, width, short_side=48):
    """A DETR with random weights."""
    resnet = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 12, width],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    config = DetrConfig(
        backbone_config=resnet,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=30,
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
    )
    model = DetrForObjectDetection(config)
    with torch.no_grad():
        for parameter in model.parameters():  # without it, every query would find the same box
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    DetrImageProcessorPil(size={"shortest_edge": short_side, "longest_edge": 2 * short_side}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def detector(tmp_path):
    return save_detector(tmp_path / "light", 16)


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (60, 50), (number, 90, 200)).save(tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no picture")
    return str(tmp_path / "pictures")


def printed(capsys):
    out = capsys.readouterr().out
    return json.loads(out.strip().splitlines()[-1])


def test_regions_and_the_teachers_features_of_the_same_boxes(detector, pictures, tmp_path, capsys) -> None:
    student, teacher = str(tmp_path / "student"), str(tmp_path / "teacher")
    command = [
        "regions",
        detector,
        "--images",
        pictures,
        "--output-dir",
        student,
        "--max-regions",
        "12",
        "--batch-size",
        "2",
    ]
    assert main(command) == 0
    said = capsys.readouterr()
    assert f"{student}: 3 images, 36 regions, 3 images added now, " in said.out
    assert f"boxes     detector {detector}, 10 to 12 boxes above 0.2 [" in said.out
    assert "1 cannot be read and are left out:\n  row broken.png (image " in said.out
    assert main([*command, "--json"]) == 0
    assert printed(capsys)["added"] == 0
    heavy = save_detector(tmp_path / "heavy", 24)
    assert main(["regions", heavy, "--images", pictures, "--output-dir", teacher, "--boxes", student, "--json"]) == 0
    report = printed(capsys)
    assert (report["images"], report["feature_size"], report["regions"]) == (3, 24, 36)
    assert report["boxes_id"] == RegionStore(student).boxes_id
    assert report["features_id"].startswith(f"backbone of {heavy}, mean of RoIAlign 7 x 7 [")
    ours, theirs = RegionStore(student).find("1.png"), RegionStore(teacher).find("1.png")
    assert torch.equal(ours.boxes_px, theirs.boxes_px)
    assert ours.tags == theirs.tags
    assert set(ours.tags) <= {"cat", "dog"}


def test_published_features(tmp_path, capsys) -> None:
    boxes, features = torch.tensor([[0.0, 0, 30, 25], [5, 5, 60, 50]]), torch.randn(2, 7)
    columns = ["7", "60", "50", "2", *(base64.b64encode(each.numpy().tobytes()).decode() for each in (boxes, features))]
    (tmp_path / "butd.tsv").write_text("\t".join(columns) + "\n")
    store = str(tmp_path / "store")
    assert (
        main(
            [
                "regions",
                "--tsv",
                str(tmp_path / "butd.tsv"),
                "--made-by",
                "bottom-up attention",
                "--output-dir",
                store,
                "--json",
            ]
        )
        == 0
    )
    report = printed(capsys)
    assert (report["images"], report["regions"], report["feature_size"]) == (1, 2, 7)
    assert report["boxes_id"].startswith("bottom-up attention [")
    assert torch.equal(RegionStore(store).find(7).features, features)
    (tmp_path / "butd.tsv").write_text("\t".join(columns)[:-5] + "\n")
    assert main(["regions", "--tsv", str(tmp_path / "butd.tsv"), "--output-dir", str(tmp_path / "other")]) == 2
    assert "butd.tsv, line 1: the base64 of its features is truncated" in capsys.readouterr().err


def test_photographs_from_end_to_end(tmp_path, capsys) -> None:
    root = Path(os.environ.get("DUAL_DISTILL_DATA") or Path(__file__).parents[3] / "shared" / "data")
    file = root / "coco_mini_ccby" / "images.parquet"
    if not file.is_file():
        pytest.skip(f"needs the photographs in {file} (set DUAL_DISTILL_DATA to the folder that holds coco_mini_ccby)")
    few = pq.read_table(file).slice(0, 5)
    pq.write_table(few, tmp_path / "few.parquet")
    light = save_detector(tmp_path / "detector", 32, short_side=160)
    store = str(tmp_path / "store")
    command = [
        "regions",
        light,
        "--images",
        str(tmp_path / "few.parquet"),
        "--id-column",
        "image_id",
        "--output-dir",
        store,
        "--json",
    ]
    assert main([*command, "--batch-size", "2"]) == 0
    report = printed(capsys)
    assert (report["images"], report["unreadable"], report["feature_size"]) == (5, {}, 32)
    found = RegionStore(store)
    for row in few.to_pylist():
        regions = found.find(row["image_id"])
        assert (regions.width, regions.height) == (row["width"], row["height"])
        assert 10 <= len(regions.boxes_px) <= 50
        assert regions.features.std() > 0
        assert torch.equal(found.find_image(row["image"]).boxes_px, regions.boxes_px)


@pytest.mark.parametrize(
    "words, message",
    [
        (["x", "--output-dir", "y"], "A detector and --images are needed, or --tsv"),
        (["--tsv", "y", "--output-dir", "z", "--id-column", "a"], "--id-column is about images, but --images is not"),
        (["--tsv", "y", "--output-dir", "z", "--strict"], "--strict is about finding regions, but --tsv holds"),
        (["x", "--images", "y", "--output-dir", "z", "--cut-box-numbers"], "--cut-box-numbers is about published fea"),
        (["--images", "x", "--output-dir", "y"], "A detector and --images are needed, or --tsv"),
        (["x", "--images", "no/such/folder", "--output-dir", "y"], "There is no folder 'no/such/folder' of images"),
        (
            ["x", "--images", "y", "--output-dir", "z", "--labels", "l"],
            "--labels is about published features, but --tsv is not given",
        ),
        (
            ["x", "--tsv", "y", "--output-dir", "z", "--threshold", "0"],
            "MODEL, --threshold is about finding regions, but --tsv holds",
        ),
    ],
)
def test_bad_input_is_one_sentence(words, message, capsys) -> None:
    assert main(["regions", *words]) == 2
    assert message in capsys.readouterr().err


def test_settings_of_boxes_that_are_given(detector, pictures, tmp_path, capsys) -> None:
    student = str(tmp_path / "student")
    assert main(["regions", detector, "--images", pictures, "--output-dir", student]) == 0
    command = ["regions", detector, "--images", pictures, "--output-dir", str(tmp_path / "teacher"), "--boxes", student]
    assert main([*command, "--threshold", "0.5"]) == 2
    assert "--threshold is about finding boxes, but --boxes has them" in capsys.readouterr().err
