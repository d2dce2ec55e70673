"""What a method needs of a unified backbone: it understands images and generates them.

Understanding is `VisionLanguageBackbone`. Generation likewise starts from something frozen that is
computed once per image and kept: the *targets* that the trained part learns to produce from text
(codes of a pixel tokenizer, or features of a vision tower). A decoder turns them back into pixels.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vltune.backbones.vision_language import VisionLanguageBackbone


@runtime_checkable
class UnifiedBackbone(VisionLanguageBackbone, Protocol):
    """A vision-language backbone that also draws.

    `lora_scope` matches the modules of the language model and of the generation part; never a
    vision tower, a pixel tokenizer or a decoder.
    """

    @property
    def generation_scope(self) -> str:
        """Regular expression of whole names: modules of `lora_scope` that only generation uses."""

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one image's targets: (T,) codes or (T, D) features."""

    @property
    def target_dtype(self) -> torch.dtype:
        """int64 for codes, float32 for features."""

    def encode_targets(self, pixels: Tensor) -> Tensor:
        """Frozen targets (B, *target_shape) of preprocessed images (B, 3, H, W)."""

    def generation_loss(
        self, targets: Tensor, prompts: Sequence[str], *, generator: torch.Generator
    ) -> Tensor:
        """Loss of drawing each image from its prompt, (B,); differentiable.

        Nats per code for codes, mean squared error of the flow for features. What is random in it
        (prompts left out for guidance, times, noise) comes from `generator` alone.
        """

    def generate_images(
        self, prompts: Sequence[str], *, generator: torch.Generator, guidance: float | None = None
    ) -> Tensor:
        """Images (B, 3, H, W), fp32 in [0, 1].

        Args:
            prompts: B texts.
            generator: Of everything random; the same state draws the same images.
            guidance: Classifier-free guidance scale > 1; None: the backbone's own default.
        """
