"""Each operation on a pixel whose result is known, and the same pixels for the same key in another process."""

import hashlib
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dual_distill.data.augmentation import OPERATIONS, RandAugment


def noise(width=40, height=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def one_pixel(colour):
    return Image.new("RGB", (4, 4), colour)


@pytest.mark.parametrize(
    ("name", "strength", "colour", "expected"),
    [
        ("posterize", 1.2, (100, 127, 200), (0, 0, 128)),  # the highest bit stays
        ("posterize", 0.0, (100, 127, 200), (0, 0, 128)),  # never none
        ("posterize", 4.0, (100, 127, 200), (96, 112, 192)),
        ("solarize", 76.8, (75, 76, 200), (75, 179, 55)),  # 255 - value from 76 on
        ("solarize", 256.0, (75, 76, 200), (75, 76, 200)),
        ("solarize_add", 33.0, (90, 95, 250), (123, 127, 0)),  # + 33, cut at 255, then inverted from 128 on
        ("solarize_add", 33.0, (96, 100, 200), (126, 122, 22)),
        ("brightness", 0.64, (100, 200, 50), (64, 128, 32)),
        ("color", 0.0, (90, 90, 90), (90, 90, 90)),
        ("contrast", 0.5, (90, 90, 90), (90, 90, 90)),
        ("auto_contrast", 0.0, (90, 90, 90), (90, 90, 90)),
    ],
)
def test_a_pixel_becomes_the_expected_one(name, strength, colour, expected):
    assert OPERATIONS[name].apply(one_pixel(colour), strength).getpixel((1, 1)) == expected


def test_auto_contrast_stretches_and_equalize_spreads():
    image = Image.new("RGB", (2, 1), (100, 100, 100))
    image.putpixel((1, 0), (150, 150, 150))
    stretched = OPERATIONS["auto_contrast"].apply(image, 0)
    assert [stretched.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]
    grey = Image.fromarray(np.repeat(np.arange(100, 164, dtype=np.uint8)[:, None, None], 3, axis=2).repeat(16, axis=1))
    assert np.ptp(np.asarray(OPERATIONS["equalize"].apply(grey, 0))) > 240


@pytest.mark.parametrize(
    ("name", "strength", "to"),
    [
        ("translate_x", 3.0, (2, 6)),
        ("translate_x", -3.0, (8, 6)),
        ("translate_y", 3.0, (5, 3)),
        ("translate_y", -3.0, (5, 9)),
    ],
)
def test_translation_moves_by_pixels_and_leaves_black(name, strength, to):
    image = Image.new("RGB", (12, 12), (255, 255, 255))
    image.putpixel((5, 6), (255, 0, 0))
    moved = OPERATIONS[name].apply(image, strength)
    assert moved.getpixel(to) == (255, 0, 0)
    edge = {"translate_x": (11 if strength > 0 else 0, 6), "translate_y": (6, 11 if strength > 0 else 0)}[name]
    assert moved.getpixel(edge) == (0, 0, 0)


def test_shear_moves_a_row_by_its_height_and_rotation_keeps_the_middle():
    image = Image.new("RGB", (20, 20))
    image.putpixel((10, 10), (0, 255, 0))
    assert OPERATIONS["shear_x"].apply(image, 0.3).getpixel((7, 10)) == (0, 255, 0)  # 10 = x + 0.3 * 10
    assert OPERATIONS["shear_y"].apply(image, 0.3).getpixel((10, 7)) == (0, 255, 0)
    square = Image.new("RGB", (21, 21))
    square.putpixel((10, 10), (0, 255, 0))
    assert OPERATIONS["rotate"].apply(square, 90).getpixel((10, 10)) == (0, 255, 0)


@pytest.mark.parametrize(
    ("name", "factor"), [("color", 1.0), ("contrast", 1.0), ("brightness", 1.0), ("sharpness", 1.0)]
)
def test_a_factor_of_one_changes_nothing(name, factor):
    assert OPERATIONS[name].apply(noise(), factor).tobytes() == noise().tobytes()


def test_the_list_has_no_inversion_and_no_cutout_and_its_strengths_at_nine_are_the_recipes():
    assert len(OPERATIONS) == 14
    assert not {"invert", "cutout"} & set(OPERATIONS)
    strengths = {}
    for row in range(400):
        strengths |= {name: abs(strength) for name, strength in RandAugment().draw((0, row, 0))}
    assert strengths == pytest.approx(
        {
            "auto_contrast": 0.0,
            "equalize": 0.0,
            "rotate": 9.0,
            "posterize": 1.2,
            "solarize": 76.8,
            "solarize_add": 33.0,
            "color": 0.64,
            "contrast": 0.64,
            "brightness": 0.64,
            "sharpness": 0.64,
            "shear_x": 0.09,
            "shear_y": 0.09,
            "translate_x": 30.0,
            "translate_y": 30.0,
        }
    )


def test_operations_and_signs_are_drawn_evenly():
    drawn = [operation for row in range(3500) for operation in RandAugment(seed=3).draw((0, row, 0))]
    counts = Counter(name for name, _ in drawn)
    assert set(counts) == set(OPERATIONS)
    assert all(400 < count < 600 for count in counts.values()), counts  # 500 each, standard deviation 22
    signs = [strength > 0 for name, strength in drawn if name == "rotate"]
    assert 0.4 < sum(signs) / len(signs) < 0.6


def test_each_part_of_the_key_and_the_seed_count():
    keys = [(epoch, row, place) for epoch in range(3) for row in range(20) for place in range(2)]
    drawn = {str([RandAugment(4, seed=seed).draw(key) for key in keys]) for seed in range(3)}
    assert len(drawn) == 3
    assert len({str(RandAugment(4).draw(key)) for key in keys}) > 110  # of 120; a few of 14^4 may meet
    assert RandAugment(4).draw((1, 11, 0)) != RandAugment(4).draw((11, 1, 0)) != RandAugment(4).draw((1, 1, 10))
    assert RandAugment(4).draw((0, "12", 0)) != RandAugment(4).draw((0, 12, 0))
    assert RandAugment(4).draw((0, np.int64(12), 0)) == RandAugment(4).draw((0, 12, 0))


def test_global_random_state_is_neither_read_nor_moved():
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    first = RandAugment()(noise(), (0, 5, 0)).tobytes()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    random.seed(2)
    assert RandAugment()(noise(), (0, 5, 0)).tobytes() == first


DIGEST = """
import hashlib, sys
import numpy as np
from PIL import Image
from dual_distill.data.augmentation import RandAugment
image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
digest = hashlib.sha256()
for row in range(60):
    digest.update(RandAugment(seed=5)(image, (1, row, 0)).tobytes())
print(digest.hexdigest())
"""


def test_another_process_gives_the_same_pixels(processes):
    """Whose hashes are others."""
    digest = hashlib.sha256()
    for row in range(60):
        digest.update(RandAugment(seed=5)(noise(), (1, row, 0)).tobytes())
    [done] = processes((DIGEST,))
    assert done.stdout.split() == [digest.hexdigest()], done.stderr


def test_no_operation_and_the_given_image_stay_as_they_were():
    image = noise()
    assert RandAugment(0)(image, (0, 0, 0)) is image
    for row in range(30):
        augmented = RandAugment()(image, (0, row, 0))
        assert (augmented.size, augmented.mode) == (image.size, "RGB")
    assert image.tobytes() == noise().tobytes()


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (36, 36)])
def test_every_operation_takes_every_size(size):
    for name, operation in OPERATIONS.items():
        for strength in (operation.weakest, operation.strongest):
            assert operation.apply(Image.new("RGB", size, (9, 99, 199)), strength).size == size, name


def test_each_error_by_its_message():
    with pytest.raises(ValueError, match="num_operations is -1"):
        RandAugment(-1)
    with pytest.raises(ValueError, match="magnitude is 31, but it lies between 0 and 30"):
        RandAugment(2, 31)
    with pytest.raises(ValueError, match="The image has mode 'L', but augmentation needs 'RGB'"):
        RandAugment()(Image.new("L", (4, 4)), (0, 0, 0))
    with pytest.raises(TypeError, match="'NoneType' object cannot be interpreted as an integer"):
        RandAugment()(noise(), (0, None, 0))
    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        RandAugment().draw((0.5, 0, 0))
