"""Decoding: what a picture's file may be, and what is refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from vltune.data.images import ImageError, check_image, read_image

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def pixels(path: Path) -> list[tuple[int, int, int]]:
    image = read_image(path)
    assert image.mode == "RGB"
    check_image(path)
    return [image.getpixel((x, 0)) for x in range(image.width)]  # type: ignore[misc] # RGB triples


def test_grey_palette_and_cmyk_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (2, 1), 77).save(tmp_path / "grey.png")
    assert pixels(tmp_path / "grey.png") == [(77, 77, 77)] * 2
    Image.new("1", (2, 1), 1).save(tmp_path / "bits.png")
    assert pixels(tmp_path / "bits.png") == [WHITE] * 2
    Image.new("RGB", (2, 1), RED).convert("P").save(tmp_path / "palette.png")
    assert pixels(tmp_path / "palette.png") == [RED] * 2
    Image.new("CMYK", (2, 1), (0, 0, 0, 255)).save(tmp_path / "cmyk.jpg")
    assert pixels(tmp_path / "cmyk.jpg") == [(0, 0, 0)] * 2


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path: Path) -> None:
    """0x1234 and 0xFF00 become 0x12 and 0xFF; clipping to 255 would make both white."""
    deep = np.array([[0x1234, 0xFF00]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert pixels(tmp_path / "deep.png") == [(0x12,) * 3, (0xFF,) * 3]
    Image.fromarray(deep).save(tmp_path / "deep.tiff")
    assert pixels(tmp_path / "deep.tiff") == [(0x12,) * 3, (0xFF,) * 3]


def test_transparent_pixels_are_laid_on_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (2, 1), (*RED, 255))
    picture.putpixel((1, 0), (*GREEN, 0))
    picture.save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png") == [RED, WHITE]
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=b"\xff\x00")
    assert pixels(tmp_path / "p.png") == [RED, WHITE]


def test_exif_orientation_turns_the_picture_upright(tmp_path: Path) -> None:
    """Orientation 6 is a quarter turn: the stored top-left pixel is shown at the top right."""
    stored = Image.new("RGB", (16, 8), GREEN)
    stored.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "turned.png", exif=exif)
    upright = read_image(tmp_path / "turned.png")
    assert upright.size == (8, 16)
    assert upright.getpixel((4, 0)) == RED
    assert upright.getpixel((4, 15)) == GREEN
    stored.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (8, 16)


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (3, 1), colour) for colour in (RED, GREEN)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(tmp_path / "a.gif") == [RED] * 3


def noise(seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (61, 67, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tiff"])
def test_truncated_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise().save(path)
    check_image(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    for read in (read_image, check_image):
        with pytest.raises(ImageError, match=rf"cut\.{suffix}: cannot be read as an image"):
            read(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xff\xd8\xff"]
)
def test_not_an_image(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "strange.jpg"
    path.write_bytes(content)
    for read in (read_image, check_image):
        with pytest.raises(ImageError, match=r"strange\.jpg: cannot be read as an image"):
            read(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(ImageError, match="no such image file"):
            read_image(path)


def claim(path: Path, width: int, height: int) -> None:
    """Write a PNG of a few bytes whose header claims `width` x `height` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bomb(side: int, tmp_path: Path) -> None:
    """Pillow only warns of the smaller one and raises for the larger; both are refused here."""
    claim(tmp_path / "bomb.png", side, side)
    for read in (read_image, check_image):
        with pytest.raises(ImageError, match=r"bomb\.png: .*pixels.*Shrink"):
            read(tmp_path / "bomb.png")


def test_bomb_that_only_warns_is_refused_where_warnings_are_off(tmp_path: Path) -> None:
    claim(tmp_path / "bomb.png", 10_000, 10_000)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ImageError, match="10000 x 10000 pixels; more than"),
    ):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_known_range(kind: type, tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 3), 5, dtype=kind)).save(tmp_path / "deep.tiff")
    with pytest.raises(ImageError, match="no known range"):
        read_image(tmp_path / "deep.tiff")


def test_deterministic(tmp_path: Path) -> None:
    noise(3).save(tmp_path / "a.jpg")
    assert_array_equal(read_image(tmp_path / "a.jpg"), read_image(tmp_path / "a.jpg"))
