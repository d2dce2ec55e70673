"""One image file to one 8-bit RGB picture, or an error that says what is wrong with the file."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 89_478_485
"""Pillow's bound: a small file can claim a size that fills the memory; larger ones are refused."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")
"""Plain raster formats only; Pillow would hand PostScript to an external interpreter."""

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")


class ImageError(ValueError):
    """An image file cannot be used; the message names the file, the reason and the cure."""


def image_path(folder: Path, file_name: str, source: str) -> Path:
    """Join `folder` and the name that an annotation file gives, refusing to leave `folder`.

    Links that the site itself put into the folder are followed.

    Raises:
        ImageError: The name is empty, absolute (on any system), or climbs with `..`.
    """
    if not stays_inside(file_name):
        raise ImageError(
            f"{source}: file_name {file_name!r} does not stay inside the image folder {folder}. "
            "Use names relative to that folder, without '..'."
        )
    return folder / PurePosixPath(file_name)


def stays_inside(file_name: str) -> bool:
    """Whether a relative name leads to somewhere below the folder that it is joined to."""
    posix, windows = PurePosixPath(file_name), PureWindowsPath(file_name)
    absolute = posix.is_absolute() or bool(windows.anchor)
    climbs = ".." in posix.parts or ".." in windows.parts
    return bool(posix.parts) and not absolute and not climbs and "\x00" not in file_name


def read_image(path: Path) -> Image.Image:
    """Decode `path` to an upright 8-bit RGB picture.

    EXIF orientation is applied. Grey, palette and CMYK are converted, 16-bit grey keeps its high
    byte, transparent pixels are laid on white, and of an animation the first frame is taken.

    Raises:
        ImageError: Missing, truncated, not an image, too large, or of float or 32-bit pixels.
    """
    return _decode(path, shrink=False)


def decode_image(source: BinaryIO, name: str, *, shrink: bool = False) -> Image.Image:
    """Decode an open image file, as `read_image` does.

    Args:
        source: The whole file, seekable.
        name: What to call it in messages.
        shrink: Take JPEG at an eighth of its size, which is enough to check it.

    Raises:
        ImageError: As `read_image`.
    """
    return _decode_stream(source, name, shrink=shrink)


def check_image(path: Path) -> None:
    """Decode the whole file and forget it; JPEG at an eighth of its size, which is much faster.

    Raises:
        ImageError: As `read_image`.
    """
    _decode(path, shrink=True)


def bad_images(paths: Sequence[Path], already_read: Sequence[bool]) -> dict[int, ImageError]:
    """Check the images that were not read before; return position -> what is wrong."""
    errors = {}
    for index, (path, known) in enumerate(zip(paths, already_read, strict=True)):
        if known:
            continue
        try:
            check_image(path)
        except ImageError as error:
            errors[index] = error
    return errors


def _decode(path: Path, *, shrink: bool) -> Image.Image:
    # Not Path.is_file, which raises for a name too long or a folder without permission.
    if not os.path.isfile(path):
        raise ImageError(f"{path}: no such image file. Put it there or correct the annotations.")
    return _decode_stream(path, str(path), shrink=shrink)


def _decode_stream(source: Path | BinaryIO, name: str, *, shrink: bool) -> Image.Image:
    try:
        with Image.open(source, formats=FORMATS) as image:
            _refuse(image, name)
            if shrink:
                image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            return _rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: too many pixels ({error}). Shrink the picture.") from error
    # A damaged file makes Pillow raise nearly anything: OSError, SyntaxError, struct.error ...
    except Exception as error:
        # Pillow's text names the file that a stream comes from, which the caller chose not to.
        reason = f": {error}" if isinstance(source, Path) else ""
        raise ImageError(
            f"{name}: cannot be read as an image ({type(error).__name__}{reason}). Replace it, or "
            f"correct the annotations. Formats: {', '.join(FORMATS)}."
        ) from error


def _refuse(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {image.width} x {image.height} pixels; more than {MAX_PIXELS:,} are refused. "
            "Shrink the picture."
        )
    if image.mode in ("F", "I"):
        raise ImageError(
            f"{name}: float or 32-bit pixels (mode {image.mode}) have no known range. "
            "Convert the picture to 8 or 16 bits."
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        high_byte = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")
