import contextlib
import io
import os
import re
import struct
import zlib

import datasets
import numpy as np
import pytest
from PIL import Image, ImageOps

from dual_distill.data.images import ImageError, decode_image


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_that_declares(width, height):
    """A PNG of a few hundred bytes whose header promises any number of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def colours(image):
    return {tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()}


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (9, 9, 9, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),  # 0.2 red + 0.8 white
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 32896, (128, 128, 128)),  # 128 * 257
        ("I;16", 0, (0, 0, 0)),
        ("I", 65535, (255, 255, 255)),
        ("I", 257, (1, 1, 1)),
    ],
)
@pytest.mark.parametrize("encoded", [True, False])
def test_every_mode_becomes_the_expected_rgb(mode, colour, expected, encoded):
    image = Image.new(mode, (5, 4), colour)
    kind = "TIFF" if mode == "I" else "PNG"
    decoded = decode_image(encode(image, kind) if encoded else image, row=0)
    assert decoded.mode == "RGB"
    assert decoded.size == (5, 4)
    assert colours(decoded) == {expected}


def test_cmyk_jpeg_becomes_rgb():
    decoded = decode_image(encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), row=0)
    assert colours(decoded) == {(255, 255, 255)}


@pytest.mark.parametrize(("transparency", "expected"), [(None, (200, 0, 0)), (0, (255, 255, 255))])
def test_palette_with_and_without_transparency(transparency, expected):
    image = Image.new("P", (3, 3), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    options = {} if transparency is None else {"transparency": transparency}
    assert colours(decode_image(encode(image, **options), row=0)) == {expected}


def test_transparent_colour_key_of_an_rgb_png_is_white():
    image = Image.new("RGB", (2, 1), (5, 6, 7))
    image.putpixel((1, 0), (9, 9, 9))
    decoded = decode_image(encode(image, transparency=(5, 6, 7)), row=0)
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (9, 9, 9)]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied_once(kind):
    image = Image.new("RGB", (8, 4), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 4, 4))  # left half black
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: the left half goes to the top
    decoded = decode_image(encode(image, kind, exif=exif), row=0)
    assert decoded.size == (4, 8)
    assert decoded.getpixel((2, 1))[0] < 30
    assert decoded.getpixel((2, 6))[0] > 225
    assert decode_image(decoded, row=0).size == (4, 8)


# Beside orientation 6, a tag that Pillow reads and cannot write again.
UNLIKE = {"a width below zero": (0x0100, 9, 1, -5), "a height as text": (0x0101, 2, 4, 0x00636261)}


@pytest.mark.parametrize("tag", UNLIKE)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_written_again_turns_the_image(kind, tag):
    entries = b"".join(struct.pack("<HHIi", *entry) for entry in [(0x0112, 3, 1, 6), UNLIKE[tag]])
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + entries + bytes(4)
    assert decode_image(encode(Image.new("RGB", (8, 4)), kind, exif=exif), row=0).size == (4, 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_read_turns_nothing(kind):
    assert decode_image(encode(Image.new("RGB", (8, 4)), kind, exif=b"Exif\0\0garbage"), row=0).size == (8, 4)


def test_all_eight_orientations_are_those_of_pillow():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encode(noise, "PNG", exif=exif)
        assert (
            decode_image(content, row=0).tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(content))).tobytes()
        )


def test_all_ways_of_giving_a_picture_agree(tmp_path):
    content = encode(Image.new("RGB", (2, 2), (3, 4, 5)))
    file = tmp_path / "x.png"
    file.write_bytes(content)
    ways = [
        content,
        bytearray(content),
        str(file),
        file,
        {"bytes": content, "path": None},
        {"bytes": None, "path": str(file)},
    ]
    assert {decode_image(way, row=0).tobytes() for way in ways} == {bytes([3, 4, 5] * 4)}


def test_the_given_picture_is_not_changed():
    image = Image.new("RGB", (2, 2), (3, 4, 5))
    decode_image(image, row=0).putpixel((0, 0), (0, 0, 0))
    assert image.getpixel((0, 0)) == (3, 4, 5)


@pytest.mark.parametrize("size", [(60_000, 60_000), (9_000, 9_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_before_decoding(size, monkeypatch, recwarn):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(ImageError, match=r"^row 17 \(image 'x.png'\): its header declares .* pixels"):
        decode_image({"bytes": png_that_declares(*size), "path": "x.png"}, row=17)
    assert not recwarn.list


def test_the_limit_is_on_width_times_height():
    content = encode(Image.new("RGB", (10, 10)))
    assert decode_image(content, row=0, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match="10 x 10 = 100 pixels, more than the 99 that are allowed"):
        decode_image(content, row=0, max_pixels=99)
    with pytest.raises(ImageError, match="more than the 99"):
        decode_image(Image.new("RGB", (10, 10)), row=0, max_pixels=99)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_truncated_file_is_one_clear_error_wherever_it_is_cut(kind):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    content = encode(Image.fromarray(noise), kind)
    for share in (0.0, 0.02, 0.1, 0.3, 0.6, 0.9):
        with pytest.raises(ImageError, match=re.escape("row 3 (image 'a.img'): ")):
            decode_image({"bytes": content[: int(len(content) * share)], "path": "a.img"}, row=3)


def test_damaged_bytes_never_raise_anything_else():
    content = encode(Image.fromarray(np.arange(300, dtype=np.uint16).astype(np.uint8).reshape(10, 10, 3)))
    random = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 3):
            damaged[place] = random.integers(0, 256)
        with contextlib.suppress(ImageError):
            assert decode_image(bytes(damaged), row=0).mode == "RGB"


def test_postscript_is_not_opened():
    with pytest.raises(ImageError, match="not an image of a known format"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", row=0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "row 5: the image is missing (None)"),
        ({"bytes": None, "path": None}, "row 5: the image is missing (None)"),
        (b"hello", "row 5: the bytes are not an image of a known format"),
        (b"", "row 5: the bytes are not an image of a known format"),
        ({"bytes": b"hello", "path": "y.jpg"}, "row 5 (image 'y.jpg'): the bytes are not an image"),
        ("no/such/file.png", "row 5 (image 'no/such/file.png'): the file cannot be read (No such file or directory)"),
        (
            3.5,
            "row 5: an image is a PIL image, bytes, a path or a dict with 'bytes' and 'path', but this one is a float",
        ),
        (Image.new("F", (2, 2)), "row 5: mode 'F'"),
        (Image.new("I", (2, 2), 70_000), "row 5: mode 'I' is read as 16-bit grey (0 to 65535), but it runs from 70000"),
        (Image.new("I", (2, 2), -1), "row 5: mode 'I' is read as 16-bit grey"),
        (Image.new("RGB", (0, 3)), "row 5: the image has no pixels (0 x 3)"),
    ],
)
def test_each_error_names_the_row_and_the_cause(value, message):
    with pytest.raises(ImageError, match=re.escape(message)) as caught:
        decode_image(value, row=5)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path, monkeypatch):
    """/dev/zero never ends, and a named pipe waits for somebody who writes."""
    os.mkfifo(tmp_path / "pipe.png")
    for path in ("/dev/zero", tmp_path / "pipe.png", tmp_path):
        with pytest.raises(ImageError, match=r"cannot be read \(it is not a regular file"):
            decode_image(str(path), row=3)
    monkeypatch.setattr("dual_distill.data.images.MAX_FILE_BYTES", 10)
    (tmp_path / "large.png").write_bytes(b"x" * 11)
    with pytest.raises(
        ImageError, match=r"row 3 .*cannot be read \(it has 11 bytes, more than the 10 that are allowed"
    ):
        decode_image(tmp_path / "large.png", row=3)


def test_an_image_is_held_twice_at_most(processes):
    """Making the JPEG took as much memory as its pixels need, so decoding may take them no more than once again."""
    code = (
        "import io, resource, sys; from PIL import Image; from dual_distill.data import decode_image\n"
        "buffer = io.BytesIO(); Image.new('RGB', (4000, 4000), (9, 9, 9)).save(buffer, 'JPEG')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "image = decode_image(buffer.getvalue(), row=0); assert image.getpixel((5, 5)) == (9, 9, 9)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)\n"
    )
    [done] = processes((code,))
    assert float(done.stdout) < 70, done.stderr  # MiB; the pixels are 61


def test_the_callers_own_image_stays_as_it_is():
    given = Image.new("RGB", (2, 1))
    decoded = decode_image(given, row=0)
    decoded.putpixel((0, 0), (1, 2, 3))
    assert given.getpixel((0, 0)) == (0, 0, 0)


def test_a_decoded_image_is_no_file_any_more():
    """Whoever keeps it would write another JPEG, with other pixels."""
    noise = Image.effect_noise((16, 16), 80).convert("RGB")
    for kind in ("PNG", "JPEG"):
        decoded = decode_image(encode(noise, kind), row=0)
        kept = datasets.Image().encode_example(decoded)
        assert decode_image(kept, row=0).tobytes() == decoded.tobytes()
