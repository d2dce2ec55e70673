"""Batches for drawing: true pictures of GenEval-style prompts, in tiers of vocabulary."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vltune_lab.pretrain.stream import StepStream
from vltune_lab.scenes.geneval_prompts import FIRST_CLASSES, draw_prompt
from vltune_lab.scenes.geneval_scenes import PromptPainter
from vltune_lab.scenes.library import PRETRAINING_STYLES, Library
from vltune_lab.scenes.plan import scene_rng

TRIES = 20


@dataclass(frozen=True)
class PromptBatch:
    """One batch.

    Attributes:
        images: (B, 3, H, W), uint8.
        prompts: B texts.
    """

    images: Tensor
    prompts: list[str]


@dataclass(frozen=True)
class PromptMix:
    """What is asked for, and how it is drawn.

    Attributes:
        tags: Weight of each family of prompts.
        first_steps: Steps with the first twelve classes only; from then on half of all prompts
            are of all classes.
        variety: As in `PromptPainter`.
        plain: Share of plain backgrounds.
    """

    tags: dict[str, float]
    first_steps: int
    variety: float
    plain: float


class PromptStream(StepStream):
    """Batches of prompts and pictures.

    Args:
        library: Sprites of the pre-training styles.
        seed: Of the run.
        batch_size: Images a batch.
        image_size: Pixels.
        mix: Of prompts and pictures.
    """

    def __init__(
        self, library: Library, *, seed: int, batch_size: int, image_size: int, mix: PromptMix
    ) -> None:
        super().__init__(library, seed=seed, batch_size=batch_size, image_size=image_size)
        self.mix = mix
        self.painter = PromptPainter(library, size=image_size, plain=mix.plain, variety=mix.variety)

    def batch(self, step: int) -> PromptBatch:
        """Draw batch number `step`."""
        images, prompts = [], []
        tags = list(self.mix.tags)
        share = np.array(list(self.mix.tags.values()))
        for index in range(self.batch_size):
            rng = scene_rng(self.seed, "prompts", step * self.batch_size + index)
            is_first = step < self.mix.first_steps or rng.random() < 0.5
            classes = FIRST_CLASSES if is_first else self.library.classnames
            prompt = None
            for _ in range(TRIES):
                tag = tags[int(rng.choice(len(tags), p=share / share.sum()))]
                prompt = draw_prompt(tag, classes, rng)
                # Not every style draws every class.
                if self.painter.styles_for(prompt, PRETRAINING_STYLES):
                    break
            scene = self.painter.draw(prompt, rng, styles=PRETRAINING_STYLES)
            images.append(scene.image)
            prompts.append(prompt.prompt)
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        return PromptBatch(pixels, prompts)
