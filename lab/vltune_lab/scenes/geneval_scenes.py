"""True pictures of GenEval prompts: few, large objects in the places and colours asked for.

What a generator learns from, and what the judge is measured on: its score on these is the most that
a generated image can be expected to reach.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vltune.geneval_prompts import GenevalPrompt
from vltune_lab.scenes.library import Library, Sprite
from vltune_lab.scenes.plan import PlannedObject, allowed_drawings
from vltune_lab.scenes.render import (
    Pixels,
    Scene,
    SceneObject,
    composite,
    draw_background,
    position_name,
    stamp_of,
)
from vltune_lab.scenes.tint import tint_sprite
from vltune_lab.scenes.world import load_priors

SIZES = {1: (0.6, 0.85), 2: (0.38, 0.47), 3: (0.34, 0.43), 4: (0.34, 0.43)}
"""Objects -> longest side as a share of the image side."""
LAYOUTS = {
    1: ((0.5, 0.5),),
    3: ((0.26, 0.28), (0.74, 0.28), (0.5, 0.74)),
    4: ((0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)),
}
"""Objects -> centres, shares of the side; two are placed by their relation."""
NEAR, FAR = 0.25, 0.75
JITTER = {1: 0.05, 2: 0.03, 3: 0.04, 4: 0.03}
ACROSS = 0.1
"""Two objects may be this far off the middle of the other axis."""
LIGHT_APART = 45.0
"""A plain background differs from every object's brightness by this much, in [0, 255]."""
STEP = 20.0
"""At variety 0 a plain background has one of a few greys, this far apart."""
LUMA = np.array([0.3, 0.59, 0.11], dtype=np.float32)


class PromptPainter:
    """Draws scenes that show what a prompt asks for, and nothing else.

    Args:
        library: With sprites of the styles that are drawn.
        size: Side of the images in pixels.
        plain: Share of images on a plain background; the others show one of the world's.
        variety: How far sizes, places, angles and light may be from the usual: 1, or less for a
            generator that still learns its first prompts; at 0 a drawing has one size and place,
            and a plain background one of eleven greys.
    """

    def __init__(
        self, library: Library, *, size: int = 64, plain: float = 0.5, variety: float = 1.0
    ) -> None:
        self.library = library
        self.size = size
        self.plain = plain
        self.variety = variety
        self._tinted: dict[tuple[str, str, int, str], Sprite] = {}

    def styles_for(self, prompt: GenevalPrompt, styles: Sequence[str]) -> list[str]:
        """Those of `styles` that can draw every class of the prompt."""
        wanted = {item.classname for item in prompt.include}
        return [
            style
            for style in styles
            if all((style, name) in self.library.sprites for name in wanted)
        ]

    def draw(
        self,
        prompt: GenevalPrompt,
        rng: np.random.Generator,
        *,
        styles: Sequence[str],
        drawings: Literal["train", "held_out", "all"] = "all",
        is_held_out: bool = False,
    ) -> Scene:
        """Draw one true picture.

        Args:
            prompt: At most four objects, of classes that one of the styles has.
            rng: The picture's own stream.
            styles: One of them is chosen.
            drawings: As in `Split`.
            is_held_out: Use the panoramas of the test splits.

        Raises:
            ValueError: No style can draw the prompt, or it asks for too many objects.
        """
        count = sum(item.count for item in prompt.include)
        if count not in SIZES:
            raise ValueError(f"{prompt.prompt!r} asks for {count} objects; at most {max(SIZES)}")
        able = self.styles_for(prompt, styles)
        if not able:
            raise ValueError(f"none of {sorted(styles)} can draw {prompt.prompt!r}")
        style = able[int(rng.integers(len(able)))]
        wanted = [item for item in prompt.include for _ in range(item.count)]
        planned = [
            self._plan(style, item.classname, item.color, SIZES[count], drawings, rng)
            for item in wanted
        ]
        canvas, place = self._background(planned, rng, is_held_out=is_held_out)
        owner = np.full((self.size, self.size), -1, dtype=np.int8)
        places = _centres(prompt, count, rng, self.variety)
        boxes = [
            _draw(canvas, owner, index, item, centre)
            for index, (item, centre) in enumerate(zip(planned, places, strict=True))
        ]
        objects = []
        for index, (item, (box, area)) in enumerate(zip(planned, boxes, strict=True)):
            shown = int(np.count_nonzero(owner == index))
            objects.append(
                SceneObject(
                    classname=item.sprite.classname,
                    box=box,
                    colour=item.colour,
                    position=position_name(box, self.size),
                    visible=shown / max(1, area),
                    area=shown,
                )
            )
        return Scene(_finish(canvas, rng, self.variety), place, style, tuple(objects), owner, place)

    def _plan(
        self,
        style: str,
        classname: str,
        color: str | None,
        sizes: tuple[float, float],
        drawings: Literal["train", "held_out", "all"],
        rng: np.random.Generator,
    ) -> PlannedObject:
        group = allowed_drawings(self.library.sprites[(style, classname)], drawings)
        sprite = group[int(rng.integers(len(group)))]
        draws = rng.random(5)
        if color is not None:
            sprite = self._in_colour(sprite, color)
        return PlannedObject(
            sprite=sprite,
            size=float(sizes[0] + (sizes[1] - sizes[0]) * (0.5 + self.variety * (draws[0] - 0.5))),
            angle=float(draws[1] * 24 - 12) if draws[2] < 0.3 * self.variety else 0.0,
            is_flipped=bool(draws[3] < 0.5),
            gain=np.full(3, 1 + self.variety * (0.1 * draws[4] - 0.05), dtype=np.float32),
            offset=np.zeros(3, dtype=np.float32),
        )

    def _in_colour(self, sprite: Sprite, color: str) -> Sprite:
        key = (sprite.style, sprite.classname, sprite.index, color)
        if key not in self._tinted:
            self._tinted[key] = tint_sprite(sprite, color)
        return self._tinted[key]

    def _background(
        self, planned: list[PlannedObject], rng: np.random.Generator, *, is_held_out: bool
    ) -> tuple[Pixels, str]:
        """A background and the scene type that it shows, empty for a plain one."""
        if rng.random() >= self.plain:
            scenes = sorted(load_priors().scenes)
            scene = scenes[int(rng.integers(len(scenes)))]
            return draw_background(self.library, scene, self.size, rng, is_held_out=is_held_out)
        lights = [float(item.sprite.mean_colour @ LUMA) for item in planned]
        tried = rng.uniform(40, 240, 24)
        if self.variety < 1:
            step = STEP * (1 - self.variety)
            tried = step * np.round(tried / step)
        far = [grey for grey in tried if all(abs(grey - own) >= LIGHT_APART for own in lights)]
        grey = far[0] if far else tried[0]
        colour = np.clip(grey + self.variety * rng.uniform(-14, 14, 3), 0, 255).astype(np.float32)
        low = 1 - self.variety * (1 - rng.uniform(0.88, 1.0))
        slope = np.linspace(1, low, self.size, dtype=np.float32)
        canvas = np.broadcast_to(colour[:, None, None], (3, self.size, self.size))
        return canvas * slope[None, :, None], ""


