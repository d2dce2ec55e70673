"""Janus (arXiv 2410.13848, 2501.17811) by transformers' own class, from what is kept of images.

    backbone = load_janus(BackboneConfig("janus-compact", "assets/janus-compact"))
    tokens = backbone.encode_images(pixels)                        # (B, M, D), once per image
    loss = backbone.loss(tokens, ["Is there a dog?"], ["yes"])     # (B,)
    codes = backbone.encode_targets(pixels)                        # (B, T), once per image
    loss = backbone.generation_loss(codes, ["a photo of a dog"], generator=generator)
    images = backbone.generate_images(["a photo of a dog"], generator=generator)

One language model reads image tokens and writes answers or codes of images. The vision tower and
its aligner, whose output are the image tokens, and the pixel tokenizer are frozen: LoRA touches
none of them, so that both of an image's readings may be kept. Equal to transformers' own forward
and generate on pixels. No code of a checkpoint is ever run.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vltune.backbones.checkpoint import BackboneConfig
from vltune.backbones.devices import place_images
from vltune.backbones.janus_checkpoint import (
    JanusParts,
    SquarePicture,
    fingerprint_of,
    load_parts,
    preprocess_of,
)
from vltune.backbones.janus_drawing import (
    PROMPT_DROP,
    code_losses,
    draw_codes,
)
from vltune.backbones.janus_pixels import decode_codes, encode_codes
from vltune.backbones.janus_reading import answer_losses, prompt_rows, write_answers
from vltune.backbones.janus_settings import JanusSettings
from vltune.backbones.janus_texts import JanusTexts
from vltune.backbones.vision_language import TextTooLongError
from vltune.files import sha256_json

__all__ = ["ATTENTION_SCOPE", "GENERATION_SCOPE", "LORA_SCOPE", "JanusBackbone", "load_janus"]

logger = logging.getLogger(__name__)

GENERATION_SCOPE = r"model\.generation_head\.(proj_out|vision_head)"
_LAYER = r"model\.language_model\.layers\.\d+\."
ATTENTION_SCOPE = rf"{_LAYER}self_attn\.(q|k|v|o)_proj|{GENERATION_SCOPE}"
"""Without the language model's MLP. Bare names would hit the vision tower too."""
LORA_SCOPE = rf"{_LAYER}(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)|{GENERATION_SCOPE}"


