"""What a Janus checkpoint does not say itself: `vltune_janus.json` beside config.json.

Absent for published checkpoints, whose values are the defaults here. A compact model has other
GroupNorms (see `janus_pixels`) and no need of a chat's frame around prompts.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from vltune.backbones.checkpoint import BackboneError
from vltune.backbones.janus_pixels import PUBLISHED_GROUPS
from vltune.config import ConfigError, from_mapping, read_mapping

OWN_CONFIG = "vltune_janus.json"
PLACE = "{prompt}"


@dataclass(frozen=True)
class JanusSettings:
    """Frames of texts, and how to draw; the defaults are Janus-Pro's chat template.

    Attributes:
        norm_groups: Groups of the pixel tokenizer's GroupNorms.
        pixel_shuffle: Side of the blocks of pixels that the pixel tokenizer sees as channels; 1 in
            published models, which see pixels.
        before_image: Text between the start token and the image.
        after_image: Text behind the image; `{prompt}` stands for the prompt.
        before_answer: Put before an answer.
        drawing: Text of a prompt for an image, between the start token and the image's start.
        guidance: Default scale of classifier-free guidance, > 1.
        temperature: Of sampling codes, > 0.
    """

    norm_groups: int = PUBLISHED_GROUPS
    pixel_shuffle: int = 1
    before_image: str = DEFAULT_SYSTEM_PROMPT + "<|User|>: "
    after_image: str = "\n{prompt}\n\n<|Assistant|>:"
    before_answer: str = " "
    drawing: str = "<|User|>: {prompt}\n\n<|Assistant|>:"
    guidance: float = 5.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if min(self.norm_groups, self.pixel_shuffle) < 1:
            raise ConfigError(
                f"norm_groups and pixel_shuffle must be at least 1, got {self.norm_groups} and "
                f"{self.pixel_shuffle}"
            )
        if not 1 < self.guidance < math.inf or not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"needs guidance > 1 and temperature > 0, got {self.guidance} and "
                f"{self.temperature}"
            )
        for name in ("after_image", "drawing"):
            if getattr(self, name).count(PLACE) != 1:
                raise ConfigError(f"{name} needs {PLACE} once, got {getattr(self, name)!r}")


def read_settings(folder: Path) -> JanusSettings:
    """Settings of a checkpoint; those of the published models where it has no such file.

    Raises:
        BackboneError: The file is damaged, or a key or value is unknown.
    """
    path = folder / OWN_CONFIG
    if not path.is_file():
        return JanusSettings()
    try:
        return from_mapping(JanusSettings, read_mapping(path), str(path))
    except ConfigError as error:
        raise BackboneError(str(error)) from error
