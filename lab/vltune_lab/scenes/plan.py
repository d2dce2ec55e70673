"""What a scene holds, before any pixel: scene type, classes with co-occurrence, sizes, colours."""

import zlib
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vltune_lab.scenes.library import Library, Sprite
from vltune_lab.scenes.world import Split, load_priors

OBJECT_COUNTS = (0.10, 0.24, 0.28, 0.20, 0.12, 0.06)
"""Probability of 1, 2, ... 6 objects."""
REPEAT_PROBABILITY = 0.22
"""A further object repeats a class that is there already, so that counts can be learnt."""
SMALL = frozenset(
    "knife spoon scissors toothbrush apple orange banana carrot donut cup computer_mouse "
    "cell_phone frisbee sports_ball wine_glass bottle book clock handbag bird "
    "keyboard".replace("_", " ").split()
) | {"computer mouse", "cell phone", "sports ball", "wine glass"}
LARGE = frozenset(
    {
        "bus",
        "train",
        "truck",
        "elephant",
        "giraffe",
        "airplane",
        "bed",
        "couch",
        "boat",
        "car",
        "horse",
    }
)


def _cumulative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    total = weights.cumsum()
    return total / total[-1]


_CUMULATIVE_COUNTS = _cumulative(np.array(OBJECT_COUNTS))


@dataclass(frozen=True)
class PlannedObject:
    """One object to draw.

    Attributes:
        sprite: What is drawn.
        size: Longest side as a share of the image side.
        angle: Rotation in degrees.
        is_flipped: Mirrored left to right.
        gain: Colour jitter, factor on each of RGB, (3,).
        offset: Colour jitter, added to each of RGB in [0, 255], (3,).
    """

    sprite: Sprite
    size: float
    angle: float
    is_flipped: bool
    gain: NDArray[np.float32]
    offset: NDArray[np.float32]

    @property
    def colour(self) -> str:
        """Name of the jittered sprite's mean colour."""
        return colour_name(self.sprite.mean_colour * self.gain + self.offset)


@dataclass(frozen=True)
class ScenePlan:
    """One image to draw; objects in drawing order, the first farthest back."""

    scene: str
    style: str
    objects: tuple[PlannedObject, ...]


def scene_rng(seed: int, split_name: str, index: int) -> np.random.Generator:
    """One stream per (seed, split, image): any image can be drawn alone."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(split_name.encode()), index]))


def plan_scene(
    library: Library,
    split: Split,
    rng: np.random.Generator,
    spurious_strength: float,
    *,
    mix_styles: bool = False,
) -> ScenePlan:
    """Draw a scene's content.

    Args:
        library: Sprites by style and class.
        split: Scene mix, styles, spurious pairs, held-out or not.
        rng: The image's own stream.
        spurious_strength: Share of images with A to which B is added.
        mix_styles: Take each object's style anew (used for pre-training only).
    """
    scenes = sorted(split.scenes)
    mix = np.array([split.scenes[name] for name in scenes], dtype=np.float64)
    scene = scenes[rng.choice(len(scenes), p=mix / mix.sum())]
    style = split.styles[rng.integers(len(split.styles))]
    classes = library.classes_of(style)
    names = _draw_classes(classes, scene, rng)
    for first, second in split.spurious:
        if (
            first in names
            and second not in names
            and second in classes
            and rng.random() < spurious_strength
        ):
            names.insert(0, second)
    objects = []
    for name in names:
        own_style = split.styles[rng.integers(len(split.styles))] if mix_styles else style
        group = library.sprites.get((own_style, name)) or library.sprites[(style, name)]
        objects.append(_plan_object(allowed_drawings(group, split.drawings), rng))
    return ScenePlan(scene, style, tuple(objects))


def _draw_classes(classes: tuple[str, ...], scene: str, rng: np.random.Generator) -> list[str]:
    cumulative = _cumulative_weights(scene, classes)
    count = 1 + int(_CUMULATIVE_COUNTS.searchsorted(rng.random(), side="right"))
    names: list[str] = []
    for _ in range(count):
        if names and rng.random() < REPEAT_PROBABILITY:
            names.append(names[int(rng.integers(len(names)))])
        else:
            names.append(classes[int(cumulative.searchsorted(rng.random(), side="right"))])
    return names


@cache
def _cumulative_weights(scene: str, classes: tuple[str, ...]) -> NDArray[np.float64]:
    """`Generator.choice` adds the weights up anew at each draw, which costs more than the draw."""
    return _cumulative(load_priors().weights(scene, classes))


def allowed_drawings(
    group: tuple[Sprite, ...], drawings: Literal["train", "held_out", "all"]
) -> tuple[Sprite, ...]:
    """Hold out the class's last drawing for the test splits where it has several.

    Several means three: of two drawings one is often a face and the other a whole animal, and a
    site that never saw a cat's face labelled has no way to learn it.
    """
    if drawings == "all" or len(group) < 3:
        return group
    return group[-1:] if drawings == "held_out" else group[:-1]


def _plan_object(group: tuple[Sprite, ...], rng: np.random.Generator) -> PlannedObject:
    sprite = group[int(rng.integers(len(group)))]
    low, high = (
        (0.20, 0.38)
        if sprite.classname in SMALL
        else (0.32, 0.62)
        if sprite.classname in LARGE
        else (0.25, 0.5)
    )
    draws = rng.random(12)
    has_jitter = draws[0] < 0.35
    gain = (0.8 + 0.35 * draws[1:4] if has_jitter else np.ones(3)) * (0.85 + 0.3 * draws[4])
    offset = (draws[5:8] * 30 - 15) if has_jitter else np.zeros(3)
    return PlannedObject(
        sprite=sprite,
        size=float(low + (high - low) * draws[8]),
        angle=float(draws[9] * 40 - 20) if draws[10] < 0.5 else 0.0,
        is_flipped=bool(draws[11] < 0.5),
        gain=gain.astype(np.float32),
        offset=offset.astype(np.float32),
    )


def colour_name(rgb: NDArray[np.float32]) -> str:
    """Name a colour by value, saturation and hue.

    Args:
        rgb: (3,), in [0, 255]; clipped.
    """
    red, green, blue = (float(min(max(value, 0.0), 255.0)) / 255 for value in rgb)
    high, low = max(red, green, blue), min(red, green, blue)
    chroma = high - low
    if high < 0.2:
        return "black"
    if chroma / high < 0.18:
        return "white" if high > 0.75 else "grey"
    if high == red:
        hue = 60 * (((green - blue) / chroma) % 6)
    elif high == green:
        hue = 60 * ((blue - red) / chroma + 2)
    else:
        hue = 60 * ((red - green) / chroma + 4)
    return _hue_name(hue, high)


def _hue_name(hue: float, value: float) -> str:
    """Name a hue in degrees; dark orange is brown."""
    bounds = (
        (15, "red"),
        (45, "orange"),
        (70, "yellow"),
        (165, "green"),
        (255, "blue"),
        (300, "purple"),
        (345, "pink"),
    )
    name = next((name for bound, name in bounds if hue < bound), "red")
    return "brown" if name == "orange" and value < 0.65 else name
