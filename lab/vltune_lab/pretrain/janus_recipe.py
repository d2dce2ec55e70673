"""The recipe of janus-compact, stage by stage."""

from dataclasses import dataclass

from vltune.config import ConfigError


@dataclass(frozen=True)
class TokenizerRecipe:
    """Of the pixel tokenizer.

    Attributes:
        seed: Of weights and data.
        steps: Optimiser steps.
        batch_size: Images a step.
        learning_rate: Peak of AdamW; linear warm-up, then cosine to zero.
        plain_steps: First steps, without quantisation.
        pixel_shuffle: The class sees blocks of this side as channels (`janus_pixels`).
        norm_groups: Groups of every GroupNorm; transformers' 32 is instance norm at 32 channels.
        codebook_decay: Of the moving averages.
        commitment: Weight of the distance between a latent and its code.
        restart_every: Steps between restarts of dead codes.
        restarts_until: Step from which no code is restarted any more.
    """

    seed: int = 2026
    steps: int = 3000
    batch_size: int = 16
    learning_rate: float = 2e-3
    warmup_steps: int = 30
    plain_steps: int = 300
    pixel_shuffle: int = 8
    norm_groups: int = 8
    codebook_decay: float = 0.97
    commitment: float = 0.1
    restart_every: int = 10
    restarts_until: int = 2400
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or not 0 < self.learning_rate < 1:
            raise ConfigError("pretrain: needs steps >= 1, batch_size >= 2, 0 < learning_rate < 1")
        if self.norm_groups < 1 or not 0 < self.codebook_decay < 1:
            raise ConfigError("pretrain: needs norm_groups >= 1, 0 < codebook_decay < 1")
