"""The colour of what is in a box, for judges whose detector does not tell colours.

Two ways: the named colour nearest to the middle of the box, without a model; and a zero-shot CLIP,
as GenEval does it (Ghosh et al. 2023, released evaluation). Deviation of the latter: the crop shows
the whole box, because a detector gives no mask to hide the background with.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from vltune.backbones.clip import ClipBackbone
from vltune.geneval import Box
from vltune.geneval_prompts import COLORS

PALETTE: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((215, 35, 35), (150, 25, 30)),
    "orange": ((245, 140, 30),),
    "yellow": ((240, 215, 40),),
    "green": ((45, 165, 65), (60, 105, 50), (140, 200, 90)),
    "blue": ((45, 95, 215), (40, 55, 120), (120, 175, 230)),
    "purple": ((135, 60, 195),),
    "pink": ((245, 125, 190), (245, 180, 200)),
    "brown": ((120, 72, 35), (160, 110, 70)),
    "black": ((28, 28, 30),),
    "white": ((238, 238, 238),),
}
"""Shades that stand for each name, sRGB; grey has none, because no prompt asks for it."""
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}")
PLAIN_TEMPLATE = "a photo of a {color} object"
MIDDLE = 0.6
"""Share of a box's sides that is looked at: its corners show the background."""


class ColourNamer(Protocol):
    """Names colours."""

    def name(self, image: Tensor, boxes: Sequence[Box], classnames: Sequence[str]) -> list[str]:
        """Colour of the thing in each box.

        Args:
            image: (3, H, W), fp32 in [0, 1].
            boxes: In its pixels.
            classnames: What is in them.
        """


class NearestColour:
    """The name nearest to most pixels in the middle of the box, by distance in CIELAB."""

    def __init__(self) -> None:
        shades = [(name, shade) for name in COLORS for shade in PALETTE[name]]
        self._names = [name for name, _ in shades]
        self._lab = lab_of(torch.tensor([shade for _, shade in shades]) / 255)

    def name(self, image: Tensor, boxes: Sequence[Box], classnames: Sequence[str]) -> list[str]:
        """`ColourNamer.name`; the classes play no part."""
        found = []
        for box in boxes:
            pixels = _crop(image, box, MIDDLE).flatten(1).T  # (M, 3)
            nearest = torch.cdist(lab_of(pixels.cpu()), self._lab).argmin(dim=1)
            votes = dict.fromkeys(COLORS, 0)
            for index, count in enumerate(nearest.bincount(minlength=len(self._names)).tolist()):
                votes[self._names[index]] += count
            found.append(max(votes, key=lambda name: votes[name]))
        return found


class ClipColour:
    """The colour whose sentence CLIP finds most like the crop.

    Args:
        clip: Frozen.
    """

    def __init__(self, clip: ClipBackbone) -> None:
        self._clip = clip
        self._texts: dict[str, Tensor] = {}

    def name(self, image: Tensor, boxes: Sequence[Box], classnames: Sequence[str]) -> list[str]:
        """`ColourNamer.name`."""
        if not boxes:
            return []
        crops = [_picture(_crop(image, box, 1.0)) for box in boxes]
        batch = torch.stack([self._clip.preprocess(crop) for crop in crops])
        features = self._clip.encode_images(batch).image_features
        return [
            COLORS[int((self._of(name) @ row).argmax())]
            for row, name in zip(features, classnames, strict=True)
        ]

    def _of(self, name: str) -> Tensor:
        """One text feature for each colour, (10, D)."""
        if name not in self._texts:
            texts = [
                template.format(color=color, name=name)
                for color in COLORS
                for template in (*TEMPLATES, PLAIN_TEMPLATE)
            ]
            features = self._clip.encode_texts(texts)
            means = features.view(len(COLORS), -1, features.shape[1]).mean(dim=1)
            self._texts[name] = torch.nn.functional.normalize(means, dim=1)
        return self._texts[name]


def lab_of(colours: Tensor) -> Tensor:
    """CIELAB (D65) of sRGB colours in [0, 1]; (..., 3) to (..., 3)."""
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / torch.tensor([0.9505, 1.0, 1.089])
    curve = torch.where(xyz > 0.008856, xyz.clamp(min=1e-9) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = curve.unbind(dim=-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def _crop(image: Tensor, box: Box, share: float) -> Tensor:
    """The middle of a box, at least one pixel."""
    sides = []
    for axis, size in ((0, image.shape[2]), (1, image.shape[1])):
        low, high = box[axis], box[axis + 2]
        cut = (high - low) * (1 - share) / 2
        first = min(max(0, int(low + cut)), size - 1)
        sides.append(slice(first, min(max(first + 1, round(high - cut)), size)))
    return image[:, sides[1], sides[0]]


def _picture(image: Tensor) -> Image.Image:
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
