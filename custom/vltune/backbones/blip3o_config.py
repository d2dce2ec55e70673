"""What a BLIP3-o is made of: the contents of its config.json as frozen dataclasses."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from vltune.config import ConfigError

FORMAT = "vltune-blip3o-1"
"""Value of `format` in config.json: our own layout of a folder, see `blip3o_checkpoint`."""


@dataclass(frozen=True)
class TowerSettings:
    """The frozen vision tower.

    Attributes:
        kind: `timm` builds by name; `clip` and `siglip` are transformers' vision models.
        settings: For timm `name` and its keywords; else the vision configuration's values.
        image_size: Height and width in pixels.
        mean: Of the preprocessing, by channel.
        std: Of the preprocessing.
        num_tokens: Patches M after pooling, a square number.
        width: Their width D.
        pool: Patches in a square of pool x pool are averaged to one.
        interpolation: Of the preprocessing.
    """

    kind: Literal["timm", "clip", "siglip"]
    settings: dict[str, Any]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_tokens: int
    width: int
    pool: int = 1
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(
                f"vision: mean and std need three values, std > 0: {self.mean}, {self.std}"
            )
        if self.side**2 != self.num_tokens or min(self.num_tokens, self.width, self.pool) < 1:
            raise ConfigError(
                f"vision: num_tokens must be a square number and num_tokens, width and pool >= 1, "
                f"got {self.num_tokens}, {self.width} and {self.pool}"
            )

    @property
    def side(self) -> int:
        """Tokens a row of the grid."""
        return math.isqrt(self.num_tokens)


@dataclass(frozen=True)
class FlowSettings:
    """The flow-matching diffusion transformer.

    Attributes:
        width: Of its tokens, a multiple of num_heads.
        depth: Blocks.
        num_heads: Of every attention.
        ffn_width: Inner width of the gated feed-forward part.
        modulation_width: Width of the embedding of time and condition.
    """

    width: int
    depth: int
    num_heads: int
    ffn_width: int
    modulation_width: int

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.num_heads, self.ffn_width, self.modulation_width) < 1:
            raise ConfigError(f"flow: every size must be >= 1, got {self}")
        if self.width % self.num_heads or self.modulation_width % 2:
            raise ConfigError(
                f"flow: width {self.width} must be a multiple of num_heads {self.num_heads}, and "
                f"modulation_width {self.modulation_width} even"
            )


@dataclass(frozen=True)
class DecoderSettings:
    """The decoder from features to pixels.

    Attributes:
        channels: At the features' grid, then after each doubling; multiples of 8.
        blocks: Residual blocks at each size.
        shuffle: The last layer writes squares of shuffle x shuffle pixels.
    """

    channels: tuple[int, ...]
    blocks: int = 1
    shuffle: int = 1

    def __post_init__(self) -> None:
        if not self.channels or any(c < 8 or c % 8 for c in self.channels):
            raise ConfigError(f"decoder: channels must be multiples of 8, got {self.channels}")
        if min(self.blocks, self.shuffle) < 1:
            raise ConfigError(
                f"decoder: blocks and shuffle must be >= 1, got {self.blocks} and {self.shuffle}"
            )

    @property
    def enlargement(self) -> int:
        """Pixels a feature, in each direction."""
        enlarged: int = 2 ** (len(self.channels) - 1) * self.shuffle
        return enlarged


@dataclass(frozen=True)
class GenerationSettings:
    """How images are trained and drawn.

    Attributes:
        guidance: Default of classifier-free guidance, > 1.
        steps: Euler steps.
        prompt_drop: Share of prompts left out in training, so that there is something to guide
            away from.
    """

    guidance: float = 3.0
    steps: int = 30
    prompt_drop: float = 0.1

    def __post_init__(self) -> None:
        if not self.guidance > 1 or self.steps < 1 or not 0 < self.prompt_drop < 1:
            raise ConfigError(
                f"generation: needs guidance > 1, steps >= 1, 0 < prompt_drop < 1, got {self}"
            )


@dataclass(frozen=True)
class Blip3oSettings:
    """A BLIP3-o.

    Attributes:
        vision: The frozen tower, whose features are read and drawn.
        language: Values of transformers' Qwen2Config.
        num_queries: Learnable image queries Q after the prompt.
        flow: The diffusion transformer.
        decoder: Features to pixels; None for published shapes, whose SDXL-type decoder is not
            built here.
        max_prompt_tokens: Its frame included.
        max_answer_tokens: Its frame included.
        merge: Patches in a square of merge x merge are read as one, side by side in width.
        generation: Training and sampling.
        format: Of the folder.
    """

    vision: TowerSettings
    language: dict[str, Any]
    num_queries: int
    flow: FlowSettings
    decoder: DecoderSettings | None
    max_prompt_tokens: int
    max_answer_tokens: int
    merge: int = 1
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    format: str = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ConfigError(f"format is {self.format!r}, expected {FORMAT!r}")
        if min(self.num_queries, self.max_prompt_tokens - 1, self.max_answer_tokens - 1) < 1:
            raise ConfigError(
                "needs num_queries >= 1, max_prompt_tokens >= 2 and max_answer_tokens >= 2"
            )
        if self.merge < 1 or self.vision.side % self.merge:
            raise ConfigError(
                f"merge is {self.merge}, expected a divisor of {self.vision.side} tokens a row"
            )
        positions = int(self.language.get("max_position_embeddings", 0))
        read = self.num_read + self.max_prompt_tokens + self.max_answer_tokens
        drawn = self.max_prompt_tokens + self.num_queries
        if positions < max(read, drawn):
            raise ConfigError(
                f"language: max_position_embeddings is {positions}, but an image with the longest "
                f"prompt and answer takes {read}, and a prompt with the image queries {drawn}"
            )
        self._check_decoder()

    @property
    def num_read(self) -> int:
        """Positions that an image takes in the language model."""
        return self.vision.num_tokens // self.merge**2

    def _check_decoder(self) -> None:
        if self.decoder is None:
            return
        made = self.vision.side * self.decoder.enlargement
        if made != self.vision.image_size:
            raise ConfigError(
                f"decoder: {len(self.decoder.channels)} channels and shuffle "
                f"{self.decoder.shuffle} enlarge the grid of {self.vision.side} to {made} pixels, "
                f"expected {self.vision.image_size}"
            )
