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
    """A frozen vision tower and a language model that reads its tokens."""

    @property
    def name(self) -> str:
        """The job's name of the model."""

    @property
    def model(self) -> nn.Module:
        """The whole model in eval mode; no parameter asks for a gradient.

        LoRA is injected in place, and every method below then runs through it.
        """

    @property
    def preprocess(self) -> Callable[[Any], Tensor]:
        """PIL image -> (3, H, W), as the checkpoint was trained."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""

    @property
    def num_image_tokens(self) -> int:
        """Image tokens M of an image."""

    @property
    def image_token_width(self) -> int:
        """Their width D."""

    @property
    def max_prompt_tokens(self) -> int:
        """Most tokens of a prompt, its frame included."""

    @property
    def max_answer_tokens(self) -> int:
        """Most tokens of an answer, its frame included."""

    @property
    def lora_scope(self) -> str:
        """Regular expression of whole names: the modules that LoRA may adapt.

        It matches every such module of the language model and none of the vision tower.
        """

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of architecture and weights as loaded."""

    @property
    def preprocess_fingerprint(self) -> str:
        """Hex SHA-256 of the preprocessing values."""

    @property
    def tokenizer_fingerprint(self) -> str:
        """Hex SHA-256 of the tokenizer."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, its frame included."""

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
