"""The recipe of judge-compact."""

from dataclasses import dataclass

from vltune.config import ConfigError
from vltune_lab.scenes.library import FEDERATION_STYLES, PRETRAINING_STYLES


@dataclass(frozen=True)
class JudgeRecipe:
    """Recipe of judge-compact.

    Attributes:
        seed: Of weights and data.
        steps: Optimiser steps.
        batch_size: Images a step.
        learning_rate: Peak of AdamW; linear warm-up, then cosine to zero.
        image_size: Pixels.
        widths: Channels of the detector.
        styles: Drawing styles; a judge must know whatever a generator may learn to draw.
        first_share: Share of the prompts that take their classes from the first tier.
        world_share: Share of images that are ordinary scenes of the world.
        degraded_share: Share that is blurred and noisy, as generated images are.
        shuffled_share: Share whose tiles are shuffled: parts of things are no things.
        class_weight: Of the class term; middles, colours and boxes weigh 1.
    """

    seed: int = 2026
    steps: int = 3800
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.03
    warmup_steps: int = 200
    image_size: int = 64
    widths: tuple[int, ...] = (16, 40, 80, 144)
    styles: tuple[str, ...] = PRETRAINING_STYLES + FEDERATION_STYLES
    first_share: float = 0.4
    world_share: float = 0.12
    degraded_share: float = 0.4
    shuffled_share: float = 0.04
    class_weight: float = 1.0
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or not 0 < self.learning_rate < 1:
            raise ConfigError("pretrain: needs steps >= 1, batch_size >= 2, 0 < learning_rate < 1")
        for name in ("first_share", "world_share", "degraded_share", "shuffled_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"pretrain: {name} is {getattr(self, name)}; expected 0 to 1")
