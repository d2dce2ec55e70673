"""BLIP3-o as a unified backbone: answers about images and draws them, from kept features.

    backbone = load_blip3o(BackboneConfig("blip3o-compact", "assets/blip3o-compact"))
    tokens = backbone.encode_images(pixels)                          # (B, M, D), once per image
    loss = backbone.loss(tokens, ["Is there a dog?"], ["yes"])       # (B,)
    targets = backbone.encode_targets(pixels)                        # (B, M, D), standardised
    loss = backbone.generation_loss(targets, ["a dog"], generator=generator)   # (B,)
    images = backbone.generate_images(["a dog"], generator=generator)          # (1, 3, H, W)

Architecture and sources: `blip3o_model`, `flow_transformer`, `flow_matching`.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from vltune.backbones.blip3o_checkpoint import fingerprint_of, read_folder
from vltune.backbones.blip3o_config import TowerSettings
from vltune.backbones.blip3o_drawing import (
    EMPTY_PROMPT,
    drop_prompts,
    sample_features,
    velocity_loss,
)
from vltune.backbones.blip3o_model import GENERATION_SCOPE, LORA_SCOPE, Blip3oModel
from vltune.backbones.blip3o_reading import answer_losses, write_answers
from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.backbones.framed_text import count_framed, framed_ids
from vltune.backbones.squared_images import squash_to
from vltune.backbones.vision_language import TextTooLongError
from vltune.files import sha256_json

__all__ = ["GENERATION_SCOPE", "LORA_SCOPE", "Blip3oBackbone", "load_blip3o"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Blip3oBackbone:
    """A frozen BLIP3-o; attributes as in `unified.UnifiedBackbone`.

    Attributes:
        tokenizer: Frames every text as `<s> text </s>`.
    """

    name: str
    model: Blip3oModel = field(repr=False)
    tokenizer: Any = field(repr=False)
    preprocess: Callable[[Any], Tensor]
    preprocess_fingerprint: str
    fingerprint: str
    lora_scope: str = LORA_SCOPE
    generation_scope: str = GENERATION_SCOPE

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.image_queries.device

    @functools.cached_property
    def tokenizer_fingerprint(self) -> str:
        """Hex SHA-256 of vocabulary, merges and special tokens."""
        return sha256_json(self.tokenizer.backend_tokenizer.to_str())

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return (self._vision.image_size, self._vision.image_size)

    @property
    def num_image_tokens(self) -> int:
        """Patch tokens M of an image."""
        return self._vision.num_tokens

    @property
    def image_token_width(self) -> int:
        """Their width D."""
        return self._vision.width

    @property
    def max_prompt_tokens(self) -> int:
        """Most tokens of a prompt, its frame included."""
        return self.model.settings.max_prompt_tokens

    @property
    def max_answer_tokens(self) -> int:
        """Most tokens of an answer, its frame included."""
        return self.model.settings.max_answer_tokens

    @property
    def target_shape(self) -> tuple[int, ...]:
        """(M, D): the targets are the tower's features."""
        return (self._vision.num_tokens, self._vision.width)

    @property
    def target_dtype(self) -> torch.dtype:
        """float32: features."""
        return torch.float32

    @property
    def _vision(self) -> TowerSettings:
        return self.model.settings.vision

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Frozen features (B, M, D), fp32, of preprocessed images (B, 3, H, W).

        Raises:
            ValueError: The images have another shape (both are printed).
        """
        with torch.no_grad():
            tokens: Tensor = self.model.vision_tower(pixels.to(self.device))
        return tokens.float()

    def encode_targets(self, pixels: Tensor) -> Tensor:
        """The same features standardised by channel, (B, M, D), fp32; what the flow draws."""
        return self.targets_of(self.encode_images(pixels))

    def targets_of(self, image_tokens: Tensor) -> Tensor:
        """Targets of kept image tokens (B, M, D): no image is encoded twice."""
        return self.model.standardise(image_tokens.to(self.device))

    def loss(
        self,
        image_tokens: Tensor,
        prompts: Sequence[str],
        answers: Sequence[str],
        *,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> Tensor:
        """Negative log-likelihood of each answer's tokens and its end, (B,), nats.

        Args:
            image_tokens: (B, M, D), from `encode_images`.
            prompts: B texts.
            answers: B texts.
            reduction: Mean or sum over an answer's tokens; never over the batch.

        Raises:
            TextTooLongError: A prompt or an answer does not fit.
            ValueError: The counts of image tokens, prompts and answers disagree.
        """
        if len(answers) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(answers)} answers")
        prompt_ids = self._prompt_ids(prompts)
        answer_ids = framed_ids(
            self.tokenizer, answers, room=self.max_answer_tokens, what="answer", name=self.name
        )
        ends = [ids[1:] for ids in answer_ids]
        tokens = self._checked(image_tokens, len(prompts))
        return answer_losses(self.model, tokens, prompt_ids, ends, reduction)

    def log_likelihood(
        self, image_tokens: Tensor, prompts: Sequence[str], answers: Sequence[str]
    ) -> Tensor:
        """Log-likelihood of each whole answer in nats, (B,); differentiable. See `loss`."""
        return -self.loss(image_tokens, prompts, answers, reduction="sum")

    def answer(self, image_tokens: Tensor, prompts: Sequence[str], *, max_tokens: int) -> list[str]:
        """Answers by greedy decoding from kept image tokens.

        Args:
            image_tokens: (B, M, D).
            prompts: B texts.
            max_tokens: Most tokens to write, the end included.

        Raises:
            TextTooLongError: A prompt does not fit, or max_tokens exceeds the model's positions.
        """
        if not 1 <= max_tokens <= self.max_answer_tokens:
            raise TextTooLongError(
                f"{self.name}: max_tokens must be in 1..{self.max_answer_tokens}, got {max_tokens}"
            )
        written = write_answers(
            self.model,
            self._checked(image_tokens, len(prompts)),
            self._prompt_ids(prompts),
            max_tokens=max_tokens,
            end=self.tokenizer.eos_token_id,
            pad=self.tokenizer.pad_token_id,
        )
        texts: list[str] = self.tokenizer.batch_decode(
            written, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [text.strip() for text in texts]

    def generation_loss(
        self, targets: Tensor, prompts: Sequence[str], *, generator: torch.Generator
    ) -> Tensor:
        """Mean squared error of the velocity at a random time, (B,); differentiable.

        Source: arXiv 2505.09568, Eq. 2. Which prompts are left out, times and noise come from
        `generator`, in this order.

        Args:
            targets: (B, M, D), from `encode_targets`.
            prompts: B texts.
            generator: Of the CPU or of the model's device.

        Raises:
            TextTooLongError: A prompt does not fit.
            ValueError: The targets have another shape.
        """
        expected = (len(prompts), *self.target_shape)
        if tuple(targets.shape) != expected:
            raise ValueError(f"targets: expected {expected}, got {tuple(targets.shape)}")
        shown = drop_prompts(prompts, self.model.settings.generation.prompt_drop, generator)
        return velocity_loss(self.model, targets.to(self.device), self._condition(shown), generator)

    def generate_images(
        self, prompts: Sequence[str], *, generator: torch.Generator, guidance: float | None = None
    ) -> Tensor:
        """Images (B, 3, H, W), fp32 in [0, 1].

        Args:
            prompts: B texts, at least one.
            generator: Of the noise; the same state draws the same images.
            guidance: Classifier-free guidance scale > 1; None: the checkpoint's.

        Raises:
            TextTooLongError: A prompt does not fit.
            ValueError: guidance <= 1, or the model has no decoder.
        """
        scale = self.model.settings.generation.guidance if guidance is None else guidance
        if not scale > 1:
            raise ValueError(f"guidance must be > 1, got {scale}")
        shape = (len(prompts), *self.target_shape)
        noise = torch.randn(shape, generator=generator, device=generator.device).to(self.device)
        with torch.no_grad():
            condition = self._condition([*prompts, EMPTY_PROMPT])
        features = sample_features(self.model, condition[:-1], condition[-1:], noise, scale)
        return self.decode_features(features)

    def decode_features(self, targets: Tensor) -> Tensor:
        """Standardised features (B, M, D) -> images (B, 3, H, W) in [0, 1]."""
        decoder = self.model.feature_decoder
        if decoder is None:
            raise ValueError(f"{self.name} has no decoder from features to pixels")
        with torch.no_grad():
            images: Tensor = decoder(targets.to(self.device))
        return images.float()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, start and end included, to be held against `max_..._tokens`."""
        return count_framed(self.tokenizer, texts)

    def _condition(self, prompts: Sequence[str]) -> Tensor:
        return self.model.query_states(self._prompt_ids(prompts))

    def _checked(self, image_tokens: Tensor, count: int) -> Tensor:
        """Image tokens of `count` prompts, on the model's device."""
        expected = (count, self.num_image_tokens, self.image_token_width)
        if tuple(image_tokens.shape) != expected:
            raise ValueError(
                f"image_tokens: expected {expected} for {count} prompts, got "
                f"{tuple(image_tokens.shape)}"
            )
        return image_tokens.to(self.model.image_queries)

    def _prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        return framed_ids(
            self.tokenizer, prompts, room=self.max_prompt_tokens, what="prompt", name=self.name
        )


def load_blip3o(config: BackboneConfig, device: torch.device | str = "cpu") -> Blip3oBackbone:
    """Load a BLIP3-o folder in fp32.

    Args:
        config: `weights` is a folder; `sha256` is that of its model.safetensors.
        device: Where the model will run.

    Raises:
        BackboneError: See `blip3o_checkpoint.read_folder`.
    """
    model, tokenizer = read_folder(config)
    logger.info("loaded %s from %s", config.model, config.weights)
    backbone = backbone_of(config.model, model, tokenizer)
    model.to(device)
    return backbone


def backbone_of(name: str, model: Blip3oModel, tokenizer: Any) -> Blip3oBackbone:
    """Wrap a model; it stays the caller's: its mode and gradients are not touched."""
    vision = model.settings.vision
    if model.language_model.device.type == "meta":
        raise BackboneError(f"{name}: is on the meta device, which has shapes but no values")
    preprocess, values = squash_to(vision.image_size, vision.mean, vision.std, vision.interpolation)
    return Blip3oBackbone(
        name=name,
        model=model,
        tokenizer=tokenizer,
        preprocess=preprocess,
        preprocess_fingerprint=sha256_json(values),
        fingerprint=fingerprint_of(model, model.settings),
    )
