"""What a method needs of a vision-language backbone, whatever its architecture.

The image side is frozen: its tokens are computed once per image and kept. Everything else starts
from kept image tokens, so that no image passes the vision tower twice.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from vltune.backbones.checkpoint import BackboneError

__all__ = ["BackboneError", "TextTooLongError", "VisionLanguageBackbone"]


class TextTooLongError(ValueError):
    """A prompt or an answer has more tokens than the model has positions."""


class VisionLanguageBackbone(Protocol):
    """A frozen vision tower and a language model that reads its tokens.

    Attributes:
        name: The job's name of the model.
        model: The whole model in eval mode; no parameter asks for a gradient. LoRA is injected in
            place, and every method below then runs through it.
        preprocess: PIL image -> (3, H, W), as the checkpoint was trained.
        image_size: (H, W) in pixels.
        num_image_tokens: Image tokens M of an image.
        image_token_width: Their width D.
        max_prompt_tokens: Most tokens of a prompt, its frame included.
        max_answer_tokens: Most tokens of an answer, its frame included.
        lora_scope: Regular expression that matches the whole name of every module of the language
            model that LoRA may adapt, and none of the vision tower.
        fingerprint: Hex SHA-256 of architecture and weights as loaded.
        preprocess_fingerprint: Hex SHA-256 of the preprocessing values.
        tokenizer_fingerprint: Hex SHA-256 of the tokenizer.
    """

    name: str
    model: nn.Module
    preprocess: Callable[[Any], Tensor]
    image_size: tuple[int, int]
    num_image_tokens: int
    image_token_width: int
    max_prompt_tokens: int
    max_answer_tokens: int
    lora_scope: str
    fingerprint: str
    preprocess_fingerprint: str
    tokenizer_fingerprint: str

    @property
    def device(self) -> torch.device:
        """Where the model runs."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Frozen image tokens (B, M, D), fp32, of preprocessed images (B, 3, H, W)."""

    def loss(
        self,
        image_tokens: Tensor,
        prompts: Sequence[str],
        answers: Sequence[str],
        *,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> Tensor:
        """Negative log-likelihood of each answer's tokens in nats, (B,); differentiable."""

    def log_likelihood(
        self, image_tokens: Tensor, prompts: Sequence[str], answers: Sequence[str]
    ) -> Tensor:
        """Log-likelihood of each whole answer in nats, (B,); differentiable."""

    def answer(self, image_tokens: Tensor, prompts: Sequence[str], *, max_tokens: int) -> list[str]:
        """Answers by greedy decoding, without special tokens or outer blanks."""
