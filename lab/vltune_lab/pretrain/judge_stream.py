"""Batches for judge-compact: pictures of prompts and of the world, and where each object is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vltune.backbones.center_detector import STRIDE
from vltune.geneval_prompts import TAGS
from vltune_lab.pretrain.judge_recipe import JudgeRecipe
from vltune_lab.pretrain.stream import StepStream
from vltune_lab.scenes.geneval_prompts import FIRST_CLASSES, draw_prompt
from vltune_lab.scenes.geneval_scenes import PromptPainter
from vltune_lab.scenes.library import Library
from vltune_lab.scenes.plan import plan_scene, scene_rng
from vltune_lab.scenes.questions import COLOURS
from vltune_lab.scenes.render import Scene, SceneObject, render_scene
from vltune_lab.scenes.world import Split, load_priors

TILE = 16
"""Side of the tiles that are shuffled, pixels."""
OWN = 0.5
"""A cell belongs to an object where its heat is at least this."""


class JudgeBatch(NamedTuple):
    """One batch; G cells a side.

    Attributes:
        images: (B, 3, H, W), uint8.
        heat: 1 in the cell of an object's middle, falling around it, (B, G, G), fp32.
        classes: Class of the object that a cell belongs to, -1 for none, (B, G, G), int64.
        colours: Its colour, index into `COLOURS`, (B, G, G), int64.
        boxes: As `DetectorOutput.boxes`, (B, 4, G, G), fp32.
    """

    images: Tensor
    heat: Tensor
    classes: Tensor
    colours: Tensor
    boxes: Tensor


class JudgeStream(StepStream):
    """Batches of judge-compact.

    Args:
        library: Sprites of the recipe's styles.
        recipe: Shares of what.
    """

    def __init__(self, library: Library, recipe: JudgeRecipe) -> None:
        super().__init__(
            library,
            seed=recipe.seed,
            batch_size=recipe.batch_size,
            image_size=recipe.image_size,
        )
        self.recipe = recipe
        self.painter = PromptPainter(library, size=recipe.image_size)
        self.world = Split(
            "judge", 0, recipe.styles, dict.fromkeys(load_priors().scenes, 1.0), drawings="all"
        )

    def batch(self, step: int) -> JudgeBatch:
        """Draw batch number `step`."""
        images, scenes = [], []
        for index in range(self.batch_size):
            rng = scene_rng(self.seed, "judge", step * self.batch_size + index)
            scene = self._scene(rng)
            draw, image, objects = rng.random(), scene.image, scene.objects
            if draw < self.recipe.shuffled_share:
                image, objects = shuffle_tiles(image, rng), ()
            elif draw < self.recipe.shuffled_share + self.recipe.degraded_share:
                image = degrade(image, rng)
            images.append(image)
            scenes.append(objects)
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        return JudgeBatch(stacked, *locate(self.library.classnames, scenes, self.image_size))

    def _scene(self, rng: np.random.Generator) -> Scene:
        if rng.random() < self.recipe.world_share:
            plan = plan_scene(self.library, self.world, rng, 0.0, mix_styles=rng.random() < 0.5)
            return render_scene(self.library, plan, self.image_size, rng, is_held_out=False)
        is_first = rng.random() < self.recipe.first_share
        names = FIRST_CLASSES if is_first else self.library.classnames
        while True:
            prompt = draw_prompt(TAGS[int(rng.integers(len(TAGS)))], names, rng)
            if self.painter.styles_for(prompt, self.recipe.styles):
                return self.painter.draw(prompt, rng, styles=self.recipe.styles)


def locate(
    classnames: Sequence[str], scenes: Sequence[Sequence[SceneObject]], size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Targets of some scenes: heat, classes, colours and boxes of `JudgeBatch`.

    Args:
        classnames: Of the detector.
        scenes: Objects of each image.
        size: Side of the images in pixels.
    """
    index_of = {name: index for index, name in enumerate(classnames)}
    B, G = len(scenes), size // STRIDE
    heat = np.zeros((B, G, G), dtype=np.float32)
    classes = np.full((B, G, G), -1, dtype=np.int64)
    colours = np.zeros((B, G, G), dtype=np.int64)
    boxes = np.zeros((B, 4, G, G), dtype=np.float32)
    cells = np.arange(G, dtype=np.float32)
    for row, objects in enumerate(scenes):
        for item in objects:
            x, y, width, height = (value / STRIDE for value in item.box)
            middle_x, middle_y = x + width / 2, y + height / 2
            column, line = min(G - 1, int(middle_x)), min(G - 1, int(middle_y))
            across = np.exp(-(((cells - column) / max(0.6, width / 7)) ** 2) / 2)
            down = np.exp(-(((cells - line) / max(0.6, height / 7)) ** 2) / 2)
            own = down[:, None] * across[None]
            owned = (own > heat[row]) & (own >= OWN)
            heat[row] = np.maximum(heat[row], own)
            classes[row][owned] = index_of[item.classname]
            colours[row][owned] = COLOURS.index(item.colour)
            boxes[row, 0][owned] = (middle_x - cells - 0.5)[None].repeat(G, 0)[owned]
            boxes[row, 1][owned] = (middle_y - cells - 0.5)[:, None].repeat(G, 1)[owned]
            boxes[row, 2][owned] = np.log(width)
            boxes[row, 3][owned] = np.log(height)
    return tuple(torch.from_numpy(item) for item in (heat, classes, colours, boxes))


def degrade(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Lose detail, as a small decoder does: fewer pixels and back, or a JPEG-like grain."""
    size = image.shape[0]
    fewer = int(size * rng.uniform(0.4, 0.9))
    picture = Image.fromarray(image).resize((fewer, fewer), Image.Resampling.BOX)
    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    noise = rng.normal(0, rng.uniform(0, 12), (size, size, 1))
    return np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)


def shuffle_tiles(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Put the tiles of a picture in another order."""
    side = image.shape[0] // TILE
    tiles = image.reshape(side, TILE, side, TILE, 3).transpose(0, 2, 1, 3, 4)
    tiles = tiles.reshape(side * side, TILE, TILE, 3)[rng.permutation(side * side)]
    tiles = tiles.reshape(side, side, TILE, TILE, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(tiles.reshape(image.shape))
