"""Regions of images: chosen by rule, described by the backbone itself, the same bits after any interruption."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
    RTDetrResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

from dual_distill.data.region_inputs import RegionSet
from dual_distill.inference import open_images
from dual_distill.regions.detectors import Detected, Detector, _stride, load_detector
from dual_distill.regions.extraction import choose_regions, extract_regions
from dual_distill.regions.roi_align import roi_align
from dual_distill.regions.store import RegionManifest, RegionStore, StoredImage, fill_store

SCRIPT = Path(__file__).with_name("regions_in_a_process.py")
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "cup"}, "label2id": {"cat": 0, "dog": 1, "cup": 2}}
SHORT = {"size": {"shortest_edge": 48, "longest_edge": 96}}


def detr(width=16):
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
        num_queries=12,
        **LABELS,
    )
    return Detector(DetrForObjectDetection(config), DetrImageProcessorPil(**SHORT), f"detr-{width}", "0123456789abcdef")


def yolos():
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[48, 64],
        patch_size=16,
        num_detection_tokens=6,
        use_mid_position_embeddings=False,
        **LABELS,
    )
    return Detector(YolosForObjectDetection(config), YolosImageProcessorPil(**SHORT), "yolos")


def rt_detr():
    resnet = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 12, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=resnet,
        encoder_in_channels=[8, 12, 16],
        encoder_hidden_dim=16,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_n_points=2,
        num_queries=8,
        num_denoising=0,
        **LABELS,
    )
    processor = RTDetrImageProcessorPil(size={"height": 64, "width": 64})
    return Detector(RTDetrForObjectDetection(config), processor, "rt-detr")


@pytest.fixture
def detector():
    return detr()


@pytest.fixture
def images():
    """Seven images in two shapes."""
    draw = torch.Generator().manual_seed(0)

    def image_of(number):
        width, height = (80, 60) if number % 3 else (50, 70)
        pixels = (torch.rand(6, 5, 3, generator=draw) * 255).byte().numpy()
        return Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)

    return {f"image {number}": image_of(number) for number in range(7)}


def extract(detector, images, store, **settings):
    defaults = {"batch_size": 2, "shard_size": 3}
    return extract_regions(detector, open_images(images), store, **{**defaults, **settings})


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# Which boxes are regions.

BOXES = torch.tensor(
    [[0.0, 0, 8, 8], [2, 2, 6, 6], [0, 0, 8, 8], [-5, -5, 30, 30], [4, 4, 4.5, 9], [1, 1, 3, 3], [21, 2, 25, 5]]
)
DETECTED = Detected(BOXES, torch.tensor([0.9, 0.8, 0.7, 0.5, 0.4, 0.3, 0.1]), ["a", "b", "c", "d", "e", "f", "g"])


@pytest.mark.parametrize(
    "settings, tags",
    [
        ((0.75, 0, 50), ["a", "b"]),
        ((0.75, 3, 50), ["a", "b", "d"]),  # c has the box of a
        ((0.2, 0, 50), ["a", "b", "d", "f"]),  # e is half a pixel wide
        ((0.0, 0, 50), ["a", "b", "d", "f"]),  # nothing of g is in the image
        ((0.0, 2, 3), ["a", "b", "d"]),
        ((0.95, 1, 50), ["a"]),
        ((0.85, 0, 50), ["a"]),
    ],
)
def test_which_boxes_are_regions(settings, tags) -> None:
    found = choose_regions(DETECTED, 20, 10, *settings)
    assert (found.tags, found.whole_image) == (tags, False)
    assert found.scores.tolist() == [DETECTED.scores[DETECTED.tags.index(tag)].item() for tag in tags]
    if "d" in tags:
        assert found.boxes_px[tags.index("d")].tolist() == [0, 0, 20, 10]


def test_without_a_box_the_region_is_the_whole_image() -> None:
    found = choose_regions(DETECTED, 20, 10, threshold=0.95, min_regions=0)
    assert (found.boxes_px.tolist(), found.scores.tolist(), found.tags, found.whole_image) == (
        [[0, 0, 20, 10]],
        [0],
        [""],
        True,
    )


def test_a_detector_that_gives_nan_is_named() -> None:
    broken = DETECTED._replace(boxes_px=BOXES * float("nan"))
    with pytest.raises(ValueError, match="a box or a score that is NaN"):
        choose_regions(broken, 20, 10)


# Extraction.


@pytest.mark.parametrize("make, feature_size", [(detr, 16), (yolos, 16), (rt_detr, 16)])
def test_features_are_those_of_the_backbone(make, feature_size, images, tmp_path) -> None:
    detector = make()
    report = extract(detector, images, tmp_path / "store")
    assert (report.images, report.added, report.whole_images, report.unreadable) == (7, 7, 0, {})
    store = RegionStore(tmp_path / "store")
    assert store.feature_size == feature_size
    assert store.ids() == list(images)
    for name, image in images.items():
        pixels = detector.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        output = detector(pixels, [image.size])
        expected = choose_regions(output.detected[0], *image.size)
        found = store.find(name)
        assert (found.tags, found.width, found.height) == (expected.tags, *image.size)
        torch.testing.assert_close(found.boxes_px, expected.boxes_px, atol=1e-3, rtol=0)
        scale = (pixels.shape[3] / image.width / output.stride, pixels.shape[2] / image.height / output.stride)
        pooled = roi_align(output.feature_maps, [found.boxes_px], 7, scale, 2).mean((2, 3))
        torch.testing.assert_close(found.features, pooled, atol=1e-4, rtol=1e-4)
        assert store.find_image(image).tags == found.tags


def test_the_feature_map_is_the_deepest_of_the_backbone(detector) -> None:
    pixels = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        maps = detector.model.model.backbone.model(pixels).feature_maps
        output = detector(pixels, [(64, 96)])
        patches = yolos().model.eval()
        tokens = patches.vit(pixels).last_hidden_state
    torch.testing.assert_close(output.feature_maps, maps[-1])
    assert output.stride == 32
    yolos_output = Detector(patches, YolosImageProcessorPil(**SHORT))(pixels, [(64, 96)])
    assert (yolos_output.feature_maps.shape, yolos_output.stride) == ((1, 16, 6, 4), 16)
    torch.testing.assert_close(yolos_output.feature_maps[0, :, 1, 2], tokens[0, 1 + 1 * 4 + 2])


@pytest.mark.parametrize(
    "size, cells, stride", [((800, 1066), (25, 34), 32), ((40, 40), (2, 2), 32), ((560, 420), (40, 30), 14)]
)
def test_the_stride_of_a_map_that_was_rounded_up(size, cells, stride) -> None:
    assert _stride(torch.Size(size), torch.Size(cells)) == stride


def test_boxes_of_another_store(detector, images, tmp_path) -> None:
    first = extract(detector, images, tmp_path / "student")
    student = RegionStore(tmp_path / "student")
    second = extract(detr(20), images, tmp_path / "teacher", boxes=student)
    teacher = RegionStore(tmp_path / "teacher")
    assert second.boxes_id == first.boxes_id != ""
    assert second.features_id != first.features_id
    assert (student.feature_size, teacher.feature_size) == (16, 20)
    for name in images:
        ours, theirs = student.find(name), teacher.find(name)
        assert torch.equal(ours.boxes_px, theirs.boxes_px)
        assert torch.equal(ours.scores, theirs.scores)
        assert ours.tags == theirs.tags
    own = extract(detr(20), images, tmp_path / "own")
    assert own.boxes_id != first.boxes_id
    few = dict(list(images.items())[:3])
    extract(detector, few, tmp_path / "few")
    with pytest.raises(
        ValueError, match=r"few' \(3 images, boxes by detector detr-16 @ 0123456789ab, .*\) lacks 'image [34]'"
    ):
        extract(detr(20), images, tmp_path / "other", boxes=RegionStore(tmp_path / "few"))


def test_boxes_of_another_image_under_the_same_id_are_refused(detector, images, tmp_path) -> None:
    extract(detector, images, tmp_path / "student")
    images["image 4"] = images["image 4"].rotate(180)
    with pytest.raises(ValueError, match=r"image 'image 4': the region store .*student' holds another image"):
        extract(detr(20), images, tmp_path / "teacher", boxes=RegionStore(tmp_path / "student"))
    # Under another name it is found by its content.
    images["image 4"] = images["image 4"].rotate(180)
    renamed = {f"photo {number}": image for number, image in enumerate(images.values())}
    assert extract(detr(20), renamed, tmp_path / "renamed", boxes=RegionStore(tmp_path / "student")).images == 7


def test_boxes_of_an_image_of_another_size(detector, images, tmp_path) -> None:
    """A store that knows no content, as one of published features, is asked by id."""
    manifest = RegionManifest("published", "published", 4, "float32", 3, {})
    regions = RegionSet(torch.zeros(1, 4), torch.tensor([[0.0, 0, 9, 9]]), torch.ones(1), ["cat"], 640, 480)
    fill_store(
        tmp_path / "tsv", manifest, list(images), lambda ids: [StoredImage(name, None, None, regions) for name in ids]
    )
    with pytest.raises(
        ValueError, match=r"the image is (50 x 70|80 x 60) pixels, but the boxes in .*tsv' are .* 640 x 480"
    ):
        extract(detector, images, tmp_path / "store", boxes=RegionStore(tmp_path / "tsv"))


def test_nothing_found_is_said_in_the_record(detector, images, tmp_path) -> None:
    report = extract(detector, images, tmp_path / "store", threshold=1.0, min_regions=0)
    assert (report.whole_images, report.regions) == (7, 7)
    assert RegionStore(tmp_path / "store").find("image 1").boxes_px.tolist() == [[0, 0, 80, 60]]


@pytest.mark.parametrize("gone", [("plan-*", "shard-*"), ("shard-00001*",), ("shard-00002.arrow",)])
def test_a_killed_run_continues_to_the_same_bits(gone, detector, images, tmp_path) -> None:
    images["image 5"] = b"no image"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    extract(detector, images, whole)
    shutil.copytree(whole, killed)
    for pattern in gone:
        for path in killed.glob(pattern):
            path.unlink()
    extract(detector, images, killed, num_workers=2)
    assert contents(killed) == contents(whole)


def test_killed_for_real_and_continued(scripts, detector, images, tmp_path) -> None:
    detector.model.save_pretrained(tmp_path / "model")
    detector.image_processor.save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for name, image in images.items():
        image.save(tmp_path / "images" / f"{name}.png")
    words = [tmp_path / name for name in ("model", "images", "store")]
    [killed] = scripts(SCRIPT, *words, environments=[{"KILL_AT": "5"}])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in (tmp_path / "store").glob("shard-*")] == ["shard-00000.arrow"]
    with pytest.raises(ValueError, match="lacks 2 of 3 shards"):
        RegionStore(tmp_path / "store")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loaded = load_detector(tmp_path / "model", "tiny")
    assert extract(loaded, str(tmp_path / "images"), tmp_path / "store").added == 4
    extract(loaded, str(tmp_path / "images"), tmp_path / "whole")
    torch.set_num_threads(threads)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_unreadable_images_are_listed_and_described_when_mended(detector, images, tmp_path) -> None:
    good = dict(images)
    images["image 2"], images["image 4"] = b"no image", str(tmp_path / "nowhere.png")
    report = extract(detector, images, tmp_path / "store")
    assert (report.images, list(report.unreadable)) == (5, ["image 2", "image 4"])
    assert "row image 2: the bytes are not an image" in report.unreadable["image 2"]
    with pytest.raises(ValueError, match=r"lacks 'image 4': row image 4 .*nowhere.png"):
        RegionStore(tmp_path / "store").find("image 4")
    assert extract(detector, images, tmp_path / "store").added == 0
    mended = extract(detector, good, tmp_path / "store")
    assert (mended.added, mended.images, mended.unreadable) == (2, 7, {})
    with pytest.raises(ValueError, match=r"not an image .* Without strict, it is listed"):
        extract(detector, images, tmp_path / "strict", strict=True)


def test_another_detector_or_setting_is_refused(detector, images, tmp_path) -> None:
    extract(detector, images, tmp_path / "store")
    with pytest.raises(ValueError, match=r"begun with other settings \(made_with.batch_size: 2 there, 3 now\)"):
        extract(detector, images, tmp_path / "store", batch_size=3)
    with pytest.raises(
        ValueError,
        match=r"begun with other settings \(boxes_id: 'detector detr-16 @ 0123456789ab, 10 to 50 boxes above 0.2 \[",
    ):
        extract(detr(), images, tmp_path / "store")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"min_regions": 5, "max_regions": 4}, "min_regions is 5 and max_regions 4"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_settings_out_of_range(settings, message, detector, images, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        extract(detector, images, tmp_path / "store", **settings)


def test_what_is_no_detector_is_refused(detector, tmp_path) -> None:
    with pytest.raises(ValueError, match="ResNetBackbone is no object detector with a backbone known here"):
        Detector(detector.model.model.backbone.model, detector.image_processor)
    with pytest.raises(ValueError, match="has no post_process_object_detection"):
        Detector(detector.model, None)
    with pytest.raises(ValueError, match="cannot be loaded as an object detector"):
        load_detector(tmp_path, "empty")


def test_a_processor_that_pads_one_image_is_refused(detector, images) -> None:
    padding = DetrImageProcessorPil(**SHORT, pad_size={"height": 128, "width": 128})
    with pytest.raises(ValueError, match=r"pads a single image to \(128, 128\)"):
        Detector(detector.model, padding).prepare(images["image 1"], "image 1")
