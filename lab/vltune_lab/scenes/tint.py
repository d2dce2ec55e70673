"""Drawings in another colour: shading stays, hue and mean brightness are the named colour's."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vltune_lab.scenes.library import Sprite

TARGETS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "orange": (245, 140, 30),
    "yellow": (240, 215, 40),
    "green": (45, 165, 65),
    "blue": (45, 95, 215),
    "purple": (135, 60, 195),
    "pink": (245, 125, 190),
    "brown": (120, 72, 35),
    "black": (28, 28, 30),
    "white": (238, 238, 238),
}
"""Mean colour of a drawing of that name, well inside what `plan.colour_name` calls so."""
CONTRAST = 0.9
SHADES = (0.3, 1.5)
"""Brightness of a pixel as a factor on the target, after its own brightness."""


def tint_sprite(sprite: Sprite, color: str) -> Sprite:
    """The same drawing in another colour.

    Args:
        sprite: Any.
        color: A key of `TARGETS`.
    """
    target = np.array(TARGETS[color], dtype=np.float32)
    levels = tuple(_tint(level, target) for level in sprite.levels)
    pixels = np.asarray(levels[0], dtype=np.float32)
    opaque = pixels[..., 3] > 128
    mean = (pixels[opaque][:, :3] * 255 / pixels[opaque][:, 3:]).mean(axis=0)
    return Sprite(sprite.classname, sprite.style, sprite.index, levels, mean.astype(np.float32))


def _tint(level: Image.Image, target: NDArray[np.float32]) -> Image.Image:
    """Colour one premultiplied image so that the mean of its opaque pixels is `target`."""
    pixels = np.asarray(level, dtype=np.float32)
    alpha = pixels[..., 3]
    light = (pixels[..., :3] @ np.array([0.3, 0.59, 0.11], dtype=np.float32)) / np.maximum(alpha, 1)
    opaque = alpha > 128
    middle = light[opaque].mean() if opaque.any() else 0.5
    shade = np.clip(1 + CONTRAST * (light - middle), *SHADES)[..., None]
    colours = np.clip(shade * target, 0, 255)
    if opaque.any():
        # What was cut off at 255 is taken from or given to all pixels alike.
        colours = np.clip(colours + target - colours[opaque].mean(axis=0), 0, 255)
    content = np.concatenate([colours * alpha[..., None] / 255, alpha[..., None]], axis=-1)
    return Image.fromarray(content.round().astype(np.uint8), "RGBa")
