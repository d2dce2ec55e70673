"""Batches for drawing: pictures and what to say to get them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vltune_lab.pretrain.stream import StepStream, pretraining_split
from vltune_lab.scenes.captions import caption
from vltune_lab.scenes.library import Library
from vltune_lab.scenes.plan import plan_scene, scene_rng
from vltune_lab.scenes.render import render_scene

Picture = tuple[NDArray[np.uint8], str]
Painter = Callable[[np.random.Generator], Picture]
"""Random numbers -> image (H, W, 3), and a prompt that it fulfils."""

PHOTO = 0.5
"""Share of captions that begin as GenEval's prompts do."""


@dataclass(frozen=True)
class PictureBatch:
    """One batch.

    Attributes:
        images: (B, 3, H, W), uint8.
        prompts: B texts.
    """

    images: Tensor
    prompts: list[str]


def scene_painter(library: Library, image_size: int) -> Painter:
    """Scenes of the pre-training styles with their captions."""
    split = pretraining_split()

    def paint(rng: np.random.Generator) -> Picture:
        plan = plan_scene(library, split, rng, 0.0, mix_styles=bool(rng.random() < 0.5))
        scene = render_scene(library, plan, image_size, rng, is_held_out=False)
        text = caption(scene, rng)
        return scene.image, f"a photo of {text}" if rng.random() < PHOTO else text

    return paint


def mixed_painter(painters: list[tuple[float, Painter]]) -> Painter:
    """Choose one of several painters for each picture, by weight."""
    shares = np.array([weight for weight, _ in painters])
    shares = shares / shares.sum()

    def paint(rng: np.random.Generator) -> Picture:
        return painters[int(rng.choice(len(painters), p=shares))][1](rng)

    return paint


class PictureStream(StepStream):
    """Pictures of one painter.

    Args:
        library: Of the world.
        painter: What is drawn.
        seed: Of the run and stage.
        batch_size: Pictures a batch.
        image_size: Pixels.
    """

    def __init__(
        self, library: Library, painter: Painter, *, seed: int, batch_size: int, image_size: int
    ) -> None:
        super().__init__(library, seed=seed, batch_size=batch_size, image_size=image_size)
        self.painter = painter

    def batch(self, step: int) -> PictureBatch:
        """Draw batch number `step`."""
        pairs = [
            self.painter(scene_rng(self.seed, "pictures", step * self.batch_size + index))
            for index in range(self.batch_size)
        ]
        images = torch.from_numpy(np.stack([image for image, _ in pairs]))
        return PictureBatch(
            images.permute(0, 3, 1, 2).contiguous(), [prompt for _, prompt in pairs]
        )
