"""From plan to pixels: composite sprites on a background and keep what is true of the picture."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vltune_lab.scenes.library import LEVELS, Library
from vltune_lab.scenes.plan import PlannedObject, ScenePlan
from vltune_lab.scenes.procedural import procedural_background

MIN_VISIBLE = 0.4
"""A drawn object keeps at least this share of its pixels visible; else a new place is sought."""
PLACEMENT_TRIES = 6
MATCHED_BACKGROUND = 0.75
"""Share of images whose background shows their scene type; the others take any."""

HELD_OUT_PANORAMAS = frozenset({"hall", "lobby", "night", "sunrise", "venice", "workshop"})
"""Shown in test splits only, whatever the scene type; each scene type with several has one."""

Pixels = NDArray[np.float32]
"""Planes first, (3 or 4, H, W): numpy is several times slower along a last axis of three."""


@dataclass(frozen=True)
class SceneObject:
    """What is true of one drawn object.

    Attributes:
        classname: Label.
        box: (x, y, width, height) of its pixels in the image, pixels.
        colour: Name of its mean colour.
        position: Where its centre lies, such as "top left".
        visible: Share of its pixels that nothing covers.
        area: Its visible pixels.
    """

    classname: str
    box: tuple[int, int, int, int]
    colour: str
    position: str
    visible: float
    area: int


@dataclass(frozen=True)
class Scene:
    """A drawn scene and the truth about it.

    Attributes:
        image: uint8, (H, W, 3).
        scene: Scene type of the label distribution (the background may show another).
        style: Drawing style.
        objects: In drawing order.
        owner: Index into `objects` of what each pixel shows, -1 for background, int8, (H, W).
        place: Scene type that the background shows; empty where nobody recorded it.
    """

    image: NDArray[np.uint8]
    scene: str
    style: str
    objects: tuple[SceneObject, ...]
    owner: NDArray[np.int8]
    place: str = ""


def render_scene(
    library: Library, plan: ScenePlan, size: int, rng: np.random.Generator, *, is_held_out: bool
) -> Scene:
    """Draw a plan at `size` pixels; an object without a visible place is left out, not labelled."""
    canvas, place = draw_background(library, plan.scene, size, rng, is_held_out=is_held_out)
    owner = np.full((size, size), -1, dtype=np.int8)
    areas: list[int] = []
    drawn: list[tuple[PlannedObject, tuple[int, int, int, int]]] = []
    for planned in plan.objects:
        stamp, mask = stamp_of(planned, size)
        corner = _find_place(mask, owner, areas, size, rng)
        if corner is None:
            continue
        x, y = corner
        height, width = mask.shape
        composite(canvas[:, y : y + height, x : x + width], stamp)
        owner[y : y + height, x : x + width][mask] = len(areas)
        areas.append(int(np.count_nonzero(mask)))
        drawn.append((planned, (x, y, width, height)))
    visible = _pixels_of(owner, len(areas))
    objects = tuple(
        SceneObject(
            classname=planned.sprite.classname,
            box=box,
            colour=planned.colour,
            position=position_name(box, size),
            visible=float(visible[index] / areas[index]),
            area=int(visible[index]),
        )
        for index, (planned, box) in enumerate(drawn)
    )
    return Scene(_finish(canvas, rng), plan.scene, plan.style, objects, owner, place)


def draw_background(
    library: Library, scene: str, size: int, rng: np.random.Generator, *, is_held_out: bool
) -> tuple[Pixels, str]:
    """The background and the scene type that it shows, which may be another than asked for."""
    names = sorted(set(library.backgrounds) | {scene})
    if rng.random() >= MATCHED_BACKGROUND:
        scene = names[int(rng.integers(len(names)))]
    if scene not in library.backgrounds:
        return _planes(procedural_background(scene, size, rng)), scene
    panoramas = panoramas_of(library, scene, is_held_out=is_held_out)
    crops = library.backgrounds[scene][panoramas[int(rng.integers(len(panoramas)))]]
    crop = crops[int(rng.integers(len(crops)))]
    side = int(crop.width * (0.7 + 0.3 * rng.random()))
    left, top = (int(rng.integers(crop.width - side + 1)) for _ in range(2))
    view = crop.resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _planes(np.asarray(view)), scene


def panoramas_of(library: Library, scene: str, *, is_held_out: bool) -> list[str]:
    """Panoramas for training or testing; a scene type with one sort shows it in both."""
    panoramas = sorted(library.backgrounds[scene])
    chosen = [name for name in panoramas if (name in HELD_OUT_PANORAMAS) == is_held_out]
    return chosen or panoramas


def _planes(image: NDArray[np.uint8]) -> Pixels:
    return image.transpose(2, 0, 1).astype(np.float32, order="C")


def stamp_of(planned: PlannedObject, size: int) -> tuple[Pixels, NDArray[np.bool_]]:
    """Scale, rotate, flip, tint a sprite.

    Returns:
        (4, h, w), RGB premultiplied [0, 255] and alpha [0, 1]; and the object's pixels (h, w).
    """
    longest = max(6, round(planned.size * size))
    level = next((index for index in range(len(LEVELS) - 1, -1, -1) if LEVELS[index] >= longest), 0)
    source = planned.sprite.levels[level]
    scale = longest / max(source.size)
    radians = math.radians(planned.angle)
    cos, sin = math.cos(radians), math.sin(radians)
    width = max(
        3, min(size, math.ceil(scale * (source.width * abs(cos) + source.height * abs(sin))))
    )
    height = max(
        3, min(size, math.ceil(scale * (source.width * abs(sin) + source.height * abs(cos))))
    )
    mirror = -1.0 if planned.is_flipped else 1.0
    a, b = mirror * cos / scale, mirror * sin / scale
    d, e = -sin / scale, cos / scale
    c = source.width / 2 - a * width / 2 - b * height / 2
    f = source.height / 2 - d * width / 2 - e * height / 2
    turned = source.transform(
        (width, height), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )
    raw, mask = _trim(np.asarray(turned))
    stamp = _planes(raw)
    stamp[3] /= 255.0
    colours = stamp[:3]
    colours *= planned.gain[:, None, None]
    if planned.offset.any():
        colours += stamp[3] * planned.offset[:, None, None]
    np.clip(colours, 0, 255, out=colours)
    return stamp, mask


def _trim(raw: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Cut borders that are more transparent than not: the frame becomes the object's box."""
    mask = raw[..., 3] > 127
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return raw, mask
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return raw[box], mask[box]


