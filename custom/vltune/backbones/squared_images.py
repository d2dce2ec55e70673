"""Preprocessing that squashes a picture to a square, as dictionaries that can be hashed."""

from collections.abc import Callable, Sequence
from typing import Any

from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor


def squash_to(
    size: int, mean: Sequence[float], std: Sequence[float], interpolation: str
) -> tuple[Callable[[Any], Tensor], dict[str, Any]]:
    """PIL image -> (3, size, size), and the values that say how.

    Args:
        size: Height and width in pixels.
        mean: By channel, of pixels in [0, 1].
        std: By channel.
        interpolation: `bicubic` or `bilinear`.
    """
    values: dict[str, Any] = {
        "size": [size, size],
        "mode": "RGB",
        "mean": list(mean),
        "std": list(std),
        "interpolation": interpolation,
        "resize_mode": "squash",
        "fill_color": 0,
    }
    config = PreprocessCfg(**{**values, "size": (size, size)})
    return image_transform_v2(config, is_train=False), values
