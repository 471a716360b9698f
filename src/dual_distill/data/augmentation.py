"""RandAugment on PIL images, as in the recipe of DiDE: drawn from (seed, epoch, row, image), never from global state.

Unusual here: an image and a key go in, and the same key gives the same pixels in every process, on every machine with
the same Pillow, before and after a resume, whatever was drawn in between. Teacher and student see the same pixels since
they share the batch.
"""

import operator
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, SupportsIndex

from PIL import Image, ImageEnhance, ImageOps

MAX_MAGNITUDE = 30
_SOLARIZE_THRESHOLD = 128


class Operation(NamedTuple):
    """One operation of the list.

    Attributes:
        apply: takes an RGB image and a strength.
        weakest: the strength at magnitude 0.
        strongest: the strength at magnitude 30; in between it is linear.
        signed: whether the strength's sign is drawn.
    """

    apply: Callable[[Image.Image, float], Image.Image]
    weakest: float = 0.0
    strongest: float = 0.0
    signed: bool = False


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _solarize_add(image: Image.Image, strength: float) -> Image.Image:
    table = [min(255, value + int(strength)) for value in range(256)]
    return ImageOps.solarize(image.point(table * 3), _SOLARIZE_THRESHOLD)


# Name -> operation; strengths are degrees, bits, grey levels 0 to 256, factors (1 = unchanged), slopes or pixels.
OPERATIONS: dict[str, Operation] = {
    "auto_contrast": Operation(lambda image, _: ImageOps.autocontrast(image)),
    "equalize": Operation(lambda image, _: ImageOps.equalize(image)),
    "rotate": Operation(lambda image, degrees: image.rotate(degrees), 0, 30, signed=True),
    # No bit left would be a black image, so one stays.
    "posterize": Operation(lambda image, bits: ImageOps.posterize(image, max(1, int(bits))), 0, 4),
    "solarize": Operation(lambda image, threshold: ImageOps.solarize(image, int(threshold)), 0, 256),
    "solarize_add": Operation(_solarize_add, 0, 110),
    "color": Operation(lambda image, factor: ImageEnhance.Color(image).enhance(factor), 0.1, 1.9),
    "contrast": Operation(lambda image, factor: ImageEnhance.Contrast(image).enhance(factor), 0.1, 1.9),
    "brightness": Operation(lambda image, factor: ImageEnhance.Brightness(image).enhance(factor), 0.1, 1.9),
    "sharpness": Operation(lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor), 0.1, 1.9),
    "shear_x": Operation(lambda image, slope: _affine(image, (1, slope, 0, 0, 1, 0)), 0, 0.3, signed=True),
    "shear_y": Operation(lambda image, slope: _affine(image, (1, 0, 0, slope, 1, 0)), 0, 0.3, signed=True),
    "translate_x": Operation(lambda image, pixels: _affine(image, (1, 0, pixels, 0, 1, 0)), 0, 100, signed=True),
    "translate_y": Operation(lambda image, pixels: _affine(image, (1, 0, 0, 0, 1, pixels)), 0, 100, signed=True),
}


class RandAugment:
    """Applies some operations, drawn with replacement from `OPERATIONS`, all at one magnitude.

    Args:
        num_operations: how many operations an image goes through, >= 0 (recipe: 2).
        magnitude: 0 to 30 (recipe: 9); the strength of an operation is linear in it.
        seed: which augmentation; another seed draws everything anew.

    Raises:
        ValueError: a number is out of range.

    Note:
        The list and its strengths are those of the public ildoonet/pytorch-randaugment, less colour inversion and
        cutout. That the recipe builds on it is inferred from what it leaves out (its own list was not at hand); the
        paper's list has an identity in the place of `solarize_add`. The oddities of these strengths are kept: magnitude
        is no strength everywhere. At 9 of 30, posterize leaves one bit, solarize inverts what is above grey level 76,
        and the four enhancements take away (factor 0.64). A translation is in pixels of the
        image as it is stored: it is made for photographs of several hundred pixels, and moves an image of 36 px almost
        out of itself.

    References:
        Cubuk et al., 2019, "RandAugment: Practical automated data augmentation with a reduced search space",
        arXiv 1909.13719; Wang et al., EMNLP 2022, arXiv 2112.08723 (two operations, magnitude 9).

    Example:
        >>> augment = RandAugment(seed=7)
        >>> augment.draw((0, 12, 0)) == augment.draw((0, 12, 0)), augment.draw((0, 12, 0)) == augment.draw((1, 12, 0))
        (True, False)
        >>> augment(Image.new("RGB", (8, 6)), (0, 12, 0)).size
        (8, 6)
    """

    def __init__(self, num_operations: int = 2, magnitude: float = 9, seed: int = 0) -> None:
        if num_operations < 0:
            raise ValueError(f"num_operations is {num_operations}, but must be at least 0.")
        if not 0 <= magnitude <= MAX_MAGNITUDE:
            raise ValueError(f"magnitude is {magnitude}, but it lies between 0 and {MAX_MAGNITUDE} (the recipe has 9).")
        self.num_operations, self.magnitude, self.seed = num_operations, magnitude, seed

    def __call__(self, image: Image.Image, key: Sequence[str | SupportsIndex]) -> Image.Image:
        """Augment an image.

        Args:
            image: RGB, as `decode_image` returns it.
            key: names the image in this epoch: `(epoch, row, index of the image in the row)`, integers or strings.

        Returns:
            A new RGB image of the same size; what was moved out of it is black. With 0 operations the image itself.

        Raises:
            ValueError: the image is not RGB.
            TypeError: the key holds something else than integers and strings.
        """
        if image.mode != "RGB":
            raise ValueError(f"The image has mode {image.mode!r}, but augmentation needs 'RGB'; take decode_image.")
        for name, strength in self.draw(key):
            image = OPERATIONS[name].apply(image, strength)
        return image

    def draw(self, key: Sequence[str | SupportsIndex]) -> list[tuple[str, float]]:
        """The operations for a key, in order, each with its strength.

        Args:
            key: as in a call.

        Returns:
            `(name, strength)`, one an operation.

        Raises:
            TypeError: the key holds something else than integers and strings.
        """
        # A string seed goes through SHA-512, and `random()` is the one method whose numbers Python promises to keep.
        # 3 and numpy's 3 are the same part of a key, 3 and "3" are two.
        parts = [repr(part) if isinstance(part, str) else str(operator.index(part)) for part in key]
        numbers = random.Random("/".join([str(self.seed), *parts]))
        names = list(OPERATIONS)
        drawn = []
        for _ in range(self.num_operations):
            name = names[int(numbers.random() * len(names))]
            is_negative = numbers.random() < 0.5  # drawn for every operation, so that the next does not depend on this

            operation = OPERATIONS[name]
            strength = operation.weakest + self.magnitude / MAX_MAGNITUDE * (operation.strongest - operation.weakest)
            drawn.append((name, -strength if operation.signed and is_negative else strength))
        return drawn
