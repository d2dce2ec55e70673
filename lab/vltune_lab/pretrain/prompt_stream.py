"""Batches for drawing: true pictures of GenEval-style prompts, in tiers of vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vltune.geneval_prompts import GenevalPrompt
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
        for index in range(self.batch_size):
            rng = scene_rng(self.seed, "prompts", step * self.batch_size + index)
            is_first = step < self.mix.first_steps or rng.random() < 0.5
            classes = FIRST_CLASSES if is_first else self.library.classnames
            prompt = drawable_prompt(self.painter, self.mix.tags, rng, classes)
            scene = self.painter.draw(prompt, rng, styles=PRETRAINING_STYLES)
            images.append(scene.image)
            prompts.append(prompt.prompt)
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        return PromptBatch(pixels, prompts)


def drawable_prompt(
    painter: PromptPainter,
    tags: Mapping[str, float],
    rng: np.random.Generator,
    classnames: tuple[str, ...] = (),
) -> GenevalPrompt:
    """Draw a prompt that one of the pre-training styles can show.

    Args:
        painter: Knows the styles' classes.
        tags: Weight of each family.
        rng: Of the prompt.
        classnames: Vocabulary; empty: every class.

    Raises:
        ValueError: No style shows any of the prompts that were drawn.
    """
    names = list(tags)
    share = np.array([tags[name] for name in names])
    for _ in range(TRIES):
        tag = names[int(rng.choice(len(names), p=share / share.sum()))]
        prompt = draw_prompt(tag, classnames or painter.library.classnames, rng)
        if painter.styles_for(prompt, PRETRAINING_STYLES):
            return prompt
    raise ValueError(f"no style shows {prompt.prompt!r}, nor any of {TRIES - 1} prompts before it")
