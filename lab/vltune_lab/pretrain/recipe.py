"""The recipe of clip-compact: what a run is made of, and its learning rate at each step."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vltune.config import ConfigError
from vltune_lab.pretrain.objectives import Objective

EXTENDABLE = frozenset({"steps", "checkpoint_every"})
"""What a continued run may change: a longer schedule is recorded, all else is another recipe."""


@dataclass(frozen=True)
class PretrainConfig:
    """Recipe of clip-compact.

    Attributes:
        seed: Of weights and data.
        steps: Optimiser steps.
        batch_size: Images a step.
        learning_rate: Peak of AdamW; linear warm-up, then cosine to zero.
        text_warmup_steps: Steps of the text tower alone, before any image.
        text_warmup_rate: Their learning rate.
        max_colour_regions: Objects used in the colour term of a step.
        objective: Weights of the loss terms.
    """

    seed: int = 2026
    steps: int = 7000
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 300
    text_warmup_steps: int = 200
    text_warmup_rate: float = 1e-3
    max_colour_regions: int = 48
    objective: Objective = field(default_factory=Objective)
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or not 0 < self.learning_rate < 1:
            raise ConfigError("pretrain: needs steps >= 1, batch_size >= 2, 0 < learning_rate < 1")


class Schedule(Protocol):
    """What the learning rate depends on."""

    @property
    def steps(self) -> int:
        """Steps of the run."""

    @property
    def warmup_steps(self) -> int:
        """Steps of the linear rise."""

    @property
    def learning_rate(self) -> float:
        """The peak."""


def learning_rate_at(step: int, config: Schedule) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + float(np.cos(np.pi * min(1.0, progress))))