@dataclass(frozen=True, eq=False)
class JanusBackbone:
    """A frozen Janus; attributes as in `vision_language` and `unified`.

    Attributes:
        texts: The checkpoint's tokenizer and the frames of texts.
        prompt_drop: Share of prompts left out by `generation_loss`.
    """

    name: str
    model: nn.Module = field(repr=False)
    texts: JanusTexts = field(repr=False)
    preprocess: SquarePicture
    image_size: tuple[int, int]
    num_image_tokens: int
    image_token_width: int
    target_shape: tuple[int, ...]
    fingerprint: str
    preprocess_fingerprint: str
    lora_scope: str = LORA_SCOPE
    generation_scope: str = GENERATION_SCOPE
    target_dtype: torch.dtype = torch.int64
    prompt_drop: float = PROMPT_DROP

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self.texts.tokenizer

    @property
    def settings(self) -> JanusSettings:
        """Frames of texts, guidance, and the pixel tokenizer's layout."""
        return self.texts.settings

    @property
    def max_prompt_tokens(self) -> int:
        """Most tokens of a prompt, its frame included, its image left out."""
        return self.texts.max_prompt_tokens

    @property
    def max_answer_tokens(self) -> int:
        """Most tokens of an answer, its end included."""
        return self.texts.max_answer_tokens

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        device: torch.device = self._janus.device
        return device

    @functools.cached_property
    def tokenizer_fingerprint(self) -> str:
        """Hex SHA-256 of vocabulary, merges and special tokens."""
        return sha256_json(self.tokenizer.backend_tokenizer.to_str())

    @property
    def _janus(self) -> Any:
        """The model without nn.Module's type, which knows none of its parts."""
        return self.model

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Frozen image tokens (B, M, D), fp32, of preprocessed images (B, 3, H, W).

        Raises:
            ValueError: The images have another shape (both are printed).
        """
        with torch.no_grad():
            tokens: Tensor = self._janus.model.get_image_features(
                self._checked(pixels)
            ).pooler_output
        return tokens.float()

    def encode_targets(self, pixels: Tensor) -> Tensor:
        """Codes (B, T), int64, of preprocessed images (B, 3, H, W). Raises as `encode_images`."""
        signed = self.preprocess.to_signed(self._checked(pixels))
        return encode_codes(self._janus.model.vqmodel, signed, self.settings.pixel_shuffle)

    def _checked(self, pixels: Tensor) -> Tensor:
        return place_images(pixels, self.image_size, self.device)

    def loss(
        self,
        image_tokens: Tensor,
        prompts: Sequence[str],
        answers: Sequence[str],
        *,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> Tensor:
        """Negative log-likelihood of each answer's tokens, the end token included.

        Args:
            image_tokens: (B, M, D), from `encode_images`.
            prompts: B texts.
            answers: B texts.
            reduction: Mean or sum over an answer's tokens; never over the batch.

        Returns:
            (B,), nats; differentiable.

        Raises:
            TextTooLongError: A prompt or an answer does not fit the model's positions.
            ValueError: The counts of image tokens, prompts and answers disagree.
        """
        if len(answers) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(answers)} answers")
        rows = prompt_rows(self._janus, self.texts, image_tokens, prompts)
        said = [torch.tensor(self.texts.answer(text), device=self.device) for text in answers]
        parts = answer_losses(self._janus, rows, said)
        return torch.stack([part.sum() if reduction == "sum" else part.mean() for part in parts])

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
            max_tokens: Most tokens to write, the end token included.

        Raises:
            TextTooLongError: A prompt does not fit, or max_tokens exceeds the model's positions.
        """
        if not 1 <= max_tokens <= self.max_answer_tokens:
            raise TextTooLongError(
                f"{self.name}: max_tokens must be in 1..{self.max_answer_tokens}, got {max_tokens}"
            )
        with torch.no_grad():
            rows = prompt_rows(self._janus, self.texts, image_tokens, prompts)
        return write_answers(self._janus, self.texts, rows, max_tokens)

    def generation_loss(
        self, targets: Tensor, prompts: Sequence[str], *, generator: torch.Generator
    ) -> Tensor:
        """Mean cross entropy of an image's codes given its prompt, nats per code, (B,).

        Some prompts (`prompt_drop`) are left out, so that guidance has something to compare with.

        Args:
            targets: (B, T), from `encode_targets`.
            prompts: B texts.
            generator: Decides which prompts are left out.

        Raises:
            TextTooLongError: A prompt does not fit.
            ValueError: Targets of another shape.
        """
        if targets.ndim != 2 or targets.shape != (len(prompts), *self.target_shape):
            raise ValueError(
                f"targets: expected {(len(prompts), *self.target_shape)} for {len(prompts)} "
                f"prompts, got {tuple(targets.shape)}"
            )
        rows = self.texts.drawing(prompts)
        draws = torch.rand(len(rows), generator=generator, device=generator.device).tolist()
        kept = [
            self.texts.blank(ids) if draw < self.prompt_drop else ids
            for ids, draw in zip(rows, draws, strict=True)
        ]
        kept = [ids.to(self.device) for ids in kept]
        return code_losses(self._janus, targets.to(self.device), kept).mean(dim=1)

    def generate_images(
        self, prompts: Sequence[str], *, generator: torch.Generator, guidance: float | None = None
    ) -> Tensor:
        """Images (B, 3, H, W), fp32 in [0, 1]. See `unified.UnifiedBackbone`.

        Raises:
            TextTooLongError: A prompt does not fit.
            ValueError: guidance is not above 1.
        """
        scale = self.settings.guidance if guidance is None else guidance
        if not scale > 1:
            raise ValueError(f"guidance must be above 1, got {scale}")
        rows = self.texts.drawing(prompts)
        codes = draw_codes(
            self._janus,
            [ids.to(self.device) for ids in rows],
            [self.texts.blank(ids).to(self.device) for ids in rows],
            num_codes=self.target_shape[0],
            guidance=scale,
            temperature=self.settings.temperature,
            generator=generator,
        )
        return decode_codes(self._janus.model.vqmodel, codes, self.settings.pixel_shuffle)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text framed as a prompt, the image left out; an answer's frame is less."""
        return [self.texts.count(text) for text in texts]


def load_janus(config: BackboneConfig, device: torch.device | str = "cpu") -> JanusBackbone:
    """Load a converted Janus or Janus-Pro, or janus-compact, in fp32.

    Args:
        config: `weights` is a local folder of transformers, or a hub id such as
            `deepseek-community/Janus-Pro-1B`; `sha256` is that of model.safetensors.
        device: Where the model will run.

    Raises:
        BackboneError: The checkpoint is missing, damaged, an original one of DeepSeek that needs
            its own code, or of another architecture.
    """
    parts = load_parts(config)
    parts.model.eval().requires_grad_(False).to(device)
    logger.info("loaded %s from %s", config.model, config.weights)
    return backbone_of(config.model, parts)


def backbone_of(name: str, parts: JanusParts) -> JanusBackbone:
    """Wrap a loaded model, which stays the caller's: its mode and gradients are not touched."""
    preprocess, values = preprocess_of(parts)
    model = parts.model
    side = preprocess.size
    with torch.no_grad():
        pixels = torch.zeros(1, 3, side, side, device=model.device, dtype=model.dtype)
        tokens = model.model.get_image_features(pixels).pooler_output
    rows, columns = model.model.vqmodel.quantize.quant_state_dims
    # Prompt, image and answer share the positions; a drawing's codes take the answer's place.
    free = int(model.config.text_config.max_position_embeddings) - max(
        tokens.shape[1], rows * columns
    )
    return JanusBackbone(
        name=name,
        model=model,
        texts=JanusTexts(name, parts.tokenizer, parts.settings, free // 2, free - free // 2),
        preprocess=preprocess,
        image_size=(side, side),
        num_image_tokens=tokens.shape[1],
        image_token_width=tokens.shape[2],
        target_shape=(rows * columns,),
        fingerprint=fingerprint_of(parts),
        preprocess_fingerprint=sha256_json(values),
    )
