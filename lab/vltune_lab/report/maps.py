"""Region maps: where on the image a label's transported mass comes from."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vltune_lab.report.markup import Markup, tag

PIXELS = 168
HEAT = (255, 106, 0)
FULL_HEAT = 0.82
DIMMED = 0.75
"""Brightness left to the image below a map, so that the colour stands out on white too."""
LEAST_PEAK = 2.0
"""A map whose strongest patch has less than this times an even share is drawn faintly, as it is."""


def peak_ratio(mass: Sequence[Sequence[float]]) -> float:
    """The strongest patch's share, as a multiple of an even spread over all patches."""
    shares = np.asarray(mass, dtype=np.float64)
    return float(shares.max() * shares.size)


def heat(mass: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Strength of the colour by patch in [0, 1]: 0 up to an even share, 1 at the peak."""
    ratio = np.asarray(mass, dtype=np.float64)
    ratio = ratio * ratio.size
    top = max(LEAST_PEAK, float(ratio.max()))
    return np.clip((ratio - 1) / (top - 1), 0, 1)


def overlay(image_png: bytes, mass: Sequence[Sequence[float]]) -> bytes:
    """PNG of the image in grey with the heat over it; one square is one patch."""
    with Image.open(io.BytesIO(image_png)) as opened:
        size = _shown_size(opened.size)
        grey = opened.convert("L").resize(size, Image.Resampling.BICUBIC)
    grey = grey.point(lambda level: round(DIMMED * level))
    strength = Image.fromarray((heat(mass) * FULL_HEAT * 255).astype(np.uint8))
    picture = Image.merge("RGB", [grey] * 3)
    picture.paste(HEAT, mask=strength.resize(size, Image.Resampling.NEAREST))
    return png_of(picture)


def enlarged(image_png: bytes) -> bytes:
    """PNG of the image at the size of the maps."""
    with Image.open(io.BytesIO(image_png)) as opened:
        picture = opened.convert("RGB")
    return png_of(picture.resize(_shown_size(picture.size), Image.Resampling.BICUBIC))


def picture_tag(png: bytes, text: str) -> Markup:
    """The image inside the page."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return tag("img", src=source, alt=text, width=PIXELS)


def _shown_size(size: tuple[int, int]) -> tuple[int, int]:
    factor = PIXELS / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def png_of(picture: Image.Image) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
