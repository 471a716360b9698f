"""One fingerprint: SHA-256 of the content, whatever holds it."""

import hashlib
import importlib
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from dual_distill.data import decode_image, described_fingerprint, fingerprint, image_content


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_bytes_texts_and_settings_are_hashed_as_they_are_written():
    assert fingerprint(b"abc") == fingerprint("abc") == fingerprint(memoryview(b"abc")) == sha256(b"abc")
    settings = {"b": [1, 2.5], "a": None}
    assert fingerprint(settings) == sha256(json.dumps(settings, sort_keys=True).encode())
    assert fingerprint(b"ab", "c") == sha256(b"abc")


def test_an_image_is_known_by_its_size_and_pixels():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    assert fingerprint(image) == fingerprint(image.copy()) == sha256(b"RGB (2, 1)\n" + bytes([1, 2, 3] * 2))
    assert (
        len({fingerprint(Image.new(mode, size)) for mode, size in (("RGB", (2, 1)), ("RGB", (1, 2)), ("L", (2, 3)))})
        == 3
    )


def palette(colour: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([9] * len(mode) + list(colour), mode)
    return image


def turned(orientation: int) -> Image.Image:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.getexif()[0x0112] = orientation
    return image


def transparent(image: Image.Image, colour: int) -> Image.Image:
    image.info["transparency"] = colour
    return image


@pytest.mark.parametrize(
    "images",
    [
        [palette((200, 0, 0)), palette((0, 0, 200))],
        [palette((0, 0, 200, alpha), "RGBA") for alpha in (255, 100)],
        [palette((0, 0, 200, 255), "RGBA").convert("PA"), palette((0, 200, 0, 255), "RGBA").convert("PA")],
        [transparent(palette((200, 0, 0)), index) for index in (0, 1)],
        [transparent(Image.new("L", (2, 1), 7), shade) for shade in (7, 8)],
        [turned(1), turned(6)],
    ],
    ids=["palette", "RGBA palette", "PA", "transparent index", "transparent shade", "EXIF orientation"],
)
def test_equal_bytes_that_are_read_as_other_pixels_are_other_images(images):
    one, other = images
    assert (one.mode, one.tobytes()) == (other.mode, other.tobytes())
    assert decode_image(one, 0) != decode_image(other, 0)
    for known_by in (fingerprint, image_content):
        assert known_by(one) == known_by(one.copy()) != known_by(other)


def test_a_model_is_known_by_its_weights():
    model = nn.Linear(2, 1).half()
    digest = fingerprint(model)
    assert digest == fingerprint(model)
    expected = hashlib.sha256()
    for name in ("bias", "weight"):
        tensor = getattr(model, name).detach()
        expected.update(f"{name} {tuple(tensor.shape)} torch.float16\n".encode() + tensor.numpy().tobytes())
    assert digest == expected.hexdigest()
    with torch.no_grad():
        model.bias += 1
    assert digest != fingerprint(model) != fingerprint(model.bfloat16())


def test_what_made_something_is_said_for_people_and_machines():
    one, other = (described_fingerprint("a", {"threshold": value}) for value in (0.2, 0.3))
    assert one == described_fingerprint("a", {"threshold": 0.2}) != other
    assert one.startswith("a [")


def test_a_large_model_is_known_by_its_content_whatever_changed_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    model = nn.Linear(3, 2)
    in_full = fingerprint(model, "and more")
    module = importlib.import_module("dual_distill.data.fingerprint")  # whose name in the package is the function's
    monkeypatch.setattr(module, "LARGE", 0)
    assert fingerprint(model, "and more") == in_full
    monkeypatch.setattr(module, "hashlib", SimpleNamespace(sha256=None))
    assert fingerprint(model, "and more") == in_full  # from memory
    monkeypatch.undo()
    model.weight.data[0] += 1
    assert fingerprint(model, "and more") != in_full