def _centres(
    prompt: GenevalPrompt, count: int, rng: np.random.Generator, variety: float
) -> list[tuple[float, float]]:
    """Where the objects' middles are, (x, y) as shares of the side, in the prompt's order."""
    spread = variety * JITTER[count]
    if count != 2:
        places = np.array(LAYOUTS[count])
        if rng.random() < 0.5:
            places[:, 1] = 1 - places[:, 1]
        return [(float(x), float(y)) for x, y in places + rng.uniform(-spread, spread, (count, 2))]
    relations = [item.position[0] for item in prompt.include if item.position]
    relation = relations[0] if relations else None
    if relation is None:
        relation = ("left of", "right of", "above", "below")[
            int(rng.choice(4, p=(0.3, 0.3, 0.2, 0.2)))
        ]
    # The second object of the prompt stands in the relation to the first.
    low_first = relation in ("right of", "below")
    along = np.array([NEAR, FAR] if low_first else [FAR, NEAR]) + rng.uniform(-spread, spread, 2)
    across = 0.5 + variety * rng.uniform(-ACROSS, ACROSS, 2)
    pairs = zip(along, across, strict=True)
    if relation in ("left of", "right of"):
        return [(float(a), float(c)) for a, c in pairs]
    return [(float(c), float(a)) for a, c in pairs]


def _draw(
    canvas: Pixels,
    owner: NDArray[np.int8],
    index: int,
    planned: PlannedObject,
    centre: tuple[float, float],
) -> tuple[tuple[int, int, int, int], int]:
    """Draw one object in place; return its box (x, y, width, height) and its pixels."""
    size = owner.shape[0]
    stamp, mask = stamp_of(planned, size)
    height, width = mask.shape
    x, y = (
        min(max(0, round(middle * size - extent / 2)), size - extent)
        for middle, extent in zip(centre, (width, height), strict=True)
    )
    composite(canvas[:, y : y + height, x : x + width], stamp)
    owner[y : y + height, x : x + width][mask] = index
    return (x, y, width, height), int(np.count_nonzero(mask))


def _finish(canvas: Pixels, rng: np.random.Generator, variety: float) -> NDArray[np.uint8]:
    """A gentle camera: what is asked for by colour must stay that colour."""
    canvas = canvas * (1 + variety * (0.12 * rng.random() - 0.06))
    canvas += variety * rng.uniform(-4, 4, 3).astype(np.float32)[:, None, None]
    return np.clip(canvas, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()
