"""The recipe of florence2-compact."""

from dataclasses import dataclass, field

from vltune.config import ConfigError
from vltune_lab.scenes.questions import KINDS


@dataclass(frozen=True)
class KindWeights:
    """How often each kind of question is asked."""

    presence: float = 2.0
    count: float = 1.5
    colour: float = 1.0
    position: float = 1.5
    relation: float = 1.5
    place: float = 0.7
    category: float = 1.2


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms: the language model's two, then the grounding head's five."""

    questions: float = 1.0
    texts: float = 0.5
    patches: float = 0.5
    covers: float = 0.3
    centres: float = 0.6
    colours: float = 0.3
    scenes: float = 0.3


@dataclass(frozen=True)
class Florence2Recipe:
    """Recipe of florence2-compact.

    Attributes:
        seed: Of weights and data.
        steps: Optimiser steps.
        grounding_steps: The first of them train the vision tower alone.
        batch_size: Images a step.
        questions: Questions an image; the image is encoded once for all of them.
        texts: Captions, and as many phrases to copy, a step.
        learning_rate: Peak of AdamW; linear warm-up, then cosine to zero.
        language_warmup_steps: The language model's own warm-up, from `grounding_steps` on.
        language_rate: The language model's learning rate, as a multiple of the tower's.
        kinds: Weights of the kinds of questions.
        losses: Weights of the terms.
    """

    seed: int = 2026
    steps: int = 9000
    grounding_steps: int = 5500
    batch_size: int = 32
    questions: int = 3
    texts: int = 6
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup_steps: int = 200
    language_warmup_steps: int = 200
    language_rate: float = 5.0
    kinds: KindWeights = field(default_factory=KindWeights)
    losses: LossWeights = field(default_factory=LossWeights)
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or not 0 < self.learning_rate < 1:
            raise ConfigError("pretrain: needs steps >= 1, batch_size >= 2, 0 < learning_rate < 1")
        if not 0 <= self.grounding_steps <= self.steps or min(self.questions, self.texts) < 1:
            raise ConfigError(
                "pretrain: needs 0 <= grounding_steps <= steps, questions >= 1, texts >= 1"
            )
        if set(vars(self.kinds)) != set(KINDS):
            raise ConfigError(f"pretrain: kinds must be those of the world, {KINDS}")
