"""The recipe of janus-compact, stage by stage."""

from dataclasses import dataclass, field

from vltune.config import ConfigError
from vltune_lab.pretrain.florence2_recipe import KindWeights


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
    steps: int = 6000
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


@dataclass(frozen=True)
class DecoderRecipe:
    """Of the pixel tokenizer's decoder, trained on for the codes as they are.

    Attributes:
        seed: Of the data.
        steps: Optimiser steps.
        batch_size: Images a step.
        learning_rate: Peak of AdamW; linear warm-up, then cosine to zero.
        pixel_shuffle: As the tokenizer's.
    """

    seed: int = 2029
    steps: int = 3000
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    pixel_shuffle: int = 8
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or not 0 < self.learning_rate < 1:
            raise ConfigError("pretrain: needs steps >= 1, batch_size >= 2, 0 < learning_rate < 1")


@dataclass(frozen=True)
class VisionWeights:
    """Weights of stage two's terms: two of distillation, five of the grounding head."""

    stem: float = 1.0
    trunk: float = 1.0
    patches: float = 0.5
    covers: float = 0.3
    centres: float = 0.6
    colours: float = 0.3
    scenes: float = 0.3


@dataclass(frozen=True)
class VisionRecipe:
    """Of the vision tower and its aligner.

    Attributes:
        seed: Of weights and data.
        steps: Optimiser steps.
        batch_size: Images a step.
        learning_rate: Peak of AdamW; linear warm-up, then cosine to zero.
        losses: Weights of the terms.
    """

    seed: int = 2027
    steps: int = 3000
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup_steps: int = 100
    losses: VisionWeights = field(default_factory=VisionWeights)
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or not 0 < self.learning_rate < 1:
            raise ConfigError("pretrain: needs steps >= 1, batch_size >= 2, 0 < learning_rate < 1")


@dataclass(frozen=True)
class TagWeights:
    """How often each family of prompts is drawn."""

    single_object: float = 3.0
    two_object: float = 1.5
    counting: float = 1.5
    colors: float = 1.5
    position: float = 1.5
    color_attr: float = 1.0


@dataclass(frozen=True)
class JanusRecipe:
    """Of the language model and the drawing parts.

    Attributes:
        seed: Of weights and data.
        steps: Optimiser steps.
        drawing_batch: Pictures a step.
        reading_from: Step from which images are read too; before it the vision tower need not be
            there.
        reading_batch: Images read a step.
        questions: Questions an image; the image passes the language model once for all of them.
        first_steps: Steps with the first twelve classes only.
        variety: Of the pictures, see `PromptPainter`.
        plain: Share of pictures with a plain background.
        learning_rate: Peak of AdamW; linear warm-up, then cosine to zero.
        reading_weight: Of the questions' loss; a picture's is 1 (nats per code).
        tags: Weights of the families of prompts.
        kinds: Weights of the kinds of questions.
    """

    seed: int = 2028
    steps: int = 16000
    drawing_batch: int = 24
    reading_from: int = 3000
    reading_batch: int = 16
    questions: int = 5
    first_steps: int = 3000
    variety: float = 0.0
    plain: float = 0.9
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup_steps: int = 100
    reading_weight: float = 1.0
    tags: TagWeights = field(default_factory=TagWeights)
    kinds: KindWeights = field(default_factory=KindWeights)
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or min(self.drawing_batch, self.reading_batch, self.questions) < 1:
            raise ConfigError("pretrain: needs steps, batches and questions >= 1")
        if not 0 < self.learning_rate < 1 or min(self.reading_from, self.first_steps) < 0:
            raise ConfigError(
                "pretrain: needs 0 < learning_rate < 1, reading_from >= 0, first_steps >= 0"
            )