def _find_place(
    mask: NDArray[np.bool_],
    owner: NDArray[np.int8],
    areas: list[int],
    size: int,
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    """Find a corner where every object already drawn keeps `MIN_VISIBLE` of its pixels."""
    height, width = mask.shape
    if not areas:
        return int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
    current = _pixels_of(owner, len(areas))
    total = np.array(areas)
    # An object drawn later hides earlier ones; half of the images prefer little overlap.
    limit = max(MIN_VISIBLE, float(rng.random()))
    for attempt in range(PLACEMENT_TRIES):
        x, y = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
        covered = owner[y : y + height, x : x + width][mask]
        hidden = _pixels_of(covered, len(areas))
        bound = limit if attempt < PLACEMENT_TRIES // 2 else MIN_VISIBLE
        if ((current - hidden) >= bound * total).all() or (
            bound > MIN_VISIBLE and not hidden.any()
        ):
            return x, y
    return None


def _pixels_of(owner: NDArray[np.int8], count: int) -> NDArray[np.int64]:
    """How many pixels show each of `count` objects; -1 is background."""
    return np.bincount(owner.ravel() + 1, minlength=count + 1)[1:]


def composite(target: Pixels, stamp: Pixels) -> None:
    """Premultiplied over: target <- target * (1 - alpha) + stamp, in place."""
    target *= 1.0 - stamp[3]
    target += stamp[:3]


def _finish(canvas: Pixels, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Camera: exposure, tint, noise, sometimes blur."""
    draws = rng.random(5)
    canvas *= 0.8 + 0.4 * draws[0]
    canvas += (draws[1:4] * 24 - 12).astype(np.float32)[:, None, None]
    planes = np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
    image = planes.transpose(1, 2, 0).copy()
    if draws[4] < 0.12:
        image = np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(0.6)))
    return image


def position_name(box: tuple[int, int, int, int], size: int) -> str:
    """Name the third of the image in which the box's centre lies."""
    x, y = (box[0] + box[2] / 2) / size, (box[1] + box[3] / 2) / size
    vertical = "top" if y < 1 / 3 else "bottom" if y > 2 / 3 else ""
    horizontal = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    return " ".join(part for part in (vertical, horizontal) if part) or "centre"
